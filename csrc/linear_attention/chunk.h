// A chunk of tokens of one head: what they read from the state, what they say to each other, what they add to it.
//
//   S_t = diag(exp(decay_t)) S_{t-1} + write k_t v_t',   out_t = read S_t' q_t
//
// Inside a chunk, with E_t the sum of its decays up to t: out = exp(E) read q S + (read q k' write * exp(E_t - E_u)) v,
// three products of small matrices.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "linear_attention/state.h"
#include "simd.h"
#include "tiles.h"

namespace pyfast::linear_attention {

// exp(x + rest) to an ulp, for |x| < 80 and a small rest: a third of what `exp` takes for all numbers.
inline float exp_moderate(float x, float rest) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float shifted = x * 1.44269504f + magic;
    const float n = shifted - magic;
    const float r = ((x - n * 0.693359375f) - n * -2.12194440e-4f) + rest;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = 1.0f + (r + p * r * r);
    return p * std::bit_cast<float>((std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(magic) + 127) << 23);
}
inline double exp_moderate(double x, double rest) {
    return std::exp(x) * (1 + rest);
}

// exp of a double of at most 80 either way, to an ulp of what is computed in.
template <class F>
F exp_of(double x) {
    if constexpr (sizeof(F) == 8) return exp(x);
    const F rounded = F(x);
    return exp_moderate(rounded, F(x - double(rounded)));
}

// Reads the decays (count, D) of the next tokens. Returns how many of them make a chunk: so few that exp(-E) stays
// small. Scalars leave `reach`, E per token, all differences of which are exact enough, and the exponentials of these;
// vectors leave exp(E) and exp(-E).
template <class F>
int64_t load_scalar_decay(Tokens g, int64_t count, bool late, Work<F>& w, double& log_keep) {
    constexpr double lowest = -1e3, mild = 8;  // exp of the one is 0, of the other times exp of less it is 1
    double head = 0, sum = 0, all[Work<F>::room];
    load({g.data, g.element, g.token, g.dtype}, 1, count, count, 1.0, all, count);
    for (int64_t t = 0; t < count; ++t) {
        const double x = all[t];
        if (!late && t == 0) {
            head = x;
        } else if (!late) {
            if (x < lowest) {  // after -inf, differences would be NaN
                count = t;
                break;
            }
            sum += x;
        }
        w.reach[t] = sum;
        if (late) {
            sum += x;
            if (x < lowest) count = t + 1;
        }
    }
    // In whole vectors, and so of tokens that there are not, and backwards in time, where nobody looks.
    constexpr int W = lanes<F>;
    const int64_t filled = padded(count, W);
    std::fill(w.reach + count, w.reach + filled, sum);
    double most = 0;
    for (int64_t t = 0; t < count; ++t) most = std::max(most, std::fabs(w.reach[t]));
    if (most <= mild) {  // their quotients are exact to some ulps, for a small part of the exponentials
        F up[Work<F>::room], down[Work<F>::room];
#pragma omp simd
        for (int64_t t = 0; t < filled; ++t) up[t] = exp_of<F>(w.reach[t]), down[t] = exp_of<F>(-w.reach[t]);
        for (int64_t t = 0; t < count; ++t)
#pragma omp simd
            for (int64_t u = 0; u < filled; ++u) w.gate[t * w.c + u] = up[t] * down[u];
    } else {
        for (int64_t t = 0; t < count; ++t)
            for (int64_t u = 0; u < filled; u += W) {
                F* gate = w.gate + t * w.c + u;
#pragma omp simd
                for (int l = 0; l < W; ++l) gate[l] = exp(F(w.reach[t] - w.reach[u + l]));
            }
    }
#pragma omp simd
    for (int64_t t = 0; t < filled; ++t) {
        w.read_factor[t] = exp(F(head + w.reach[t]));
        w.end_factor[t] = exp(F(sum - w.reach[t]));
    }
    log_keep = head + sum;
    return count;
}

template <class F>
int64_t load_vector_decay(Tokens g, int64_t count, int64_t D, bool late, Work<F>& w) {
    constexpr F limit = 8;  // exp(8) * exp(-8) has to be 1
    // E is sum + rest, what rounding loses of the sum; next_ are those one token later.
    F *sum = w.sum[0], *rest = w.rest[0], *next_sum = w.sum[1], *next_rest = w.rest[1], *x = w.fresh;
    std::fill_n(sum, w.D, F(0)), std::fill_n(rest, w.D, F(0));
    std::fill_n(next_sum, w.D, F(0)), std::fill_n(next_rest, w.D, F(0));
    std::fill_n(+w.head, w.D, F(1));
    w.fresh_head = false;
    bool strong = false;
    int64_t length = count;
    for (int64_t t = 0; t < length; ++t) {
        load(g.from(t), 1, D, D, F(1), x, D);
        F most = 0;
#pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < D; ++i) {
            const F a = sum[i], total = a + x[i], back = total - a;
            next_sum[i] = total;
            next_rest[i] = rest[i] + ((a - (total - back)) + (x[i] - back));
            most = std::max(most, std::fabs(total));
        }
        strong = most > limit;
        if (!late && strong && t > 0) {
            length = t;
            break;
        }
        if (!late && strong) {
            w.fresh_head = true;
            for (int64_t i = 0; i < D; ++i) w.head[i] = exp(x[i]);
        } else if (!late) {
            std::swap(sum, next_sum), std::swap(rest, next_rest);
        }
        F *up = &w.up[t * w.D], *down = &w.down[t * w.D];
#pragma omp simd
        for (int64_t i = 0; i < D; ++i) {
            up[i] = exp_moderate(sum[i], rest[i]);
            down[i] = 1 / up[i];
        }
        if (late) std::swap(sum, next_sum), std::swap(rest, next_rest);
        if (late && strong) length = t + 1;
    }
    std::fill_n(+w.last, w.D, F(1));
    if (!late) {
        std::copy_n(+w.up + (length - 1) * w.D, D, +w.last);
    } else {
#pragma omp simd
        for (int64_t i = 0; i < D; ++i)
            w.last[i] = exp(sum[i]) * (strong ? 1 : 1 + rest[i]);  // no rest of what is -inf
    }
    return length;
}

// What n tokens say to each other, in w.scores: read q_t' k_u write, and the decay between them where that is one
// number.
template <class F>
void score(Work<F>& w, int64_t n, Decay decay) {
    constexpr int W = lanes<F>;
    const int64_t K = w.K, c = w.c;
    const F *q = w.q, *kt = w.kt;
    F* scores = w.scores;
    for_tiles<F>(n, padded(n, W), [&]<int M, int N>(int64_t row, int64_t column) {
        if (column >= row + M) return;
        w.ahead.some();
        Tile<F, M, N> tile;
        tile.add(q + row * K, K, 1, kt + column, c, K);
        unroll<M>([&](auto m) {
            unroll<N>([&](auto j) {
                const int64_t place = (row + m) * c + column + j * W;
                if (decay == Decay::scalar) tile.sum[m][j] *= at(w.gate + place);
                at(scores + place) = tile.sum[m][j];
            });
        });
    });
}

// The same of few tokens: sums along the rows take less time than turning the keys.
template <class F>
void score_few(Work<F>& w, int64_t n, Decay decay) {
    const int64_t K = w.K, c = w.c;
    for (int64_t t = 0; t < n; ++t)
        for (int64_t u = 0; u <= t; ++u) {
            const F *q = w.q + t * K, *k = w.k + u * K;
            F sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < K; ++i) sum += q[i] * k[i];
            w.scores[t * c + u] = decay == Decay::scalar ? sum * w.gate[t * c + u] : sum;
        }
}

// out (n, N vectors), at this column, of the n tokens in w.q, w.scores, w.v: what they read from the state and each
// other.
template <bool Solve, bool Strict, int N, class F>
void read(Work<F>& w, const State<F>& s, int64_t n, int64_t column, Decay decay) {
    constexpr int W = lanes<F>;
    const int64_t K = w.K, wide = w.wide, c = w.c;
    const F *v = w.v + column, *state = s.empty ? nullptr : s.narrow + column * K;
    const F* up = decay == Decay::columns ? w.up + column : nullptr;
    F* out = w.out + column;
    for_rows(n, [&]<int M>(int64_t row) {
        w.ahead.some();
        const F *q = w.q + row * K, *score = w.scores + row * c, *factor = w.read_factor + row;
        Tile<F, M, N> tile;
        if (state) tile.add(q, K, 1, state, N * W, K);
        if (decay == Decay::scalar) unroll<M>([&](auto m) { unroll<N>([&](auto j) { tile.sum[m][j] *= factor[m]; }); });
        tile.add(score, c, 1, Solve ? out : v, wide, row);
        // The triangle: no token is multiplied by what lies in its future, which may not be finite.
        unroll<M>([&](auto u) {
            Vector<F> value[N];
            unroll<N>([&](auto j) {
                value[j] = at(v + (row + u) * wide + j * W);
                if constexpr (Solve) value[j] = tile.sum[u][j] = value[j] - tile.sum[u][j];
            });
            unroll<M>([&](auto m) {
                if constexpr (m >= u + (Solve || Strict))
                    unroll<N>([&](auto j) { tile.sum[m][j] += score[m * c + row + u] * value[j]; });
            });
        });
        if (decay == Decay::columns)
            unroll<M>([&](auto m) { unroll<N>([&](auto j) { tile.sum[m][j] *= at(up + (row + m) * wide + j * W); }); });
        unroll<M>([&](auto m) { unroll<N>([&](auto j) { at(out + (row + m) * wide + j * W) = tile.sum[m][j]; }); });
    });
}

// The sum of keys, read like a column of the state, divides what was read. Uses the scores that `read` left.
template <class F>
void divide(Work<F>& w, const State<F>& s, int64_t n, Decay decay, F eps) {
    const int64_t c = w.c;
    for (int64_t t = 0; t < n; ++t) {
        const F *q = w.q + t * w.K, *score = w.scores + t * c;
        F past = 0, near = 0;
#pragma omp simd reduction(+ : past)
        for (int64_t i = 0; i < (s.empty ? 0 : w.K); ++i) past += q[i] * s.narrow_keys[i];
#pragma omp simd reduction(+ : near)
        for (int64_t u = 0; u <= t; ++u) near += score[u];
        w.denominator[t] = (s.empty ? 0 : decay == Decay::scalar ? w.read_factor[t] * past : past) + near;
        const F divisor = w.denominator[t] + eps;
        F* out = w.out + t * w.wide;
#pragma omp simd
        for (int64_t j = 0; j < w.wide; ++j) out[j] /= divisor;
    }
}

// sum = sum * keep + fresh, or, where the sum is not `begun`, fresh. What is kept: all, a share of each row (`step`
// apart), or of each column.
enum class Keep { all, rows, columns };

template <Keep how, class F, int M, int N>
[[gnu::always_inline]] inline void accumulate(F* sum, bool begun, const Tile<F, M, N>& fresh, const F* keep,
                                              ptrdiff_t step) {
    const auto each = [&](auto f) {
        unroll<M>(
            [&](auto m) { unroll<N>([&](auto j) { f(at(sum + (m * N + j) * lanes<F>), fresh.sum[m][j], m, j); }); });
    };
    if (!begun)
        each([](Vector<F>& x, const Vector<F>& y, int, int) { x = y; });
    else if (how == Keep::all)
        each([](Vector<F>& x, const Vector<F>& y, int, int) { x += y; });
    else if (how == Keep::rows)
        each([=](Vector<F>& x, const Vector<F>& y, int m, int) { x = x * keep[m * step] + y; });
    else
        each([=](Vector<F>& x, const Vector<F>& y, int, int j) { x = x * at(keep + j * lanes<F>) + y; });
}

// Adds n tokens, k (n, K) and values (n, wide), decayed to the end of the chunk, to N vectors of columns of the state:
// to what is recent, and to what tokens read if they `look`; there, vectors of decays have the first one behind them.
template <Keep how, int N, class F>
void add(Work<F>& w, State<F>& s, const F* values, int64_t n, bool look, int64_t column) {
    const int64_t K = w.K, wide = w.wide;
    const F *k = w.k, *keep = w.D ? +w.both : &w.keep, *rest = w.D ? +w.last : &w.keep;
    F *recent = s.recent + column * K, *narrow = s.narrow + column * K;
    const bool begun = !s.up_to_date, read = !s.empty;
    for_rows(K, [&]<int M>(int64_t row) {
        w.ahead.some();
        const int64_t place = row * N * lanes<F>;
        for (int64_t near = 0; near < M * N * lanes<F>; near += 64 / sizeof(F))  // wanted after the products
            __builtin_prefetch(recent + place + near, 1, 3);
        Tile<F, M, N> tile;
        tile.add(k + row, 1, K, values + column, wide, n);
        const ptrdiff_t step = w.D ? 1 : 0;
        const int64_t i = how == Keep::columns ? column : row * step;
        accumulate<how>(recent + place, begun, tile, keep + i, step);
        if (look) accumulate<how>(narrow + place, read, tile, rest + i, step);
    });
}

// The same of the sum of keys, after all else of the chunk.
template <class F>
void add_keys(Work<F>& w, State<F>& s, int64_t n, bool look) {
    if (s.whole.key_size) {
        const int64_t K = w.K;
        const F *k = w.k, *keep = w.D ? +w.both : &w.keep, *rest = w.D ? +w.last : &w.keep;
        const ptrdiff_t step = w.D ? 1 : 0;
        F* fresh = w.fresh_keys;
        std::fill_n(fresh, K, F(0));
        for (int64_t t = 0; t < n; ++t)
#pragma omp simd
            for (int64_t i = 0; i < K; ++i) fresh[i] += k[t * K + i];
        for (int64_t i = 0; i < K; ++i) {
            s.recent_keys[i] = s.up_to_date ? fresh[i] : s.recent_keys[i] * keep[i * step] + fresh[i];
            if (look) s.narrow_keys[i] = s.empty ? fresh[i] : s.narrow_keys[i] * rest[i * step] + fresh[i];
        }
    }
    s.up_to_date = false;
    if (look) s.empty = false;
}

}  // namespace pyfast::linear_attention
