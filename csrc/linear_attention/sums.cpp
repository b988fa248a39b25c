// Sums over tokens without causality: all of what is written, then what each token reads; and running sums of decays.
// Reference: pyfast/reference/linear_attention.py.
#include <vector>

#include "linear_attention/chunk.h"
#include "linear_attention/heads.h"

namespace pyfast::linear_attention {
namespace {

// The heads of a batch, or of the sequences packed into one.
struct Heads {
    const Lengths& ends;
    int64_t B, T, N, H, K, V;
};

// Calls f(work, state, n, h, tokens) for every head of every sequence, the state loaded.
template <class F, class Function>
void each_head(const Heads& a, const Strided& state, int64_t chunk, Function f) {
    const int threads = team(a.N * a.H, a.B * a.T * a.H * (a.K + a.V));
    std::vector<Work<F>> works;
    std::vector<State<F>> states;
    for (int i = 0; i < threads; ++i) {
        works.emplace_back(chunk, a.K, a.V, Decay::none);
        states.emplace_back(works[i], false, false, true);
    }
    share(a.N * a.H, threads, [&](int64_t task, int thread) {
        Work<F>& w = works[thread];
        State<F>& s = states[thread];
        const int64_t n = task / a.H, h = task % a.H;
        const auto [begin, end] = span(a.ends, n, a.T);
        load_state(state, n, h, a.H, s, a.K, a.V, w.wide);
        f(w, s, n, h, end - begin);
    });
}

// out (N, H, K, V) = state + sum of k_t v_t'
void collect(Strided k, Strided v, Strided state, Strided cu_seqlens, Strided out) {
    check("k", k, {-1, -1, -1, -1});
    const int64_t B = k.shape[0], T = k.shape[1], K = k.shape[3];
    check("v", v, {B, T, -1, -1});
    const Lengths ends(cu_seqlens, T);
    const int64_t V = v.shape[3], N = ends ? ends.count() : B;
    check_sizes(K, V);
    check("out", out, {N, -1, K, V});
    const int64_t H = out.shape[1];
    check_heads("k", k.shape[2], H), check_heads("v", v.shape[2], H);
    check_state("state", state, N, H, K, V), check_state("out", out, N, H, K, V);
    if (ends && B != 1) throw std::invalid_argument("k must have a batch of 1 where cu_seqlens is given");
    if (!N || !H) return;
    with_wide(k, [&]<class F>(F*) {
        constexpr int64_t length = 64, settles = 128;
        each_head<F>({ends, B, T, N, H, K, V}, state, length, [&](auto& w, auto& s, int64_t n, int64_t h, int64_t all) {
            const auto x = tokens(k, ends, n, h, H, T, false), y = tokens(v, ends, n, h, H, T, false);
            for (int64_t t = 0; t < all; t += length) {
                const int64_t count = std::min(length, all - t), next = t + count;
                w.ahead.aim(std::min(length, all - next));
                w.ahead.follow(x, x, next, K), w.ahead.follow(y, y, next, V);
                load(x.from(t), count, K, K, F(1), +w.k, K);
                load(y.from(t), count, V, w.wide, F(1), +w.v, w.wide);
                for_panels<F>(w.wide,
                              [&]<int L>(int64_t column) { add<Keep::all, L>(w, s, +w.v, count, false, column); });
                add_keys(w, s, count, false);
                if (next == all || next % settles == 0) s.settle(w, true, false);
            }
            store_state<F>(out, n, h, H, s.whole, K, V, w.wide);
        });
    });
}

// out (B, T, H, V) = scale state' q_t
void read_all(Strided q, Strided state, Strided cu_seqlens, double scale, Strided out) {
    check("q", q, {-1, -1, -1, -1});
    const int64_t B = q.shape[0], T = q.shape[1], K = q.shape[3];
    const Lengths ends(cu_seqlens, T);
    const int64_t N = ends ? ends.count() : B;
    check("state", state, {N, -1, K, -1});
    const int64_t V = state.shape[3];
    check_sizes(K, V);
    check("out", out, {B, T, -1, V});
    const int64_t H = out.shape[2];
    check_heads("q", q.shape[2], H), check_state("state", state, N, H, K, V);
    if (ends && B != 1) throw std::invalid_argument("q must have a batch of 1 where cu_seqlens is given");
    if (!N || !H || !V) return;
    with_wide(q, [&]<class F>(F*) {
        constexpr int64_t length = 48;  // whole tiles
        each_head<F>({ends, B, T, N, H, K, V}, state, length, [&](auto& w, auto& s, int64_t n, int64_t h, int64_t all) {
            const auto x = tokens(q, ends, n, h, H, T, false), y = tokens(out, ends, n, h, H, T, false);
            const int64_t wide = w.wide;
            const F *from = w.q, *narrow = s.narrow;
            F* to = w.out;
            for (int64_t t = 0; t < all; t += length) {
                const int64_t count = std::min(length, all - t), next = t + count;
                w.ahead.aim(std::min(length, all - next));
                w.ahead.follow(x, x, next, K), w.ahead.follow(y, y, next, V, true);
                load(x.from(t), count, K, K, F(scale), +w.q, K);
                for_tiles<F>(count, wide, [&]<int M, int L>(int64_t row, int64_t column) {
                    w.ahead.some();
                    Tile<F, M, L> tile;
                    tile.add(from + row * K, K, 1, narrow + column * K, L * lanes<F>, K);
                    for (int m = 0; m < M; ++m)
                        for (int j = 0; j < L; ++j) at(to + (row + m) * wide + column + j * lanes<F>) = tile.sum[m][j];
                });
                w.ahead.rest();
                store(+w.out, wide, count, V, y.from(t));
            }
        });
    });
}

// out_t = start + the sum of x up to t, or if `strict` up to the token before; total = start + the sum of all of x.
// x (B, T, H) or (B, T, H, D), start and total (N, H) or (N, H, D)
void cumulate(Strided x, Strided start, Strided cu_seqlens, bool reverse, bool strict, Strided out, Strided total) {
    x.ndim == 3 ? check("x", x, {-1, -1, -1}) : check("x", x, {-1, -1, -1, -1});
    const int64_t B = x.shape[0], T = x.shape[1], H = x.shape[2], D = x.ndim > 3 ? x.shape[3] : 1;
    const Lengths ends(cu_seqlens, T);
    const int64_t N = ends ? ends.count() : B;
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
        share(N * H, threads, [&](int64_t task, int thread) {
            const int64_t n = task / H, h = task % H;
            double* sum = sums[thread].data();
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
        });
    });
}

}  // namespace
}  // namespace pyfast::linear_attention

namespace pyfast {
void bind_linear_attention_sums(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("cumulate", &linear_attention::cumulate, nogil);
    m.def("collect", &linear_attention::collect, nogil);
    m.def("read", &linear_attention::read_all, nogil);
}
}  // namespace pyfast
