// The downward pass of the dense form: given the upward values of a block of rows, exact draws of their induced trees.
#pragma once

#include "spn/choose.h"
#include "spn/panels.h"
#include "spn/transpose.h"

namespace pyfast::spn {

// Calls visit.weight(index, times) and visit.leaf(leaf, variable, row in block, times) for all that the rows' induced
// trees contain; a row stands for `times` equal ones, each of which draws a tree of its own.
template <class F>
class Down {
  public:
    static constexpr int B = block<F>;
    using Scratch = typename Panels<F>::Scratch;

    Down(const Panels<F>& panels, uint64_t seed, uint64_t what)
        : panels_(panels),
          program_(panels.program),
          seed_(seed),
          what_(what),
          state_(program_.regions.size() * B),
          some_(program_.values),
          share_(widest_row() + 2 * program_.most),
          rows_(size_t(program_.most) * B * 2) {}

    // Row b draws one tree where `once[b]`; `first_row` is the number by which randomness knows row 0.
    template <class Visit>
    void one_each(const Scratch& s, const bool* once, int64_t first_row, Visit& visit) {
        const int last = int(program_.regions.size()) - 1;
        std::fill(state_.begin(), state_.end(), -1);
        for (int b = 0; b < B; ++b) state_[size_t(last) * B + b] = once[b] ? 0 : -1;
        for (int i = last; i >= 0; --i) {  // all rows at a region, while its values are near
            const int* state = state_.data() + size_t(i) * B;
            int rows[B], active = 0;  // that reach the region
            for (int b = 0; b < B; ++b) {
                rows[active] = b;
                active += state[b] >= 0;
            }
            if (active == 0) continue;
            for (const Term& t : program_.regions[i].terms) {
                if (t.kind == leaves_term) {
                    for (const auto& [v, leaf] : t.over)
                        for (int a = 0; a < active; ++a) visit.leaf(leaf + state[rows[a]], v, rows[a], 1);
                    continue;
                }
                uint64_t index[B];
                double u[B];
                for (int b = 0; b < B; ++b)
                    index[b] = uint64_t(first_row + b) << 28 | uint64_t(t.first_sum + std::max(state[b], 0));
                random::uniforms<B>(seed_, what_, index, u);
                if (t.kind == mixture_term) by_row(s.panel(program_.regions[t.region]), t.region, rows_.data());
                for (int a = 0; a < active; ++a) {
                    const F* w = panels_.weights + t.first_weight + state[rows[a]] * t.row;
                    __builtin_prefetch(w), __builtin_prefetch(w + lanes<F>);
                }
                int64_t chosen[B];  // counted together: they are far from each other in memory
                for (int a = 0; a < active; ++a) {
                    const int b = rows[a], k = state[b];
                    const int j = choice(s, t, b, k, u[b]);
                    chosen[a] = t.first_weight + k * t.row + j;
                    enter(t, j, [&](int region, int child) { state_[size_t(region) * B + b] = child; });
                }
                for (int a = 0; a < active; ++a) visit.weight(chosen[a], 1);
            }
        }
    }

    template <class Visit>
    void many(const Scratch& s, int b, int64_t row, int64_t times, Visit& visit) {
        std::fill(some_.begin(), some_.end(), 0);
        some_.back() = times;
        for (size_t i = program_.regions.size(); i-- > 0;) {
            const Region& r = program_.regions[i];
            const int64_t* some = some_.data() + r.panel;
            for (const Term& t : r.terms) {
                bool turned = false;
                for (int k = 0; k < r.outputs; ++k) {
                    const int64_t here = some[k];
                    if (here == 0) continue;
                    if (t.kind == leaves_term) {
                        for (const auto& [v, leaf] : t.over) visit.leaf(leaf + k, v, b, here);
                        continue;
                    }
                    if (t.kind == mixture_term && !turned) {
                        column(s.panel(program_.regions[t.region]), t.region, b);
                        turned = true;
                    }
                    const int64_t inputs = shares(s, t, b, k, rows_.data());
                    const auto send = [&](int64_t j, int64_t count) {
                        visit.weight(t.first_weight + k * t.row + j, count);
                        enter(t, int(j),
                              [&](int region, int child) { some_[program_.regions[region].panel + child] += count; });
                    };
                    share_out(share_.data(), inputs, here, seed_, what_,
                              uint64_t(row) << 28 | uint64_t(t.first_sum + k), send);
                }
            }
        }
    }

  private:
    const Panels<F>& panels_;
    const Program& program_;
    uint64_t seed_, what_;
    std::vector<int> state_;     // of a region, of a row: the component that its tree holds, or -1
    std::vector<int64_t> some_;  // of a component: how many trees hold it
    std::vector<F> share_, rows_;

    int64_t widest_row() const {
        int64_t most = 1;
        for (const Region& r : program_.regions)
            for (const Term& t : r.terms)
                most = std::max<int64_t>(most, t.kind == mixture_term ? program_.regions[t.region].outputs
                                               : t.kind == pairs_term ? t.row
                                                                      : 1);
        return most;
    }

    // A panel turned: the components of a row side by side.
    void by_row(const F* panel, int region, F* out) const {
        const int K = program_.regions[region].outputs, whole = K / lanes<F> * lanes<F>;
        transpose(whole, B, panel, B, out, K);
        for (int j = whole; j < K; ++j)
            for (int b = 0; b < B; ++b) out[size_t(b) * K + j] = panel[size_t(j) * B + b];
    }

    void column(const F* panel, int region, int b) {
        const int K = program_.regions[region].outputs;
        for (int j = 0; j < K; ++j) rows_[size_t(b) * K + j] = panel[size_t(j) * B + b];
    }

    // The child of sum k that row b takes.
    int choice(const Scratch& s, const Term& t, int b, int k, double u) {
        if (t.kind != mixture_term) return choose(share_.data(), shares(s, t, b, k, nullptr), u);
        const int K = program_.regions[t.region].outputs;
        const F *w = panels_.weights + t.first_weight + k * t.row, *x = rows_.data() + size_t(b) * K;
        return choose<F>([&](int64_t v) { return at(w + v * lanes<F>) * at(x + v * lanes<F>); },
                         [&](int64_t j) { return w[j] * x[j]; }, K, u);
    }

    // share_ = weight times value of every child of sum k, up to a common factor; `rows` is a mixture's panel by row
    int64_t shares(const Scratch& s, const Term& t, int b, int k, const F* rows) {
        const F* w = panels_.weights + t.first_weight + k * t.row;
        F* share = share_.data();
        if (t.kind == mixture_term) {
            const int K = program_.regions[t.region].outputs;
            const F* x = rows + size_t(b) * K;
#pragma omp simd
            for (int j = 0; j < K; ++j) share[j] = w[j] * x[j];
            return K;
        }
        int32_t most = std::numeric_limits<int32_t>::min();
        const auto exponent = [&](const Pair& p) {
            return s.exponents[size_t(p.left) * B + b] + s.exponents[size_t(p.right) * B + b];
        };
        for (const Pair& p : t.pairs) most = std::max(most, exponent(p));
        F* beside = share + t.row;
        for (const Pair& p : t.pairs) {
            const Region &left = program_.regions[p.left], &right = program_.regions[p.right];
            const F scale = power_of_two<F>(exponent(p) - most), *l = s.panel(left) + b, *r = s.panel(right) + b;
            const int J = right.outputs;
            for (int j = 0; j < J; ++j) beside[j] = r[size_t(j) * B] * scale;
            F* to = share + p.offset;
            const F* from = w + p.offset;
            for (int i = 0; i < left.outputs; ++i, to += J, from += J) {
                const F here = l[size_t(i) * B];
#pragma omp simd
                for (int j = 0; j < J; ++j) to[j] = from[j] * (here * beside[j]);
            }
        }
        return t.row;
    }

    // Tells the regions and components that child j of a sum consists of.
    template <class Enter>
    void enter(const Term& t, int j, Enter enter) const {
        if (t.kind == mixture_term) return enter(t.region, j);
        size_t p = t.pairs.size() - 1;
        while (t.pairs[p].offset > j) --p;
        const int64_t rest = j - t.pairs[p].offset, width = program_.regions[t.pairs[p].right].outputs;
        enter(t.pairs[p].left, int(rest / width));
        enter(t.pairs[p].right, int(rest % width));
    }
};

}  // namespace pyfast::spn
