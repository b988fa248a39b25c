// The upward pass of any graph, node by node, a block of rows in the lanes of a vector.
//
// A node's value is number * 2^exponent with an exponent of its own, so that neither depth nor width can leave the
// range of F; rescaling by powers of two rounds nothing. Exponents are doubles, as a row far from every leaf
// has a log likelihood far beyond 2^31.
#pragma once

#include <limits>

#include "spn/laws.h"
#include "spn/panels.h"

namespace pyfast::spn {

// The most probable value of a leaf.
template <class F>
inline F mode(uint8_t family, const F* p, int64_t width) {
    switch (family) {
        case table:
            return F(std::max_element(p, p + width) - p);
        case gaussian:
        case student:
            return p[3];
        case poisson:
            return F(std::floor(-double(p[0])));
        case negative_binomial: {
            const double q = std::exp(double(p[2]));
            return p[1] > 1 ? F(std::floor((double(p[1]) - 1) * q / (1 - q))) : F(0);
        }
        default:
            return 0;
    }
}

template <class F>
class Nodes {
  public:
    static constexpr int B = lanes<F>;

    const Graph& g;
    const F *weights, *leaves;
    const bool maximise;  // the best induced tree instead of the sum over all

    Nodes(const Graph& g, const F* weights, const F* leaves, bool maximise = false)
        : g(g), weights(weights), leaves(leaves), maximise(maximise) {
        value_.resize(g.parameters);
        shift_.resize(g.parameters);
        for (int64_t i = 0; i < g.nodes; ++i) {
            if (g.kind[i] != leaf || g.family[g.variable[i]] != table) continue;
            const int64_t at = g.leaf_first[g.leaf_of[i]];
            for (int64_t c = 0; c < g.width[g.variable[i]]; ++c) split(leaves[at + c], value_[at + c], shift_[at + c]);
        }
    }

    struct Scratch {
        std::vector<F> values;
        std::vector<double> exponents;
        explicit Scratch(const Nodes& n) : values(n.g.nodes * B), exponents(n.g.nodes * B) {}
    };

    // x (count, variables), count <= B; the lanes beyond repeat the last row
    void up(const F* x, int64_t count, Scratch& s) const {
        for (int64_t i = 0; i < g.nodes; ++i) {
            F* value = s.values.data() + i * B;
            double* exponent = s.exponents.data() + i * B;
            if (g.kind[i] == leaf)
                leaf_values(i, x, count, value, exponent);
            else if (g.kind[i] == product)
                product_values(i, s, value, exponent);
            else
                sum_values(i, s, value, exponent);
        }
    }

    double log_value(const Scratch& s, int b) const {
        const int64_t at = (g.nodes - 1) * B + b;
        return std::log(double(s.values[at])) + s.exponents[at] * 0.693147180559945309417;
    }

    // weight times value of child k of sum i, relative to the largest exponent among the children
    void shares(const Scratch& s, int64_t i, int b, F* out) const {
        double most = std::numeric_limits<double>::lowest();
        const F* w = weights + g.first_weight[i];
        for (int64_t j = 0; j < g.children(i); ++j) {
            const int64_t c = int64_t(g.child[g.first[i] + j]) * B + b;
            if (w[j] * s.values[c] > 0) most = std::max(most, s.exponents[c]);
        }
        for (int64_t j = 0; j < g.children(i); ++j) {
            const int64_t c = int64_t(g.child[g.first[i] + j]) * B + b;
            const F here = w[j] * s.values[c];
            *out++ = here > 0 ? here * power(s.exponents[c] - most) : F(0);
        }
    }

    // 2^difference of two exponents, where F holds it
    static F power(double difference) { return power_of_two<F>(int32_t(std::max(difference, -2000.0))); }

  private:
    std::vector<F> value_;  // of tables: their probabilities
    std::vector<double> shift_;

    static void split(double log, F& value, double& exponent) {
        exponent = log > impossible ? std::floor(log * 1.4426950408889634) : 0;
        const double rest = log - exponent * 0.693147180559945309417;  // far from 0 nothing but rounding
        value = log > impossible ? F(std::exp(std::clamp(rest, 0.0, 0.6931471805599453))) : F(0);
    }

    static void rescale(F* value, double* exponent) {
        for (int b = 0; b < B; ++b) {
            const int32_t up = exponent_of(value[b]);
            exponent[b] += up;
            value[b] *= F(std::bit_cast<double>(int64_t(1023 - up) << 52));
        }
    }

    void leaf_values(int64_t i, const F* x, int64_t count, F* value, double* exponent) const {
        const int32_t v = g.variable[i];
        const int64_t at = g.leaf_first[g.leaf_of[i]];
        const uint8_t family = g.family[v];
        for (int b = 0; b < B; ++b) {
            F seen = x[std::min<int64_t>(b, count - 1) * g.variables + v];
            double shared = 0;
            if (maximise && seen != seen) {
                seen = mode(family, leaves + at, g.width[v]);
                // what the leaves of a column share depends on the value, which here they do not share
                if (family == poisson || family == negative_binomial) shared = log_factorial(double(seen));
            }
            if (seen != seen)
                value[b] = 1, exponent[b] = 0;
            else if (family == table)
                value[b] = value_[at + int64_t(seen)], exponent[b] = shift_[at + int64_t(seen)];
            else
                split(double(log_density(g, v, leaves + at, seen)) - shared, value[b], exponent[b]);
        }
    }

    void product_values(int64_t i, const Scratch& s, F* value, double* exponent) const {
        const int64_t first = int64_t(g.child[g.first[i]]) * B;
        std::copy_n(s.values.data() + first, B, value);
        std::copy_n(s.exponents.data() + first, B, exponent);
        for (int64_t e = g.first[i] + 1; e < g.first[i + 1]; ++e) {
            const int64_t c = int64_t(g.child[e]) * B;
            for (int b = 0; b < B; ++b) value[b] *= s.values[c + b], exponent[b] += s.exponents[c + b];
            rescale(value, exponent);
        }
    }

    void sum_values(int64_t i, const Scratch& s, F* value, double* exponent) const {
        double most[B];
        for (int b = 0; b < B; ++b) most[b] = std::numeric_limits<double>::lowest(), value[b] = 0;
        const F* w = weights + g.first_weight[i];
        for (int64_t e = g.first[i]; e < g.first[i + 1]; ++e, ++w) {
            if (!(*w > 0)) continue;  // it must not set the scale
            const int64_t c = int64_t(g.child[e]) * B;
            for (int b = 0; b < B; ++b) most[b] = std::max(most[b], s.values[c + b] > 0 ? s.exponents[c + b] : most[b]);
        }
        w = weights + g.first_weight[i];
        for (int64_t e = g.first[i]; e < g.first[i + 1]; ++e, ++w) {
            const int64_t c = int64_t(g.child[e]) * B;
            for (int b = 0; b < B; ++b) {
                const F here = *w * s.values[c + b] * power(std::min(s.exponents[c + b] - most[b], 0.0));
                value[b] = maximise ? std::max(value[b], here) : value[b] + here;
            }
        }
        for (int b = 0; b < B; ++b) exponent[b] = value[b] > 0 ? most[b] : 0;
        rescale(value, exponent);
    }
};

}  // namespace pyfast::spn
