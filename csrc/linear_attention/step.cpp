// One token of every sequence, as decoding needs it: each state is read once, and written once.
//
//   S = exp(decay) S_before + k v',   or with the delta rule   A = exp(decay) S_before, S = A + beta k (v - A' k)'
//   out = scale S' q, with `normalize` divided by its last column, the sum of keys
#include <cmath>
#include <optional>

#include "linear_attention/fast_call.h"
#include "linear_attention/heads.h"

namespace pyfast::linear_attention {
namespace {

struct Step {
    Strided q, k, v, decay, beta, state, out, last;
    double scale = 1, eps = 0;
    int64_t B = 0, H = 0, K = 0, V = 0, columns = 0;

    // Whether all fit each other and rows of states are whole: all else is left to who can tell what is wrong.
    bool fits() {
        const auto real = [](const Strided& x) {
            return x.is<float>() || x.is<double>() || x.is<Half>() || x.is<Bfloat>();
        };
        if (q.ndim != 3 || k.ndim != 3 || v.ndim != 3 || out.ndim != 3 || last.ndim != 4) return false;
        B = q.shape[0], K = q.shape[2], V = v.shape[2], H = out.shape[1], columns = last.shape[3];
        if (B < 1 || H < 1 || K < 1 || V < 1 || (columns != V && columns != V + 1)) return false;
        bool good = real(q) && k.dtype == q.dtype && v.dtype == q.dtype && out.dtype == q.dtype;
        good = good && k.shape[0] == B && v.shape[0] == B && k.shape[2] == K && out.shape[0] == B && out.shape[2] == V;
        good = good && last.shape[0] == B && last.shape[1] == H && last.shape[2] == K && last.strides[3] == 1;
        good = good && (last.is<double>() || (last.is<float>() && !q.is<double>()));
        if (state) {
            good = good && state.ndim == 4 && std::equal(state.shape, state.shape + 4, last.shape);
            good = good && state.dtype == last.dtype && state.strides[3] == 1;
        }
        if (decay) {
            const int own = decay.ndim == 1 ? 0 : 1;  // the dimension of its heads
            good = good && real(decay) && decay.ndim >= 1 && decay.ndim <= 3 && (!own || decay.shape[0] == B);
            good = good && (decay.ndim < 3 || decay.shape[2] == K) && divides(decay.shape[own]);
        }
        if (beta) {
            good = good && real(beta) && beta.ndim == 2 && beta.shape[0] == B && columns == V;
            good = good && divides(beta.shape[1]);
        }
        for (const Strided* x : {&q, &k, &v, &decay, &beta, &state, &out, &last})
            good = good && (!*x || x->data);  // tensors that stand for others have no memory of their own
        return good && divides(q.shape[1]) && divides(k.shape[1]) && divides(v.shape[1]);
    }

  private:
    bool divides(int64_t heads) const { return heads >= 1 && H % heads == 0; }
};

// n numbers of head h of sequence b: of (B, heads, n), (B, heads) or (heads,).
template <class F>
void take(const Strided& x, int64_t b, int64_t h, int64_t heads, int64_t n, F scale, F* to) {
    const int own = x.ndim == 1 ? 0 : 1;
    const int64_t first = (own ? b * x.strides[0] : 0) + h * x.shape[own] / heads * x.strides[own];
    load({x.data + first * (x.dtype.bits / 8), 0, x.ndim == 3 ? x.strides[2] : 1, x.dtype}, 1, n, n, scale, to, n);
}

template <class F>
void head(const Step& c, int64_t b, int64_t h, F* room) {
    const int64_t K = c.K, C = c.columns;
    F *q = room, *k = q + K, *keep = k + K, *v = keep + K, *out = v + C;
    take(c.q, b, h, c.H, K, F(c.scale), q);
    take(c.k, b, h, c.H, K, F(1), k);
    take(c.v, b, h, c.H, c.V, F(1), v);
    if (C > c.V) v[c.V] = 1;  // the sum of keys is the state of a value that is always one
    if (c.decay) {
        const int64_t own = c.decay.ndim == 3 ? K : 1;
        take(c.decay, b, h, c.H, own, F(1), keep);
#pragma omp simd
        for (int64_t i = 0; i < own; ++i) keep[i] = exp(keep[i]);
        if (own == 1) std::fill_n(keep + 1, K - 1, keep[0]);
    }
    const auto row = [&](const Strided& x, int64_t i) {
        return reinterpret_cast<F*>(x.data) + b * x.strides[0] + h * x.strides[1] + i * x.strides[2];
    };
    if (c.beta) {
        F beta;
        take(c.beta, b, h, c.H, 1, F(1), &beta);
        std::fill_n(out, C, F(0));
        for (int64_t i = 0; i < K && c.state; ++i) {
            const F* s = row(c.state, i);
            const F key = c.decay ? k[i] * keep[i] : k[i];
#pragma omp simd
            for (int64_t j = 0; j < C; ++j) out[j] += key * s[j];
        }
#pragma omp simd
        for (int64_t j = 0; j < C; ++j) v[j] = beta * (v[j] - out[j]);
    }
    std::fill_n(out, C, F(0));
    const auto pass = [&](auto before) {
        for (int64_t i = 0; i < K; ++i) {
            const F *s = c.state ? row(c.state, i) : nullptr, key = k[i], query = q[i], left = c.decay ? keep[i] : 1;
            F* fresh = row(c.last, i);
#pragma omp simd
            for (int64_t j = 0; j < C; ++j) {
                const F x = before(s, j, left) + key * v[j];
                fresh[j] = x;
                out[j] += query * x;
            }
        }
    };
    if (!c.state)
        pass([](const F*, int64_t, F) { return F(0); });
    else if (!c.decay)
        pass([](const F* s, int64_t j, F) { return s[j]; });
    else
        pass([](const F* s, int64_t j, F left) { return left * s[j]; });
    if (C > c.V) {
        const F divisor = out[c.V] + F(c.eps);
        for (int64_t j = 0; j < c.V; ++j) out[j] /= divisor;
    }
    const int64_t first = b * c.out.strides[0] + h * c.out.strides[1];
    store(out, C, 1, c.V, {c.out.data + first * (c.out.dtype.bits / 8), 0, c.out.strides[2], c.out.dtype});
}

template <class F>
void run(const Step& c) {
    const int64_t tasks = c.B * c.H, size = padded(3 * c.K + 2 * c.columns, 64 / sizeof(F));
    const int threads = team(tasks, tasks * c.K * c.columns);
    Buffer<F> room(threads * size);
    share(tasks, threads, [&](int64_t task, int thread) { head<F>(c, task / c.H, task % c.H, room + thread * size); });
}

// step_plain(q, k, v, decay, beta, state, out, last, scale, eps): whether it could be done.
PyObject* step_plain(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return call_fast<8, 2>(args, count, "step_plain", [](const Strided* x, const std::optional<double>* numbers) {
        Step c{x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]};
        if (!c.fits()) return false;
        c.scale = numbers[0] ? *numbers[0] : std::pow(double(c.K), -0.5);
        c.eps = numbers[1].value_or(0);
        if (!std::isfinite(c.last.is<double>() ? c.scale : float(c.scale))) return false;
        c.last.is<double>() ? run<double>(c) : run<float>(c);
        return true;
    });
}

}  // namespace
}  // namespace pyfast::linear_attention

namespace pyfast {
void bind_linear_attention_step(py::module_& m) {
    static PyMethodDef plain;
    m.attr("step_plain") = linear_attention::fast_function(plain, "step_plain", linear_attention::step_plain);
}
}  // namespace pyfast
