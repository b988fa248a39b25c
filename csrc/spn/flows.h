// The downward pass of derivatives, of the dense form: how much of a row's likelihood flows through each component.
//
// The flow of a component is the derivative of log p(x) in the logarithm of its value: the posterior probability that
// the row's induced tree holds it, so in [0, 1], here times a factor of the row. A sum hands its flow to its children
// in the shares w_k v_k / v, and the derivative in w_k is flow * v_k / v. A sum whose value is 0 (of float: less than
// 2^-126 of its region's largest) passes nothing on.
#pragma once

#include "spn/derivatives.h"
#include "spn/panels.h"
#include "spn/transpose.h"

namespace pyfast::spn {

template <class F>
class Flows {
  public:
    static constexpr int B = block<F>;
    static constexpr int group = 4;  // blocks at a time: weights and their sums come from afar
    using Scratch = typename Panels<F>::Scratch;

    explicit Flows(const Panels<F>& panels)
        : panels_(panels),
          program_(panels.program),
          g_(panels.g),
          flow_(group * program_.values * B),
          ratio_(size_t(padded(program_.most)) * B),
          turned_(group * size_t(padded(program_.most)) * B),
          input_(group * program_.widest * B),
          gain_(program_.widest * B) {
        int64_t size = 0;
        for (const Region& r : program_.regions)
            for (const Term& t : r.terms) {
                first_.push_back(size);
                int64_t rows = t.kind == mixture_term ? program_.regions[t.region].outputs : t.row;
                if (t.kind == leaves_term) rows = leaf_rows(t, t.over.size());
                size += rows * padded(r.outputs);
            }
        sums_.resize(size);
    }

    // After the upward pass of n blocks, n <= group: adds their derivatives, each row's times its `factor` (n, B).
    // Rows of factor 0 add nothing.
    void down(const Scratch* blocks, int n, const F*, int64_t, const F* factor) {
        blocks_ = blocks;
        n_ = n;
        std::fill(flow_.begin(), flow_.end(), F(0));
        const Region& root = program_.regions.back();
        for (int q = 0; q < n; ++q)
            for (int b = 0; b < B; ++b) flow(root, q)[b] = blocks[q].panel(root)[b] > 0 ? factor[q * B + b] : F(0);
        size_t term = first_.size();
        for (size_t i = program_.regions.size(); i-- > 0;) {
            const Region& r = program_.regions[i];
            for (size_t t = r.terms.size(); t-- > 0;) {
                F* to = sums_.data() + first_[--term];
                if (r.terms[t].kind == leaves_term)
                    leaves(r, r.terms[t], to);
                else if (r.terms[t].kind == mixture_term)
                    mixture(i, r.terms[t], to);
                else
                    pairs(i, r.terms[t], to);
            }
        }
    }

    // Moves what was added since the last call to `weights` and `leaves`.
    void finish(double* weights, double* leaves) {
        size_t term = 0;
        for (const Region& r : program_.regions)
            for (const Term& t : r.terms) {
                const F* from = sums_.data() + first_[term++];
                const int64_t K = r.outputs, stride = padded(r.outputs);
                if (t.kind == leaves_term) {
                    for (size_t i = 0; i < t.over.size(); ++i) finish_leaf(t, i, K, from, leaves);
                    continue;
                }
                const int64_t rows = t.kind == mixture_term ? program_.regions[t.region].outputs : t.row;
                for (int64_t k = 0; k < K; ++k)
                    for (int64_t j = 0; j < rows; ++j)
                        weights[t.first_weight + k * t.row + j] += double(from[j * stride + k]);
            }
        std::fill(sums_.begin(), sums_.end(), F(0));
    }

  private:
    const Panels<F>& panels_;
    const Program& program_;
    const Graph& g_;
    const Scratch* blocks_ = nullptr;
    int n_ = 0;
    std::vector<F> flow_;          // of all regions of all blocks
    std::vector<F> ratio_;         // of one region of one block: flow / value, (outputs, B)
    std::vector<F> turned_;        // of one region of all blocks: that or its flow, (B, outputs)
    std::vector<F> input_, gain_;  // of one pair
    std::vector<int64_t> first_;   // of a term's numbers in
    std::vector<F> sums_;          // (inputs, outputs) of mixtures and pairs; leaves see leaf_rows
    std::vector<F> centres_;
    std::vector<double> parts_;

    static int64_t padded(int64_t n) { return (n + lanes<F> - 1) / lanes<F> * lanes<F>; }

    // Rows of `outputs` numbers before leaf i of a term: a table's categories, the four parameters of others.
    int64_t leaf_rows(const Term& t, size_t i) const {
        int64_t rows = 0;
        for (size_t j = 0; j < i; ++j) rows += g_.width[t.over[j].first];
        return rows;
    }

    F* flow(const Region& r, int q) { return &flow_[(q * program_.values + r.panel) * B]; }

    // ratio_ = flow / value * 2^(inputs - exponent of value), 0 for rows and components without flow
    void ratios(size_t region, const Term& t, int q, const int32_t* inputs) {
        const Region& r = program_.regions[region];
        const Scratch& s = blocks_[q];
        const F *f = flow(r, q), *value = t.kept < 0 ? s.panel(r) : s.kept.data() + t.kept * B;
        const int32_t* e = t.kept < 0 ? &s.exponents[region * B] : &s.kept_exponents[size_t(t.kept_number) * B];
        F scale[B], least[B];
        for (int b = 0; b < B; ++b) {
            scale[b] = power_of_two<F>(std::min(inputs[b] - e[b], 126));
            least[b] = std::numeric_limits<F>::min() * std::max(scale[b], F(1));  // so that no ratio leaves F
        }
        for (int k = 0; k < r.outputs; ++k)
            for (int h = 0; h < B; h += lanes<F>) {
                const Vector<F> v = at(value + k * B + h), ratio = at(f + k * B + h) / v * at(scale + h);
                at(ratio_.data() + k * B + h) = v >= at(least + h) ? ratio : Vector<F>{};
            }
        turn(r.outputs, ratio_.data(), q);
    }

    void turn(int K, const F* panel, int q) {
        const int64_t whole = K / lanes<F> * lanes<F>, stride = padded(K);
        F* to = turned_.data() + q * stride * B;
        transpose(whole, B, panel, B, to, stride);
        for (int64_t k = whole; k < stride; ++k)
            for (int b = 0; b < B; ++b) to[b * stride + k] = k < K ? panel[k * B + b] : F(0);
    }

    // to (rows, outputs) += over all blocks q: in(q) (rows, B) times turned_ (B, outputs)
    template <class In>
    void outer(int64_t rows, In in, int K, F* to) {
        const int64_t stride = padded(K);
        for_tiles<F>(rows, stride, [&]<int M, int N>(int64_t r, int64_t c) {
            Tile<F, M, N> tile;
            for (int q = 0; q < n_; ++q) tile.add(in(q) + r * B, B, 1, turned_.data() + q * stride * B + c, stride, B);
#pragma GCC unroll 6
            for (int m = 0; m < M; ++m)
                for (int n = 0; n < N; ++n) at(to + (r + m) * stride + c + n * lanes<F>) += tile.sum[m][n];
        });
    }

    // to (rows, B) = or += in (rows, B) times (w^T ratio_), element by element; w (K, row)
    template <bool fresh>
    void gains(int64_t rows, const F* w, int64_t row, int K, const F* in, F* to) {
        for_tiles<F>(rows, B, [&]<int M, int N>(int64_t r, int64_t c) {
            Tile<F, M, N> tile;
            tile.add(w + r, 1, row, ratio_.data() + c, B, K);
#pragma GCC unroll 6
            for (int m = 0; m < M; ++m)
                for (int n = 0; n < N; ++n) {
                    const int64_t i = (r + m) * B + c + n * lanes<F>;
                    const Vector<F> gain = at(in + i) * tile.sum[m][n];
                    at(to + i) = fresh ? gain : at(to + i) + gain;
                }
        });
    }

    void mixture(size_t region, const Term& t, F* to) {
        const Region &r = program_.regions[region], &in = program_.regions[t.region];
        const F* w = panels_.weights + t.first_weight;
        for (int q = 0; q < n_; ++q) {
            ratios(region, t, q, &blocks_[q].exponents[size_t(t.region) * B]);
            gains<false>(in.outputs, w, t.row, r.outputs, blocks_[q].panel(in), flow(in, q));
        }
        outer(in.outputs, [&](int q) { return blocks_[q].panel(in); }, r.outputs, to);
    }

    void pairs(size_t region, const Term& t, F* to) {
        const Region& r = program_.regions[region];
        const auto exponent = [&](const Pair& p, int q, int b) {
            return blocks_[q].exponents[size_t(p.left) * B + b] + blocks_[q].exponents[size_t(p.right) * B + b];
        };
        int32_t most[group][B];
        for (int q = 0; q < n_; ++q) {
            std::fill_n(most[q], B, std::numeric_limits<int32_t>::min());
            for (const Pair& p : t.pairs)
                for (int b = 0; b < B; ++b) most[q][b] = std::max(most[q][b], exponent(p, q, b));
        }
        for (const Pair& p : t.pairs) {
            const Region &left = program_.regions[p.left], &right = program_.regions[p.right];
            const int64_t I = left.outputs, J = right.outputs;
            const F* w = panels_.weights + t.first_weight + p.offset;
            for (int q = 0; q < n_; ++q) {
                F scale[B], *in = input_.data() + q * I * J * B;
                for (int b = 0; b < B; ++b) scale[b] = power_of_two<F>(exponent(p, q, b) - most[q][b]);
                Panels<F>::pair_products(int(I), int(J), blocks_[q].panel(left), blocks_[q].panel(right), scale, in);
                ratios(region, t, q, most[q]);
                gains<true>(I * J, w, t.row, r.outputs, in, gain_.data());
                add_gains(I, J, flow(left, q), flow(right, q));
            }
            outer(
                I * J, [&](int q) { return input_.data() + q * I * J * B; }, r.outputs,
                to + p.offset * padded(r.outputs));
        }
    }

    // What flows to a product flows to both of its factors.
    void add_gains(int64_t I, int64_t J, F* left, F* right) const {
        const F* gain = gain_.data();
        for (int64_t i = 0; i < I; ++i) {
            Vector<F> sum[2] = {at(left + i * B), at(left + i * B + lanes<F>)};
            for (int64_t j = 0; j < J; ++j, gain += B)
                for (int h = 0; h < 2; ++h) {
                    sum[h] += at(gain + h * lanes<F>);
                    at(right + j * B + h * lanes<F>) += at(gain + h * lanes<F>);
                }
            for (int h = 0; h < 2; ++h) at(left + i * B + h * lanes<F>) = sum[h];
        }
    }

    void leaves(const Region& r, const Term& t, F* to) {
        const int64_t stride = padded(r.outputs);
        for (int q = 0; q < n_; ++q) turn(r.outputs, flow(r, q), q);
        for (const auto& [v, leaf] : t.over) {
            const uint8_t family = g_.family[v];
            if (family != table && family <= exponential) {
                centres_.assign(stride, F(0));
                const F* p = panels_.leaves + g_.leaf_first[leaf];
                for (int k = 0; k < r.outputs; ++k) centres_[k] = p[4 * k + 3];
            }
            for (int i = 0; i < n_ * B; ++i) {
                const F x = blocks_[i / B].x[size_t(v) * B + i % B];
                if (x != x) continue;
                const F* f = turned_.data() + i * stride;
                if (family == table) {
                    F* here = to + int64_t(x) * stride;
                    for (int64_t k = 0; k < stride; k += lanes<F>) at(here + k) += at(f + k);
                } else if (family <= exponential) {
                    for (int64_t k = 0; k < stride; k += lanes<F>) {
                        const Vector<F> away = x - at(centres_.data() + k), moved = at(f + k) * away;
                        at(to + k) += at(f + k);
                        at(to + stride + k) += at(f + k) * x;
                        at(to + 2 * stride + k) += moved * away;
                        at(to + 3 * stride + k) += moved;  // times -2 c2 in the end
                    }
                } else if (family == own) {
                    parts_.resize(g_.width[v]);
                    for (int k = 0; k < r.outputs; ++k) {
                        g_.owns[v].derivatives(panels_.leaves + g_.leaf_first[leaf + k], double(x), parts_.data());
                        for (int64_t c = 0; c < g_.width[v]; ++c) to[c * stride + k] += F(double(f[k]) * parts_[c]);
                    }
                } else {
                    for (int k = 0; k < r.outputs; ++k) {
                        double d[4];
                        derivatives(family, panels_.leaves + g_.leaf_first[leaf] + 4 * k, x, d);
                        for (int c = 0; c < 4; ++c) to[c * stride + k] += F(double(f[k]) * d[c]);
                    }
                }
            }
            to += g_.width[v] * stride;
        }
    }

    void finish_leaf(const Term& t, size_t i, int64_t K, const F* from, double* leaves) const {
        const auto [v, leaf] = t.over[i];
        const int64_t width = g_.width[v], stride = padded(K);
        const bool centred = g_.family[v] != table && g_.family[v] <= exponential;
        from += leaf_rows(t, i) * stride;
        for (int64_t k = 0; k < K; ++k)
            for (int64_t c = 0; c < width; ++c) {
                const int64_t to = g_.leaf_first[leaf] + k * width + c;
                const double factor = centred && c == 3 ? -2 * double(panels_.leaves[to - 1]) : 1;
                leaves[to] += factor * double(from[c * stride + k]);
            }
    }
};

}  // namespace pyfast::spn
