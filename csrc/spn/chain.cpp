// Markov chains over the induced trees of samples, one sample after the other. Reference: pyfast/reference/spn.py.
#include <optional>

#include "spn/chain_arguments.h"

namespace pyfast::spn {
namespace {

using Tensors = std::vector<Strided>;

int64_t max_sums(const Tensors& graph) {
    const Graph g(graph);
    return Model(g).max_sums();
}

int64_t heights(const Tensors& graph) {
    const Graph g(graph);
    return Model(g).node.back().height + 1;
}

Kernel kernel_of(const std::string& name) {
    const char* names[] = {"block", "topdown", "levels", "isir", "informed"};
    for (int i = 0; i < 5; ++i)
        if (name == names[i]) return Kernel(i);
    throw py::value_error("kernel must be block, topdown, levels, isir or informed, got " + name);
}

// Samples order[first] .. order[last - 1] in turn: those in the counts by the kernel, the others put in.
void sweep(const Tensors& graph, Strided X, Strided choices, Strided weight_counts, Strided leaf_counts, Strided alpha,
           Strided prior, Strided leaf_prior, Strided weights, Strided leaves, const std::string& kernel,
           int32_t lookahead, int32_t candidates, uint64_t seed, uint64_t what, int64_t first, int64_t last,
           Strided order, Strided accepted) {
    const Graph g(graph);
    const Kernel how = kernel_of(kernel);
    if (lookahead < 0) throw py::value_error("lookahead must be at least 0, got " + std::to_string(lookahead));
    if (candidates < 0 || candidates == 1)
        throw py::value_error("candidates must be 0 or at least 2, got " + std::to_string(candidates));
    Model m(g);
    give_counts(m, weight_counts, leaf_counts);
    give_law(m, alpha, prior, leaf_prior, weights, leaves);
    const Rows rows(m, X, choices);
    int64_t* const tried = data<int64_t>(accepted, "accepted", {m.node[m.root].height + 1, 2});
    const auto samples = rows.samples(first, last, order);
    std::vector<uint8_t> in(rows.size);  // rows in the counts
    if (how == Kernel::informed && m.collapsed)
        for (int64_t n = 0; n < rows.size; ++n) in[n] = rows.check(m, n);
    else
        for (int64_t n : samples) in[n] = rows.check(m, n);
    Scores scores(m, how == Kernel::informed);
    Update update(m, how, lookahead, candidates, Draws(seed, what), scores, tried);
    if (how == Kernel::informed && m.collapsed) {
        Tree t(m.max_sums(), m.node[m.root].scope);
        for (int64_t n = 0; n < rows.size; ++n)
            if (in[n]) {
                rows.load(m, n);
                m.read(rows.choices(n), t);
                scores.count(t, 1);
            }
    }
    const bool exactly = how == Kernel::block || g.edges <= (1 << 16);
    for (int64_t n : samples) {
        rows.load(m, n);
        if (in[n])
            update(n, rows.choices(n));
        else
            update.insert(n, rows.choices(n), exactly);
        in[n] = true;  // where order names it again
    }
}

// Takes samples out of the counts; those that are out already stay.
void remove(const Tensors& graph, Strided X, Strided choices, Strided weight_counts, Strided leaf_counts,
            Strided samples) {
    const Graph g(graph);
    Model m(g);
    give_counts(m, weight_counts, leaf_counts);
    const Rows rows(m, X, choices);
    const auto which = rows.samples(0, samples.ndim == 1 ? samples.shape[0] : 0, samples);
    for (int64_t n : which) rows.check(m, n);
    Tree t(m.max_sums(), m.node[m.root].scope);
    for (int64_t n : which) {
        if (rows.choices(n)[0] == -1) continue;
        rows.load(m, n);
        m.read(rows.choices(n), t);
        m.count(t, -1);
        std::fill_n(rows.choices(n), rows.width, -1);
    }
}

// The counts from nothing but the choices.
void recount(const Tensors& graph, Strided X, Strided choices, Strided weight_counts, Strided leaf_counts) {
    const Graph g(graph);
    Model m(g);
    m.weight_counts = data<int64_t>(weight_counts, "weight_counts", {g.weights});
    m.leaf_counts = data<int64_t>(leaf_counts, "leaf_counts", {g.parameters});
    const Rows rows(m, X, choices);
    for (int64_t n = 0; n < rows.size; ++n) rows.check(m, n);
    std::fill_n(m.weight_counts, g.weights, 0);
    std::fill_n(m.leaf_counts, g.parameters, 0);
    Tree t(m.max_sums(), m.node[m.root].scope);
    for (int64_t n = 0; n < rows.size; ++n) {
        if (rows.choices(n)[0] == -1) continue;
        rows.load(m, n);
        m.read(rows.choices(n), t);
        m.count(t, 1);
    }
}

// out (N): the log likelihood of rows of X given weights and leaves, or without them given all that is in the counts;
// less what all leaves of a column share.
void log_likelihood(const Tensors& graph, Strided X, Strided weight_counts, Strided leaf_counts, Strided alpha,
                    Strided prior, Strided leaf_prior, Strided weights, Strided leaves, Strided out) {
    const Graph g(graph);
    Model m(g);
    give_counts(m, weight_counts, leaf_counts);
    give_law(m, alpha, prior, leaf_prior, weights, leaves);
    const Rows rows(m, X);
    double* const result = data<double>(out, "out", {rows.size});
    for (int64_t n = 0; n < rows.size; ++n) rows.check_values(m, n);
    Exact exact(m);
    for (int64_t n = 0; n < rows.size; ++n) {
        rows.load(m, n);
        exact.begin();
        result[n] = exact(m.root).log();
    }
}

}  // namespace

void bind_chain(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("max_sums", &max_sums, nogil);
    m.def("heights", &heights, nogil);
    m.def("sweep", &sweep, nogil);
    m.def("remove", &remove, nogil);
    m.def("recount", &recount, nogil);
    m.def("log_likelihood", &log_likelihood, nogil);
}

}  // namespace pyfast::spn
