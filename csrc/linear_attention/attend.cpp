// Causal linear attention and the delta rule's triangular system, and what is left of both without causality.
// Reference: pyfast/reference/linear_attention.py; the derivatives are calls of the same functions with other
// arguments, see pyfast/linear_attention/_operators.py.
//
// Shapes: q (B, T, Hq, K), k (B, T, Hk, K), v (B, T, Hv, V), each H a divisor of the largest; decay (B, T, Hd) or
// (B, T, Hd, K) or, with `columns`, (B, T, Hd, V); state (N, Hs, K, V); cu_seqlens (N + 1,) with B = 1, or none and N =
// B.
#include <cmath>
#include <optional>

#include "linear_attention/fast_call.h"
#include "linear_attention/walk.h"
#include "pages.h"

namespace pyfast::linear_attention {
namespace {

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
    each_panel<F>(c.K, wide, [&](int64_t column, int64_t columns, int64_t place) {
        for (int64_t i = 0; i < c.K; ++i, place += columns)
            for (int64_t j = 0; j < columns; ++j) {
                const double left = c.kind == Decay::rows      ? s.left[i]
                                    : c.kind == Decay::columns ? s.left[column + j]
                                                               : std::exp(s.log_left);
                double& x = at_start.state[place + j];
                x = x * left + s.part.state[place + j];
            }
    });
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
    share(tasks, threads, [&](int64_t task, int thread) {
        Desk<F>& desk = desks[thread];
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
            store_state<F>(c.last, n, h, c.H, desk.states[h - first].whole, c.K, c.V, wide);
    });
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
    share(tasks, threads, [&](int64_t i, int thread) {
        Piece& p = pieces[i];
        Desk<F>& desk = desks[thread];
        State<F>& s = desk.states[0];
        begin_segment(s, desk.work);
        walk(c, p.n, p.h, p.h + 1, p.begin, p.end, {false, false, true}, desk);
        p.part.copy(s.part);
        left[i].assign(+s.left, +s.left + desk.work.D);
        log_left[i] = s.log_left;
    });
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
        if (c.last && ends_here(i)) store_state<F>(c.last, p.n, p.h, c.H, now, c.K, c.V, wide);
    }
    share(tasks, threads, [&](int64_t i, int thread) {
        Piece& p = pieces[i];
        Desk<F>& desk = desks[thread];
        State<F>& state = desk.states[0];
        state.whole.copy(p.start);
        state.round();
        walk(c, p.n, p.h, p.h + 1, p.begin, p.end, {true, true, false}, desk);
        if (c.last && p.begin == 0 && ends_here(i))  // one segment: as `run_heads` has it, to the bit
            store_state<F>(c.last, p.n, p.h, c.H, state.whole, c.K, c.V, wide);
    });
}

template <class F>
void run(Call& c) {
    c.measure();
    if (!c.N || !c.H || (!c.V && !c.denominator) || (!c.T && !c.last)) return;
    const int64_t length = std::min<int64_t>(std::max(c.K, c.V) > 96 ? 32 : 16, std::max<int64_t>(c.T, 1));
    const int64_t numbers = c.out.shape[0] * c.T * c.H * (c.K + c.V), cut = segment(c);
    use_huge_pages(c.out.data, c.out.shape[0] * c.T * c.H * c.V * (c.out.dtype.bits / 8));
    const int heads = team(c.N * c.H, numbers),
              most = team(c.N * c.H * ((c.T + cut - 1) / std::max<int64_t>(cut, 1)), numbers);
    if (cut < c.T && most > heads) return run_segments<F>(c, length, most);
    const bool neighbours = c.q.strides[2] < c.q.strides[1] && cut >= c.T;
    const int64_t in_cache =
        (int64_t{1} << 18) / int64_t(2 * sizeof(F)) / std::max<int64_t>(c.K, 1) / std::max<int64_t>(c.V, 1);
    const int64_t share = (c.N * c.H + heads - 1) / heads;
    const int64_t group = neighbours ? std::clamp<int64_t>(std::min(in_cache, share), 1, std::min<int64_t>(c.H, 8)) : 1;
    const int64_t tasks = c.N < heads ? c.N * ((c.H + group - 1) / group) : heads;
    run_heads<F>(c, length, int(std::min<int64_t>(heads, tasks)), group);
}

void run_any(Call& c) {
    const bool wide = c.q.is<double>() || c.k.is<double>() || c.v.is<double>();
    wide ? run<double>(c) : run<float>(c);
}

void attend(Strided q, Strided k, Strided v, Strided decay, Strided state, Strided ends, double read, double write,
            bool keep, bool reverse, bool late, bool strict, bool columns, Strided out, Strided last) {
    Call c{q, k, v, decay, state, ends, out, keep ? last : Strided{}, {}, read, write, 0, reverse, columns};
    c.flags = {late, strict, false};
    run_any(c);
}

// Whether q, k, v and out fit each other and each has all the heads; if so, attends without options.
bool attend_plain(Strided q, Strided k, Strided v, std::optional<double> scale, Strided out) {
    const auto real = [](const Strided& x) {
        return x.is<float>() || x.is<double>() || x.is<Half>() || x.is<Bfloat>();
    };
    bool fits = q.ndim == 4 && k.ndim == 4 && v.ndim == 4 && real(q) && k.dtype == q.dtype && v.dtype == q.dtype;
    fits = fits && std::equal(q.shape, q.shape + 4, k.shape) && std::equal(q.shape, q.shape + 3, v.shape);
    for (const Strided* x : {&q, &k, &v})  // tensors that stand for others have no memory of their own
        fits = fits && (x->data || !std::all_of(x->shape, x->shape + 4, [](int64_t n) { return n > 0; }));
    if (!fits || (scale && !std::isfinite(*scale))) return false;
    Call c{q, k, v, {}, {}, {}, out, {}, {}};
    c.read = scale ? *scale : std::pow(double(std::max<int64_t>(q.shape[3], 1)), -0.5);
    run_any(c);
    return true;
}

PyObject* call_plain(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return call_fast<4, 1>(args, count, "attend_plain", [](const Strided* x, const std::optional<double>* scale) {
        return attend_plain(x[0], x[1], x[2], *scale, x[3]);
    });
}

void attend_normalized(Strided q, Strided k, Strided v, Strided decay, Strided state, Strided ends, double read,
                       double eps, bool keep, bool reverse, Strided out, Strided last, Strided denominator) {
    Call c{q, k, v, decay, state, ends, out, keep ? last : Strided{}, denominator, read, 1, eps, reverse, false, {}};
    run_any(c);
}

void solve(Strided p, Strided k, Strided v, Strided decay, Strided state, Strided ends, bool keep, bool reverse,
           bool late, Strided out, Strided last) {
    Call c{p, k, v, decay, state, ends, out, keep ? last : Strided{}, {}, 1, 1, 0, reverse, false, {late, true, true}};
    run_any(c);
}

}  // namespace
}  // namespace pyfast::linear_attention

namespace pyfast {
void bind_linear_attention_step(py::module_&);
void bind_linear_attention_sums(py::module_&);

void bind_linear_attention(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("attend", &linear_attention::attend, nogil);
    static PyMethodDef plain;
    m.attr("attend_plain") = linear_attention::fast_function(plain, "attend_plain", linear_attention::call_plain);
    m.def("attend_normalized", &linear_attention::attend_normalized, nogil);
    m.def("attend_into", &linear_attention::attend, nogil);
    m.def("attend_normalized_into", &linear_attention::attend_normalized, nogil);
    m.def("solve", &linear_attention::solve, nogil);
    bind_linear_attention_step(m);
    bind_linear_attention_sums(m);
}
}  // namespace pyfast
