// Edge vectors from positions, cells and shifts, their adjoint, and nearest images; in double whatever memory holds.
// Reference: pyfast/reference/crystal/geometry.py.
#include <array>
#include <vector>

#include "crystal/rows.h"

namespace pyfast::crystal {
namespace {

using Shifts = Tensor<const int32_t>;

struct Structures {
    std::vector<int64_t> of_row;

    Structures(Ints atom_ptr, int64_t rows) : of_row(rows) {
        check_pointers("atom_ptr", atom_ptr, rows);
        const int64_t count = atom_ptr.size(0) - 1;
        if (atom_ptr[count] != rows) refuse("atom_ptr", count, "be " + std::to_string(rows), atom_ptr[count]);
        for (int64_t b = 0; b < count; ++b)
            std::fill(of_row.begin() + atom_ptr[b], of_row.begin() + atom_ptr[b + 1], b);
    }
};

// out (E, 3): x_j + S_e @ cell - x_i; 0 where there is no edge
template <class T>
void vectors(Tensor<const T> x, Tensor<const T> cell, Shifts shift, Ints other, Ints edge, Ints ptr, Ints, Ints, Ints,
             Ints edge_ptr, Ints atom_ptr, Tensor<T> out) {
    const Rows rows(other, edge, ptr, x.size(0), out.size(0));
    const Structures structures(atom_ptr, rows.count);
    check_pointers("edge_ptr", edge_ptr, out.size(0));
    if (rows.used < out.size(0)) std::fill(out.data, out.row(out.size(0)), T(0));
#pragma omp parallel for if (parallel(16 * rows.used))
    for (int64_t i = 0; i < rows.count; ++i) {
        const T *c = cell.data + 9 * structures.of_row[i], *here = x.row(i);
        for (int64_t p = rows.ptr[i]; p < rows.ptr[i + 1]; ++p) {
            const int64_t e = rows.at(p);
            const T* there = x.row(rows.other[p]);
            const int32_t* s = shift.row(e);
            for (int k = 0; k < 3; ++k)
                out.row(e)[k] = T((double(there[k]) - double(here[k])) +
                                  ((s[0] * double(c[k]) + s[1] * double(c[3 + k])) + s[2] * double(c[6 + k])));
        }
    }
}

// g (E, 3) -> dx (N, 3) = sum of g over edges from an atom, less the sum over edges to it; dcell (B, 3, 3) = S' g
template <class T>
void vectors_adjoint(Tensor<const T> g, Shifts shift, Ints other, Ints edge, Ints ptr, Ints other_t, Ints edge_t,
                     Ints ptr_t, Ints edge_ptr, Ints atom_ptr, Tensor<T> dx, Tensor<T> dcell) {
    const int64_t n = dx.size(0), edges = g.size(0), structures = edge_ptr.size(0) - 1;
    const Rows to(other, edge, ptr, n, edges), from(other_t, edge_t, ptr_t, n, edges);
    check_pointers("edge_ptr", edge_ptr, edges);
    check_pointers("atom_ptr", atom_ptr, n);
    const auto sum = [&](const Rows& rows, int64_t i, double sign, double* total) {
        for (int64_t p = rows.ptr[i]; p < rows.ptr[i + 1]; ++p)
            for (int k = 0; k < 3; ++k) total[k] += sign * double(g.row(rows.at(p))[k]);
    };
#pragma omp parallel for if (parallel(16 * edges))
    for (int64_t i = 0; i < n; ++i) {
        double total[3] = {};
        sum(from, i, 1, total);
        sum(to, i, -1, total);
        for (int k = 0; k < 3; ++k) dx.row(i)[k] = T(total[k]);
    }
    constexpr int64_t part = 4096;  // edges of a structure that are summed by one thread
    std::vector<std::array<int64_t, 2>> parts;
    std::vector<int64_t> first(structures + 1);
    for (int64_t b = 0; b < structures; ++b) {
        for (int64_t e = edge_ptr[b]; e < edge_ptr[b + 1]; e += part)
            parts.push_back({e, std::min(e + part, edge_ptr[b + 1])});
        first[b + 1] = int64_t(parts.size());
    }
    std::vector<std::array<double, 9>> totals(parts.size());
#pragma omp parallel for if (parallel(16 * edges))
    for (size_t q = 0; q < parts.size(); ++q) {
        std::array<double, 9> total{};
        for (int64_t e = parts[q][0]; e < parts[q][1]; ++e)
            for (int a = 0; a < 3; ++a)
                for (int k = 0; k < 3; ++k) total[3 * a + k] += shift.row(e)[a] * double(g.row(e)[k]);
        totals[q] = total;
    }
    for (int64_t b = 0; b < structures; ++b)
        for (int k = 0; k < 9; ++k) {
            double total = 0;
            for (int64_t q = first[b]; q < first[b + 1]; ++q) total += totals[q][k];
            dcell[9 * b + k] = T(total);
        }
}

// The cell in triangular form, so that the images within a radius can be listed axis by axis. basis[k] is the unit
// vector along which axis k sticks out of those after it; part[k][m] the component of axis k along basis[m].
struct Frame {
    double cell[9], basis[3][3], part[3][3];
    bool periodic[3];
};

inline double dot(const double* a, const double* b) {
    return (a[0] * b[0] + a[1] * b[1]) + a[2] * b[2];
}

template <class T>
Frame frame(const T* cell, const bool* periodic, int64_t b) {
    Frame f{};
    for (int k = 0; k < 9; ++k) f.cell[k] = double(cell[k]);
    for (int k = 2; k >= 0; --k) {
        f.periodic[k] = periodic[k];
        if (!periodic[k]) continue;
        const double* axis = f.cell + 3 * k;
        const double length = std::sqrt(dot(axis, axis));
        double rest[3] = {axis[0], axis[1], axis[2]};
        for (int round = 0; round < 2; ++round)  // twice: once more for what rounding left
            for (int m = 2; m > k; --m) {
                const double along = dot(rest, f.basis[m]);
                for (int q = 0; q < 3; ++q) rest[q] -= along * f.basis[m][q];
            }
        const double out = std::sqrt(dot(rest, rest));
        if (!(out > 1e-10 * length) || !std::isfinite(length))
            throw py::value_error("cell[" + std::to_string(b) +
                                  "] must be finite and not singular along its periodic axes, got axis " +
                                  std::to_string(k) + " in the span of those after it");
        for (int q = 0; q < 3; ++q) f.basis[k][q] = rest[q] / out;
        for (int m = k; m < 3; ++m) f.part[k][m] = m == k ? out : dot(axis, f.basis[m]);
    }
    return f;
}

struct Search {
    const Frame& f;
    double y[3], best;
    int64_t s[3], found[3];

    // Axis k and those after it: `y` holds what is left of the vector along each basis vector, `sum` the square so far.
    void visit(int k, double sum) {
        if (k == 3) {
            if (sum < best) best = sum, found[0] = s[0], found[1] = s[1], found[2] = s[2];
            return;
        }
        s[k] = 0;
        if (!f.periodic[k]) return visit(k + 1, sum);
        const double width = f.part[k][k], at = y[k] / width, reach = std::sqrt(std::max(best - sum, 0.0)) / width;
        const int64_t low = int64_t(std::ceil(-at - reach - 1e-9)), high = int64_t(std::floor(-at + reach + 1e-9));
        const double before[3] = {y[0], y[1], y[2]};
        for (int64_t t = low; t <= high; ++t) {
            s[k] = t;
            for (int m = k; m < 3; ++m) y[m] = before[m] + double(t) * f.part[k][m];
            visit(k + 1, sum + y[k] * y[k]);
        }
        std::copy(before, before + 3, y);
    }
};

// shift (M, 3): of all v + shift @ cell[structure], the shortest; of equals, the first shift in lexicographic order, as
// far as rounding lets them be equal.
template <class T>
void nearest_shift(Tensor<const T> v, Tensor<const T> cell, Ints structure, Tensor<const bool> periodic,
                   Tensor<int32_t> shift) {
    const int64_t count = v.size(0), structures = cell.size(0);
    check_indices("structure", structure, count, structures);
    std::vector<Frame> frames;
    for (int64_t b = 0; b < structures; ++b) frames.push_back(frame(cell.data + 9 * b, periodic.row(b), b));
    const auto nearest = [&](int64_t m) {
        const Frame& f = frames[structure[m]];
        Search search{f, {}, INFINITY, {}, {}};
        double x[3] = {double(v.row(m)[0]), double(v.row(m)[1]), double(v.row(m)[2])};
        // Axis by axis to the nearest plane: not yet the nearest image, but near.
        int64_t start[3] = {};
        for (int k = 0; k < 3; ++k) {
            if (!f.periodic[k]) continue;
            const double t = -std::nearbyint(dot(x, f.basis[k]) / f.part[k][k]);
            if (!(std::abs(t) < 2e9)) return false;
            start[k] = int64_t(t);
            for (int q = 0; q < 3; ++q) x[q] += t * f.cell[3 * k + q];
        }
        double inside = 0;
        for (int k = 0; k < 3; ++k) {
            search.y[k] = f.periodic[k] ? dot(x, f.basis[k]) : 0;
            inside += search.y[k] * search.y[k];
        }
        search.best = inside * (1 + 1e-12) + 1e-300;
        search.visit(0, 0);
        for (int k = 0; k < 3; ++k) shift.row(m)[k] = int32_t(start[k] + search.found[k]);
        return true;
    };
    int64_t far = count;
#pragma omp parallel for reduction(min : far) if (parallel(64 * count))
    for (int64_t m = 0; m < count; ++m)
        if (!nearest(m)) far = std::min(far, m);
    if (far < count)
        throw py::value_error("vector[" + std::to_string(far) + "] must be finite and within 2e9 cells, got " +
                              std::to_string(v.row(far)[0]) + ", " + std::to_string(v.row(far)[1]) + ", " +
                              std::to_string(v.row(far)[2]));
}

template <class T>
void bind(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("vectors", &vectors<T>, nogil);
    m.def("vectors_adjoint", &vectors_adjoint<T>, nogil);
    m.def("nearest_shift", &nearest_shift<T>, nogil);
}

}  // namespace

void bind_geometry(py::module_& m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace pyfast::crystal
