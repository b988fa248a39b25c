// Causal linear attention and the delta rule's triangular system, and what is left of both without causality.
// Reference: pyfast/reference/linear_attention.py; the derivatives are calls of the same functions with other
// arguments, see pyfast/linear_attention/_operators.py.
//
// Shapes: q (B, T, Hq, K), k (B, T, Hk, K), v (B, T, Hv, V), each H a divisor of the largest; decay (B, T, Hd) or
// (B, T, Hd, K) or, with `columns`, (B, T, Hd, V); state (N, Hs, K, V); cu_seqlens (N + 1,) with B = 1, or none and N =
// B.
#include <utility>
#include <vector>

#include "linear_attention/chunk.h"
#include "pages.h"

namespace pyfast::linear_attention {
namespace {

using Lengths = Strided;  // of the sequences: their N + 1 ends, or none

// The operators can be called by their names, past all that Python checks: nothing may be read that is not there.
void check(const char* name, const Strided& x, std::initializer_list<int64_t> shape) {
    const bool real = x.is<float>() || x.is<double>() || x.is<Half>() || x.is<Bfloat>();
    bool fits = x.ndim == int(shape.size()) && real;
    for (int i = 0; fits && i < x.ndim; ++i) fits = shape.begin()[i] < 0 || x.shape[i] == shape.begin()[i];
    if (fits) return;
    std::string want, got;
    for (int64_t n : shape) want += (n < 0 ? "any" : std::to_string(n)) + ", ";
    for (int i = 0; i < x.ndim; ++i) got += std::to_string(x.shape[i]) + ", ";
    throw std::invalid_argument(std::string(name) + " must be floating point of shape (" + want + "), got (" + got +
                                ")" + (real ? "" : " of another dtype"));
}

void check_heads(const char* name, int64_t heads, int64_t all) {
    if (heads < 1 ? all > 0 : all % heads != 0)
        throw std::invalid_argument(std::string(name) + " must have a divisor of " + std::to_string(all) +
                                    " heads, got " + std::to_string(heads));
}

void check_state(const char* name, const Strided& x, int64_t N, int64_t H, int64_t K, int64_t V) {
    if (!x) return;
    check(name, x, {N, -1, K, V});
    check_heads(name, x.shape[1], H);
    if (!x.is<float>() && !x.is<double>())
        throw std::invalid_argument(std::string(name) + " must be float32 or float64, got 16 bits");
}

// Where sequence n begins and ends.
std::pair<int64_t, int64_t> span(const Lengths& ends, int64_t n, int64_t tokens) {
    if (!ends) return {0, tokens};
    const auto* e = reinterpret_cast<const int64_t*>(ends.data);
    return {e[n * ends.strides[0]], e[(n + 1) * ends.strides[0]]};
}

void check_lengths(const char* name, const Lengths& ends, int64_t tokens) {
    if (!ends) return;
    if (ends.ndim != 1 || !ends.is<int64_t>() || ends.shape[0] < 1)
        throw std::invalid_argument(std::string(name) + " must be int64 of shape (N + 1,)");
    const int64_t n = ends.shape[0] - 1;
    for (int64_t i = 0, before = 0; i <= n; ++i) {
        const int64_t end = i < n ? span(ends, i, tokens).first : span(ends, n - 1, tokens).second;
        if (end < before || end > tokens || (i == 0 && end != 0) || (i == n && end != tokens))
            throw py::value_error(std::string(name) + " must rise from 0 to the " + std::to_string(tokens) +
                                  " tokens, got " + std::to_string(end) + " at " + std::to_string(i));
        before = end;
    }
}

// Sequence n of head h out of `heads`; backwards if `reverse`.
Tokens tokens(const Strided& x, const Lengths& ends, int64_t n, int64_t h, int64_t heads, int64_t count, bool reverse) {
    if (!x) return {};
    const auto [begin, end] = span(ends, n, count);
    const int64_t* stride = x.strides;
    const int64_t first =
        (ends ? 0 : n * stride[0]) + h * x.shape[2] / heads * stride[2] + (reverse ? end - 1 : begin) * stride[1];
    return {x.data + first * (x.dtype.bits / 8), reverse ? -stride[1] : stride[1], x.ndim > 3 ? stride[3] : 1, x.dtype};
}

// state (N, H, K, V), or (N, H, K, V + 1) with the sum of keys last, to and from double
template <class Function>
void each_element(const Strided& x, int64_t n, int64_t h, int64_t heads, Sum& s, int64_t K, int64_t V, int64_t wide,
                  Function f) {
    const auto run = [&](auto* base) {
        base += n * x.strides[0] + h * x.shape[1] / heads * x.strides[1];
        for (int64_t i = 0; i < K; ++i) {
            for (int64_t j = 0; j < V; ++j) f(base[i * x.strides[2] + j * x.strides[3]], s.state[i * wide + j]);
            if (s.key_size) f(base[i * x.strides[2] + V * x.strides[3]], s.keys[i]);
        }
    };
    if (x.is<double>())
        run(reinterpret_cast<double*>(x.data));
    else
        run(reinterpret_cast<float*>(x.data));
}

template <class F>
void load_state(const Strided& x, int64_t n, int64_t h, int64_t heads, State<F>& s, int64_t K, int64_t V,
                int64_t wide) {
    s.whole.zero = !x;
    if (!x) return;
    s.whole.clear();
    each_element(x, n, h, heads, s.whole, K, V, wide, [](auto& memory, double& own) { own = double(memory); });
    s.round();
}

void store_state(const Strided& x, int64_t n, int64_t h, int64_t heads, Sum& s, int64_t K, int64_t V, int64_t wide) {
    each_element(x, n, h, heads, s, K, V, wide, [zero = s.zero](auto& memory, double& own) {
        memory = std::decay_t<decltype(memory)>(zero ? 0 : own);
    });
}

struct Call {
    Strided q, k, v, decay, state, ends, out, last, denominator;
    double read = 1, write = 1, eps = 0;
    bool reverse = false, columns = false;
    Flags flags{};
    int64_t N = 0, T = 0, H = 0, K = 0, V = 0;
    Decay kind = Decay::none;

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
        check_lengths("cu_seqlens", ends, T);
        if (ends && B != 1) throw std::invalid_argument("q must have a batch of 1 where cu_seqlens is given");
        N = ends ? ends.shape[0] - 1 : B;
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

// What is done with a chunk: whether its tokens are looked up, and what they are added to.
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
};

template <class F>
void multiply(F* x, const F* y, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] *= y[i];
}

// The decays of at most `count` tokens from t on; returns how many of them are one chunk.
template <class F>
int64_t load_decay(const Call& c, const Streams& x, int64_t t, int64_t count, Work<F>& w, State<F>& s, bool part,
                   double& log_keep) {
    double head = 0, total = 0;
    if (c.kind == Decay::scalar) {
        count = load_scalar_decay(x.g.from(t), count, c.flags.late, w, head, total);
        for (int64_t i = 0; i < count; ++i) {
            F* gate = w.gate + i * w.c;
            const double reach = w.reach[i];
#pragma omp simd
            for (int64_t u = 0; u <= i; ++u) gate[u] = exp(F(reach - w.reach[u]));
            w.read_factor[i] = exp(F(head + reach));
            w.end_factor[i] = exp(F(total - reach));
        }
    } else if (c.kind != Decay::none) {
        count = load_vector_decay(x.g.from(t), count, c.kind == Decay::rows ? c.K : c.V, c.flags.late, w);
        for (int64_t i = 0; part && i < w.D; ++i) s.left[i] *= double(w.head[i]) * w.last[i];
    }
    log_keep = head + total;
    if (part) s.log_left += log_keep;
    return count;
}

// One chunk of at most `count` tokens from t on; returns how many it took.
template <class F>
int64_t chunk(const Call& c, const Streams& x, int64_t t, int64_t count, Deed deed, Work<F>& w, State<F>& s) {
    const int64_t K = c.K, wide = w.wide;
    double log_keep = 0;
    if (c.kind != Decay::none) count = load_decay(c, x, t, count, w, s, deed.part, log_keep);
    load(x.k.from(t), count, K, K, F(c.write), +w.k, K);
    load(x.v.from(t), count, c.V, wide, F(1), +w.v, wide);
    if (c.kind == Decay::rows) multiply(+w.k, +w.down, count * K);
    if (c.kind == Decay::columns) multiply(+w.v, +w.down, count * wide);
    if (deed.look) {
        load(x.q.from(t), count, K, K, F(c.read), +w.q, K);
        if (c.kind == Decay::rows) multiply(+w.q, +w.up, count * K);
        if (!c.flags.late && !s.whole.zero && w.D) {
            for (int64_t i = 0; i < K; ++i) {
                F* row = s.narrow + i * wide;
#pragma omp simd
                for (int64_t j = 0; j < wide; ++j) row[j] *= w.head[c.kind == Decay::rows ? i : j];
            }
            multiply(+s.sum, +w.head, s.whole.key_size);
        }
        transpose(+w.k, K, count, K, +w.kt, w.c);
        if (c.flags.solve)
            read<true, true>(w, s, count, c.kind);
        else if (c.flags.strict)
            read<false, true>(w, s, count, c.kind);
        else
            read<false, false>(w, s, count, c.kind);
        if (c.denominator) {
            divide(w, s, count, c.kind, F(c.eps));
            store(w.denominator, 1, count, 1, x.denominator.from(t));
        }
        store(+w.out, wide, count, c.V, x.out.from(t));
    }
    if (deed.whole || deed.part) {
        for (int64_t i = 0; c.kind == Decay::scalar && i < count; ++i) {
            F* row = w.k + i * K;
#pragma omp simd
            for (int64_t j = 0; j < K; ++j) row[j] *= w.end_factor[i];
        }
        add(w, s, c.flags.solve ? +w.out : +w.v, count, c.kind, std::exp(log_keep), deed.whole, deed.part);
    }
    return count;
}

// How many threads share tasks that touch so many numbers in all.
int team(int64_t tasks, int64_t numbers) {
    return parallel(numbers) ? int(std::min<int64_t>(omp_get_max_threads(), tasks)) : 1;
}

// What one thread has: room for a chunk, and the states of the heads that it walks through time together, since the
// tokens of neighbouring heads lie side by side in memory.
template <class F>
struct Desk {
    Work<F> work;
    std::vector<State<F>> states;
    Desk(int64_t length, const Call& c, int64_t group, bool segments) : work(length, c.K, c.V, c.kind) {
        for (int64_t i = 0; i < group; ++i) states.emplace_back(work, bool(c.denominator), segments);
    }
};

// Tokens [begin, end) of heads [first, past) of sequence n, in time's order.
template <class F>
void walk(const Call& c, int64_t n, int64_t first, int64_t past, int64_t begin, int64_t end, Deed deed, Desk<F>& desk) {
    Work<F>& w = desk.work;
    for (int64_t t = begin; t < end; t += w.chunk) {
        const int64_t next = std::min(t + w.chunk, end), until = std::min(next + w.chunk, end);
        for (int64_t h = first; h < past; ++h) {
            const Streams x(c, n, h);
            prefetch(x.k, next, until, c.K);
            prefetch(x.v, next, until, c.V);
            if (deed.look) {
                prefetch(x.q, next, until, c.K);
                prefetch<true>(x.out, next, until, c.V);
            }
            Deed now = deed;
            now.whole &= c.last || next < end || c.kind != Decay::none;  // nobody looks at the state after the last
            for (int64_t u = t; u < next;) u += chunk(c, x, u, next - u, now, w, desk.states[h - first]);
        }
    }
}

// Where there are too few heads for the threads, time is cut into segments of this many tokens: by the shapes alone.
int64_t segment(const Call& c) {
    constexpr int64_t least = 4096, most_segments = 64, few = 8;
    if (c.flags.solve || c.N * c.H >= few) return c.T;
    return std::max(least, padded((c.T + most_segments - 1) / most_segments, 32));
}

// What a state becomes in a segment, from what it was at the beginning.
template <class F>
void pass(const Call& c, const State<F>& s, int64_t wide, Sum& at_start) {
    if (at_start.zero) at_start.clear();
    for (int64_t i = 0; i < c.K; ++i)
        for (int64_t j = 0; j < wide; ++j) {
            const double left = c.kind == Decay::rows      ? s.left[i]
                                : c.kind == Decay::columns ? s.left[j]
                                                           : std::exp(s.log_left);
            double& x = at_start.state[i * wide + j];
            x = x * left + s.part.state[i * wide + j];
        }
    for (int64_t i = 0; i < at_start.key_size; ++i)
        at_start.keys[i] =
            at_start.keys[i] * (c.kind == Decay::rows ? s.left[i] : std::exp(s.log_left)) + s.part.keys[i];
}

template <class F>
void begin_segment(State<F>& s, const Work<F>& w) {
    s.part.zero = true;
    s.log_left = 0;
    std::fill_n(+s.left, w.D, 1.0);
}

// Sequences whose heads are enough for the threads, or whose segments must follow each other.
template <class F>
void run_heads(const Call& c, int64_t length, int threads, int64_t group) {
    const int64_t groups = (c.H + group - 1) / group, tasks = c.N * groups, cut = segment(c);
    std::vector<Desk<F>> desks;
    for (int i = 0; i < threads; ++i) desks.emplace_back(length, c, group, cut < c.T);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t task = 0; task < tasks; ++task) {
        Desk<F>& desk = desks[omp_get_thread_num()];
        const int64_t n = task / groups, first = task % groups * group, past = std::min(first + group, c.H);
        const auto [begin, end] = span(c.ends, n, c.T);
        const int64_t count = end - begin, wide = desk.work.wide;
        for (int64_t h = first; h < past; ++h) load_state(c.state, n, h, c.H, desk.states[h - first], c.K, c.V, wide);
        if (count <= cut) {
            walk(c, n, first, past, 0, count, {true, true, false}, desk);
        } else {  // one head
            State<F>& s = desk.states[0];
            Sum at_start(c.K, wide, bool(c.denominator));
            for (int64_t t = 0; t < count; t += cut) {
                at_start.copy(s.whole);
                begin_segment(s, desk.work);
                walk(c, n, first, past, t, std::min(t + cut, count), {true, true, true}, desk);
                pass(c, s, wide, at_start);
                s.whole.copy(at_start);
                s.round();
            }
        }
        for (int64_t h = first; h < past && c.last; ++h)
            store_state(c.last, n, h, c.H, desk.states[h - first].whole, c.K, c.V, wide);
    }
}

// The same, the segments side by side: what each adds to the state, then what each begins with, then what each reads.
template <class F>
void run_segments(const Call& c, int64_t length, int threads) {
    struct Piece {
        int64_t n, h, begin, end;
        Sum part, start;
    };
    const int64_t cut = segment(c), wide = Work<F>(1, c.K, c.V, c.kind).wide;
    const bool normalize = bool(c.denominator);
    std::vector<Piece> pieces;
    for (int64_t n = 0; n < c.N; ++n)
        for (int64_t h = 0; h < c.H; ++h) {
            const auto [begin, end] = span(c.ends, n, c.T);
            for (int64_t t = 0; t == 0 || t < end - begin; t += cut)
                pieces.push_back(
                    {n, h, t, std::min(t + cut, end - begin), Sum(c.K, wide, normalize), Sum(c.K, wide, normalize)});
        }
    const int64_t tasks = int64_t(pieces.size());
    const auto ends_here = [&](int64_t i) { return i + 1 == tasks || pieces[i + 1].begin == 0; };
    std::vector<Desk<F>> desks;
    for (int i = 0; i < threads; ++i) desks.emplace_back(length, c, 1, true);
    std::vector<std::vector<double>> left(tasks);
    std::vector<double> log_left(tasks);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < tasks; ++i) {
        Piece& p = pieces[i];
        Desk<F>& desk = desks[omp_get_thread_num()];
        State<F>& s = desk.states[0];
        begin_segment(s, desk.work);
        walk(c, p.n, p.h, p.h + 1, p.begin, p.end, {false, false, true}, desk);
        p.part.copy(s.part);
        left[i].assign(+s.left, +s.left + desk.work.D);
        log_left[i] = s.log_left;
    }
    State<F>& s = desks[0].states[0];
    Sum now(c.K, wide, normalize);
    for (int64_t i = 0; i < tasks; ++i) {
        Piece& p = pieces[i];
        if (p.begin == 0) {
            load_state(c.state, p.n, p.h, c.H, s, c.K, c.V, wide);
            now.copy(s.whole);
        }
        p.start.copy(now);
        s.part.copy(p.part);
        std::copy(left[i].begin(), left[i].end(), +s.left);
        s.log_left = log_left[i];
        if (p.begin < p.end) pass(c, s, wide, now);
        if (c.last && ends_here(i)) store_state(c.last, p.n, p.h, c.H, now, c.K, c.V, wide);
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < tasks; ++i) {
        Piece& p = pieces[i];
        Desk<F>& desk = desks[omp_get_thread_num()];
        State<F>& state = desk.states[0];
        state.whole.copy(p.start);
        if (!p.start.zero) state.round();
        walk(c, p.n, p.h, p.h + 1, p.begin, p.end, {true, true, false}, desk);
        if (c.last && p.begin == 0 && ends_here(i))  // one segment: as `run_heads` has it, to the bit
            store_state(c.last, p.n, p.h, c.H, state.whole, c.K, c.V, wide);
    }
}

template <class F>
void run(Call& c) {
    c.measure();
    if (!c.N || !c.H) return;
    const int64_t length = std::min<int64_t>(32, std::max<int64_t>(c.T, 1));
    const int64_t numbers = c.out.shape[0] * c.T * c.H * (c.K + c.V), cut = segment(c);
    use_huge_pages(c.out.data, c.out.shape[0] * c.T * c.H * c.V * (c.out.dtype.bits / 8));
    const int heads = team(c.N * c.H, numbers),
              most = team(c.N * c.H * ((c.T + cut - 1) / std::max<int64_t>(cut, 1)), numbers);
    if (cut < c.T && most > heads) return run_segments<F>(c, length, most);
    const bool neighbours = c.q.strides[2] < c.q.strides[1] && cut >= c.T;
    const int64_t in_cache =
        (int64_t{1} << 18) / (int64_t(sizeof(F) + sizeof(double)) * std::max<int64_t>(c.K * c.V, 1));
    const int64_t share = (c.N * c.H + heads - 1) / heads;
    const int64_t group = neighbours ? std::clamp<int64_t>(std::min(in_cache, share), 1, std::min<int64_t>(c.H, 8)) : 1;
    run_heads<F>(c, length, std::min<int>(heads, c.N * ((c.H + group - 1) / group)), group);
}

// Calls f with a null pointer to what is computed in when x is in memory.
template <class Function>
void with_wide(const Strided& x, Function f) {
    if (x.is<double>())
        f(static_cast<double*>(nullptr));
    else
        f(static_cast<float*>(nullptr));
}

void run_any(Call& c) {
    const bool wide = c.q.is<double>() || c.k.is<double>() || c.v.is<double>();
    wide ? run<double>(c) : run<float>(c);
}

void attend(Strided q, Strided k, Strided v, Strided decay, Strided state, Lengths ends, double read, double write,
            bool keep, bool reverse, bool late, bool strict, bool columns, Strided out, Strided last) {
    Call c{q,
           k,
           v,
           decay,
           state,
           ends,
           out,
           keep ? last : Strided{},
           {},
           read,
           write,
           0,
           reverse,
           columns,
           {late, strict, false}};
    run_any(c);
}

void attend_normalized(Strided q, Strided k, Strided v, Strided decay, Strided state, Lengths ends, double read,
                       double eps, bool keep, bool reverse, Strided out, Strided last, Strided denominator) {
    Call c{q, k, v, decay, state, ends, out, keep ? last : Strided{}, denominator, read, 1, eps, reverse, false, {}};
    run_any(c);
}

void solve(Strided p, Strided k, Strided v, Strided decay, Strided state, Lengths ends, bool keep, bool reverse,
           bool late, Strided out, Strided last) {
    Call c{p, k, v, decay, state, ends, out, keep ? last : Strided{}, {}, 1, 1, 0, reverse, false, {late, true, true}};
    run_any(c);
}

// out (N, H, K, V) = state + sum of k_t v_t'
void collect(Strided k, Strided v, Strided state, Lengths ends, Strided out) {
    check("k", k, {-1, -1, -1, -1});
    const int64_t B = k.shape[0], T = k.shape[1], K = k.shape[3], length = 32;
    check("v", v, {B, T, -1, -1});
    check_lengths("cu_seqlens", ends, T);
    const int64_t V = v.shape[3], N = ends ? ends.shape[0] - 1 : B;
    check("out", out, {N, -1, K, V});
    const int64_t H = out.shape[1];
    check_heads("k", k.shape[2], H), check_heads("v", v.shape[2], H);
    check_state("state", state, N, H, K, V), check_state("out", out, N, H, K, V);
    if (ends && B != 1) throw std::invalid_argument("k must have a batch of 1 where cu_seqlens is given");
    if (!N || !H) return;
    with_wide(k, [&]<class F>(F*) {
        const int threads = team(N * H, k.shape[0] * T * H * (K + V));
        std::vector<Work<F>> works;
        std::vector<State<F>> states;
        for (int i = 0; i < threads; ++i) {
            works.emplace_back(length, K, V, Decay::none);
            states.emplace_back(works[i], false, false);
        }
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
        for (int64_t task = 0; task < N * H; ++task) {
            Work<F>& w = works[omp_get_thread_num()];
            State<F>& s = states[omp_get_thread_num()];
            const int64_t n = task / H, h = task % H;
            const auto x = tokens(k, ends, n, h, H, T, false), y = tokens(v, ends, n, h, H, T, false);
            const auto [begin, end] = span(ends, n, T);
            load_state(state, n, h, H, s, K, V, w.wide);
            for (int64_t t = 0; t < end - begin; t += length) {
                const int64_t count = std::min(length, end - begin - t), next = t + count;
                prefetch(x, next, std::min(next + length, end - begin), K);
                prefetch(y, next, std::min(next + length, end - begin), V);
                load(x.from(t), count, K, K, F(1), +w.k, K);
                load(y.from(t), count, V, w.wide, F(1), +w.v, w.wide);
                add(w, s, +w.v, count, Decay::none, 1, true, false);
            }
            store_state(out, n, h, H, s.whole, K, V, w.wide);
        }
    });
}

// out (B, T, H, V) = scale state' q_t
void read_all(Strided q, Strided state, Lengths ends, double scale, Strided out) {
    check("q", q, {-1, -1, -1, -1});
    const int64_t B = q.shape[0], T = q.shape[1], K = q.shape[3], length = 32;
    check_lengths("cu_seqlens", ends, T);
    const int64_t N = ends ? ends.shape[0] - 1 : B;
    check("state", state, {N, -1, K, -1});
    const int64_t V = state.shape[3];
    check("out", out, {B, T, -1, V});
    const int64_t H = out.shape[2];
    check_heads("q", q.shape[2], H), check_state("state", state, N, H, K, V);
    if (ends && B != 1) throw std::invalid_argument("q must have a batch of 1 where cu_seqlens is given");
    if (!N || !H || !V) return;
    with_wide(q, [&]<class F>(F*) {
        const int threads = team(N * H, q.shape[0] * T * H * (K + V));
        std::vector<Work<F>> works;
        std::vector<State<F>> states;
        for (int i = 0; i < threads; ++i) {
            works.emplace_back(length, K, V, Decay::none);
            states.emplace_back(works[i], false, false);
        }
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
        for (int64_t task = 0; task < N * H; ++task) {
            Work<F>& w = works[omp_get_thread_num()];
            State<F>& s = states[omp_get_thread_num()];
            const int64_t n = task / H, h = task % H, wide = w.wide;
            const auto x = tokens(q, ends, n, h, H, T, false);
            const auto y = tokens(out, ends, n, h, H, T, false);
            const auto [begin, end] = span(ends, n, T);
            load_state(state, n, h, H, s, K, V, wide);
            for (int64_t t = 0; t < end - begin; t += length) {
                const int64_t count = std::min(length, end - begin - t), next = t + count;
                prefetch(x, next, std::min(next + length, end - begin), K);
                load(x.from(t), count, K, K, F(scale), +w.q, K);
                for_tiles<F>(count, wide, [&]<int M, int L>(int64_t row, int64_t column) {
                    Tile<F, M, L> tile;
                    tile.add(w.q + row * K, K, 1, s.narrow + column, wide, K);
                    for (int m = 0; m < M; ++m)
                        for (int j = 0; j < L; ++j)
                            at(w.out + (row + m) * wide + column + j * lanes<F>) = tile.sum[m][j];
                });
                store(+w.out, wide, count, V, y.from(t));
            }
        }
    });
}

// out_t = start + the sum of x up to t, or if `strict` up to the token before; total = start + the sum of all of x.
// x (B, T, H) or (B, T, H, D), start and total (N, H) or (N, H, D)
void cumulate(Strided x, Strided start, Lengths ends, bool reverse, bool strict, Strided out, Strided total) {
    x.ndim == 3 ? check("x", x, {-1, -1, -1}) : check("x", x, {-1, -1, -1, -1});
    const int64_t B = x.shape[0], T = x.shape[1], H = x.shape[2], D = x.ndim > 3 ? x.shape[3] : 1;
    check_lengths("cu_seqlens", ends, T);
    const int64_t N = ends ? ends.shape[0] - 1 : B;
    if (!x.is<float>() && !x.is<double>()) throw std::invalid_argument("x must be float32 or float64, got 16 bits");
    if (ends && B != 1) throw std::invalid_argument("x must have a batch of 1 where cu_seqlens is given");
    for (const auto& [name, y] : {std::pair{"start", start}, std::pair{"total", total}}) {
        if (!y) continue;
        x.ndim == 3 ? check(name, y, {N, H}) : check(name, y, {N, H, D});
        if (!(y.dtype == x.dtype)) throw std::invalid_argument(std::string(name) + " must have the dtype of x");
    }
    if (!N || !H) return;
    with_wide(x, [&]<class S>(S*) {
        const int threads = team(N * H, x.shape[0] * T * H * D);
        std::vector<std::vector<double>> sums(threads, std::vector<double>(D));
        const auto at_state = [&](const Strided& y, int64_t n, int64_t h, int64_t i) {
            return reinterpret_cast<S*>(y.data) + n * y.strides[0] + h * y.strides[1] +
                   (y.ndim > 2 ? i * y.strides[2] : 0);
        };
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
        for (int64_t task = 0; task < N * H; ++task) {
            const int64_t n = task / H, h = task % H;
            double* sum = sums[omp_get_thread_num()].data();
            const auto from = tokens(x, ends, n, h, H, T, reverse);
            const auto to = tokens(out, ends, n, h, H, T, reverse);
            const auto [begin, end] = span(ends, n, T);
            for (int64_t i = 0; i < D; ++i) sum[i] = start ? double(*at_state(start, n, h, i)) : 0;
            for (int64_t t = 0; t < end - begin; ++t) {
                const S* a = from.row<S>(t);
                S* b = to.row<S>(t);
                for (int64_t i = 0; i < D; ++i) {
                    const double before = sum[i];
                    sum[i] += double(a[i * from.element]);
                    b[i * to.element] = S(strict ? before : sum[i]);
                }
            }
            for (int64_t i = 0; i < D; ++i) *at_state(total, n, h, i) = S(sum[i]);
        }
    });
}

}  // namespace
}  // namespace pyfast::linear_attention

namespace pyfast {
void bind_linear_attention(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("attend", &linear_attention::attend, nogil);
    m.def("attend_normalized", &linear_attention::attend_normalized, nogil);
    m.def("attend_into", &linear_attention::attend, nogil);
    m.def("attend_normalized_into", &linear_attention::attend_normalized, nogil);
    m.def("solve", &linear_attention::solve, nogil);
    m.def("cumulate", &linear_attention::cumulate, nogil);
    m.def("collect", &linear_attention::collect, nogil);
    m.def("read", &linear_attention::read_all, nogil);
}
}  // namespace pyfast
