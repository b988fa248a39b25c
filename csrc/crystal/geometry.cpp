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

inline double dot(const double* a, const double* b) {
    return (a[0] * b[0] + a[1] * b[1]) + a[2] * b[2];
}

// The lattice of the axes that repeat, in triangular form, so that the images within a radius can be listed axis by
// axis: basis[k] is the unit vector along which axis k sticks out of those after it; part[k][m] the component of axis k
// along basis[m]; steps[k] what axis k is of the cell.
struct Frame {
    int count = 0;
    double axis[3][3] = {}, basis[3][3] = {}, part[3][3] = {};
    int64_t steps[3][3] = {};

    // False where axes are in the span of others.
    bool triangulate() {
        for (int k = count - 1; k >= 0; --k) {
            const double length = std::sqrt(dot(axis[k], axis[k]));
            double rest[3] = {axis[k][0], axis[k][1], axis[k][2]};
            for (int round = 0; round < 2; ++round)  // twice: once more for what rounding left
                for (int m = count - 1; m > k; --m) {
                    const double along = dot(rest, basis[m]);
                    for (int q = 0; q < 3; ++q) rest[q] -= along * basis[m][q];
                }
            const double out = std::sqrt(dot(rest, rest));
            if (!(out > 1e-10 * length) || !std::isfinite(length)) return false;
            for (int q = 0; q < 3; ++q) basis[k][q] = rest[q] / out;
            for (int m = k; m < count; ++m) part[k][m] = m == k ? out : dot(axis[k], basis[m]);
        }
        return true;
    }

    // Short vectors of the same lattice, the longest first: however skewed or flat the cell, few images are within the
    // radius that going to the nearest plane, axis after axis, leaves. By pairs, as Lagrange does, then each by sums
    // and differences of the other two.
    void reduce() {
        for (int round = 0; round < 200; ++round) {
            bool shorter = false;
            for (int k = 0; k < count; ++k)
                for (int m = 0; m < count; ++m)
                    if (k != m) shorter |= shorten(k, m, m, 0);
            for (int k = 0; k < count && count == 3 && !shorter; ++k)
                for (int sign = -1; sign <= 1; sign += 2) shorter |= shorten(k, (k + 1) % 3, (k + 2) % 3, sign);
            if (!shorter) break;
        }
        for (int pass = 0; pass < 2; ++pass)
            for (int k = 0; k + 1 < count; ++k)
                if (dot(axis[k], axis[k]) < dot(axis[k + 1], axis[k + 1]))
                    std::swap(axis[k], axis[k + 1]), std::swap(steps[k], steps[k + 1]);
    }

  private:
    // Takes the nearest multiple of axis m + sign * axis n from axis k; false where that is none.
    bool shorten(int k, int m, int n, int sign) {
        double v[3];
        for (int c = 0; c < 3; ++c) v[c] = axis[m][c] + sign * axis[n][c];
        const double q = std::floor(dot(axis[k], v) / dot(v, v) + 0.5);
        if (q == 0) return false;
        for (int c = 0; c < 3; ++c) {
            axis[k][c] -= q * v[c];
            steps[k][c] -= int64_t(q) * (steps[m][c] + sign * steps[n][c]);
        }
        return true;
    }
};

template <class T>
Frame frame(const T* cell, const bool* periodic, int64_t b) {
    Frame f;
    for (int k = 0; k < 3; ++k) {
        if (!periodic[k]) continue;
        for (int c = 0; c < 3; ++c) f.axis[f.count][c] = double(cell[3 * k + c]);
        f.steps[f.count++][k] = 1;
    }
    if (!f.triangulate())
        throw py::value_error(
            "cell[" + std::to_string(b) +
            "] must be finite and not singular along its periodic axes, got one in the span of others");
    f.reduce();
    f.triangulate();
    return f;
}

// Of a lattice of N axes.
template <int N>
struct Search {
    const Frame& f;
    double y[3], best;
    int64_t s[3], found[3];

    // Axis k and those after it: `y` holds what is left of the vector along each basis vector, `sum` the square so far.
    template <int k = 0>
    void visit(double sum = 0) {
        if constexpr (k == N) {
            if (sum < best) best = sum, found[0] = s[0], found[1] = s[1], found[2] = s[2];
        } else {
            const double width = f.part[k][k], at = y[k] / width, reach = std::sqrt(std::max(best - sum, 0.0)) / width;
            const int64_t low = int64_t(std::ceil(-at - reach - 1e-9)), high = int64_t(std::floor(-at + reach + 1e-9));
            const double before[3] = {y[0], y[1], y[2]};
            for (int64_t t = low; t <= high; ++t) {
                s[k] = t;
                for (int m = k; m < N; ++m) y[m] = before[m] + double(t) * f.part[k][m];
                visit<k + 1>(sum + y[k] * y[k]);
            }
            std::copy(before, before + 3, y);
        }
    }
};

// Into out, the shift of the shortest image of x; false where it is not finite or too far.
template <int N>
bool nearest(const Frame& f, double* x, int32_t* out) {
    Search<N> search{f, {}, INFINITY, {}, {}};
    // Axis by axis to the nearest plane: not yet the nearest image, but near.
    double start[3] = {};
    for (int k = 0; k < N; ++k) {
        start[k] = -std::nearbyint(dot(x, f.basis[k]) / f.part[k][k]);
        if (!(std::abs(start[k]) < 2e9)) return false;
        for (int q = 0; q < 3; ++q) x[q] += start[k] * f.axis[k][q];
    }
    double inside = 0;
    for (int k = 0; k < N; ++k) {
        search.y[k] = dot(x, f.basis[k]);
        inside += search.y[k] * search.y[k];
    }
    search.best = inside * (1 + 1e-12) + 1e-300;
    search.visit();
    for (int c = 0; c < 3; ++c) {
        double total = 0;
        for (int k = 0; k < N; ++k) total += (start[k] + double(search.found[k])) * double(f.steps[k][c]);
        if (!(std::abs(total) < 2e9)) return false;
        out[c] = int32_t(total);
    }
    return true;
}

// shift (M, 3): of all v + shift @ cell[structure], the shortest; of equals, the first in the order of the search, as
// far as rounding lets them be equal.
template <class T>
void nearest_shift(Tensor<const T> v, Tensor<const T> cell, Ints structure, Tensor<const bool> periodic,
                   Tensor<int32_t> shift) {
    const int64_t count = v.size(0), structures = cell.size(0);
    check_indices("structure", structure, count, structures);
    std::vector<Frame> frames;
    for (int64_t b = 0; b < structures; ++b) frames.push_back(frame(cell.data + 9 * b, periodic.row(b), b));
    const auto find = [&](int64_t m) {
        const Frame& f = frames[structure[m]];
        double x[3] = {double(v.row(m)[0]), double(v.row(m)[1]), double(v.row(m)[2])};
        int32_t* out = shift.row(m);
        return f.count == 3   ? nearest<3>(f, x, out)
               : f.count == 2 ? nearest<2>(f, x, out)
               : f.count == 1 ? nearest<1>(f, x, out)
                              : nearest<0>(f, x, out);
    };
    int64_t far = count;
#pragma omp parallel for reduction(min : far) if (parallel(64 * count))
    for (int64_t m = 0; m < count; ++m)
        if (!find(m)) far = std::min(far, m);
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
