// Logit-adjusted cross-entropy, one row per example. Reference: pyfast/reference/longtail.py.
#include <cmath>

#include "simd.h"
#include "tensor.h"

namespace pyfast {
namespace {

// logits (n, c), target (n,), bias (c,) -> out (n,), lse (n,)
template <class T>
void loss(Tensor<const T> logits, Tensor<const int64_t> target, Tensor<const T> bias, Tensor<T> out, Tensor<T> lse) {
    const int64_t n = logits.size(0), c = logits.size(1);
    for (int64_t i = 0; i < n; ++i)
        if (target[i] < 0 || target[i] >= c)
            throw py::index_error("target[" + std::to_string(i) + "] is " + std::to_string(target[i]) + ", outside [0, " + std::to_string(c) + ")");
#pragma omp parallel for if (n * c > grain)
    for (int64_t i = 0; i < n; ++i) {
        const T* row = logits.row(i);
        T peak = -INFINITY, sum = 0;
        for (int64_t j = 0; j < c; ++j) peak = std::max(peak, row[j] + bias[j]);
        for (int64_t j = 0; j < c; ++j) sum += std::exp(row[j] + bias[j] - peak);
        lse[i] = peak + std::log(sum);
        out[i] = lse[i] - (row[target[i]] + bias[target[i]]);
    }
}

// grad (n,) -> dlogits (n, c) = grad * (softmax(logits + bias) - onehot(target))
template <class T>
void loss_backward(Tensor<const T> grad, Tensor<const T> logits, Tensor<const int64_t> target, Tensor<const T> bias, Tensor<const T> lse, Tensor<T> dlogits) {
    const int64_t n = logits.size(0), c = logits.size(1);
#pragma omp parallel for if (n * c > grain)
    for (int64_t i = 0; i < n; ++i) {
        const T* row = logits.row(i);
        T* out = dlogits.row(i);
        for (int64_t j = 0; j < c; ++j) out[j] = grad[i] * std::exp(row[j] + bias[j] - lse[i]);
        out[target[i]] -= grad[i];
    }
}

}  // namespace

void bind_longtail(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("loss", &loss<float>, nogil);
    m.def("loss", &loss<double>, nogil);
    m.def("loss_backward", &loss_backward<float>, nogil);
    m.def("loss_backward", &loss_backward<double>, nogil);
}

}  // namespace pyfast
