// Logit-adjusted cross-entropy and its two derivatives. Reference: pyfast/reference/longtail.py.
//
// x = logits + bias throughout, one row per example. Sums over a row are formed over blocks of classes of fixed size,
// in float inside a block and in double across, so neither the row's length nor the number of threads shows in the
// error.
#include <algorithm>
#include <string>
#include <vector>

#include "simd.h"
#include "tensor.h"

namespace pyfast {
namespace {

constexpr int64_t block = 256;       // classes summed in the narrow type
constexpr int64_t page = 8 * block;  // classes under one peak, small enough to stay in the nearest cache
constexpr int64_t span = 32 * page;  // classes that are one thread's work when a row is long

void check_target(Tensor<const int64_t> target, int64_t n, int64_t c) {
    if (target.size(0) != n)
        throw std::invalid_argument("target must hold " + std::to_string(n) + " classes, got " +
                                    std::to_string(target.size(0)));
    for (int64_t i = 0; i < n; ++i)
        if (target[i] < 0 || target[i] >= c)
            throw py::index_error("target[" + std::to_string(i) + "] must be in [0, " + std::to_string(c) + "), got " +
                                  std::to_string(target[i]));
}

template <class A>
void check_bias(Tensor<const A> bias, int64_t c) {
    if (bias.size(0) != c)
        throw std::invalid_argument("bias must hold " + std::to_string(c) + " classes, got " +
                                    std::to_string(bias.size(0)));
    for (int64_t j = 0; j < c; ++j)
        if (!std::isfinite(bias[j]))
            throw py::value_error("prior[" + std::to_string(j) + "] must be positive and finite, got tau * log(prior[" +
                                  std::to_string(j) + "]) = " + std::to_string(bias[j]));
}

// sum of exp(x) = total * exp(peak)
struct Sum {
    double peak = -INFINITY, total = 0;

    void add(double other_peak, double other_total) {
        const double high = std::max(peak, other_peak), shift = high == -INFINITY ? 0 : high;
        total = (peak == high ? total : total * std::exp(peak - shift)) +
                (other_peak == high ? other_total : other_total * std::exp(other_peak - shift));
        peak = high;
    }
};

// sum of f(j) over a range, narrow inside a block and wide across
template <class A, class F>
double sum(int64_t begin, int64_t end, F f) {
    double total = 0;
    for (int64_t first = begin; first < end; first += block) {
        const int64_t last = std::min(first + block, end);
        A part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t j = first; j < last; ++j) part += f(j);
        total += part;
    }
    return total;
}

template <class T, class A = Wide<T>>
Sum sum_of_exp(const T* row, const A* bias, int64_t begin, int64_t end) {
    Sum result;
    for (int64_t first = begin; first < end; first += page) {
        const int64_t last = std::min(first + page, end);
        A peak = -INFINITY;
#pragma omp simd reduction(max : peak)
        for (int64_t j = first; j < last; ++j) {
            const A x = A(row[j]) + bias[j];
            peak = x > peak ? x : peak;
        }
        const A shift = peak == A(-INFINITY) ? A(0) : peak;  // -inf - -inf would be NaN
        result.add(peak, sum<A>(first, last, [=](int64_t j) { return exp(A(row[j]) + bias[j] - shift); }));
    }
    return result;
}

// logits (n, c), target (n,), bias (c,) -> out (n,), norm (n, 2): the row's peak, its sum of exp(x - peak)
template <class T, class A = Wide<T>>
void loss(Tensor<const T> logits, Tensor<const int64_t> target, Tensor<const A> bias, Tensor<T> out, Tensor<A> norm) {
    const int64_t n = logits.size(0), c = logits.size(1), spans = (c + span - 1) / span;
    check_target(target, n, c);
    check_bias(bias, c);
    const auto finish = [&](int64_t i, Sum sum) {
        const A peak = A(sum.peak == -INFINITY ? 0 : sum.peak);
        const A x = A(logits.row(i)[target[i]]) + bias[target[i]];
        norm.row(i)[0] = peak;
        norm.row(i)[1] = A(sum.total);
        out[i] = T(A(std::log(sum.total)) - (x - peak));
    };
    if (spans == 1) {
#pragma omp parallel for if (parallel(n * c))
        for (int64_t i = 0; i < n; ++i) finish(i, sum_of_exp(logits.row(i), bias.data, 0, c));
        return;
    }
    std::vector<Sum> parts(n * spans);
#pragma omp parallel for if (parallel(n * c))
    for (int64_t k = 0; k < n * spans; ++k) {
        const int64_t begin = k % spans * span;
        parts[k] = sum_of_exp(logits.row(k / spans), bias.data, begin, std::min(begin + span, c));
    }
    for (int64_t i = 0; i < n; ++i) {
        Sum sum;
        for (int64_t k = i * spans; k < (i + 1) * spans; ++k) sum.add(parts[k].peak, parts[k].total);
        finish(i, sum);
    }
}

// p = exp(x - peak) / total, the softmax of x: unlike exp(x - lse), it does not inherit the rounding of a large lse.
// grad (n,) -> dlogits (n, c) = grad * (p - onehot(target))
template <class T, class A = Wide<T>>
void loss_backward(Tensor<const T> grad, Tensor<const T> logits, Tensor<const int64_t> target, Tensor<const A> bias,
                   Tensor<const A> norm, Tensor<T> dlogits) {
    const int64_t n = logits.size(0), c = logits.size(1), spans = (c + span - 1) / span;
    check_target(target, n, c);
#pragma omp parallel for if (parallel(n * c))
    for (int64_t k = 0; k < n * spans; ++k) {
        const int64_t i = k / spans, begin = k % spans * span, end = std::min(begin + span, c), hit = target[i];
        const A g = A(grad[i]), peak = norm.row(i)[0], scale = 1 / norm.row(i)[1];
        const T* row = logits.row(i);
        T* d = dlogits.row(i);
        const auto p = [&](int64_t j) { return exp(A(row[j]) + bias[j] - peak) * scale; };
#pragma omp simd
        for (int64_t j = begin; j < end; ++j) d[j] = T(g * p(j));
        if (begin <= hit && hit < end) d[hit] = T(g * (p(hit) - 1));
    }
}

// The derivative of loss_backward against v (n, c), with norm a function of logits and bias:
// mean = sum(p * v) per row; dgrad (n,) = mean - v[target]; dlogits (n, c) = grad * p * (v - mean)
template <class T, class A = Wide<T>>
void curvature(Tensor<const T> v, Tensor<const T> grad, Tensor<const T> logits, Tensor<const int64_t> target,
               Tensor<const A> bias, Tensor<const A> norm, Tensor<T> dgrad, Tensor<T> dlogits) {
    const int64_t n = logits.size(0), c = logits.size(1);
    check_target(target, n, c);
#pragma omp parallel for if (parallel(n * c))
    for (int64_t i = 0; i < n; ++i) {
        const A g = A(grad[i]), peak = norm.row(i)[0], scale = 1 / norm.row(i)[1];
        const T *row = logits.row(i), *direction = v.row(i);
        T* d = dlogits.row(i);
        const auto p = [&](int64_t j) { return exp(A(row[j]) + bias[j] - peak) * scale; };
        const A mean = A(sum<A>(0, c, [&](int64_t j) { return p(j) * A(direction[j]); }));
#pragma omp simd
        for (int64_t j = 0; j < c; ++j) d[j] = T(g * p(j) * (A(direction[j]) - mean));
        dgrad[i] = T(mean - A(direction[target[i]]));
    }
}

template <class T>
void bind(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("loss", &loss<T>, nogil);
    m.def("loss_backward", &loss_backward<T>, nogil);
    m.def("curvature", &curvature<T>, nogil);
}

}  // namespace

void bind_longtail(py::module_& m) {
    bind<float>(m);
    bind<double>(m);
    bind<Half>(m);
    bind<Bfloat>(m);
}

}  // namespace pyfast
