// Messages whose filters are read from a table of cubic Hermite pieces, with the two kernels that are its derivatives.
// Reference: pyfast/reference/crystal/table.py.
//
// table (K, 2, F): value, and slope times the spacing, at K uniform knots from `start` on. For the d-th derivative
// along r, T_d(r)_f = sum of four weights times the four numbers of the piece. Beyond the last knot the last piece goes
// on, for a hair's breadth: distances are rounded, and Python refuses more.
#include <vector>

#include "crystal/rows.h"

namespace pyfast::crystal {
namespace {

struct Knots {
    double start, spacing, per;
    int64_t pieces, order;

    Knots(double start_, double spacing_, int64_t knots, int64_t order_)
        : start(start_), spacing(spacing_), per(1 / spacing_), pieces(knots - 1), order(order_) {
        if (knots < 2) throw std::invalid_argument("table must have at least 2 knots, got " + std::to_string(knots));
    }

    template <class T>
    int64_t piece(T r) const {
        const double u = (double(r) - start) * per;
        return u > 0 ? std::min(int64_t(u), pieces - 1) : 0;  // NaN is in the first, and stays NaN
    }

    // The weights of value, slope, next value and next slope.
    template <class T>
    int64_t weights(T r, T scale, T w[4]) const {
        const double u = (double(r) - start) * per;
        const int64_t k = piece(r);
        const double t = u - double(k), s = double(scale);
        if (order == 0) {
            const double up = t * t * (3 - 2 * t);
            w[0] = T(s * (1 - up)), w[1] = T(s * (t * (1 - t) * (1 - t)));
            w[2] = T(s * up), w[3] = T(s * (t * t * (t - 1)));
        } else if (order == 1) {
            const double q = s * per, up = 6 * t * (1 - t);
            w[0] = T(-q * up), w[1] = T(q * ((3 * t - 4) * t + 1)), w[2] = T(q * up), w[3] = T(q * t * (3 * t - 2));
        } else if (order == 2) {
            const double q = s * per * per, up = 6 - 12 * t;
            w[0] = T(-q * up), w[1] = T(q * (6 * t - 4)), w[2] = T(q * up), w[3] = T(q * (6 * t - 2));
        } else {
            const double q = order == 3 ? s * per * per * per : s * 0 * t;
            w[0] = T(12 * q), w[1] = T(6 * q), w[2] = T(-12 * q), w[3] = T(6 * q);
        }
        return k;
    }
};

// Padding may hold anything.
template <class T>
void check_edges(Tensor<const T> r, Knots knots, const Rows& rows) {
    const double end = knots.start + knots.spacing * double(knots.pieces), slack = 1e-6 * (std::abs(end) + 1);
    const T low = T(knots.start - slack), high = T(end + slack);
    int64_t wrong = 0;
    for (int64_t p = 0; p < rows.used; ++p) {
        const T at = r[rows.at(p)];
        wrong |= int64_t(!(at >= low)) | int64_t(!(at <= high));
    }
    for (int64_t p = 0; wrong && p < rows.used; ++p) {
        const int64_t e = rows.at(p);
        if (!(r[e] >= low && r[e] <= high))
            throw py::value_error("distance[" + std::to_string(e) + "] must be in [" + std::to_string(knots.start) +
                                  ", " + std::to_string(end) + "], got " + std::to_string(r[e]));
    }
}

// out (rows, F): out_i = sum over p in row i, e = edge[p], of scale (E)[e] * T_d(r (E)[e]) * x[other[p]]
template <class T>
void table_conv(Tensor<const T> x, Tensor<const T> scale, Tensor<const T> r, Tensor<const T> table, Ints other,
                Ints edge, Ints ptr, Ints, Ints, Ints, double start, double spacing, int64_t order, Tensor<T> out) {
    const int64_t columns = x.size(1);
    const Rows rows(other, edge, ptr, x.size(0), r.size(0));
    const Knots knots(start, spacing, table.size(0), order);
    check_edges(r, knots, rows);
#pragma omp parallel for schedule(dynamic, 64) if (parallel(rows.used * columns))
    for (int64_t i = 0; i < rows.count; ++i)
        for_columns<T>(columns, [&]<class Of, int N>(int64_t c) {
            constexpr int64_t width = step<T, Of>;
            In<Of> sum[N] = {};
            for (int64_t p = rows.ptr[i]; p < rows.ptr[i + 1]; ++p) {
                const int64_t e = rows.at(p);
                T w[4];
                const T* piece = table.data + 2 * columns * knots.weights(r[e], scale[e], w) + c;
                const T* v = x.row(rows.other[p]) + c;
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) {
                    const T* a = piece + n * width;
                    const In<Of> f = w[0] * as<Of>(a) + w[1] * as<Of>(a + columns) + w[2] * as<Of>(a + 2 * columns) +
                                     w[3] * as<Of>(a + 3 * columns);
                    sum[n] += f * as<Of>(v + n * width);
                }
            }
            for (int n = 0; n < N; ++n) as<Of>(out.row(i) + c + n * width) = sum[n];
        });
}

// out (E): out[e] = sum over f of T_d(r[e])_f * x[other[p]]_f * g (rows, F)[i]_f; 0 where there is no edge
template <class T>
void table_dot(Tensor<const T> x, Tensor<const T> g, Tensor<const T> r, Tensor<const T> table, Ints other, Ints edge,
               Ints ptr, Ints, Ints, Ints, double start, double spacing, int64_t order, Tensor<T> out) {
    const int64_t columns = x.size(1);
    const Rows rows(other, edge, ptr, x.size(0), r.size(0));
    const Knots knots(start, spacing, table.size(0), order);
    check_edges(r, knots, rows);
    if (rows.used < out.size(0)) std::fill(out.data, out.data + out.size(0), T(0));
#pragma omp parallel for schedule(dynamic, 64) if (parallel(rows.used * columns))
    for (int64_t i = 0; i < rows.count; ++i)
        for (int64_t p = rows.ptr[i]; p < rows.ptr[i + 1]; ++p) {
            const int64_t e = rows.at(p);
            T w[4], sum = 0;
            const T* piece = table.data + 2 * columns * knots.weights(r[e], T(1), w);
            const T *v = x.row(rows.other[p]), *u = g.row(i);
            for_columns<T>(columns, [&]<class Of, int N>(int64_t c) {
                constexpr int64_t width = step<T, Of>;
                In<Of> part = {};
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) {
                    const T* a = piece + c + n * width;
                    const In<Of> f = w[0] * as<Of>(a) + w[1] * as<Of>(a + columns) + w[2] * as<Of>(a + 2 * columns) +
                                     w[3] * as<Of>(a + 3 * columns);
                    part += f * as<Of>(v + c + n * width) * as<Of>(u + c + n * width);
                }
                sum += total<In<Of>, T>(part);
            });
            out[e] = sum;
        }
}

// out (K, 2, F), the adjoint of reading: for every edge, scale[e] * x[other[p]] * g[i] times the weights of T_d(r[e]).
// Edges are bucketed by piece, in order, and each piece is summed by one thread; then neighbours meet at their knot.
template <class T>
void table_sums(Tensor<const T> x, Tensor<const T> g, Tensor<const T> scale, Tensor<const T> r, Ints other, Ints edge,
                Ints ptr, Ints, Ints, Ints, int64_t, double start, double spacing, int64_t order, Tensor<T> out) {
    const int64_t columns = x.size(1), pieces = out.size(0) - 1;
    const Rows rows(other, edge, ptr, x.size(0), r.size(0));
    const Knots knots(start, spacing, out.size(0), order);
    check_edges(r, knots, rows);
    struct Visit {
        int64_t other, row;
        T w[4];
    };
    std::vector<int64_t> first(pieces + 1, 0);
    std::vector<Visit> visits(rows.used);
    for (int64_t p = 0; p < rows.used; ++p) ++first[knots.piece(r[rows.at(p)]) + 1];
    for (int64_t k = 0; k < pieces; ++k) first[k + 1] += first[k];
    {
        std::vector<int64_t> next(first.begin(), first.end() - 1);
        for (int64_t i = 0; i < rows.count; ++i)
            for (int64_t p = rows.ptr[i]; p < rows.ptr[i + 1]; ++p) {
                const int64_t e = rows.at(p);
                Visit visit{rows.other[p], i, {}};
                visits[next[knots.weights(r[e], scale[e], visit.w)]++] = visit;
            }
    }
    std::vector<T> upper(pieces * 2 * columns);  // each piece's share of its second knot
#pragma omp parallel for schedule(dynamic, 8) if (parallel(rows.used * columns))
    for (int64_t k = 0; k < pieces; ++k)
        for_columns<T>(columns, [&]<class Of, int N>(int64_t c) {
            constexpr int64_t width = step<T, Of>;
            constexpr int M = N > 2 ? 2 : N;  // four sums of each column
            for (int64_t b = c; b < c + N * width; b += M * width) {
                In<Of> sum[4][M] = {};
                for (int64_t q = first[k]; q < first[k + 1]; ++q) {
                    const Visit& visit = visits[q];
                    const T *v = x.row(visit.other) + b, *u = g.row(visit.row) + b;
                    for (int n = 0; n < M; ++n) {
                        const In<Of> both = as<Of>(v + n * width) * as<Of>(u + n * width);
                        for (int m = 0; m < 4; ++m) sum[m][n] += visit.w[m] * both;
                    }
                }
                for (int n = 0; n < M; ++n)
                    for (int m = 0; m < 2; ++m) {
                        as<Of>(out.data + (2 * k + m) * columns + b + n * width) = sum[m][n];
                        as<Of>(upper.data() + (2 * k + m) * columns + b + n * width) = sum[2 + m][n];
                    }
            }
        });
    std::fill(out.data + 2 * pieces * columns, out.data + 2 * (pieces + 1) * columns, T(0));
    for (int64_t q = 0; q < 2 * pieces * columns; ++q) out[q + 2 * columns] += upper[q];
}

template <class T>
void bind(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("table_conv", &table_conv<T>, nogil);
    m.def("table_dot", &table_dot<T>, nogil);
    m.def("table_sums", &table_sums<T>, nogil);
}

}  // namespace

void bind_table(py::module_& m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace pyfast::crystal
