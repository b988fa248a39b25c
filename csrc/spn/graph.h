// A sum-product network as the kernels see it: nodes with their children before them, weights and leaves in one vector
// each. Whoever builds one from tensors has proved that no index leaves its array.
#pragma once

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include <pybind11/stl.h>

#include "spn/own.h"
#include "tensor.h"

namespace pyfast::spn {

enum Kind : uint8_t { leaf = 0, product = 1, sum = 2 };
// What a column's values follow, and what they follow once a leaf's parameters are integrated out.
enum Family : uint8_t {
    table = 0,
    gaussian = 1,
    poisson = 2,
    exponential = 3,
    student = 4,
    negative_binomial = 5,
    lomax = 6,
    own = 7  // a function of the user's
};

// A contiguous tensor of this dtype and these sizes; -1 is any.
template <class T>
T* data(const Strided& x, const char* name, std::initializer_list<int64_t> shape) {
    bool fits = x.is<std::remove_const_t<T>>() && x.ndim == int(shape.size());
    int64_t step = 1, size = 1;
    for (int i = 0; fits && i < x.ndim; ++i) size *= x.shape[i];
    for (int i = x.ndim - 1; fits && i >= 0; --i) {
        const int64_t want = shape.begin()[i];
        fits = (want < 0 || x.shape[i] == want) && (size == 0 || x.shape[i] == 1 || x.strides[i] == step);
        step *= x.shape[i];
    }
    if (fits) return reinterpret_cast<T*>(x.data);
    std::string text;
    for (int64_t n : shape) text += (n < 0 ? "any" : std::to_string(n)) + ", ";
    std::string got;
    for (int i = 0; i < x.ndim; ++i) got += std::to_string(x.shape[i]) + ", ";
    throw std::invalid_argument(std::string(name) + " must be contiguous, of its dtype and of shape (" + text +
                                "), got (" + got + ")");
}

[[noreturn, gnu::cold, gnu::noinline]] inline void refuse_graph(const char* what) {
    throw std::invalid_argument(std::string("graph must ") + what);
}
inline void demand(bool holds, const char* what) {
    if (!holds) refuse_graph(what);
}

struct Graph {
    int64_t nodes = 0, edges = 0, leaves = 0, weights = 0, variables = 0, parameters = 0, program_size = 0;
    const uint8_t* kind = nullptr;
    const int64_t* first = nullptr;       // of a node's children
    const int32_t* child = nullptr;       //
    const int32_t* variable = nullptr;    // of a node that is a leaf
    const int64_t* leaf_first = nullptr;  // of a leaf's parameters
    const uint8_t* family = nullptr;      // of a variable
    const double* quantum = nullptr;      // of a variable
    const int64_t* program = nullptr;
    std::vector<int64_t> first_weight;  // of a node that is a sum
    std::vector<int32_t> leaf_of;       // of a node that is a leaf
    std::vector<int64_t> width;         // of a variable's leaves: parameters, and statistics
    std::vector<Own> owns;              // of a variable whose density is the user's own

    explicit Graph(const std::vector<Strided>& tensors) {
        demand(tensors.size() == 8 || tensors.size() == 10, "be eight tensors, or ten");
        nodes = tensors[0].ndim == 1 ? tensors[0].shape[0] : 0;
        demand(nodes > 0 && nodes < (int64_t(1) << 28), "have between one node and 2^28");
        kind = data<uint8_t>(tensors[0], "kind", {nodes});
        first = data<int64_t>(tensors[1], "first", {nodes + 1});
        child = data<int32_t>(tensors[2], "child", {-1});
        edges = tensors[2].shape[0];
        variable = data<int32_t>(tensors[3], "variable", {nodes});
        leaf_first = data<int64_t>(tensors[4], "leaf_first", {-1});
        family = data<uint8_t>(tensors[5], "family", {-1});
        variables = tensors[5].shape[0];
        quantum = data<double>(tensors[6], "quantum", {variables});
        program = data<int64_t>(tensors[7], "program", {-1});
        program_size = tensors[7].shape[0];
        width.assign(variables, -1);
        first_weight.assign(nodes, -1);
        leaf_of.assign(nodes, -1);
        demand(first[0] == 0 && first[nodes] == edges, "have children from 0 to their number");
        const int64_t offsets = tensors[4].shape[0];
        demand(offsets > 1 && leaf_first[0] == 0, "have leaves, their parameters from 0");
        for (int64_t v = 0; v < variables; ++v)
            demand(family[v] <= own && (family[v] != own || tensors.size() == 10), "have families that are known");
        for (int64_t i = 0; i < nodes; ++i) {
            const int64_t count = first[i + 1] - first[i];
            demand(kind[i] <= sum && (kind[i] == leaf ? count == 0 : count > 0), "have children below inner nodes");
            demand(first[i + 1] <= edges, "have no more children than it says");
            int after = 0;
            for (int64_t e = first[i]; e < first[i + 1]; ++e) after |= uint32_t(child[e]) >= uint32_t(i);
            demand(!after, "have its children before their parents");
            if (kind[i] == sum) {
                first_weight[i] = weights;
                weights += count;
            } else if (kind[i] == leaf) {
                const int32_t v = variable[i];
                demand(v >= 0 && v < variables && leaves + 1 < offsets, "have leaves over its variables");
                const int64_t size = leaf_first[leaves + 1] - leaf_first[leaves];
                demand(size > 0 && (family[v] == table || family[v] == own || size == 4),
                       "have four parameters a leaf but in tables");
                demand(width[v] < 0 || width[v] == size, "have as many parameters in all leaves of a variable");
                width[v] = size;
                leaf_of[i] = int32_t(leaves++);
            }
        }
        demand(leaves + 1 == offsets, "have as many leaves as leaf_first says");
        parameters = leaf_first[leaves];
        if (tensors.size() == 10) read_owns(tensors[8], tensors[9]);
    }

    int64_t children(int64_t node) const { return first[node + 1] - first[node]; }

  private:
    // addresses: of the three functions, the numbers of statistics and of parameters, where its constants begin; in
    // these quanta, then the parameters of each candidate
    void read_owns(const Strided& addresses, const Strided& constants) {
        const int64_t* a = data<const int64_t>(addresses, "addresses", {variables, 6});
        const double* c = data<const double>(constants, "constants", {-1});
        owns.resize(variables);
        for (int64_t v = 0; v < variables; ++v, a += 6) {
            if (family[v] != own || width[v] < 0) continue;
            Own& o = owns[v];
            o.statistics_of = reinterpret_cast<decltype(o.statistics_of)>(a[0]);
            o.log_density = reinterpret_cast<decltype(o.log_density)>(a[1]);
            o.quantile = reinterpret_cast<decltype(o.quantile)>(a[2]);
            o.size = a[3], o.each = a[4], o.candidates = width[v];
            demand(o.statistics_of && o.log_density && o.size > 0 && o.size <= Own::most && o.size < width[v] &&
                       o.each > 0 && a[5] >= 0 && a[5] + o.size + width[v] * o.each <= constants.shape[0],
                   "have densities that are whole");
            o.quanta = c + a[5];
            o.parameters = o.quanta + o.size;
        }
    }
};

// Throws unless every value of row n is what its column's family can be, and, where it is to be `counted`, small enough
// for a leaf's statistics; NaN is missing.
template <class Real>
void check_row(const Graph& g, const Real* row, int64_t n, bool counted = true) {
    for (int64_t v = 0; v < g.variables; ++v) {
        const Real value = row[v];
        if (value != value) continue;
        const bool fits = g.family[v] == table ? value >= 0 && value < Real(g.width[v]) && value == Real(int64_t(value))
                          : g.family[v] == own
                              ? g.owns[v].fits(double(value), counted)
                              : std::isfinite(value) &&
                                    (!counted || std::abs(double(value)) * g.quantum[v] < 1073741824.0) &&
                                    (g.family[v] == gaussian || g.family[v] == student || value >= 0);
        if (!fits)
            throw py::value_error("X[" + std::to_string(n) + ", " + std::to_string(v) +
                                  "] must be a value of its column, got " + std::to_string(double(value)));
    }
}

template <class Real>
void check_values(const Graph& g, const Real* x, int64_t rows, bool counted) {
    for (int64_t n = 0; n < rows; ++n) check_row(g, x + n * g.variables, n, counted);
}

// Calls f(float()) or f(double()), whichever the weights are.
template <class Function>
void with_floats(const Strided& weights, Function f) {
    if (weights.is<float>()) return f(float());
    if (weights.is<double>()) return f(double());
    throw std::invalid_argument("weights must be float32 or float64");
}

inline int64_t rows_of(const Graph& g, const Strided& x) {
    if (x.ndim != 2 || x.shape[1] != g.variables)
        throw std::invalid_argument("X must have shape (any, " + std::to_string(g.variables) + ")");
    return x.shape[0];
}

}  // namespace pyfast::spn
