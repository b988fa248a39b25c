// The upward pass of the dense form: blocks of rows in the lanes of vectors, values in the linear domain.
//
// Each region of each row has an exponent of its own: value = number * 2^exponent, the largest number of a region in
// [1, 2). Rescaling by powers of two rounds nothing, and no logarithm or exponential is taken above the leaves. What
// float loses is smaller than 2^-126 of a region's largest number; where the largest then shrinks so much that this
// could matter, or a likelihood leaves the range of exponents, the row is marked and done again in double.
#pragma once

#include <bit>
#include <cstring>
#include <limits>

#include "simd.h"
#include "spn/leaves.h"
#include "spn/program.h"
#include "tiles.h"

namespace pyfast::spn {

template <class F>
inline constexpr int block = 2 * lanes<F>;  // rows at a time

template <class F>
inline F power_of_two(int32_t e) {  // 0 below what F holds; never asked for more than F holds
    if constexpr (sizeof(F) == 4) return std::bit_cast<float>((e < -126 ? 0 : e + 127) << 23);
    return F(std::bit_cast<double>(int64_t(e < -1022 ? 0 : e + 1023) << 52));
}

// The exponent of a positive number, such that number * 2^-exponent lies in [1, 2); 0 for 0.
template <class F>
inline int32_t exponent_of(F x) {
    if constexpr (sizeof(F) == 4) {
        const int32_t e = std::bit_cast<int32_t>(x) >> 23;
        return e ? e - 127 : 0;
    } else {
        const int64_t e = std::bit_cast<int64_t>(x) >> 52;
        return int32_t(e ? e - 1023 : 0);
    }
}

inline constexpr int32_t lowest = -(1 << 28);  // exponent: three of them still add up
inline constexpr double impossible = -1e30;    // stands for the logarithm of 0 where a product with 0 must be 0

// What the leaves of a term look like to the kernels: by parameter, outputs side by side.
template <class F>
struct LeafPack {
    std::vector<F> log;     // binary variables: (outputs, 2 * variables), log p of 0 and 1 in turn
    std::vector<F> linear;  // a single table variable: (categories, outputs) in [1, 2) times 2^shift
    std::vector<int32_t> shift;
    std::vector<int> binary, tables, curves, owns;  // positions in the term, by what the column is
    std::vector<F> by_value;                        // tables: log p, (categories, outputs) each
    std::vector<int64_t> by_value_first;
    std::vector<F> curve;  // (4, outputs) each
};

template <class F>
class Panels {
  public:
    static constexpr int B = block<F>;

    Panels(const Graph& g, const Program& program, const F* weights, const F* leaves)
        : g(g), program(program), weights(weights), leaves(leaves) {
        for (const Region& r : program.regions)
            for (const Term& t : r.terms) packs.push_back(t.kind == leaves_term ? pack(r, t) : LeafPack<F>());
    }

    // One thread's room.
    struct Scratch {
        std::vector<F> values, input, x;
        std::vector<F> hot;  // of binary variables: whether x is 0, whether it is 1
        std::vector<int32_t> exponents;
        bool weak[B];         // rows that F is too narrow for
        std::vector<F> kept;  // values of sums in products, where derivatives need them
        std::vector<int32_t> kept_exponents;
        explicit Scratch(const Panels& p, bool keep = false)
            : values(p.program.values * B),
              input((std::max<int64_t>(p.program.widest, 2 * p.g.variables) + 4 + p.program.most) * B),
              x(p.g.variables * B),
              hot(2 * p.g.variables * B),
              exponents(p.program.regions.size() * B),
              kept(keep ? p.program.kept * B : 0),
              kept_exponents(keep ? size_t(p.program.num_kept) * B : 0) {}
        F* panel(const Region& r) { return values.data() + r.panel * B; }
        const F* panel(const Region& r) const { return values.data() + r.panel * B; }
    };

    // Values of all regions for rows x (count, variables), count <= B; the lanes beyond repeat the last row.
    void up(const F* x, int64_t count, Scratch& s) const {
        for (int b = 0; b < B; ++b) {
            const F* row = x + std::min<int64_t>(b, count - 1) * g.variables;
            for (int64_t v = 0; v < g.variables; ++v) s.x[v * B + b] = row[v];
        }
        for (int64_t v = 0; v < g.variables; ++v) {
            if (g.family[v] != table || g.width[v] != 2) continue;
            F *hot = s.hot.data() + 2 * v * B, *here = s.x.data() + v * B;
            for (int b = 0; b < B; ++b) {  // by their bits, as GCC does not vectorise comparisons with NaN
                using Bits = std::conditional_t<sizeof(F) == 4, uint32_t, uint64_t>;
                const Bits bits = std::bit_cast<Bits>(here[b]) << 1, one = std::bit_cast<Bits>(F(1));
                hot[b] = std::bit_cast<F>(bits == 0 ? one : Bits(0));
                hot[B + b] = std::bit_cast<F>(bits == Bits(one << 1) ? one : Bits(0));
            }
        }
        std::fill_n(s.weak, B, false);
        size_t pack_index = 0;
        for (size_t i = 0; i < program.regions.size(); ++i) {
            const Region& r = program.regions[i];
            F* out = s.panel(r);
            int32_t* e = s.exponents.data() + i * B;
            for (size_t t = 0; t < r.terms.size(); ++t, ++pack_index) {
                const Term& term = r.terms[t];
                if (t == 0) {
                    evaluate<true>(r, term, packs[pack_index], s, out, e);
                    if (term.kept >= 0 && !s.kept.empty()) {
                        std::copy_n(out, r.outputs * B, s.kept.data() + term.kept * B);
                        std::copy_n(e, B, s.kept_exponents.data() + size_t(term.kept_number) * B);
                    }
                } else
                    multiply(r, term, packs[pack_index], s, out, e);
            }
        }
    }

    // log of the root, of row b
    double log_value(const Scratch& s, int b) const {
        const size_t last = program.regions.size() - 1;
        const F value = s.panel(program.regions[last])[b];
        return std::log(double(value)) + s.exponents[last * B + b] * 0.693147180559945309417;
    }

    // out (I * J, B) = left (I, B) times right (J, B) times a scale of each row
    static void pair_products(int I, int J, const F* left, const F* right, const F* scale, F* out) {
        for (int i = 0; i < I; ++i) {
            Vector<F> l[2];
            for (int h = 0; h < 2; ++h) l[h] = at(left + i * B + h * lanes<F>) * at(scale + h * lanes<F>);
            for (int j = 0; j < J; ++j, out += B)
                for (int h = 0; h < 2; ++h) at(out + h * lanes<F>) = l[h] * at(right + j * B + h * lanes<F>);
        }
    }

    const Graph& g;
    const Program& program;
    const F *weights, *leaves;

  private:
    std::vector<LeafPack<F>> packs;

    LeafPack<F> pack(const Region& r, const Term& t) const {
        LeafPack<F> p;
        for (size_t i = 0; i < t.over.size(); ++i) {
            const int v = t.over[i].first;
            (g.family[v] == own     ? p.owns
             : g.family[v] != table ? p.curves
             : g.width[v] == 2      ? p.binary
                                    : p.tables)
                .push_back(int(i));
        }
        const int K = r.outputs;
        const auto parameters = [&](int i) { return leaves + g.leaf_first[t.over[i].second]; };
        const auto finite = [](F l) { return l > F(impossible) ? l : F(impossible); };
        if (t.over.size() == 1 && p.curves.empty() && p.owns.empty()) {
            const int64_t C = g.width[t.over[0].first];
            p.linear.resize(C * K);
            p.shift.resize(C);
            for (int64_t c = 0; c < C; ++c) {
                double most = impossible;
                for (int k = 0; k < K; ++k) most = std::max(most, double(parameters(0)[k * C + c]));
                p.shift[c] = most > impossible ? int32_t(std::floor(most * 1.4426950408889634)) : 0;
                for (int k = 0; k < K; ++k)
                    p.linear[c * K + k] =
                        F(std::exp(double(parameters(0)[k * C + c]) - p.shift[c] * 0.693147180559945309417));
            }
            return p;
        }
        const size_t n = p.binary.size();
        p.log.resize(2 * n * K);
        for (int k = 0; k < K; ++k)
            for (size_t i = 0; i < n; ++i)
                for (int c = 0; c < 2; ++c) p.log[(k * n + i) * 2 + c] = finite(parameters(p.binary[i])[k * 2 + c]);
        for (int i : p.tables) {
            const int64_t C = g.width[t.over[i].first];
            p.by_value_first.push_back(int64_t(p.by_value.size()));
            for (int64_t c = 0; c < C; ++c)
                for (int k = 0; k < K; ++k) p.by_value.push_back(finite(parameters(i)[k * C + c]));
        }
        for (int i : p.curves)
            for (int c = 0; c < 4; ++c)
                for (int k = 0; k < K; ++k) p.curve.push_back(parameters(i)[k * 4 + c]);
        return p;
    }

    template <bool scaled>
    void evaluate(const Region& r, const Term& t, const LeafPack<F>& p, Scratch& s, F* out, int32_t* e) const {
        if (t.kind == leaves_term)
            p.linear.empty() ? many_leaves(r, t, p, s, out, e) : one_table(r, t, p, s, out, e);
        else
            sums<scaled>(r, t, s, out, e);
    }

    // out *= term; the numbers stay in range, as a factor is at most 2 and the product is rescaled at once
    void multiply(const Region& r, const Term& t, const LeafPack<F>& p, Scratch& s, F* out, int32_t* e) const {
        F* factor = s.input.data() + (std::max<int64_t>(program.widest, 2 * g.variables) + 4) * B;
        int32_t here[B], *shift = here;
        if (t.kept >= 0 && !s.kept.empty()) {
            factor = s.kept.data() + t.kept * B;
            shift = s.kept_exponents.data() + size_t(t.kept_number) * B;
        }
        evaluate<false>(r, t, p, s, factor, shift);
        for (int64_t i = 0; i < r.outputs * B; ++i) out[i] *= factor[i];
        for (int b = 0; b < B; ++b) e[b] += shift[b];
        rescale(r.outputs, out, e, s.weak);
    }

    // The largest number of each row.
    static void largest(int K, const F* in, F* most) {
        Vector<F> best[2] = {at(in), at(in + lanes<F>)};
        for (int k = 1; k < K; ++k)
            for (int h = 0; h < 2; ++h) {  // vectors by hand, as GCC makes branches of std::max
                const Vector<F> here = at(in + k * B + h * lanes<F>);
                best[h] = here > best[h] ? here : best[h];
            }
        for (int h = 0; h < 2; ++h) at(most + h * lanes<F>) = best[h];
    }

    // Makes the largest number of each row one in [1, 2), and tells its exponent.
    static void rescale(int K, F* out, int32_t* e, bool* weak) {
        F most[B], scale[B];
        largest(K, out, most);
        for (int b = 0; b < B; ++b) {
            const int32_t up = exponent_of(most[b]);
            e[b] = std::max(e[b] + up, lowest);
            weak[b] |= e[b] == lowest || up < (sizeof(F) == 4 ? -90 : -980) || !(most[b] > 0);
            scale[b] = power_of_two<F>(-up);
        }
        for (int k = 0; k < K; ++k)
            for (int b = 0; b < B; ++b) out[k * B + b] *= scale[b];
    }

    template <bool scaled>
    void sums(const Region& r, const Term& t, Scratch& s, F* out, int32_t* e) const {
        const F* w = weights + t.first_weight;
        if (t.kind == mixture_term) {
            const Region& in = program.regions[t.region];
            product<true>(r.outputs, w, t.row, s.panel(in), in.outputs, out);
            std::memcpy(e, s.exponents.data() + size_t(t.region) * B, sizeof(int32_t) * B);
        } else {
            int32_t most[B];
            for (int b = 0; b < B; ++b) most[b] = std::numeric_limits<int32_t>::min();
            const auto exponent = [&](const Pair& p, int b) {
                return s.exponents[size_t(p.left) * B + b] + s.exponents[size_t(p.right) * B + b];
            };
            for (const Pair& p : t.pairs)
                for (int b = 0; b < B; ++b) most[b] = std::max(most[b], exponent(p, b));
            for (const Pair& p : t.pairs) {
                const Region &left = program.regions[p.left], &right = program.regions[p.right];
                F scale[B], *l = s.input.data();
                for (int b = 0; b < B; ++b) scale[b] = power_of_two<F>(exponent(p, b) - most[b]);
                for (int i = 0; i < left.outputs; ++i)
                    for (int b = 0; b < B; ++b) l[i * B + b] = s.panel(left)[i * B + b] * scale[b];
                for (int k = 0; k < r.outputs; ++k) {
                    if (p.offset == 0) std::fill_n(out + k * B, B, F(0));
                    bilinear(w + k * t.row + p.offset, left.outputs, right.outputs, l, s.panel(right), out + k * B);
                }
            }
            std::memcpy(e, most, sizeof most);
        }
        if constexpr (scaled) rescale(r.outputs, out, e, s.weak);
    }

    // out (rows, B) = or += w (rows, depth) in (depth, B)
    template <bool fresh>
    static void product(int64_t rows, const F* w, int64_t row, const F* in, int64_t depth, F* out) {
        for_tiles<F>(rows, B, [&]<int M, int N>(int64_t r, int64_t c) {
            Tile<F, M, N> tile;
            tile.add(w + r * row, row, 1, in + c, B, depth);
#pragma GCC unroll 6
            for (int m = 0; m < M; ++m)
                for (int n = 0; n < N; ++n) {
                    Vector<F>& to = at(out + (r + m) * B + c + n * lanes<F>);
                    to = fresh ? tile.sum[m][n] : to + tile.sum[m][n];
                }
        });
    }

    // out (B) += the sum over i of left (I, B) times (w (I, J) right (J, B)): no product of two components is stored
    static void bilinear(const F* w, int64_t I, int64_t J, const F* left, const F* right, F* out) {
        for_tiles<F>(I, B, [&]<int M, int N>(int64_t i, int64_t c) {
            Tile<F, M, N> tile;
            tile.add(w + i * J, J, 1, right + c, B, J);
            for (int n = 0; n < N; ++n) {
                Vector<F> sum = at(out + c + n * lanes<F>);
#pragma GCC unroll 6
                for (int m = 0; m < M; ++m) sum += tile.sum[m][n] * at(left + (i + m) * B + c + n * lanes<F>);
                at(out + c + n * lanes<F>) = sum;
            }
        });
    }

    // A table over one variable: its probabilities, looked up.
    void one_table(const Region& r, const Term& t, const LeafPack<F>& p, Scratch& s, F* out, int32_t* e) const {
        const int K = r.outputs;
        const F* x = s.x.data() + size_t(t.over[0].first) * B;
        for (int b = 0; b < B; ++b) e[b] = x[b] == x[b] ? p.shift[int(x[b])] : 0;
        if (p.shift.size() == 2) {
            const F* hot = s.hot.data() + 2 * size_t(t.over[0].first) * B;
            F missing[B];
            for (int b = 0; b < B; ++b) missing[b] = 1 - hot[b] - hot[B + b];
            for (int k = 0; k < K; ++k) {
                const F p0 = p.linear[k], p1 = p.linear[K + k];
                for (int b = 0; b < B; ++b) out[k * B + b] = hot[B + b] * p1 + (hot[b] * p0 + missing[b]);
            }
            return;
        }
        for (int b = 0; b < B; ++b) {
            const F* from = x[b] == x[b] ? p.linear.data() + int64_t(x[b]) * K : nullptr;
            for (int k = 0; k < K; ++k) out[k * B + b] = from ? from[k] : F(1);
        }
    }

    // Any leaves: the logarithms are summed, and one exponential is taken for each output.
    void many_leaves(const Region& r, const Term& t, const LeafPack<F>& p, Scratch& s, F* out, int32_t* e) const {
        const int K = r.outputs;
        const auto column = [&](int i) { return s.x.data() + size_t(t.over[i].first) * B; };
        F* in = s.input.data();
        for (int i : p.binary) {
            in = std::copy_n(s.hot.data() + 2 * size_t(t.over[i].first) * B, 2 * B, in);
        }
        product<true>(K, p.log.data(), int64_t(2 * p.binary.size()), s.input.data(), int64_t(2 * p.binary.size()), out);
        for (size_t i = 0; i < p.tables.size(); ++i) {
            const F* x = column(p.tables[i]);
            const F* from = p.by_value.data() + p.by_value_first[i];
            for (int b = 0; b < B; ++b)
                if (x[b] == x[b])
                    for (int k = 0; k < K; ++k) out[k * B + b] += from[int64_t(x[b]) * K + k];
        }
        for (size_t i = 0; i < p.curves.size(); ++i) {
            const F *x = column(p.curves[i]), *c = p.curve.data() + i * 4 * K;
            const uint8_t family = g.family[t.over[p.curves[i]].first];
            if (family > exponential) {
                for (int k = 0; k < K; ++k) {
                    const F parameters[4] = {c[k], c[K + k], c[2 * K + k], c[3 * K + k]};
                    for (int b = 0; b < B; ++b) out[k * B + b] += log_density(family, parameters, x[b]);
                }
                continue;
            }
            F here[B], there[B];
            for (int b = 0; b < B; ++b) here[b] = x[b] == x[b], there[b] = x[b] == x[b] ? x[b] : F(0);
            for (int k = 0; k < K; ++k)
                for (int b = 0; b < B; ++b) {
                    const F away = there[b] - c[3 * K + k];
                    out[k * B + b] += here[b] * (c[k] + c[K + k] * there[b] + c[2 * K + k] * away * away);
                }
        }
        for (int i : p.owns) own_leaves(K, t.over[i], column(i), out);
        F most[B], rest[B];
        largest(K, out, most);
        for (int b = 0; b < B; ++b) {
            const bool possible = most[b] > F(impossible / 10);
            const F power = possible ? std::floor(most[b] * F(1.4426950408889634)) : F(0);
            e[b] = int32_t(std::max(power, F(lowest)));
            s.weak[b] |= e[b] == lowest;
            // power * log 2 in two parts, the first without rounding; far from 0 nothing but rounding is left
            const F left = (most[b] - power * F(0.693359375)) - power * F(-2.12194440054690583e-4);
            rest[b] = possible ? std::clamp(left, F(0), F(0.6931471805599453)) : most[b];
        }
        for (int k = 0; k < K; ++k)
            for (int b = 0; b < B; ++b) out[k * B + b] = exp((out[k * B + b] - most[b]) + rest[b]);
    }

    void own_leaves(int K, const std::pair<int, int64_t>& over, const F* x, F* out) const {
        const auto& [v, leaf] = over;
        const Own& o = g.owns[v];
        for (int b = 0; b < B; ++b) {
            if (x[b] != x[b]) continue;
            double s[Own::most];
            o.statistics(double(x[b]), s);
            for (int k = 0; k < K; ++k)
                out[k * B + b] += F(std::max(impossible, o.mixed(leaves + g.leaf_first[leaf + k], s)));
        }
    }
};

}  // namespace pyfast::spn
