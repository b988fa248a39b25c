// How a head, or several side by side, are walked through time.
#pragma once

#include <vector>

#include "linear_attention/chunk.h"
#include "linear_attention/heads.h"

namespace pyfast::linear_attention {

struct Call {
    Strided q, k, v, decay, state, cu_seqlens, out, last, denominator;
    double read = 1, write = 1, eps = 0;
    bool reverse = false, columns = false;
    Flags flags{};
    int64_t N = 0, T = 0, H = 0, K = 0, V = 0;
    Decay kind = Decay::none;
    Lengths ends{};

    void measure() {
        check("q", q, {-1, -1, -1, -1});
        const int64_t B = q.shape[0];
        T = q.shape[1], K = q.shape[3];
        check("k", k, {B, T, -1, K});
        check("v", v, {B, T, -1, -1});
        V = v.shape[3];
        check("out", out, {B, T, -1, V});
        H = out.shape[2];
        check_heads("q", q.shape[2], H), check_heads("k", k.shape[2], H), check_heads("v", v.shape[2], H);
        check_sizes(K, V);
        ends = Lengths(cu_seqlens, T);
        if (ends && B != 1) throw std::invalid_argument("q must have a batch of 1 where cu_seqlens is given");
        N = ends ? ends.count() : B;
        if (decay && decay.ndim == 3)
            check("decay", decay, {B, T, -1});
        else if (decay)
            check("decay", decay, {B, T, -1, columns ? V : K});
        if (decay) check_heads("decay", decay.shape[2], H);
        check_state("state", state, N, H, K, V + (denominator ? 1 : 0));
        check_state("last", last, N, H, K, V + (denominator ? 1 : 0));
        if (denominator) check("denominator", denominator, {B, T, H});
        kind = !decay ? Decay::none : decay.ndim == 3 ? Decay::scalar : columns ? Decay::columns : Decay::rows;
    }
};

// What is done with tokens: whether they are looked up, and what they are added to.
struct Deed {
    bool look, whole, part;
};

// The tensors of one head of one sequence.
struct Streams {
    Tokens q, k, v, g, out, denominator;
    Streams(const Call& c, int64_t n, int64_t h) {
        const auto view = [&](const Strided& x) { return tokens(x, c.ends, n, h, c.H, c.T, c.reverse); };
        q = view(c.q), k = view(c.k), v = view(c.v), g = view(c.decay), out = view(c.out);
        denominator = view(c.denominator);
    }
    // Tokens of these heads up to the last's.
    void prefetch(const Call& c, const Streams& last, int64_t begin, int64_t end, bool look, Ahead& ahead) const {
        ahead.aim(end - begin);
        ahead.follow(k, last.k, begin, c.K);
        ahead.follow(v, last.v, begin, c.V);
        if (c.kind == Decay::rows || c.kind == Decay::columns)
            ahead.follow(g, last.g, begin, c.kind == Decay::rows ? c.K : c.V);
        if (look) ahead.follow(q, last.q, begin, c.K), ahead.follow(out, last.out, begin, c.V, true);
    }
};

template <class F>
void multiply(F* x, const F* y, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] *= y[i];
}

// Each of n rows of x times its own number.
template <class F>
void scale_rows(F* x, int64_t stride, int64_t n, const F* by) {
    for (int64_t i = 0; i < n; ++i)
#pragma omp simd
        for (int64_t j = 0; j < stride; ++j) x[i * stride + j] *= by[i];
}

// Each of n rows of x times the same row.
template <class F>
void scale_columns(F* x, int64_t stride, int64_t n, const F* by) {
    for (int64_t i = 0; i < n; ++i) multiply(x + i * stride, by, stride);
}

// The decays of at most `count` tokens from t on; returns how many of them are one chunk.
template <class F>
int64_t load_decay(const Call& c, const Streams& x, int64_t t, int64_t count, Work<F>& w, State<F>& s) {
    if (c.kind == Decay::scalar) {
        double log_keep = 0;
        count = load_scalar_decay(x.g.from(t), count, c.flags.late, w, log_keep);
        s.log_recent += log_keep;
        w.keep = F(std::exp(log_keep));
    } else if (c.kind != Decay::none) {
        count = load_vector_decay(x.g.from(t), count, c.kind == Decay::rows ? c.K : c.V, c.flags.late, w);
        for (int64_t i = 0; i < w.D; ++i) {
            w.both[i] = w.head[i] * w.last[i];
            s.recent_left[i] *= double(w.head[i]) * w.last[i];
        }
    }
    return count;
}

// One chunk of at most `count` tokens from t on; returns how many it took.
template <class F>
int64_t chunk(const Call& c, const Streams& x, int64_t t, int64_t count, Deed deed, Work<F>& w, State<F>& s) {
    const int64_t K = c.K, wide = w.wide;
    const bool rows = c.kind == Decay::rows, columns = c.kind == Decay::columns;
    if (c.kind != Decay::none) count = load_decay(c, x, t, count, w, s);
    load(x.k.from(t), count, K, K, F(c.write), +w.k, K);
    load(x.v.from(t), count, c.V, wide, F(1), +w.v, wide);
    if (rows) multiply(+w.k, +w.down, count * K);
    if (columns) multiply(+w.v, +w.down, count * wide);
    if (deed.look) {
        load(x.q.from(t), count, K, K, F(c.read), +w.q, K);
        if (rows) multiply(+w.q, +w.up, count * K);
        if (w.D && w.fresh_head) s.scale(w, w.head);
        if (2 * count <= lanes<F>) {
            score_few(w, count, c.kind);
        } else {
            const int64_t filled = padded(count, lanes<F>);
            std::fill(w.k + count * K, w.k + filled * K, F(0));
            transpose(+w.k, K, filled, K, +w.kt, w.c);
            score(w, count, c.kind);
        }
    }
    const bool add_too = deed.whole || deed.part;
    F* values = c.flags.solve ? +w.out : +w.v;
    if (add_too && c.kind == Decay::scalar) scale_rows(+w.k, K, count, w.end_factor);
    if (add_too && rows) scale_columns(+w.k, K, count, +w.last);
    for_panels<F>(wide, [&]<int N>(int64_t column) {  // what tokens read is added to while it is near
        if (deed.look && c.flags.solve)
            read<true, true, N>(w, s, count, column, c.kind);
        else if (deed.look && c.flags.strict)
            read<false, true, N>(w, s, count, column, c.kind);
        else if (deed.look)
            read<false, false, N>(w, s, count, column, c.kind);
        if (!add_too) return;
        if (columns) {
            for (int64_t i = 0; i < count; ++i) multiply(values + i * wide + column, w.last + column, N * lanes<F>);
            add<Keep::columns, N>(w, s, values, count, deed.whole, column);
        } else if (c.kind == Decay::none) {
            add<Keep::all, N>(w, s, values, count, deed.whole, column);
        } else {
            add<Keep::rows, N>(w, s, values, count, deed.whole, column);
        }
    });
    if (deed.look) {
        if (c.denominator) {
            divide(w, s, count, c.kind, F(c.eps));
            store(w.denominator, 1, count, 1, x.denominator.from(t));
        }
        store(+w.out, wide, count, c.V, x.out.from(t));
    }
    if (add_too) add_keys(w, s, count, deed.whole);
    return count;
}

// What one thread has: room for a chunk, and the states of the heads that it walks through time together, since the
// tokens of neighbouring heads lie side by side in memory.
template <class F>
struct Desk {
    Work<F> work;
    std::vector<State<F>> states;
    std::vector<Streams> streams;
    Desk(int64_t length, const Call& c, int64_t group, bool segments) : work(length, c.K, c.V, c.kind) {
        const bool remembers = c.state || c.last || c.T > length || c.kind != Decay::none;
        states.reserve(group);
        for (int64_t i = 0; i < group; ++i) states.emplace_back(work, bool(c.denominator), segments, remembers);
        streams.reserve(group);
    }
};

// Tokens [begin, end) of heads [first, past) of sequence n, in time's order.
template <class F>
void walk(const Call& c, int64_t n, int64_t first, int64_t past, int64_t begin, int64_t end, Deed deed, Desk<F>& desk) {
    constexpr int64_t visit = 32, settles = 128;  // tokens until the next head's turn, and until sums turn double
    Work<F>& w = desk.work;
    desk.streams.clear();
    for (int64_t h = first; h < past; ++h) desk.streams.emplace_back(c, n, h);
    for (int64_t t = begin; t < end; t += visit) {
        const int64_t next = std::min(t + visit, end);
        desk.streams.front().prefetch(c, desk.streams.back(), next, std::min(next + visit, end), deed.look, w.ahead);
        for (int64_t h = first; h < past; ++h) {
            State<F>& s = desk.states[h - first];
            const Streams& x = desk.streams[h - first];
            for (int64_t u = t; u < next;) {
                const int64_t stop = std::min(u + w.chunk, next);
                Deed now = deed;
                now.whole &= c.last || stop < end || c.kind != Decay::none;  // nobody looks at the state after the last
                u += chunk(c, x, u, stop - u, now, w, s);
            }
            if (next == end)
                s.settle(w, deed.whole && c.last && !deed.part, deed.part);
            else if ((next - begin) % settles == 0)
                s.settle(w, deed.whole, deed.part);
        }
        w.ahead.rest();
    }
}

}  // namespace pyfast::linear_attention
