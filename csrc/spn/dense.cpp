// Gibbs sweeps with weights and leaves given, by the dense form of a graph. Reference: pyfast/reference/spn.py.
#include <atomic>

#include "spn/down.h"

namespace pyfast::spn {
namespace {

template <class F>
struct Parameters {
    const F *weights, *leaves;
};

// Calls each.block(mine, panels, scratch, ready, first row) for all blocks after their upward pass; `ready` are the
// rows that count: those for which float is too narrow come a second time, in double, and count then.
template <class F, class Each>
void for_rows(const Graph& g, const Program& program, const F* x, int64_t rows, Parameters<F> given, Each& each,
              int64_t work) {
    const Panels<F> panels(g, program, given.weights, given.leaves);
    const int64_t blocks = (rows + block<F> - 1) / block<F>;
    std::vector<uint8_t> weak(rows);
    std::atomic<bool> any = false;
    const bool share = parallel(work) && blocks > 1;
#pragma omp parallel if (share)
    {
        typename Panels<F>::Scratch scratch(panels);
        auto mine = each.start(panels);
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < blocks; ++i) {
            const int64_t first = i * block<F>, count = std::min<int64_t>(block<F>, rows - first);
            panels.up(x + first * g.variables, count, scratch);
            bool ready[block<F>] = {};
            for (int b = 0; b < count; ++b) {
                ready[b] = sizeof(F) == 8 || !scratch.weak[b];
                if (!ready[b]) weak[first + b] = true, any = true;
            }
            each.block(mine, panels, scratch, ready, first);
        }
#pragma omp critical
        each.finish(mine);
    }
    if constexpr (sizeof(F) == 4) {
        if (!any) return;
        const std::vector<double> weights(given.weights, given.weights + g.weights);
        const std::vector<double> leaves(given.leaves, given.leaves + g.parameters);
        std::vector<double> row(g.variables);
        const Panels<double> wide(g, program, weights.data(), leaves.data());
        typename Panels<double>::Scratch scratch(wide);
        auto mine = each.start(wide);
        for (int64_t n = 0; n < rows; ++n) {
            if (!weak[n]) continue;
            for (int64_t v = 0; v < g.variables; ++v) row[v] = double(x[n * g.variables + v]);
            wide.up(row.data(), 1, scratch);
            const bool ready[block<double>] = {true};
            each.block(mine, wide, scratch, ready, n);
        }
        each.finish(mine);
    }
}

// Statistics are gathered by each thread for itself: integers, whose sum knows no order.
template <class F>
struct Visit {
    const Graph& g;
    int64_t *weights, *leaves;
    const F* x;  // of the block: (variables, B)
    void weight(int64_t index, int64_t times) { weights[index] += times; }
    void leaf(int64_t leaf, int v, int b, int64_t times) {
        observe(g, v, leaves + g.leaf_first[leaf], x[size_t(v) * block<F> + b], times);
    }
};

struct Sweep {
    const Graph& g;
    const int64_t* times;
    uint64_t seed, what;
    int64_t first_row;
    int64_t *weight_counts, *leaf_counts;
    double* out;

    template <class F>
    struct Mine {
        std::vector<int64_t> weights, leaves;
        Visit<F> visit;
        Down<F> down;
        Mine(const Sweep& s, const Panels<F>& panels)
            : weights(s.g.weights),
              leaves(s.g.parameters),
              visit{s.g, weights.data(), leaves.data(), nullptr},
              down(panels, s.seed, s.what) {}
    };
    template <class F>
    Mine<F> start(const Panels<F>& panels) {
        return Mine<F>(*this, panels);
    }
    template <class F>
    void block(Mine<F>& mine, const Panels<F>& panels, const typename Panels<F>::Scratch& s, const bool* ready,
               int64_t first) {
        bool once[spn::block<F>];
        mine.visit.x = s.x.data();
        for (int b = 0; b < spn::block<F>; ++b) {
            if (ready[b]) out[first + b] = panels.log_value(s, b);
            const bool possible = ready[b] && out[first + b] != -INFINITY;
            once[b] = possible && times[first + b] == 1;
            if (possible && times[first + b] > 1)
                mine.down.many(s, b, first_row + first + b, times[first + b], mine.visit);
        }
        mine.down.one_each(s, once, first_row + first, mine.visit);
    }
    template <class F>
    void finish(const Mine<F>& mine) {
        for (int64_t i = 0; i < g.weights; ++i) weight_counts[i] += mine.weights[i];
        for (int64_t i = 0; i < g.parameters; ++i) leaf_counts[i] += mine.leaves[i];
    }
};

template <class F>
Parameters<F> parameters(const Graph& g, const Strided& weights, const Strided& leaves) {
    return {data<const F>(weights, "weights", {g.weights}), data<const F>(leaves, "leaves", {g.parameters})};
}

void dense_sweep(const std::vector<Strided>& graph, const Strided& X, const Strided& times, const Strided& weights,
                 const Strided& leaves, uint64_t seed, uint64_t what, int64_t first_row, const Strided& weight_counts,
                 const Strided& leaf_counts, const Strided& out) {
    const Graph g(graph);
    const Program program(g);
    const int64_t rows = rows_of(g, X);
    Sweep each{g,
               data<const int64_t>(times, "times", {rows}),
               seed,
               what,
               first_row,
               data<int64_t>(weight_counts, "weight_counts", {g.weights}),
               data<int64_t>(leaf_counts, "leaf_counts", {g.parameters}),
               data<double>(out, "out", {rows})};
    for (int64_t n = 0; n < rows; ++n)
        if (each.times[n] < 0) throw py::value_error("times must not be negative");
    with_floats(weights, [&]<class F>(F) {
        const F* x = data<const F>(X, "X", {rows, g.variables});
        check_values(g, x, rows, true);
        for_rows<F>(g, program, x, rows, parameters<F>(g, weights, leaves), each, rows * (g.weights + g.leaves));
    });
}

}  // namespace

void bind_dense(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("dense_sweep", &dense_sweep, nogil);
}

}  // namespace pyfast::spn
