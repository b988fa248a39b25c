// Chains over a tree that is never built: see implicit.h. All state is in the choices, one row of them a sample.
#include "spn/implicit_moves.h"
#include "spn/implicit_predictions.h"

namespace pyfast::spn {
namespace {

// What columns are, as a list of tensors: family, width, quantum, prior.
struct Columns {
    const uint8_t* family;
    const int64_t* width;
    const double *quantum, *prior;
    int64_t variables;

    explicit Columns(const std::vector<Strided>& t) {
        demand(t.size() == 4 && t[0].ndim == 1, "have columns of four tensors");
        variables = t[0].shape[0];
        demand(variables > 0 && variables < int64_t(1) << 31, "have between one column and 2^31");
        family = data<const uint8_t>(t[0], "family", {variables});
        width = data<const int64_t>(t[1], "width", {variables});
        quantum = data<const double>(t[2], "quantum", {variables});
        int64_t size = 0;
        for (int64_t v = 0; v < variables; ++v) {
            demand(family[v] <= exponential && width[v] > 0, "have families that are known");
            demand(family[v] == table || width[v] == 4, "have four numbers a column but in tables");
            size += width[v];
        }
        prior = data<const double>(t[3], "prior", {size});
        for (int64_t v = 0, at = 0; v < variables; at += width[v++])
            for (int64_t c = family[v] == gaussian;
                 c < (family[v] == poisson || family[v] == exponential ? 2 : width[v]); ++c)
                if (!(prior[at + c] > 0 && std::isfinite(prior[at + c])))
                    throw py::value_error("prior[" + std::to_string(at + c) + "] must be positive and finite, got " +
                                          std::to_string(prior[at + c]));
    }

    void check(const float* row, int64_t n) const {
        for (int64_t v = 0; v < variables; ++v) {
            const float x = row[v];
            if (x != x) continue;
            const bool fits = family[v] == table ? x >= 0 && x < float(width[v]) && x == float(int64_t(x))
                                                 : std::abs(double(x)) * quantum[v] < 1073741824.0 &&
                                                       (family[v] == gaussian || x >= 0);
            if (!fits)
                throw py::value_error("X[" + std::to_string(n) + ", " + std::to_string(v) +
                                      "] must be a value of its column, got " + std::to_string(double(x)));
        }
    }
};

struct Table {
    const float* x;
    int64_t size, variables;

    Table(const Columns& c, const Strided& X) : size(X.ndim == 2 ? X.shape[0] : 0), variables(c.variables) {
        x = data<const float>(X, "X", {size, variables});
        for (int64_t n = 0; n < size; ++n) c.check(row(n), n);
    }
    const float* row(int64_t n) const { return x + n * variables; }
};

Implicit make_tree(const Columns& c, int64_t children, int64_t parts, uint64_t splits, double mass) {
    if (children < 1 || children > int64_t(1) << 47)
        throw py::value_error("sum_children must be in [1, 2^47], got " + std::to_string(children));
    if (parts < 2) throw py::value_error("product_children must be at least 2, got " + std::to_string(parts));
    if (!(mass > 0 && std::isfinite(mass)))
        throw py::value_error("mass must be positive and finite, got " + std::to_string(mass));
    return {c.variables, children, parts, splits, mass, c.family, c.width, c.quantum, c.prior};
}

// Puts all samples whose choices are made into the tree. Throws before it touches anything.
std::vector<uint8_t> restore(Implicit& tree, const Table& rows, int64_t* choices) {
    const int64_t width = tree.choices();
    std::vector<uint8_t> in(rows.size);
    for (int64_t n = 0; n < rows.size; ++n) {
        const int64_t* row = choices + n * width;
        in[n] = row[0] != Implicit::open;
        for (int64_t i = 0; i < width; ++i)
            if (in[n] ? row[i] < 0 || row[i] >= tree.children : row[i] != Implicit::open)
                throw py::index_error("choices[" + std::to_string(n) + ", " + std::to_string(i) +
                                      "] must name a child, got " + std::to_string(row[i]));
    }
    Sample s;
    for (int64_t n = 0; n < rows.size; ++n) {
        if (!in[n]) continue;
        tree.load(rows.row(n), s);
        tree.restore(s, choices + n * width);
    }
    tree.refresh();
    return in;
}

using Tensors = std::vector<Strided>;

int64_t choices_of(int64_t variables, int64_t parts) {
    const uint8_t none = 0;
    const int64_t width = 0;
    const double zero = 0;
    if (parts < 2 || variables < 1) throw py::value_error("product_children must be at least 2");
    std::vector<uint8_t> family(variables, none);
    std::vector<int64_t> widths(variables, width);
    return Implicit(variables, 1, parts, 0, 1, family.data(), widths.data(), &zero, &zero).choices();
}

// Samples in the order given: those in the tree by i-SIR, the others put in. Returns (log joint, nodes in use).
std::pair<double, int64_t> sweep(const Tensors& columns, const Strided& X, const Strided& choices, int64_t children,
                                 int64_t parts, uint64_t splits, double mass, int64_t candidates, uint64_t seed,
                                 uint64_t what, const Strided& order) {
    const Columns c(columns);
    const Table rows(c, X);
    Implicit tree = make_tree(c, children, parts, splits, mass);
    if (candidates < 0 || candidates == 1)
        throw py::value_error("candidates must be 0 or at least 2, got " + std::to_string(candidates));
    Moves moves(tree, candidates);
    const int64_t width = tree.choices();
    int64_t* const row = data<int64_t>(choices, "choices", {rows.size, width});
    const int64_t* const turn = data<const int64_t>(order, "order", {rows.size});
    for (int64_t i = 0; i < rows.size; ++i)
        if (turn[i] < 0 || turn[i] >= rows.size)
            throw py::index_error("order[" + std::to_string(i) + "] must name a sample, got " +
                                  std::to_string(turn[i]));
    std::vector<uint8_t> in = restore(tree, rows, row);
    Sample s;
    Draws u(seed, what);
    for (int64_t i = 0; i < rows.size; ++i) {
        const int64_t n = turn[i];
        tree.load(rows.row(n), s);
        u.begin(n);
        if (in[n]) tree.remove(s, row + n * width);
        moves.move(s, row + n * width, u);
        tree.add(s, row + n * width, u);
        in[n] = true;
        if (i % 64 == 63) {  // Ctrl-C
            const py::gil_scoped_acquire gil;
            if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        }
    }
    return {Predictions(tree).log_joint(), tree.used()};
}

// Calls each(predictions, sample, n) for all rows of Y, the tree holding X.
template <class Each>
void for_rows(const Tensors& columns, const Strided& X, const Strided& choices, int64_t children, int64_t parts,
              uint64_t splits, double mass, const Strided& Y, Each each) {
    const Columns c(columns);
    const Table rows(c, X), asked(c, Y);
    Implicit tree = make_tree(c, children, parts, splits, mass);
    std::vector<int64_t> copy(rows.size * tree.choices());
    std::copy_n(data<const int64_t>(choices, "choices", {rows.size, tree.choices()}), copy.size(), copy.begin());
    restore(tree, rows, copy.data());
#pragma omp parallel if (parallel(asked.size * tree.used()))
    {
        Sample s;
#pragma omp for schedule(dynamic, 1)
        for (int64_t n = 0; n < asked.size; ++n) {
            tree.load(asked.row(n), s);
            each(Predictions(tree), s, n);
        }
    }
}

// out (rows of Y): log predictive densities, less what all leaves of a column share.
void log_prob(const Tensors& columns, const Strided& X, const Strided& choices, int64_t children, int64_t parts,
              uint64_t splits, double mass, const Strided& Y, const Strided& out) {
    double* const to = data<double>(out, "out", {Y.ndim == 2 ? Y.shape[0] : 0});
    for_rows(columns, X, choices, children, parts, splits, mass, Y,
             [&](const Predictions& tree, const Sample& s, int64_t n) { to[n] = tree.log_likelihood(s); });
}

// What is missing in Y is drawn, given the rest of its row; rows are numbers first, first + 1, ... to randomness.
void complete(const Tensors& columns, const Strided& X, const Strided& choices, int64_t children, int64_t parts,
              uint64_t splits, double mass, const Strided& Y, uint64_t seed, uint64_t what, uint64_t what_values,
              int64_t first) {
    float* const y = data<float>(Y, "Y", {-1, -1});
    for_rows(columns, X, choices, children, parts, splits, mass, Y,
             [&](const Predictions& tree, const Sample& s, int64_t n) {
                 Draws u(seed, what);
                 u.begin(first + n);
                 Stream values(seed, what_values, uint64_t(first + n));
                 tree.complete(s, y + n * Y.shape[1], u, values);
             });
}

}  // namespace

void bind_implicit(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("implicit_choices", &choices_of, nogil);
    m.def("implicit_sweep", &sweep, nogil);
    m.def("implicit_log_prob", &log_prob, nogil);
    m.def("implicit_complete", &complete, nogil);
}

}  // namespace pyfast::spn
