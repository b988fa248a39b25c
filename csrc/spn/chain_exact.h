// Values of nodes with every choice below summed out, kept for as long as one sample's update lasts, and choices drawn
// given them.
#pragma once

#include "spn/chain_draws.h"
#include "spn/chain_model.h"

namespace pyfast::spn {

class Exact {
  public:
    explicit Exact(Model& model) : m(model), value_(model.node.size()), known_(model.node.size(), 0) {}

    void begin() {
        if (++now_ == 0) {  // once in 2^32 updates
            std::fill(known_.begin(), known_.end(), 0);
            now_ = 1;
        }
    }

    // The likelihood of what is below the node, given all that is in the counts.
    const Scaled& operator()(int32_t top) {
        if (known_[top] == now_) return value_[top];
        if (top == m.root) {
            for (int32_t v = 0; v <= top; ++v) settle(v);
            return value_[top];
        }
        // A node comes up twice: first to ask for its children, then, marked, with all of them known.
        waiting_.assign(1, top);
        while (!waiting_.empty()) {
            const int32_t v = waiting_.back();
            waiting_.pop_back();
            if (v < 0) {
                settle(~v);
            } else if (known_[v] != now_) {
                const Node& n = m.node[v];
                if (n.kind != leaf) waiting_.push_back(~v);
                for (int32_t k = 0; k < n.count && n.kind != leaf; ++k) waiting_.push_back(m.g.child[n.first + k]);
                if (n.kind == leaf) settle(v);
            }
        }
        return value_[top];
    }

    // A sum's choice given the sample; its value must be known.
    int32_t draw(int32_t v, Draws& u) const {
        const Node& s = m.node[v];
        Scaled rest = value_[v];
        rest *= m.total(s) * u();
        // The same terms in the same order as in the sum: the last child takes what rounding leaves.
        Scaled reached(0.0);
        for (int32_t k = 0; k + 1 < s.count; ++k) {
            reached += term(s, k);
            if (ratio(rest, reached) < 1) return k;
        }
        return s.count - 1;
    }

  private:
    Scaled term(const Node& s, int32_t k) const {
        Scaled t = value_[m.g.child[s.first + k]];
        t *= m.weight(s, k);
        return t;
    }

    void settle(int32_t v) {
        const Node& n = m.node[v];
        Scaled result;
        if (n.kind == leaf) {
            result = m.likelihood(n);
        } else if (n.kind == product) {
            result = value_[m.g.child[n.first]];
            for (int32_t k = 1; k < n.count; ++k) result *= value_[m.g.child[n.first + k]];
        } else {
            result = term(n, 0);
            for (int32_t k = 1; k < n.count; ++k) result += term(n, k);
            result *= 1 / m.total(n);
        }
        value_[v] = result;
        known_[v] = now_;
    }

    Model& m;
    std::vector<Scaled> value_;
    std::vector<uint32_t> known_;
    uint32_t now_ = 0;
    std::vector<int32_t> waiting_;
};

}  // namespace pyfast::spn
