// The downward pass of derivatives of any graph, node by node. See flows.h for what flows.
#pragma once

#include "spn/derivatives.h"
#include "spn/sparse.h"

namespace pyfast::spn {

template <class F>
class NodeFlows {
  public:
    static constexpr int B = lanes<F>, group = 1;
    using Scratch = typename Nodes<F>::Scratch;

    explicit NodeFlows(const Nodes<F>& nodes)
        : nodes_(nodes), g_(nodes.g), flow_(g_.nodes * B), weights_(g_.weights), leaves_(g_.parameters) {}

    // After the upward pass of rows x (count, variables): adds their derivatives times a factor of each.
    void down(const Scratch* room, int, const F* x, int64_t count, const F* factor) {
        const Scratch& s = *room;
        std::fill(flow_.begin(), flow_.end(), F(0));
        F* root = flow_.data() + (g_.nodes - 1) * B;
        const F* value = s.values.data() + (g_.nodes - 1) * B;
        for (int b = 0; b < count; ++b) root[b] = value[b] > 0 ? factor[b] : F(0);
        for (int64_t i = g_.nodes; i-- > 0;) {
            const F* flow = flow_.data() + i * B;
            bool any = false;
            for (int b = 0; b < B; ++b) any |= flow[b] != 0;
            if (!any) continue;
            if (g_.kind[i] == leaf)
                leaf_flow(i, x, count, flow);
            else if (g_.kind[i] == product)
                for (int64_t e = g_.first[i]; e < g_.first[i + 1]; ++e)
                    for (int b = 0; b < B; ++b) flow_[int64_t(g_.child[e]) * B + b] += flow[b];
            else
                sum_flow(i, s, flow);
        }
    }

    // Moves what was added since the last call to `weights` and `leaves`.
    void finish(double* weights, double* leaves) {
        for (int64_t i = 0; i < g_.weights; ++i) weights[i] += weights_[i];
        for (int64_t i = 0; i < g_.parameters; ++i) leaves[i] += leaves_[i];
        std::fill(weights_.begin(), weights_.end(), 0);
        std::fill(leaves_.begin(), leaves_.end(), 0);
    }

  private:
    const Nodes<F>& nodes_;
    const Graph& g_;
    std::vector<F> flow_;
    std::vector<double> weights_, leaves_, parts_;

    void sum_flow(int64_t i, const Scratch& s, const F* flow) {
        const F* value = s.values.data() + i * B;
        const double* exponent = s.exponents.data() + i * B;
        F ratio[B];
        for (int b = 0; b < B; ++b) ratio[b] = value[b] > 0 ? flow[b] / value[b] : F(0);
        const F* w = nodes_.weights + g_.first_weight[i];
        double* to = weights_.data() + g_.first_weight[i];
        // the largest power whose products stay in F
        constexpr double most = sizeof(F) == 4 ? 125 : 1021;
        for (int64_t e = g_.first[i]; e < g_.first[i + 1]; ++e, ++w, ++to) {
            const int64_t c = int64_t(g_.child[e]) * B;
            double sum = 0;
            for (int b = 0; b < B; ++b) {
                const F power = Nodes<F>::power(std::min(s.exponents[c + b] - exponent[b], most));
                const F gain = ratio[b] * (s.values[c + b] * power);
                flow_[c + b] += *w * gain;
                sum += double(gain);
            }
            *to += sum;
        }
    }

    void leaf_flow(int64_t i, const F* x, int64_t count, const F* flow) {
        const int32_t v = g_.variable[i];
        const uint8_t family = g_.family[v];
        const int64_t at = g_.leaf_first[g_.leaf_of[i]];
        for (int64_t b = 0; b < count; ++b) {
            const F seen = x[b * g_.variables + v];
            if (seen != seen || flow[b] == 0) continue;
            if (family == table) {
                leaves_[at + int64_t(seen)] += double(flow[b]);
                continue;
            }
            if (family == own) {
                parts_.resize(g_.width[v]);
                g_.owns[v].derivatives(nodes_.leaves + at, double(seen), parts_.data());
                for (int64_t c = 0; c < g_.width[v]; ++c) leaves_[at + c] += double(flow[b]) * parts_[c];
                continue;
            }
            double d[4];
            derivatives(family, nodes_.leaves + at, seen, d);
            for (int c = 0; c < 4; ++c) leaves_[at + c] += double(flow[b]) * d[c];
        }
    }
};

}  // namespace pyfast::spn
