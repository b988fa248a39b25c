// Pairs of edges that meet at an atom, as one dense tile per atom: rows are edges of one kind, columns the atom's
// edges. The three partial derivatives of sum m[row, column, l] y[row, l, :] . x[column, :], closed under
// differentiation. Reference: pyfast/reference/crystal/triplets.py.
#include "crystal/triplets.h"

namespace pyfast::crystal {
namespace {

// out (E, L, C): out[row, l] = sum over the columns of its tile of m (T, L) times x (E, C)
template <class T>
void pair_sum(Tensor<const T> m, Tensor<const T> x, Ints row, Ints row_ptr, Ints ptr, Ints tile_ptr, Tensor<T> out) {
    const int64_t degrees = m.size(1), columns = x.size(1);
    const Tiles tiles(row, row_ptr, ptr, tile_ptr, x.size(0), m.size(0));
    if (tiles.rows < x.size(0)) std::fill(out.data, out.data + x.size(0) * degrees * columns, T(0));
#pragma omp parallel for schedule(dynamic, 8) if (parallel(m.size(0) * degrees * columns))
    for (int64_t a = 0; a < tiles.count; ++a)
        for (int64_t c = 0; c < tiles.height(a); ++c) {
            const int64_t width = tiles.width(a);
            const T* weights = m.row(tiles.first[a] + c * width);
            for (int64_t l = 0; l < degrees; ++l)
                for_columns<T>(columns, [&]<class Of, int N>(int64_t k) {
                    constexpr int64_t wide = step<T, Of>;
                    In<Of> sum[N] = {};
                    const T* v = x.row(tiles.ptr[a]) + k;
                    for (int64_t b = 0; b < width; ++b, v += columns) {
                        const T w = weights[b * degrees + l];
#pragma GCC unroll 8
                        for (int n = 0; n < N; ++n) sum[n] += w * as<Of>(v + n * wide);
                    }
                    T* o = out.data + (tiles.edge(a, c) * degrees + l) * columns + k;
                    for (int n = 0; n < N; ++n) as<Of>(o + n * wide) = sum[n];
                });
        }
}

// out (E, C): out[column] = sum over the rows of its tile, and l, of m (T, L) times y (E, L, C)
template <class T>
void pair_back(Tensor<const T> m, Tensor<const T> y, Ints row, Ints row_ptr, Ints ptr, Ints tile_ptr, Tensor<T> out) {
    const int64_t degrees = y.size(1), columns = y.size(2);
    const Tiles tiles(row, row_ptr, ptr, tile_ptr, y.size(0), m.size(0));
    std::fill(out.row(tiles.ptr[tiles.count]), out.row(out.size(0)), T(0));
#pragma omp parallel for schedule(dynamic, 8) if (parallel(m.size(0) * degrees * columns))
    for (int64_t a = 0; a < tiles.count; ++a)
        for (int64_t b = 0; b < tiles.width(a); ++b)
            for_columns<T>(columns, [&]<class Of, int N>(int64_t k) {
                constexpr int64_t wide = step<T, Of>;
                In<Of> sum[N] = {};
                for (int64_t c = 0; c < tiles.height(a); ++c) {
                    const T* w = m.row(tiles.first[a] + c * tiles.width(a) + b);
                    const T* v = y.data + tiles.edge(a, c) * degrees * columns + k;
                    for (int64_t l = 0; l < degrees; ++l, v += columns) {
#pragma GCC unroll 8
                        for (int n = 0; n < N; ++n) sum[n] += w[l] * as<Of>(v + n * wide);
                    }
                }
                T* o = out.row(tiles.ptr[a] + b) + k;
                for (int n = 0; n < N; ++n) as<Of>(o + n * wide) = sum[n];
            });
}

// out (T, L): y (E, L, C)[row, l] . x (E, C)[column]
template <class T>
void pair_dot(Tensor<const T> y, Tensor<const T> x, Ints row, Ints row_ptr, Ints ptr, Ints tile_ptr, int64_t,
              Tensor<T> out) {
    const int64_t degrees = y.size(1), columns = y.size(2);
    const Tiles tiles(row, row_ptr, ptr, tile_ptr, x.size(0), out.size(0));
#pragma omp parallel for schedule(dynamic, 8) if (parallel(out.size(0) * degrees * columns))
    for (int64_t a = 0; a < tiles.count; ++a)
        for (int64_t c = 0; c < tiles.height(a); ++c) {
            T* o = out.row(tiles.first[a] + c * tiles.width(a));
            std::fill(o, o + tiles.width(a) * degrees, T(0));
            for (int64_t l = 0; l < degrees; ++l)
                for_columns<T>(columns, [&]<class Of, int N>(int64_t k) {
                    constexpr int64_t wide = step<T, Of>;
                    const T* u = y.data + (tiles.edge(a, c) * degrees + l) * columns + k;
                    In<Of> mine[N];
                    for (int n = 0; n < N; ++n) mine[n] = as<Of>(u + n * wide);
                    const T* v = x.row(tiles.ptr[a]) + k;
                    for (int64_t b = 0; b < tiles.width(a); ++b, v += columns) {
                        In<Of> part = {};
#pragma GCC unroll 8
                        for (int n = 0; n < N; ++n) part += mine[n] * as<Of>(v + n * wide);
                        o[b * degrees + l] += total<In<Of>, T>(part);
                    }
                });
        }
}

template <class T>
void bind(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("pair_sum", &pair_sum<T>, nogil);
    m.def("pair_back", &pair_back<T>, nogil);
    m.def("pair_dot", &pair_dot<T>, nogil);
}

}  // namespace

void bind_triplets(py::module_& m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace pyfast::crystal
