// Messages along edges, summed at their targets, and the product that is their derivative: closed under
// differentiation. Reference: pyfast/reference/crystal/messages.py.
#include <vector>

#include "crystal/rows.h"

namespace pyfast::crystal {
namespace {

constexpr int64_t ahead = 6;  // edges between a prefetch and its use

// out (rows, F): out_i = sum over p in row i of filter (E, F)[edge[p]] * x (others, F)[other[p]]
template <class T>
void conv(Tensor<const T> x, Tensor<const T> filter, Ints other, Ints edge, Ints ptr, Ints, Ints, Ints, Tensor<T> out) {
    const int64_t columns = x.size(1);
    const Rows rows(other, edge, ptr, x.size(0), filter.size(0));
#pragma omp parallel for schedule(dynamic, 64) if (parallel(rows.used * columns))
    for (int64_t i = 0; i < rows.count; ++i) {
        const int64_t begin = rows.ptr[i], end = rows.ptr[i + 1];
        for_columns<T>(columns, [&]<class Of, int N>(int64_t c) {
            constexpr int64_t width = step<T, Of>;
            In<Of> sum[N] = {};
            for (int64_t p = begin; p < end; ++p) {
                const T* w = filter.row(rows.at(p)) + c;
                const T* v = x.row(rows.other[p]) + c;
                if (rows.edge && p + ahead < end) {
                    const T* next = filter.row(rows.edge[p + ahead]) + c;
                    for (int64_t line = 0; line < N * width; line += 64 / sizeof(T)) __builtin_prefetch(next + line);
                }
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) sum[n] += as<Of>(w + n * width) * as<Of>(v + n * width);
            }
            for (int n = 0; n < N; ++n) as<Of>(out.row(i) + c + n * width) = sum[n];
        });
    }
}

// out (E, F): out[edge[p]] = x[other[p]] * g (rows, F)[i] for p in row i; 0 where there is no edge
template <class T>
void product(Tensor<const T> x, Tensor<const T> g, Ints other, Ints edge, Ints ptr, Ints, Ints, Ints, Tensor<T> out) {
    const int64_t columns = x.size(1), edges = out.size(0);
    const Rows rows(other, edge, ptr, x.size(0), edges);
    if (rows.used < edges) std::fill(rows.edge ? out.data : out.row(rows.used), out.row(edges), T(0));
#pragma omp parallel for schedule(dynamic, 64) if (parallel(rows.used * columns))
    for (int64_t i = 0; i < rows.count; ++i)
        for_columns<T>(columns, [&]<class Of, int N>(int64_t c) {
            constexpr int64_t width = step<T, Of>;
            In<Of> mine[N];
            for (int n = 0; n < N; ++n) mine[n] = as<Of>(g.row(i) + c + n * width);
            for (int64_t p = rows.ptr[i]; p < rows.ptr[i + 1]; ++p) {
                const T* v = x.row(rows.other[p]) + c;
                T* o = out.row(rows.at(p)) + c;
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) as<Of>(o + n * width) = as<Of>(v + n * width) * mine[n];
            }
        });
}

// Edges by their source: other (E) is the target, edge (E) the edge, ptr (sources + 1); edges of a source in order.
// Positions beyond the last edge hold 0.
void transpose(Ints source, Ints target, Ints used, int64_t sources, Tensor<int64_t> other, Tensor<int64_t> edge,
               Tensor<int64_t> ptr) {
    const int64_t all = source.size(0), targets = used.size(0) - 1;
    check_pointers("ptr", used, all);
    const int64_t edges = used[targets];
    check_indices("source", source, edges, sources);
    for (int64_t i = 0; i < targets; ++i)
        for (int64_t e = used[i]; e < used[i + 1]; ++e)
            if (target[e] != i) refuse("target", e, "be " + std::to_string(i) + ", in whose row it is", target[e]);
    std::vector<int64_t> next(sources + 1, 0);
    for (int64_t e = 0; e < edges; ++e) ++next[source[e] + 1];
    for (int64_t j = 0; j < sources; ++j) next[j + 1] += next[j];
    std::copy(next.begin(), next.end(), ptr.data);
    for (int64_t e = 0; e < edges; ++e) {
        const int64_t p = next[source[e]]++;
        other[p] = target[e], edge[p] = e;
    }
    std::fill(other.data + edges, other.data + all, 0);
    std::fill(edge.data + edges, edge.data + all, 0);
}

template <class T>
void bind(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("conv", &conv<T>, nogil);
    m.def("product", &product<T>, nogil);
}

}  // namespace

void bind_messages(py::module_& m) {
    bind<float>(m);
    bind<double>(m);
    m.def("transpose", &transpose, py::call_guard<py::gil_scoped_release>());
}

}  // namespace pyfast::crystal
