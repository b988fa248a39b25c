// One sample's update: kernels over induced trees that leave p(tree | all other trees, data) as it is. Proofs: each
// kernel's own; pyfast/reference/spn.py has the law itself.
//
// Every candidate is a list of its own: in a graph whose nodes are shared, candidates for different children of a sum
// may pass the same sum, with different choices there.
#pragma once

#include "spn/chain_exact.h"
#include "spn/chain_informed.h"

namespace pyfast::spn {

enum class Kernel { block, topdown, levels, isir, informed };

class Update {
  public:
    Update(Model& model, Kernel kernel, int32_t lookahead, int32_t candidates, Draws draws, Scores& scores,
           int64_t* accepted)
        : m(model),
          exact(model),
          u(draws),
          scores(scores),
          kernel(kernel),
          lookahead(lookahead),
          candidates(candidates),
          accepted(accepted),
          full(m.max_sums(), m.node[m.root].scope),
          tree(full),
          one(full),
          other(full) {}

    Update(const Update&) = delete;

    // Draws sample n's tree anew: `row` holds its choices, which are in the counts.
    void operator()(int64_t n, int32_t* row) {
        begin(n);
        m.read(row, full);
        scores.count(full, -1);
        m.count(full, -1);
        if (kernel == Kernel::block) {
            tree.size = 0;
        } else {
            look(lookahead);
            move();
        }
        finish(kernel == Kernel::block ? m.node[m.root].height : lookahead);
        m.write(full, row);
    }

    // Draws a tree for a sample that is not in the counts, given those that are: exactly, where that is cheap;
    // otherwise from the prior, then improved once by i-SIR.
    void insert(int64_t n, int32_t* row, bool exactly) {
        begin(n);
        tree.size = 0;
        if (!exactly) {
            propose<false>(m.root, 0, tree, 0);
            sweep_isir(0);
        }
        finish(exactly ? m.node[m.root].height : 0);
        m.write(full, row);
    }

  private:
    void begin(int64_t n) {
        u.begin(n);
        exact.begin();
        scores.begin();
    }

    void move() {
        if (kernel == Kernel::topdown) {
            move_all();
        } else if (kernel == Kernel::levels) {
            for (int32_t i = 0; i < tree.size; ++i) move_below<false>(i);
        } else if (kernel == Kernel::informed) {
            correct();
            for (int32_t i = 0; i < tree.size; ++i) move_below<true>(i);
        } else {
            sweep_isir(lookahead);
        }
    }

    // The tree at hand, down to the sums of height `low`: those, and leaves, have values.
    void look(int32_t low) {
        tree.size = 0;
        const int32_t slots = m.node[m.root].scope;
        if (low <= 0) {
            std::copy_n(full.sums.begin(), full.size, tree.sums.begin());
            tree.size = full.size;
            for (int32_t v = 0; v < slots; ++v) {
                tree.leaf[v] = full.leaf[v];
                tree.value[v] = m.likelihood(m.node[full.leaf[v]]);
            }
            return;
        }
        int32_t settled = 0;  // the first slot beyond the last sum that has been summed out
        const auto leaves_until = [&](int32_t slot) {
            for (; settled < slot; ++settled) {
                tree.leaf[settled] = full.leaf[settled];
                tree.value[settled] = m.likelihood(m.node[full.leaf[settled]]);
            }
        };
        for (int32_t i = 0; i < full.size; ++i) {
            const Choice& c = full.sums[i];
            if (c.slot < settled) continue;
            if (m.node[c.node].height > low) {
                tree.sums[tree.size++] = c;
            } else {
                leaves_until(c.slot);
                sum_out(c.node, c.slot, tree);
                settled = c.slot + m.node[c.node].scope;
            }
        }
        leaves_until(slots);
    }

    // Settles the slots below a sum by its value.
    void sum_out(int32_t v, int32_t slot, Tree& t) {
        t.leaf[slot] = v;
        t.value[slot] = exact(v);
        for (int32_t i = 1; i < m.node[v].scope; ++i) {
            t.leaf[slot + i] = -1;
            t.value[slot + i] = {};
        }
    }

    // Completes the tree at hand by exact draws at sums of height `low` and below, and puts it in the counts.
    void finish(int32_t low) {
        full.size = 0;
        int32_t next = 0;
        m.walk(
            m.root, 0,
            [&](int32_t v, int32_t slot) {
                int32_t k;
                if (m.node[v].height > low) {
                    k = tree.sums[next++].child;
                } else {
                    exact(v);
                    k = exact.draw(v, u);
                }
                full.sums[full.size++] = {v, k, slot};
                return k;
            },
            [&](int32_t v, int32_t slot) { full.leaf[slot] = v; });
        m.count(full, 1);
        scores.count(full, 1);
    }

    int32_t pick(const Node& s) {
        double rest = u() * m.total(s);
        for (int32_t k = 0; k + 1 < s.count; ++k) {
            rest -= m.weight(s, k);
            if (rest < 0) return k;
        }
        return s.count - 1;
    }

    // Draws a tree below `top` from the weights alone (informed: from the scores too) into t. Returns its likelihood
    // (informed: times what the scores put in too much). With `child`, below that child of the sum `top` only.
    template <bool informed>
    Scaled propose(int32_t top, int32_t slot, Tree& t, int32_t low, int32_t child = -1) {
        Scaled likelihood;
        t.size = 0;
        m.walk(
            top, child, slot,
            [&](int32_t v, int32_t at) {
                const Node& s = m.node[v];
                if (s.height <= low) {
                    sum_out(v, at, t);
                    likelihood *= t.value[at];
                    return -1;
                }
                int32_t k;
                if constexpr (informed) {
                    k = scores.draw(v, u);
                    likelihood *= t.factor[t.size] = scores.correction(v, k);
                } else {
                    k = pick(s);
                }
                t.sums[t.size++] = {v, k, at};
                return k;
            },
            [&](int32_t v, int32_t at) {
                t.leaf[at] = v;
                t.value[at] = m.likelihood(m.node[v]);
                likelihood *= t.value[at];
            });
        return likelihood;
    }

    Scaled likelihood(int32_t slot, int32_t count) const {
        Scaled product = tree.value[slot];
        for (int32_t v = slot + 1; v < slot + count; ++v) product *= tree.value[v];
        return product;
    }

    // Sums [from, to) of the tree at hand give way to the other's, and `count` slots.
    void replace(int32_t from, int32_t to, int32_t slot, int32_t count, const Tree& other) {
        const auto at = tree.sums.begin();
        const auto factor = tree.factor.begin();
        const bool informed = kernel == Kernel::informed;
        const int32_t shift = other.size - (to - from);
        if (shift < 0) {
            std::copy(at + to, at + tree.size, at + to + shift);
            if (informed) std::copy(factor + to, factor + tree.size, factor + to + shift);
        } else if (shift > 0) {
            std::copy_backward(at + to, at + tree.size, at + tree.size + shift);
            if (informed) std::copy_backward(factor + to, factor + tree.size, factor + tree.size + shift);
        }
        tree.size += shift;
        std::copy_n(other.sums.begin(), other.size, at + from);
        if (informed) std::copy_n(other.factor.begin(), other.size, factor + from);
        std::copy_n(other.leaf.begin() + slot, count, tree.leaf.begin() + slot);
        std::copy_n(other.value.begin() + slot, count, tree.value.begin() + slot);
    }

    void note(int32_t height, bool moved) {
        ++accepted[2 * height];
        accepted[2 * height + 1] += moved;
    }

    // Independence Metropolis-Hastings of the whole tree. The weights cancel: its odds are the likelihoods'.
    void move_all() {
        const Node& top = m.node[m.root];
        const Scaled drawn = propose<false>(m.root, 0, *fresh, lookahead);
        const bool moved = u() < ratio(drawn, likelihood(0, top.scope));
        if (moved) replace(0, tree.size, 0, top.scope, *fresh);
        note(top.height, moved);
    }

    // The same of what is below sum i, on which the choice of i does not depend.
    template <bool informed>
    void move_below(int32_t i) {
        const Choice c = tree.sums[i];
        const Node& s = m.node[c.node];
        const Scaled drawn = propose<informed>(c.node, c.slot, *fresh, lookahead);
        const int32_t end = tree.end(i, s.scope);
        Scaled old = likelihood(c.slot, s.scope);
        if constexpr (informed)
            for (int32_t j = i; j < end; ++j) old *= tree.factor[j];
        const bool moved = u() < ratio(drawn, old);
        if (moved) replace(i, end, c.slot, s.scope, *fresh);
        note(s.height, moved);
    }

    // What the scores put in too much, for each sum of the tree at hand.
    void correct() {
        for (int32_t i = 0; i < tree.size; ++i)
            tree.factor[i] = scores.correction(tree.sums[i].node, tree.sums[i].child);
    }

    void sweep_isir(int32_t low) {
        for (int32_t i = 0; i < tree.size; ++i) {
            if (candidates > 0 && m.node[tree.sums[i].node].count > candidates)
                choose_tree(i, low);
            else
                choose_child(i, low);
        }
    }

    // Iterated sampling importance resampling: the tree at hand stands for the child that it passes, a fresh one for
    // every other child; one of them is drawn by weight times likelihood. A candidate takes the place of the one kept
    // so far with its share of the sum so far, so that two lists do.
    void choose_child(int32_t i, int32_t low) {
        const Choice c = tree.sums[i];
        const Node& s = m.node[c.node];
        Scaled sum = likelihood(c.slot, s.scope);
        sum *= m.weight(s, c.child);
        int32_t chosen = -1;
        for (int64_t j = 0; j < std::min<int64_t>(int64_t(s.count) * s.parts, 64); ++j)
            __builtin_prefetch(&m.node[s.below + j]);
        for (int32_t k = 0; k < s.count; ++k) {
            if (k == c.child) continue;
            Scaled part = propose<false>(c.node, c.slot, *fresh, low, k);
            part *= m.weight(s, k);
            sum += part;
            if (u() < ratio(part, sum)) {
                chosen = k;
                std::swap(fresh, kept);
            }
        }
        if (chosen >= 0) {
            replace(i + 1, tree.end(i, s.scope), c.slot, s.scope, *kept);
            tree.sums[i].child = chosen;
        }
        note(s.height, chosen >= 0);
    }

    // The same with a given number of candidates, child and all drawn from the weights: their likelihoods decide.
    void choose_tree(int32_t i, int32_t low) {
        const Choice c = tree.sums[i];
        const Node& s = m.node[c.node];
        Scaled sum = likelihood(c.slot, s.scope);
        bool moved = false;
        for (int32_t j = 1; j < candidates; ++j) {
            const Scaled part = propose<false>(c.node, c.slot, *fresh, low);
            sum += part;
            if (u() < ratio(part, sum)) {
                moved = true;
                std::swap(fresh, kept);
            }
        }
        if (moved) replace(i, tree.end(i, s.scope), c.slot, s.scope, *kept);
        note(s.height, moved);
    }

    Model& m;
    Exact exact;
    Draws u;
    Scores& scores;
    const Kernel kernel;
    const int32_t lookahead, candidates;
    int64_t* accepted;
    Tree full, tree;  // in the counts; at hand, down to the sums that are summed out
    Tree one, other;  // what may take the place of a part of it
    Tree *fresh = &one, *kept = &other;
};

}  // namespace pyfast::spn
