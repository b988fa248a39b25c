// Likelihoods of rows, and their derivatives in weights and leaves. Reference: pyfast/reference/spn.py.
//
// A graph with a program goes through its dense form. Rows that float is too narrow for are done again in double, and
// rows that double is too narrow for node by node, where every value has an exponent of its own.
#include "spn/flows.h"
#include "spn/node_flows.h"

namespace pyfast::spn {
namespace {

// What a pass reads: rows x (rows, variables), which are all rows or those at these places.
template <class F>
struct Batch {
    int64_t rows;
    const F *x, *weights, *leaves;
    const int64_t* places = nullptr;
    int64_t place(int64_t n) const { return places ? places[n] : n; }
};

// Some rows of a batch, and the parameters, in double.
struct Widened {
    std::vector<double> x, weights, leaves;
    const std::vector<int64_t>& places;
    template <class F>
    Widened(const Graph& g, const Batch<F>& from, const std::vector<int64_t>& places)
        : weights(from.weights, from.weights + g.weights),
          leaves(from.leaves, from.leaves + g.parameters),
          places(places) {
        for (int64_t n : places) x.insert(x.end(), from.x + n * g.variables, from.x + (n + 1) * g.variables);
    }
    Batch<double> batch() const {
        return {int64_t(places.size()), x.data(), weights.data(), leaves.data(), places.data()};
    }
};

// Both forms of the graph look alike: Up is a block of B rows after its upward pass, Down goes on from several of them.
template <class F>
struct Dense {
    using Up = typename Panels<F>::Scratch;
    using Down = Flows<F>;
    static constexpr int B = Panels<F>::B, group = Down::group;
    const Graph& g;
    Program program;
    Panels<F> panels;
    Dense(const Graph& g, const Batch<F>& in) : g(g), program(g), panels(g, program, in.weights, in.leaves) {}
    Up room(bool keep) const { return Up(panels, keep); }
    Down down() const { return Down(panels); }
    void up(const F* x, int64_t count, Up& s) const { panels.up(x, count, s); }
    double log_value(const Up& s, int b) const { return panels.log_value(s, b); }
    static bool weak(const Up& s, int b) { return s.weak[b]; }
    int64_t work() const { return g.weights + g.leaves; }
};

template <class F>
struct Sparse {
    using Up = typename Nodes<F>::Scratch;
    using Down = NodeFlows<F>;
    static constexpr int B = Nodes<F>::B, group = Down::group;
    const Graph& g;
    Nodes<F> nodes;
    Sparse(const Graph& g, const Batch<F>& in) : g(g), nodes(g, in.weights, in.leaves) {}
    Up room(bool) const { return Up(nodes); }
    Down down() const { return Down(nodes); }
    void up(const F* x, int64_t count, Up& s) const { nodes.up(x, count, s); }
    double log_value(const Up& s, int b) const { return nodes.log_value(s, b); }
    static bool weak(const Up&, int) { return false; }
    int64_t work() const { return g.edges + g.leaves; }
};

// Log likelihoods; gives back the places of rows that F is too narrow for.
template <class Form, class F>
std::vector<int64_t> forward(const Graph& g, const Batch<F>& in, double* out) {
    const Form form(g, in);
    const int64_t blocks = (in.rows + Form::B - 1) / Form::B;
    std::vector<int64_t> weak;
#pragma omp parallel if (parallel(in.rows * form.work()) && blocks > 1)
    {
        auto room = form.room(false);
        std::vector<int64_t> mine;
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < blocks; ++i) {
            const int64_t first = i * Form::B, count = std::min<int64_t>(Form::B, in.rows - first);
            form.up(in.x + first * g.variables, count, room);
            for (int b = 0; b < count; ++b) {
                const int64_t place = in.place(first + b);
                form.weak(room, b) ? mine.push_back(place) : void(out[place] = form.log_value(room, b));
            }
        }
#pragma omp critical
        weak.insert(weak.end(), mine.begin(), mine.end());
    }
    std::sort(weak.begin(), weak.end());
    return weak;
}

// Adds to `weights` and `leaves` the derivatives of all rows, each times its factor. Slabs of rows, whose number
// depends on theirs alone, are summed in order: the same bits for any number of threads.
template <class Form, class F>
std::vector<int64_t> backward(const Graph& g, const Batch<F>& in, const double* factor, double* weights,
                              double* leaves) {
    const Form form(g, in);
    const int64_t slab = std::clamp<int64_t>((in.rows / 32 + 63) / 64 * 64, 64, 512);
    const int64_t slabs = (in.rows + slab - 1) / slab;
    std::vector<int64_t> weak;
#pragma omp parallel if (parallel(in.rows * form.work()) && slabs > 1)
    {
        std::vector<typename Form::Up> rooms(Form::group, form.room(true));
        auto flows = form.down();
        constexpr int64_t most = Form::group * Form::B;
#pragma omp for ordered schedule(dynamic, 1)
        for (int64_t i = 0; i < slabs; ++i) {
            std::vector<int64_t> mine;
            const int64_t end = std::min(in.rows, (i + 1) * slab);
            for (int64_t first = i * slab; first < end; first += most) {
                const int64_t count = std::min(most, end - first);
                const F* x = in.x + first * g.variables;
                F here[most] = {};
                for (int64_t n = 0; n < count; n += Form::B)
                    form.up(x + n * g.variables, std::min<int64_t>(Form::B, count - n), rooms[n / Form::B]);
                for (int64_t n = 0; n < count; ++n) {
                    const int64_t place = in.place(first + n);
                    const bool weak_row = form.weak(rooms[n / Form::B], int(n % Form::B));
                    weak_row ? mine.push_back(place) : void(here[n] = F(factor[place]));
                }
                flows.down(rooms.data(), int((count + Form::B - 1) / Form::B), x, count, here);
            }
#pragma omp ordered
            {
                flows.finish(weights, leaves);
                weak.insert(weak.end(), mine.begin(), mine.end());
            }
        }
    }
    return weak;
}

// Calls pass.operator()<Form>(batch) for all rows, then for those that it gives back, until a form is wide enough.
template <class F, class Pass>
void in_turn(const Graph& g, const Batch<F>& in, Pass pass) {
    if (g.program_size == 0) {
        pass.template operator()<Sparse<F>>(in);
        return;
    }
    std::vector<int64_t> left = pass.template operator()<Dense<F>>(in);
    if (sizeof(F) == 4 && !left.empty()) left = pass.template operator()<Dense<double>>(Widened(g, in, left).batch());
    if (!left.empty()) pass.template operator()<Sparse<double>>(Widened(g, in, left).batch());
}

template <class F>
Batch<F> batch_of(const Graph& g, const Strided& X, const Strided& weights, const Strided& leaves) {
    const int64_t rows = rows_of(g, X);
    const Batch<F> in{rows, data<const F>(X, "X", {rows, g.variables}), data<const F>(weights, "weights", {g.weights}),
                      data<const F>(leaves, "leaves", {g.parameters})};
    check_values(g, in.x, rows, false);
    return in;
}

void log_prob(const Strided& X, const Strided& weights, const Strided& leaves, const std::vector<Strided>& graph,
              const Strided& out) {
    const Graph g(graph);
    with_floats(weights, [&]<class F>(F) {
        const Batch<F> in = batch_of<F>(g, X, weights, leaves);
        double* to = data<double>(out, "out", {in.rows});
        in_turn(g, in, [&]<class Form>(const auto& batch) { return forward<Form>(g, batch, to); });
    });
}

void log_prob_backward(const Strided& grad, const Strided& X, const Strided& weights, const Strided& leaves,
                       const std::vector<Strided>& graph, const Strided& dweights, const Strided& dleaves) {
    const Graph g(graph);
    with_floats(weights, [&]<class F>(F) {
        const double* given = data<const double>(grad, "grad", {rows_of(g, X)});
        F* to_weights = data<F>(dweights, "dweights", {g.weights});
        F* to_leaves = data<F>(dleaves, "dleaves", {g.parameters});
        const Batch<F> in = batch_of<F>(g, X, weights, leaves);
        // the largest factor in [1, 2): what flows then stays in F
        double most = 0;
        for (int64_t n = 0; n < in.rows; ++n) most = std::max(most, std::abs(given[n]));
        const int power = most > 0 && std::isfinite(most) ? std::ilogb(most) : 0;
        std::vector<double> factor(in.rows), weight(g.weights), leaf(g.parameters);
        for (int64_t n = 0; n < in.rows; ++n) factor[n] = std::ldexp(given[n], -power);
        in_turn(g, in, [&]<class Form>(const auto& batch) {
            return backward<Form>(g, batch, factor.data(), weight.data(), leaf.data());
        });
        for (int64_t i = 0; i < g.weights; ++i) to_weights[i] = F(std::ldexp(weight[i], power));
        for (int64_t i = 0; i < g.parameters; ++i) to_leaves[i] = F(std::ldexp(leaf[i], power));
    });
}

}  // namespace

void bind_gradient(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("log_prob", &log_prob, nogil);
    m.def("log_prob_backward", &log_prob_backward, nogil);
}

}  // namespace pyfast::spn
