// Any graph, node by node: Gibbs sweeps with weights and leaves given. Reference: pyfast/reference/spn.py.
#include "spn/sparse.h"
#include "spn/choose.h"

namespace pyfast::spn {
namespace {

// Calls each(mine, scratch, first row, rows) for all blocks of rows; each thread has what start() makes.
template <class F, class Start, class Each, class Finish>
void for_blocks(const Nodes<F>& nodes, int64_t rows, Start start, Each each, Finish finish) {
    const int64_t blocks = (rows + lanes<F> - 1) / lanes<F>;
#pragma omp parallel if (parallel(rows * nodes.g.nodes) && blocks > 1)
    {
        typename Nodes<F>::Scratch scratch(nodes);
        auto mine = start();
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < blocks; ++i)
            each(mine, scratch, i * lanes<F>, std::min<int64_t>(lanes<F>, rows - i * lanes<F>));
#pragma omp critical
        finish(mine);
    }
}

void sweep(const std::vector<Strided>& graph, const Strided& X, const Strided& times, const Strided& weights,
           const Strided& leaves, uint64_t seed, uint64_t what, int64_t first_row, const Strided& weight_counts,
           const Strided& leaf_counts, const Strided& out) {
    const Graph g(graph);
    const int64_t rows = rows_of(g, X);
    const int64_t* m = data<const int64_t>(times, "times", {rows});
    int64_t *wc = data<int64_t>(weight_counts, "weight_counts", {g.weights}),
            *lc = data<int64_t>(leaf_counts, "leaf_counts", {g.parameters});
    double* to = data<double>(out, "out", {rows});
    for (int64_t n = 0; n < rows; ++n)
        if (m[n] < 0) throw py::value_error("times must not be negative");
    with_floats(weights, [&]<class F>(F) {
        const F* x = data<const F>(X, "X", {rows, g.variables});
        check_values(g, x, rows, true);
        const Nodes<F> nodes(g, data<const F>(weights, "weights", {g.weights}),
                             data<const F>(leaves, "leaves", {g.parameters}));
        int64_t widest = 1;
        for (int64_t i = 0; i < g.nodes; ++i) widest = std::max(widest, g.children(i));
        struct Mine {
            std::vector<int64_t> weights, leaves, some;
            std::vector<int32_t> stack;
            std::vector<F> share;
        };
        for_blocks<F>(
            nodes, rows,
            [&] {
                return Mine{std::vector<int64_t>(g.weights),
                            std::vector<int64_t>(g.parameters),
                            std::vector<int64_t>(g.nodes),
                            {},
                            std::vector<F>(widest)};
            },
            [&](Mine& mine, auto& scratch, int64_t first, int64_t count) {
                nodes.up(x + first * g.variables, count, scratch);
                for (int b = 0; b < count; ++b) {
                    const int64_t row = first + b;
                    to[row] = nodes.log_value(scratch, b);
                    if (m[row] == 0 || to[row] == -INFINITY) continue;
                    const auto reach = [&](int32_t node, int64_t n) {
                        if (mine.some[node] == 0) {
                            mine.stack.push_back(node);
                            std::push_heap(mine.stack.begin(), mine.stack.end());
                        }
                        mine.some[node] += n;
                    };
                    reach(int32_t(g.nodes - 1), m[row]);
                    while (!mine.stack.empty()) {  // parents before their children: the largest number first
                        std::pop_heap(mine.stack.begin(), mine.stack.end());
                        const int32_t node = mine.stack.back();
                        mine.stack.pop_back();
                        const int64_t here = mine.some[node];
                        mine.some[node] = 0;
                        if (g.kind[node] == leaf) {
                            const int32_t v = g.variable[node];
                            observe(g, v, mine.leaves.data() + g.leaf_first[g.leaf_of[node]], x[row * g.variables + v],
                                    here);
                        } else if (g.kind[node] == product) {
                            for (int64_t e = g.first[node]; e < g.first[node + 1]; ++e) reach(g.child[e], here);
                        } else {
                            nodes.shares(scratch, node, b, mine.share.data());
                            const auto send = [&](int64_t j, int64_t n) {
                                mine.weights[g.first_weight[node] + j] += n;
                                reach(g.child[g.first[node] + j], n);
                            };
                            share_out(mine.share.data(), g.children(node), here, seed, what,
                                      uint64_t(first_row + row) << 28 | uint64_t(node), send);
                        }
                    }
                }
            },
            [&](const Mine& mine) {
                for (int64_t i = 0; i < g.weights; ++i) wc[i] += mine.weights[i];
                for (int64_t i = 0; i < g.parameters; ++i) lc[i] += mine.leaves[i];
            });
    });
}

}  // namespace

void bind_sparse(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("sparse_sweep", &sweep, nogil);
}

}  // namespace pyfast::spn
