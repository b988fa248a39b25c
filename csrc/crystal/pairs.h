// A structure of few atoms wherever they lie, as far outside of the cell: each pair once, in all its images.
//
// The images of a pair lie in rows along c. Which rows come near is told by the cell's triangular form, the images of a
// row are measured four at a time, and what is found between i and j stands, turned round, between j and i: half of the
// work, the reverse edges for nothing, and everything already in order.
#pragma once

#include <optional>
#include <vector>

#include "crystal/lanes.h"
#include "crystal/lattice.h"
#include "crystal/request.h"

namespace pyfast::crystal {

// Near images, in order: distances, and shifts in the first three of four lanes.
struct Hits {
    std::vector<double> distance;
    std::vector<Int4> shift;
    int64_t n = 0;

    void reserve(int64_t more) {
        if (n + more > int64_t(shift.size())) distance.resize(2 * (n + more)), shift.resize(2 * (n + more));
    }
};

// Row m: the places of the lanes whose bits are set in m, each as a step along c.
inline constexpr auto steps_of = [] {
    std::array<std::array<std::array<int32_t, 4>, 4>, 16> rows{};
    for (int m = 0; m < 16; ++m)
        for (int k = 0; k < 4; ++k) rows[m][k][2] = order_of<4>[m][k];
    return rows;
}();

class Pairs {
  public:
    bool coincident = false;  // whether a count found an edge of length zero

    // Counts the edges of each atom of a structure.
    void count(const Lattice& lattice, const Structure& s, int64_t* counts) {
        prepare(lattice, s);
        coincident = false;
        std::fill(counts, counts + s.n, 0);
        for (int64_t i = 0; i < s.n; ++i)
            for (int64_t j = i; j < s.n; ++j) {
                const int64_t found = search<false>(lattice, s, i, j);
                counts[i] += found;
                if (!s.half) counts[j] += found;
            }
    }

    // Writes the edges of a structure, whose rows begin at ptr: or nothing, and returns false, where that does not fit.
    template <class Index, class Real>
    bool fill(const Lattice& lattice, const Structure& s, const Index* ptr, const Edges<Index, Real>& out) {
        prepare(lattice, s);
        const int64_t n = s.n;
        hits.n = 0;
        group.resize(n * n);
        length.resize(n * n);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = i; j < n; ++j) {
                group[i * n + j] = group[j * n + i] = int32_t(hits.n);
                length[i * n + j] = length[j * n + i] = int32_t(search<true>(lattice, s, i, j));
            }
        begin.resize(n * n);
        for (int64_t i = 0; i < n; ++i) {
            int64_t at = ptr[i];
            for (int64_t j = s.half ? i : 0; j < n; ++j) {
                begin[i * n + j] = at;
                at += length[i * n + j] * (i == j && !s.half ? 2 : 1);
            }
            if (at != int64_t(ptr[i + 1])) return false;
        }
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t e = ptr[i]; e < int64_t(ptr[i + 1]); ++e) out.target[e] = Index(s.first + i);
            for (int64_t j = s.half ? i : 0; j < n; ++j) {
                const int64_t m = length[i * n + j], at = begin[i * n + j];
                const int64_t h = group[i * n + j];
                const Index source = Index(s.first + j);
                if (s.half) {
                    for (int64_t k = 0; k < m; ++k) write(out, at + k, source, h + k, 1, -1);
                } else if (i == j) {  // those found have positive shifts
                    const int64_t last = at + 2 * m - 1;
                    for (int64_t k = 0; k < m; ++k) write(out, at + k, source, h + m - 1 - k, -1, last - k);
                    for (int64_t k = m; k < 2 * m; ++k) write(out, at + k, source, h + k - m, 1, last - k);
                } else {
                    const int64_t last = begin[j * n + i] + m - 1;
                    if (i < j) {
                        for (int64_t k = 0; k < m; ++k) write(out, at + k, source, h + k, 1, last - k);
                    } else {
                        for (int64_t k = 0; k < m; ++k) write(out, at + k, source, h + m - 1 - k, -1, last - k);
                    }
                }
            }
        }
        return true;
    }

  private:
    void prepare(const Lattice& lattice, const Structure& s) {
        reach.emplace(lattice, s.cutoff, s.low, s.high);
        along.resize(s.n);
        for (int64_t i = 0; i < s.n; ++i) along[i] = lattice.in_axes(s.at(i));
        const auto& step = lattice.step;
        for (int k = 0; k < 3; ++k) per[k] = lattice.periodic[k] ? 1 / step[k][k] : 0;
        across = images(2, reach->radius);
        const Vec a = lattice.cell[0], b = lattice.cell[1], c = lattice.cell[2];
        one_a = Double4{a.x, a.y, a.z, step[0][2]}, one_b = Double4{b.x, b.y, b.z, step[1][2]};
        cx = all4(c.x), cy = all4(c.y), cz = all4(c.z);
        lanes = lattice.periodic[2] ? 15 : 1;
        narrow = images(0, reach->radius) * images(1, reach->radius) > 16;
    }

    // How many images a window of twice this radius can hold along an axis.
    int64_t images(int k, double radius) const { return int64_t(2 * radius * per[k]) + 1; }

    // The first image within a radius, from where it is without a shift.
    double first(int k, double from, double radius) const {
        return per[k] == 0 ? 0 : std::ceil((-radius - from) * per[k]);
    }

    // Of the images of j (i <= j) the near ones, of those of i itself the near ones whose shift is positive: in order.
    // Windows have one size, for loops that the processor foresees, but where cells are so small that rows could be
    // many.
    template <bool Keep>
    int64_t search(const Lattice& lattice, const Structure& s, int64_t i, int64_t j) {
        const Vec d = s.at(j) - s.at(i), u = along[j] - along[i];
        const double r = s.kinds ? s.radius_of(i, j) + reach->slack : reach->radius;
        const Double4 limit = all4(s.limit_of(i, j)), ramp = {0, 1, 2, 3}, zero = all4(0);
        const Double4 dx = all4(d.x), dy = all4(d.y), dz = all4(d.z);
        int64_t found = 0;
        const double a0 = i == j ? 0 : first(0, u.x, r), a_end = first(0, u.x, r) + double(images(0, r));
        for (double a = a0; a < a_end; ++a) {
            const Double4 oa = all4(a) * one_a;
            const double x = u.x + a * lattice.step[0][0], y = u.y + a * lattice.step[0][1];
            const double left = narrow ? std::sqrt(std::max(r * r - x * x, 0.0)) + reach->slack : r;
            const bool half_plane = i == j && a == 0;
            const double b0 = half_plane ? 0 : first(1, y, left), b_end = first(1, y, left) + double(images(1, left));
            for (double b = b0; b < b_end; ++b) {
                const Double4 o = oa + all4(b) * one_b;
                const Double4 ox = all4(o[0]), oy = all4(o[1]), oz = all4(o[2]);
                const double begin = first(2, u.z + o[3], r);
                const bool half_line = half_plane && b == 0;
                if constexpr (Keep) hits.reserve(across + 8);
                for (int64_t q = 0; q < across; q += 4) {
                    const double base = begin + double(q);
                    const Double4 c = all4(base) + ramp;
                    const Double4 vx = dx + (ox + c * cx), vy = dy + (oy + c * cy), vz = dz + (oz + c * cz);
                    const Double4 squared = (vx * vx + vy * vy) + vz * vz;
                    unsigned near = bits(squared < limit) & lanes;
                    if (half_line) near &= bits(c > zero);
                    const int64_t passed = std::popcount(near);
                    if constexpr (Keep) {
                        const Int4 one{int32_t(a), int32_t(b), int32_t(base), 0};
                        compress(&hits.distance[hits.n], root(squared), near);
                        for (int k = 0; k < 4; ++k)
                            hits.shift[hits.n + k] = one + std::bit_cast<Int4>(steps_of[near][k]);
                        hits.n += passed;
                    } else {
                        coincident |= (near & bits(squared == zero)) != 0;
                    }
                    found += passed;
                }
            }
        }
        return found;
    }

    template <class Index, class Real>
    void write(const Edges<Index, Real>& out, int64_t e, Index source, int64_t hit, int32_t sign,
               int64_t reverse) const {
        out.source[e] = source;
        out.distance[e] = Real(hits.distance[hit]);
        const Int4 shift = hits.shift[hit] * sign;
        std::memcpy(&out.shift[3 * e], &shift, 12);
        out.reverse[e] = Index(reverse);
    }

    std::optional<Reach> reach;
    std::vector<Vec> along;
    double per[3];  // images in one Å, along each axis
    Double4 one_a, one_b, cx, cy, cz;
    int64_t across;  // images of a row that can be near
    unsigned lanes;
    bool narrow;
    Hits hits;
    std::vector<int32_t> group, length;
    std::vector<int64_t> begin;
};

}  // namespace pyfast::crystal
