// One structure's cell: what is decided with it, exactly, and what is estimated with it, safely.
//
// Decisions are made in float64 and in one order, on every device, so the files of this family that decide are compiled
// without fused multiply-adds: an edge from j to i with shift S has the vector v = (x_j - x_i) + ((S_a a + S_b b) + S_c
// c) and the squared length (v_x v_x + v_y v_y) + v_z v_z. Turned round, it is -v to the bit, so neighbours are mutual.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace pyfast::crystal {

enum Status : int32_t { not_finite = 1, singular_cell = 2, too_far = 4, too_many = 8, overflow = 16, coincident = 32 };

struct Vec {
    double x, y, z;
    friend Vec operator+(Vec a, Vec b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
    friend Vec operator-(Vec a, Vec b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
    friend Vec operator*(double s, Vec a) { return {s * a.x, s * a.y, s * a.z}; }
};
inline double dot(Vec a, Vec b) {
    return (a.x * b.x + a.y * b.y) + a.z * b.z;
}
inline double norm(Vec a) {
    return std::sqrt(dot(a, a));
}
inline Vec load(const double* p) {
    return {p[0], p[1], p[2]};
}
inline bool finite(Vec a) {
    return std::isfinite(a.x) && std::isfinite(a.y) && std::isfinite(a.z);
}

// Cells between atoms beyond which a shift would leave int32, and rounding errors would be larger than atoms.
inline constexpr double farthest = 1 << 30;

struct Lattice {
    Vec cell[3];  // zero along axes that do not repeat
    bool periodic[3];
    Vec axis[3];             // orthonormal, c along the last, b in the plane of the last two
    double step[3][3] = {};  // the cell in these axes: triangular
    double spacing[3];       // of lattice planes; 1 along axes that do not repeat
    Vec reciprocal[3];       // fractional coordinates: products with these
    int32_t status = 0;

    Lattice(const double* rows, const bool* pbc) {
        int32_t bad = 0;
        double heights = 1, lengths = 1;
        Vec found[3];
        int known = 0;
        const auto remove = [&](Vec v) {  // what is left of v at right angles to what is known; twice is enough
            for (int again = 0; again < 2; ++again)
                for (int m = 0; m < known; ++m) v = v - dot(v, found[m]) * found[m];
            return v;
        };
        for (int k = 2; k >= 0; --k) {
            periodic[k] = pbc[k];
            cell[k] = periodic[k] ? load(rows + 3 * k) : Vec{0, 0, 0};
            if (!periodic[k]) continue;
            const double length = norm(cell[k]);
            if (!std::isfinite(length) || length > 1e150) bad |= not_finite;
            if (!(length > 1e-150)) bad |= singular_cell;
            if (bad) break;
            const Vec left = remove((1 / length) * cell[k]);
            const double height = norm(left);
            heights *= height, lengths *= length;
            if (!(heights > 1e-10)) bad |= singular_cell;
            if (bad) break;
            axis[k] = (1 / height) * left;
            found[known++] = axis[k];
        }
        if ((status = bad)) return;
        for (int k = 0; k < 3; ++k) {
            if (periodic[k]) continue;
            Vec best{0, 0, 0};
            for (const Vec unit : {Vec{1, 0, 0}, Vec{0, 1, 0}, Vec{0, 0, 1}}) {
                const Vec left = remove(unit);
                if (norm(left) > norm(best) + 0.1) best = left;
            }
            axis[k] = (1 / norm(best)) * best;
            found[known++] = axis[k];
        }
        for (int k = 0; k < 3; ++k)
            for (int m = k; m < 3; ++m) step[k][m] = dot(cell[k], axis[m]);
        double whole[3][3];
        for (int k = 0; k < 3; ++k)
            for (int m = 0; m < 3; ++m) whole[k][m] = periodic[k] ? step[k][m] : double(k == m);
        // The inverse of a triangular matrix, column k of which is the k-th reciprocal vector in these axes.
        const double i0 = 1 / whole[0][0], i1 = 1 / whole[1][1], i2 = 1 / whole[2][2];
        const double i01 = -i0 * whole[0][1] * i1, i12 = -i1 * whole[1][2] * i2;
        const double i02 = -(i0 * whole[0][2] + i01 * whole[1][2]) * i2;
        reciprocal[0] = i0 * axis[0];
        reciprocal[1] = i01 * axis[0] + i1 * axis[1];
        reciprocal[2] = i02 * axis[0] + i12 * axis[1] + i2 * axis[2];
        for (int k = 0; k < 3; ++k) spacing[k] = 1 / norm(reciprocal[k]);
    }

    Vec offset(double a, double b, double c) const { return (a * cell[0] + b * cell[1]) + c * cell[2]; }

    Vec in_axes(Vec x) const { return {dot(x, axis[0]), dot(x, axis[1]), dot(x, axis[2])}; }

    // Edges that n atoms have within a reach, if they lie evenly: to refuse what no memory holds before counting it.
    double expected_edges(double n, double reach, Vec low, Vec high) const {
        const Vec span = high - low;
        double near = n * n, ball = 4.18879020478639;  // of a ball of 3, 2, 1 dimensions
        int dimensions = 0;
        for (int k = 0; k < 3; ++k) {
            if (periodic[k]) {
                ++dimensions, near *= reach / step[k][k];
                continue;
            }
            const double extent =
                std::abs(axis[k].x) * span.x + std::abs(axis[k].y) * span.y + std::abs(axis[k].z) * span.z;  // at most
            if (extent > 2 * reach) near *= 2 * reach / extent;
        }
        ball = dimensions == 3 ? ball : dimensions == 2 ? 3.14159265358979 : dimensions == 1 ? 2 : 1;
        return near * ball;
    }
};

// What rounding may hide: estimates that look this much farther miss nothing that the decision would find.
struct Reach {
    double radius, slack;

    Reach(const Lattice& lattice, double cutoff, Vec low, Vec high) {
        const Vec span = high - low;
        const double across = norm(span), size = norm({std::max(std::abs(low.x), std::abs(high.x)),
                                                       std::max(std::abs(low.y), std::abs(high.y)),
                                                       std::max(std::abs(low.z), std::abs(high.z))});
        double walked = size + across + cutoff;
        for (int k = 0; k < 3; ++k)
            if (lattice.periodic[k]) walked += ((across + cutoff) / lattice.spacing[k] + 1) * norm(lattice.cell[k]);
        slack = 64 * std::numeric_limits<double>::epsilon() * walked;
        radius = cutoff + slack;
    }
};

}  // namespace pyfast::crystal
