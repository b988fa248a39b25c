// What Python hands to a chain, checked before anything is changed.
#pragma once

#include "spn/chain_kernels.h"

namespace pyfast::spn {

inline void give_counts(Model& m, Strided weight_counts, Strided leaf_counts) {
    m.weight_counts = data<int64_t>(weight_counts, "weight_counts", {m.g.weights});
    m.leaf_counts = data<int64_t>(leaf_counts, "leaf_counts", {m.g.parameters});
    m.sum_counts();
}

inline std::vector<double> wide(const Strided& x, const char* name, int64_t size) {
    if (x.is<float>()) {
        const float* from = data<const float>(x, name, {size});
        return {from, from + size};
    }
    const double* from = data<const double>(x, name, {size});
    return {from, from + size};
}

inline void check_positive(double x, const char* name, int64_t i) {
    if (!(x > 0 && x < INFINITY))
        throw py::value_error(std::string(name) + "[" + std::to_string(i) + "] must be positive and finite, got " +
                              std::to_string(x));
}

inline void give_priors(Model& m, Strided alpha, Strided prior, Strided leaf_prior) {
    const Graph& g = m.g;
    m.alpha = data<const double>(alpha, "alpha", {g.nodes});
    m.prior = data<const double>(prior, "prior", {-1});
    const int64_t* at = data<const int64_t>(leaf_prior, "leaf_prior", {g.leaves});
    const int64_t size = prior.shape[0];
    for (int64_t i = 0; i < g.nodes; ++i) {
        Node& n = m.node[i];
        if (n.kind == sum) {
            check_positive(m.alpha[i], "alpha", i);
            n.mass = m.alpha[i];
        } else if (n.kind == leaf) {
            const int64_t l = g.leaf_of[i], width = g.width[n.count];
            if (at[l] < 0 || at[l] > size - width)
                throw py::index_error("leaf_prior[" + std::to_string(l) + "] must leave room for " +
                                      std::to_string(width) + " numbers in prior, got " + std::to_string(at[l]));
            n.at = at[l];
            n.mass = 0;
            const int64_t first = n.family == gaussian;
            const int64_t used = n.family == table ? width : n.family == gaussian ? 4 : n.family == own ? 0 : 2;
            for (int64_t j = first; j < used; ++j) check_positive(m.prior[n.at + j], "prior", n.at + j);
            if (n.family == gaussian && !std::isfinite(m.prior[n.at]))
                throw py::value_error("prior[" + std::to_string(n.at) + "] must be finite, got " +
                                      std::to_string(m.prior[n.at]));
            for (int64_t c = 0; c < width && n.family == table; ++c) n.mass += m.prior[n.at + c];
        }
    }
}

// Collapsed, given alpha and the leaves' priors; or instantiated, given weights and leaves.
inline void give_law(Model& m, Strided alpha, Strided prior, Strided leaf_prior, Strided weights, Strided leaves) {
    const Graph& g = m.g;
    if (bool(weights) != bool(leaves))
        throw py::value_error("weights and leaves must be given together, got one of them");
    m.collapsed = !weights;
    if (m.collapsed) return give_priors(m, alpha, prior, leaf_prior);
    m.weights = wide(weights, "weights", g.weights);
    m.logs = wide(leaves, "leaves", g.parameters);
    for (int64_t j = 0; j < g.weights; ++j)
        if (!(m.weights[j] >= 0 && m.weights[j] < INFINITY))
            throw py::value_error("weights[" + std::to_string(j) + "] must be at least 0 and finite, got " +
                                  std::to_string(m.weights[j]));
    m.leaves.resize(g.parameters);
    for (Node& n : m.node) {
        if (n.kind == sum) {
            n.mass = 0;
            for (int64_t k = 0; k < n.count; ++k) n.mass += m.weights[n.at + k];
        } else if (n.kind == leaf) {
            for (int64_t c = 0; c < g.width[n.count]; ++c) {
                if (!(m.logs[n.first + c] < INFINITY))
                    throw py::value_error("leaves[" + std::to_string(n.first + c) + "] must be below infinity, got " +
                                          std::to_string(m.logs[n.first + c]));
                m.leaves[n.first + c] = std::exp(m.logs[n.first + c]);
            }
        }
    }
}

// The samples, with their choices where they have any.
struct Rows {
    const Strided x;
    int64_t size, width = 0;
    int32_t* row = nullptr;

    Rows(const Model& m, Strided X) : x(X), size(X.ndim == 2 ? X.shape[0] : 0) {
        if (x.is<float>())
            data<const float>(x, "X", {-1, m.g.variables});
        else
            data<const double>(x, "X", {-1, m.g.variables});
    }
    Rows(const Model& m, Strided X, Strided choices) : Rows(m, X) {
        width = m.max_sums();
        row = data<int32_t>(choices, "choices", {size, width});
    }

    int32_t* choices(int64_t n) const { return row + n * width; }

    void check_values(const Model& m, int64_t n) const {
        const int64_t d = m.g.variables;
        if (x.is<float>())
            check_row(m.g, reinterpret_cast<const float*>(x.data) + n * d, n);
        else
            check_row(m.g, reinterpret_cast<const double*>(x.data) + n * d, n);
    }

    // Whether the sample is in the counts.
    bool check(Model& m, int64_t n) const {
        check_values(m, n);
        return m.check(choices(n), n, width);
    }

    void load(Model& m, int64_t n) const {
        const int64_t d = m.g.variables;
        if (x.is<float>())
            std::copy_n(reinterpret_cast<const float*>(x.data) + n * d, d, m.x.begin());
        else
            std::copy_n(reinterpret_cast<const double*>(x.data) + n * d, d, m.x.begin());
        if (!m.collapsed) return;
        for (int64_t v = 0; v < d; ++v)  // a value as its statistics remember it
            if (m.g.family[v] != table && m.g.family[v] != own && m.x[v] == m.x[v])
                m.x[v] = double(std::llrint(m.x[v] * m.g.quantum[v])) / m.g.quantum[v];
    }

    std::vector<int64_t> samples(int64_t first, int64_t last, Strided order) const {
        const int64_t n = order ? (order.ndim == 1 ? order.shape[0] : 0) : size;
        if (first < 0 || first > last || last > n)
            throw py::index_error("first and last must be in order and within the " + std::to_string(n) +
                                  " samples, got " + std::to_string(first) + " and " + std::to_string(last));
        const int64_t* named = order ? data<const int64_t>(order, "order", {n}) : nullptr;
        std::vector<int64_t> result;
        for (int64_t i = first; i < last; ++i) {
            result.push_back(named ? named[i] : i);
            if (result.back() < 0 || result.back() >= size)
                throw py::index_error("order[" + std::to_string(i) + "] must name a sample, got " +
                                      std::to_string(result.back()));
        }
        return result;
    }
};

}  // namespace pyfast::spn
