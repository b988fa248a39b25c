// Rows in consecutive segments: row e is in segment s where ptr[s] <= e < ptr[s + 1]. Sums are double, in order.
// Reference: pyfast/reference/crystal/segments.py.
#include <vector>

#include "crystal/rows.h"

namespace pyfast::crystal {
namespace {

constexpr int64_t block = 64;  // columns whose sums are held at a time

// out (segments, F) = sum of x (rows, F)
template <class T>
void segment_sum(Tensor<const T> x, Ints ptr, Tensor<T> out) {
    const int64_t columns = x.size(1), segments = out.size(0);
    check_pointers("ptr", ptr, x.size(0));
#pragma omp parallel for schedule(dynamic, 16) if (parallel(x.size(0) * columns))
    for (int64_t s = 0; s < segments; ++s)
        for (int64_t c = 0; c < columns; c += block) {
            const int64_t width = std::min(block, columns - c);
            double sum[block] = {};
            for (int64_t e = ptr[s]; e < ptr[s + 1]; ++e) {
                const T* row = x.row(e) + c;
                if (width == block) {
#pragma omp simd
                    for (int64_t k = 0; k < block; ++k) sum[k] += double(row[k]);
                } else {
                    for (int64_t k = 0; k < width; ++k) sum[k] += double(row[k]);
                }
            }
            for (int64_t k = 0; k < width; ++k) out.row(s)[c + k] = T(sum[k]);
        }
}

// out (rows, F): each row its segment's g; 0 in none
template <class T>
void segment_spread(Tensor<const T> g, Ints ptr, int64_t, Tensor<T> out) {
    const int64_t columns = g.size(1), segments = g.size(0), rows = out.size(0);
    check_pointers("ptr", ptr, rows);
#pragma omp parallel for schedule(dynamic, 16) if (parallel(rows * columns))
    for (int64_t s = 0; s < segments; ++s)
        for (int64_t e = ptr[s]; e < ptr[s + 1]; ++e) std::copy(g.row(s), g.row(s + 1), out.row(e));
    std::fill(out.row(ptr[segments]), out.row(rows), T(0));
}

// out (segments, F), and where each was first found; -inf and -1 in an empty segment. NaN is larger than all.
template <class T>
void segment_max(Tensor<const T> x, Ints ptr, Tensor<T> out, Tensor<int64_t> where) {
    const int64_t columns = x.size(1), segments = out.size(0);
    check_pointers("ptr", ptr, x.size(0));
#pragma omp parallel for schedule(dynamic, 16) if (parallel(x.size(0) * columns))
    for (int64_t s = 0; s < segments; ++s) {
        T* most = out.row(s);
        int64_t* at = where.row(s);
        std::fill(most, most + columns, T(-INFINITY));
        std::fill(at, at + columns, ptr[s] < ptr[s + 1] ? ptr[s] : -1);
        for (int64_t e = ptr[s]; e < ptr[s + 1]; ++e)
            for (int64_t k = 0; k < columns; ++k) {
                const T v = x.row(e)[k];
                if (v > most[k] || (std::isnan(v) && !std::isnan(most[k]))) most[k] = v, at[k] = e;
            }
    }
}

// out (rows, F) = exp(x) over its segment's sum of that
template <class T>
void segment_softmax(Tensor<const T> x, Ints ptr, Tensor<T> out) {
    const int64_t columns = x.size(1), rows = x.size(0), segments = ptr.size(0) - 1;
    check_pointers("ptr", ptr, rows);
#pragma omp parallel for schedule(dynamic, 16) if (parallel(rows * columns))
    for (int64_t s = 0; s < segments; ++s) {
        std::vector<T> peak(columns, T(-INFINITY));
        std::vector<double> sum(columns, 0.0);
        for (int64_t e = ptr[s]; e < ptr[s + 1]; ++e)
            for (int64_t k = 0; k < columns; ++k) peak[k] = x.row(e)[k] > peak[k] ? x.row(e)[k] : peak[k];
        for (int64_t e = ptr[s]; e < ptr[s + 1]; ++e) {
            T* o = out.row(e);
#pragma omp simd
            for (int64_t k = 0; k < columns; ++k) o[k] = exp(x.row(e)[k] - peak[k]);
            for (int64_t k = 0; k < columns; ++k) sum[k] += double(o[k]);
        }
        for (int64_t e = ptr[s]; e < ptr[s + 1]; ++e)
            for (int64_t k = 0; k < columns; ++k) out.row(e)[k] = T(double(out.row(e)[k]) / sum[k]);
    }
    std::fill(out.row(ptr[segments]), out.row(rows), T(0));
}

template <class T>
void bind(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("segment_sum", &segment_sum<T>, nogil);
    m.def("segment_spread", &segment_spread<T>, nogil);
    m.def("segment_max", &segment_max<T>, nogil);
    m.def("segment_softmax", &segment_softmax<T>, nogil);
}

}  // namespace

void bind_segments(py::module_& m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace pyfast::crystal
