// A chunk of tokens of one head: what they read from the state, what they say to each other, what they add to it.
//
//   S_t = diag(exp(decay_t)) S_{t-1} + write k_t v_t',   out_t = read S_t' q_t
//
// Inside a chunk, with E_t the sum of its decays up to t: out = exp(E) read q S + (read q k' write * exp(E_t - E_u)) v,
// three products of small matrices. The state is kept in double and rounded once a chunk, so that the error does not
// grow with the sequence.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>

#include "linear_attention/memory.h"
#include "linear_attention/tiles.h"
#include "simd.h"

namespace pyfast::linear_attention {

enum class Decay { none, scalar, rows, columns };  // of the state: per key dimension, per value dimension

struct Flags {
    bool late;    // the state decays after a token has been read and added, not before
    bool strict;  // a token does not see itself
    bool solve;   // out_t = v_t - S_t' q_t, which is what is added to the state in place of v_t
};

inline int64_t padded(int64_t n, int64_t unit) {
    return (n + unit - 1) / unit * unit;
}

// Numbers that nobody has written yet.
template <class F>
struct Buffer {
    std::unique_ptr<F[]> data;
    explicit Buffer(int64_t n = 0) : data(n ? new F[n] : nullptr) {}
    operator F*() { return data.get(); }
    operator const F*() const { return data.get(); }
};

// What one thread works in. Rows of q and k are K apart, of v and out V padded to whole vectors.
template <class F>
struct Work {
    static constexpr int64_t room = 64;  // tokens
    int64_t chunk, K, V, wide, D;        // tokens in a chunk; sizes; V in whole vectors; decays of a token in rows of D
    int64_t c;                           // the chunk in whole vectors
    Buffer<F> q, k, kt, v, out, scores, gate, up, down, head, last;
    Buffer<double> run, fresh;
    double reach[room];  // E of every token
    F read_factor[room], end_factor[room], denominator[room];

    Work(int64_t chunk, int64_t K, int64_t V, Decay decay)
        : chunk(chunk),
          K(K),
          V(V),
          wide(padded(V, lanes<F>)),
          D(decay == Decay::columns ? wide
            : decay == Decay::rows  ? K
                                    : 0),
          c(padded(chunk, lanes<F>)),
          q(c * K),
          k(c * K),
          kt(K * c),
          v(c * wide),
          out(c * wide),
          scores(c * c),
          gate(decay == Decay::scalar ? c * c : 0),
          up(c * D),
          down(c * D),
          head(D),
          last(D),
          run(D),
          fresh(D) {
        std::fill_n(+up, c * D, F(1));  // of columns that pad V
        std::fill_n(+down, c * D, F(1));
    }
};

// A sum of k_t v_t' of one head, (K, wide), and of keys, (K,), in double; unwritten while `zero`.
struct Sum {
    Buffer<double> state, keys;
    int64_t size, key_size;
    bool zero = true;

    Sum(int64_t K, int64_t wide, bool normalize)
        : state(K * wide), keys(normalize ? K : 0), size(K * wide), key_size(normalize ? K : 0) {}
    void copy(const Sum& other) {
        zero = other.zero;
        if (zero) return;
        std::copy_n(+other.state, size, +state);
        std::copy_n(+other.keys, key_size, +keys);
    }
    void clear() {
        std::fill_n(+state, size, 0.0);
        std::fill_n(+keys, key_size, 0.0);
        zero = false;
    }
};

// The state of one head: in double, and rounded. And what a segment of its tokens has added to it, for those who must
// know: so that a sequence gives the same bits whether its segments are worked on one after the other or side by side.
template <class F>
struct State {
    Sum whole, part;
    Buffer<F> narrow, sum;
    Buffer<double> left;  // what the segment left of the state that it began with, per row or column
    double log_left = 0;  // or of all of it

    State(const Work<F>& w, bool normalize, bool segments)
        : whole(w.K, w.wide, normalize),
          part(segments ? w.K : 0, w.wide, segments && normalize),
          narrow(w.K * w.wide),
          sum(normalize ? w.K : 0),
          left(segments ? w.D : 0) {}

    void round() {
        for (int64_t i = 0; i < whole.size; ++i) narrow[i] = F(whole.state[i]);
        for (int64_t i = 0; i < whole.key_size; ++i) sum[i] = F(whole.keys[i]);
    }
};

// Reads the decays (count, D) of the next tokens. Returns how many of them make a chunk: so few that exp(-E) stays
// small. Scalars leave `reach`, E per token, all differences of which are exact enough; vectors leave exp(E) and
// exp(-E).
template <class F>
int64_t load_scalar_decay(Tokens g, int64_t count, bool late, Work<F>& w, double& head, double& total) {
    constexpr double lowest = -1e3;  // exp of it is 0
    double run = 0;
    head = 0;
    for (int64_t t = 0; t < count; ++t) {
        double x = 0;
        load(g.from(t), 1, 1, 1, 1.0, &x, 1);
        if (!late) {
            if (t == 0)
                head = x;
            else if (x < lowest)
                return total = run, t;  // after -inf, differences would be NaN
            else
                run += x;
        }
        w.reach[t] = run;
        if (late) {
            run += x;
            if (x < lowest) return total = run, t + 1;
        }
    }
    return total = run, count;
}

template <class F>
int64_t load_vector_decay(Tokens g, int64_t count, int64_t D, bool late, Work<F>& w) {
    constexpr double limit = 8;  // exp(8) * exp(-8) loses 5e-7 to the rounding of the exponents, no more
    std::fill_n(+w.run, w.D, 0.0);
    std::fill_n(+w.head, w.D, F(1));
    std::fill_n(+w.last, w.D, F(1));
    int64_t length = count;
    double *run = w.run, *x = w.fresh;
    for (int64_t t = 0; t < length; ++t) {
        double most = 0;
        load(g.from(t), 1, D, D, 1.0, x, D);
        if (!late && t == 0) {
            for (int64_t i = 0; i < D; ++i) w.head[i] = exp(F(x[i]));
        } else if (!late) {
            for (int64_t i = 0; i < D; ++i) {
                const double next = std::fabs(run[i] + x[i]);
                most = next > most ? next : most;
            }
            if (most > limit) {
                length = t;
                break;
            }
            for (int64_t i = 0; i < D; ++i) run[i] += x[i];
        }
        F *up = &w.up[t * w.D], *down = &w.down[t * w.D];
#pragma omp simd
        for (int64_t i = 0; i < D; ++i) {
            const F e = F(run[i]), rest = F(run[i] - double(e));
            up[i] = exp(e) * (1 + rest);
            down[i] = exp(-e) * (1 - rest);
        }
        if (late) {
            for (int64_t i = 0; i < D; ++i) {
                run[i] += x[i];
                most = std::fabs(run[i]) > most ? std::fabs(run[i]) : most;
            }
            if (most > limit) length = t + 1;
        }
    }
    for (int64_t i = 0; i < D; ++i) w.last[i] = exp(F(w.run[i]));
    return length;
}

// out (n, V) of the n tokens in w.q, w.k, w.kt, w.v; `decay` says what w holds of it.
template <bool Solve, bool Strict, class F>
void read(Work<F>& w, const State<F>& s, int64_t n, Decay decay) {
    constexpr int W = lanes<F>;
    const int64_t K = w.K, wide = w.wide, c = w.c;
    const F *q = w.q, *kt = w.kt, *v = w.v, *state = s.narrow;
    F *scores = w.scores, *out = w.out;
    for_tiles<F>(n, padded(n, W), [&]<int M, int N>(int64_t row, int64_t column) {
        if (column >= row + M) return;
        Tile<F, M, N> tile;
        tile.add(q + row * K, K, 1, kt + column, c, K);
        for (int m = 0; m < M; ++m)
            for (int j = 0; j < N; ++j) at(scores + (row + m) * c + column + j * W) = tile.sum[m][j];
    });
    if (decay == Decay::scalar)
        for (int64_t t = 0; t < n; ++t) {
            F *score = scores + t * c, *gate = w.gate + t * c;
#pragma omp simd
            for (int64_t u = 0; u <= t; ++u) score[u] *= gate[u];
        }
    for_tiles<F>(n, wide, [&]<int M, int N>(int64_t row, int64_t column) {
        Tile<F, M, N> tile;
        if (!s.whole.zero) tile.add(q + row * K, K, 1, state + column, wide, K);
        if (decay == Decay::scalar)
            for (int m = 0; m < M; ++m)
                for (int j = 0; j < N; ++j) tile.sum[m][j] *= w.read_factor[row + m];
        tile.add(scores + row * c, c, 1, (Solve ? out : v) + column, wide, row);
        // The triangle: no token is multiplied by what lies in its future, which may not be finite.
#pragma GCC unroll 6
        for (int u = 0; u < M; ++u) {
            Vector<F> value[N];
            for (int j = 0; j < N; ++j) {
                value[j] = at(v + (row + u) * wide + column + j * W);
                if (Solve) value[j] = tile.sum[u][j] = value[j] - tile.sum[u][j];
            }
#pragma GCC unroll 6
            for (int m = u + (Solve || Strict); m < M; ++m)
                for (int j = 0; j < N; ++j) tile.sum[m][j] += scores[(row + m) * c + row + u] * value[j];
        }
        if (decay == Decay::columns)
            for (int m = 0; m < M; ++m)
                for (int j = 0; j < N; ++j) tile.sum[m][j] *= at(w.up + (row + m) * wide + column + j * W);
        for (int m = 0; m < M; ++m)
            for (int j = 0; j < N; ++j) at(out + (row + m) * wide + column + j * W) = tile.sum[m][j];
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
        for (int64_t i = 0; i < (s.whole.zero ? 0 : w.K); ++i) past += q[i] * s.sum[i];
#pragma omp simd reduction(+ : near)
        for (int64_t u = 0; u <= t; ++u) near += score[u];
        w.denominator[t] = (s.whole.zero ? 0 : decay == Decay::scalar ? w.read_factor[t] * past : past) + near;
        const F divisor = w.denominator[t] + eps;
        F* out = w.out + t * w.wide;
#pragma omp simd
        for (int64_t j = 0; j < w.wide; ++j) out[j] /= divisor;
    }
}

// sum = sum * left + fresh, one vector of fresh, and the sum rounded where somebody reads it.
template <bool Narrow, class F, class Left>
[[gnu::always_inline]] inline void accumulate(double* sum, F* narrow, const F* fresh, Left left) {
#pragma omp simd
    for (int l = 0; l < lanes<F>; ++l) {
        const double x = sum[l] * left(l) + double(fresh[l]);
        sum[l] = x;
        if constexpr (Narrow) narrow[l] = F(x);
    }
}

template <bool Columns, bool Whole, bool Part, class F>
void add_tokens(Work<F>& w, State<F>& s, const F* values, int64_t n, Decay decay, double keep) {
    constexpr int W = lanes<F>;
    const int64_t K = w.K, wide = w.wide;
    const F *k = w.k, *head = w.head, *last = w.last;
    double *whole = s.whole.state, *part = s.part.state;
    F* narrow = s.narrow;
    for_tiles<F>(K, wide, [=]<int M, int N>(int64_t row, int64_t column) {
        Tile<F, M, N> tile;
        tile.add(k + row, 1, K, values + column, wide, n);
        for (int m = 0; m < M; ++m) {
            const double left = decay == Decay::rows ? double(head[row + m]) * last[row + m] : keep;
            for (int j = 0; j < N; ++j) {
                const int64_t c = column + j * W, place = (row + m) * wide + c;
                alignas(vector_bytes) F fresh[W];
                at(fresh) = Columns                ? tile.sum[m][j] * at(last + c)
                            : decay == Decay::rows ? tile.sum[m][j] * last[row + m]
                                                   : tile.sum[m][j];
                const auto factor = [=](int l) { return Columns ? double(head[c + l]) * last[c + l] : left; };
                if (Whole) accumulate<true>(whole + place, narrow + place, fresh, factor);
                if (Part) accumulate<false>(part + place, narrow, fresh, factor);
            }
        }
    });
}

// Adds n tokens to the state: k (n, K), values (n, wide). `keep` is what is left of it by then, where that is one
// number.
template <class F>
void add(Work<F>& w, State<F>& s, const F* values, int64_t n, Decay decay, double keep, bool whole, bool part) {
    if (whole && s.whole.zero) s.whole.clear();
    if (part && s.part.zero) s.part.clear();
    const auto run = [&]<bool Columns>() {
        if (whole && part)
            add_tokens<Columns, true, true>(w, s, values, n, decay, keep);
        else if (whole)
            add_tokens<Columns, true, false>(w, s, values, n, decay, keep);
        else
            add_tokens<Columns, false, true>(w, s, values, n, decay, keep);
    };
    decay == Decay::columns ? run.template operator()<true>() : run.template operator()<false>();
    for (int64_t i = 0; i < s.whole.key_size; ++i) {
        const double left = decay == Decay::rows ? double(w.head[i]) * w.last[i] : keep;
        F fresh = 0;
        for (int64_t t = 0; t < n; ++t) fresh += w.k[t * w.K + i];
        if (decay == Decay::rows) fresh *= w.last[i];
        if (part) s.part.keys[i] = s.part.keys[i] * left + double(fresh);
        if (!whole) continue;
        s.whole.keys[i] = s.whole.keys[i] * left + double(fresh);
        s.sum[i] = F(s.whole.keys[i]);
    }
}

}  // namespace pyfast::linear_attention
