// How well each child of a sum would fit the sample if its variables were independent: univariate marginals, from which
// proposals may choose. Any such score gives an exact kernel as long as it is a function of the sample and of what the
// kernel holds fixed: of the other samples' trees (collapsed), or of weights and leaves (instantiated).
#pragma once

#include "spn/chain_exact.h"

namespace pyfast::spn {

class Scores {
  public:
    Scores(Model& model, bool active) : m(model), active_(active) {
        if (!active) return;
        const int64_t nodes = int64_t(m.node.size());
        value_.resize(nodes);
        known_.assign(nodes, 0);
        find_scopes();
        if (m.collapsed)
            through_.assign(size_, 0);
        else
            find_marginals();
    }

    void begin() {
        if (active_ && ++now_ == 0) {
            std::fill(known_.begin(), known_.end(), 0);
            now_ = 1;
        }
    }

    // Collapsed: what a child's score is made of, the samples that pass it.
    void count(const Tree& t, int64_t times) {
        if (!active_ || !m.collapsed) return;
        for (int32_t i = 0; i < t.size; ++i) {
            const int32_t c = m.g.child[m.node[t.sums[i].node].first + t.sums[i].child];
            if (m.node[c].kind == leaf) continue;
            for (int64_t e = first_[c]; e < first_[c + 1]; ++e) {
                const int32_t v = entry_[e].variable;
                observe(m.g, v, &through_[entry_[e].at], m.x[v], times);
            }
        }
    }

    int32_t draw(int32_t v, Draws& u) {
        const Node& s = m.node[v];
        Scaled rest = scored(v);
        rest *= u();
        Scaled reached(0.0);
        for (int32_t k = 0; k + 1 < s.count; ++k) {
            reached += term(s, k);
            if (ratio(rest, reached) < 1) return k;
        }
        return s.count - 1;
    }

    // The weight of child k over the probability with which draw() chooses it.
    Scaled correction(int32_t v, int32_t k) {
        const Node& s = m.node[v];
        Scaled result = scored(v);
        Scaled chosen = score(m.g.child[s.first + k]);
        chosen *= m.total(s);
        if (!(chosen.m > 0)) return Scaled(NAN, 0);  // could not have been drawn: what holds it is never left or taken
        result.m /= chosen.m;
        result.e -= chosen.e;
        result.normalise();
        return result;
    }

  private:
    // One variable of a node's scope.
    struct Entry {
        int32_t variable, leaf;  // and a leaf over it below the node, whose prior stands for all of them
        int64_t at;              // of its statistics or marginals
    };

    Scaled term(const Node& s, int32_t k) {
        Scaled t = score(m.g.child[s.first + k]);
        t *= m.weight(s, k);
        return t;
    }

    Scaled scored(int32_t v) {
        const Node& s = m.node[v];
        Scaled result = term(s, 0);
        for (int32_t k = 1; k < s.count; ++k) result += term(s, k);
        return result;
    }

    Scaled score(int32_t c) {
        if (known_[c] != now_) {
            known_[c] = now_;
            if (m.node[c].kind == leaf) {
                value_[c] = m.likelihood(m.node[c]);
            } else {
                value_[c] = {};
                for (int64_t e = first_[c]; e < first_[c + 1]; ++e) value_[c] *= marginal(entry_[e]);
            }
        }
        return value_[c];
    }

    Scaled marginal(const Entry& e) const {
        const double x = m.x[e.variable];
        if (x != x) return {};
        const uint8_t family = m.g.family[e.variable];
        if (!m.collapsed) {
            const double* p = &marginals_[e.at];
            if (family == table) return Scaled(p[int64_t(x)]);
            if (family == own) {
                logs_.resize(m.g.width[e.variable]);
                for (size_t c = 0; c < logs_.size(); ++c) logs_[c] = std::log(p[c]);
                return Scaled::from_log(m.g.owns[e.variable].log_value(logs_.data(), x));
            }
            const double mean = p[0];
            if (family == poisson) return Scaled::from_log(x * std::log(mean) - mean);
            if (family == exponential) return Scaled::from_log(-std::log(mean) - x / mean);
            const double variance = p[1] - mean * mean, off = x - mean;
            return Scaled::from_log(-0.5 * (std::log(variance) + off * off / variance));
        }
        const Node& l = m.node[e.leaf];
        if (family == own)
            return Scaled::from_log(m.g.owns[e.variable].log_predictive(m.prior + l.at, &through_[e.at], x));
        if (family != table)
            return Scaled::from_log(
                log_predictive(family, m.prior + l.at, Moments(&through_[e.at], m.g.quantum[e.variable]), x));
        int64_t n = 0;
        for (int64_t c = 0; c < m.g.width[e.variable]; ++c) n += through_[e.at + c];
        return Scaled((m.prior[l.at + int64_t(x)] + double(through_[e.at + int64_t(x)])) / (l.mass + double(n)));
    }

    void find_scopes() {
        first_.assign(1, 0);
        for (int32_t i = 0; i < int32_t(m.node.size()); ++i) {
            const Node& n = m.node[i];
            const int64_t begin = int64_t(entry_.size());
            if (begin + n.scope > limit)
                throw std::invalid_argument("kernel must not be informed on a graph as large and deep as this one");
            if (n.kind == leaf) {
                entry_.push_back({n.count, i, 0});
            } else {
                for (int32_t k = 0; k < (n.kind == sum ? 1 : n.count); ++k) {
                    const int32_t c = m.g.child[n.first + k];
                    for (int64_t e = first_[c]; e < first_[c + 1]; ++e) entry_.push_back(Entry(entry_[e]));
                }
                std::sort(entry_.begin() + begin, entry_.end(),
                          [](const Entry& a, const Entry& b) { return a.variable < b.variable; });
            }
            for (int64_t e = begin; e < int64_t(entry_.size()); ++e) {
                entry_[e].at = size_;
                size_ += m.g.width[entry_[e].variable];
            }
            first_.push_back(int64_t(entry_.size()));
        }
        if (size_ > limit)
            throw std::invalid_argument("kernel must not be informed on a graph as large and deep as this one");
    }

    // Tables: the probabilities. Otherwise the mean and the mean square: of the mixture of what is below.
    void find_marginals() {
        marginals_.assign(size_, 0);
        for (size_t i = 0; i < m.node.size(); ++i) {
            const Node& n = m.node[i];
            if (n.kind == leaf) {
                const double* p = &m.logs[n.first];
                double* out = &marginals_[entry_[first_[i]].at];
                if (n.family == table || n.family == own) {
                    for (int64_t c = 0; c < m.g.width[n.count]; ++c) out[c] = std::exp(p[c]);
                } else {
                    const double variance = n.family == gaussian ? -0.5 / p[2] : 0;
                    out[0] = n.family == gaussian ? p[1] * variance : n.family == poisson ? std::exp(p[1]) : -1 / p[1];
                    out[1] = out[0] * out[0] + variance;
                }
            } else if (n.kind == sum) {
                for (int32_t k = 0; k < n.count; ++k) {
                    const int32_t c = m.g.child[n.first + k];
                    const double w = m.weight(n, k) / m.total(n);
                    add_marginals(first_[i], first_[c], first_[c + 1] - first_[c], w);
                }
            } else {
                for (int32_t k = 0; k < n.count; ++k) {
                    const int32_t c = m.g.child[n.first + k];
                    for (int64_t e = first_[c]; e < first_[c + 1]; ++e)
                        add_marginals(find(i, entry_[e].variable), e, 1, 1);
                }
            }
        }
    }

    void add_marginals(int64_t to, int64_t from, int64_t entries, double w) {
        for (int64_t e = 0; e < entries; ++e)
            for (int64_t c = 0; c < m.g.width[entry_[from + e].variable]; ++c)
                marginals_[entry_[to + e].at + c] += w * marginals_[entry_[from + e].at + c];
    }

    int64_t find(size_t node, int32_t variable) const {
        return std::lower_bound(entry_.begin() + first_[node], entry_.begin() + first_[node + 1], variable,
                                [](const Entry& e, int32_t v) { return e.variable < v; }) -
               entry_.begin();
    }

    static constexpr int64_t limit = int64_t(1) << 28;

    Model& m;
    bool active_;
    std::vector<Scaled> value_;  // of a node: its score for the sample at hand
    std::vector<uint32_t> known_;
    uint32_t now_ = 0;
    std::vector<int64_t> first_;  // of a node's entries, sorted by variable
    std::vector<Entry> entry_;
    int64_t size_ = 0;
    std::vector<int64_t> through_;
    std::vector<double> marginals_;
    mutable std::vector<double> logs_;  // of one entry
};

}  // namespace pyfast::spn
