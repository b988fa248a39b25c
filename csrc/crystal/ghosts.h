// A structure of few atoms that lie close together: the images of each that any other can be near, laid out once.
//
// The images of an atom, its ghosts, stand side by side in the order of their shifts, so what is near atom i among the
// ghosts of j >= i comes in order, four tests at a time. What is found between i and j stands, turned round, between j
// and i: half of the work, and the reverse edges for nothing.
#pragma once

#include <vector>

#include "crystal/lanes.h"
#include "crystal/lattice.h"
#include "crystal/request.h"

namespace pyfast::crystal {

class Ghosts {
  public:
    bool coincident = false;  // whether a count found an edge of length zero

    // Lays out the ghosts of a structure; false, with nothing done, where they are too many, as far outside of the
    // cell.
    bool gather(const Lattice& lattice, const Structure& s) {
        const Reach reach(lattice, s.cutoff, s.low, s.high);
        const double r = reach.radius;
        along.resize(s.n);
        Vec low{INFINITY, INFINITY, INFINITY}, high{-INFINITY, -INFINITY, -INFINITY};
        for (int64_t i = 0; i < s.n; ++i) {
            along[i] = lattice.in_axes(s.at(i));
            low = least(low, along[i]), high = most(high, along[i]);
        }
        const double extent[3] = {high.x - low.x, high.y - low.y, high.z - low.z};
        double wide = 1, narrow = 1;
        for (int k = 0; k < 3; ++k) {
            per[k] = lattice.periodic[k] ? 1 / lattice.step[k][k] : 0;
            wide *= (extent[k] + 2 * r) * per[k] + 1, narrow *= 2 * r * per[k] + 1;
        }
        if (!(wide <= 16 * narrow && wide * double(s.n) < 1e6)) return false;
        n = 0;
        begin.resize(s.n + 1), home.resize(s.n);
        low = high = along[0];
        for (int64_t j = 0; j < s.n; ++j) {  // near what comes before
            low = least(low, along[j]), high = most(high, along[j]);
            begin[j] = n;
            add(lattice, int32_t(j), low, high, reach);
            for (; n % 4; ++n) reserve(), ox[n] = oy[n] = oz[n] = 1e200, atom[n] = int32_t(j);
        }
        begin[s.n] = n;
        squared.resize(std::max<int64_t>(n + 8, squared.size()));
        hit.resize(squared.size());
        return true;
    }

    // Counts the edges of each atom of the structure that was gathered.
    void count(const Structure& s, int64_t* counts) {
        touching = Mask4{};
        std::fill(counts, counts + s.n, 0);
        for (int64_t i = 0; i < s.n; ++i)
            for (int64_t j = i; j < s.n; ++j) {
                const int64_t found = i == j ? search<false, true>(s, i, j, 0) : search<false, false>(s, i, j, 0);
                counts[i] += found;
                if (!s.half) counts[j] += found;
            }
        coincident = bits(touching) != 0;
    }

    // Writes the edges of the structure that was gathered, whose rows begin at ptr; false where they do not fit.
    template <class Index, class Real>
    bool fill(const Structure& s, const Index* ptr, const Edges<Index, Real>& out) {
        next.assign(ptr, ptr + s.n);
        turn.resize(s.n), length.resize(s.n);
        for (int64_t i = 0; i < s.n; ++i) {
            const int64_t found = search_row(s, i, 0, length.data());
            take_roots(0, found);
            if (!write_row(s, i, 0, length.data(), ptr, out)) return false;
        }
        return true;
    }

    // As count, and keeps what it finds, for `fill_found`: no half list.
    void find(const Structure& s, int64_t* counts) {
        std::fill(counts, counts + s.n, 0);
        length.resize(s.n * s.n);
        int64_t found = 0;
        for (int64_t i = 0; i < s.n; ++i) {
            if (found + n + 8 > int64_t(hit.size())) hit.resize(2 * (found + n + 8)), squared.resize(hit.size());
            found = search_row(s, i, found, &length[i * s.n]);
            for (int64_t j = i; j < s.n; ++j) counts[i] += length[i * s.n + j], counts[j] += length[i * s.n + j];
        }
        coincident = take_roots(0, found);
    }

    // Writes what was found, whose rows begin at ptr.
    template <class Index, class Real>
    void fill_found(const Structure& s, const Index* ptr, const Edges<Index, Real>& out) {
        next.assign(ptr, ptr + s.n);
        turn.resize(s.n);
        for (int64_t i = 0, from = 0; i < s.n; ++i) {
            write_row(s, i, from, &length[i * s.n], ptr, out);
            for (int64_t j = i; j < s.n; ++j) from += length[i * s.n + j];
        }
    }

  private:
    static Vec least(Vec a, Vec b) { return {std::min(a.x, b.x), std::min(a.y, b.y), std::min(a.z, b.z)}; }
    static Vec most(Vec a, Vec b) { return {std::max(a.x, b.x), std::max(a.y, b.y), std::max(a.z, b.z)}; }

    static double outside(double x, double low, double high) { return std::max({low - x, x - high, 0.0}); }

    // The images between two places along an axis, of what is at another.
    std::pair<int64_t, int64_t> images(int k, double at, double from, double to) const {
        if (per[k] == 0) return {0, 0};
        return {int64_t(std::ceil((from - at) * per[k])), int64_t(std::floor((to - at) * per[k]))};
    }

    void reserve() {
        if (n + 8 <= int64_t(ox.size())) return;
        const int64_t room = 2 * n + 64;
        ox.resize(room), oy.resize(room), oz.resize(room), atom.resize(room), shift.resize(room);
    }

    // Adds the ghosts of an atom that come near a box: rows of them along c, and of a row what the sphere leaves.
    void add(const Lattice& lattice, int32_t j, Vec low, Vec high, const Reach& reach) {
        const auto& step = lattice.step;
        const Vec u = along[j], cell_c = lattice.cell[2];
        const double r = reach.radius, r2 = r * r;
        const Double4 ramp = {0, 1, 2, 3}, cx = all4(cell_c.x), cy = all4(cell_c.y), cz = all4(cell_c.z);
        home[j] = -1;
        const auto [a0, a1] = images(0, u.x, low.x - r, high.x + r);
        for (int64_t a = a0; a <= a1; ++a) {
            const double x = u.x + double(a) * step[0][0], dx = outside(x, low.x, high.x);
            const double y0 = u.y + double(a) * step[0][1], z0 = u.z + double(a) * step[0][2];
            const double plane2 = r2 - dx * dx, plane = std::sqrt(std::max(plane2, 0.0)) + reach.slack;
            const auto [b0, b1] = images(1, y0, low.y - plane, high.y + plane);
            for (int64_t b = b0; b <= b1; ++b) {
                const double y = y0 + double(b) * step[1][1], dy = outside(y, low.y, high.y);
                const double line = std::sqrt(std::max(plane2 - dy * dy, 0.0)) + reach.slack;
                const auto [c0, c1] = images(2, z0 + double(b) * step[1][2], low.z - line, high.z + line);
                const Vec o = double(a) * lattice.cell[0] + double(b) * lattice.cell[1];
                if (home[j] < 0 && (a > 0 || (a == 0 && (b > 0 || (b == 0 && c1 > 0)))))
                    home[j] = n + (a == 0 && b == 0 ? std::max<int64_t>(1 - c0, 0) : 0);
                for (int64_t c = c0; c <= c1; c += 4) {
                    reserve();
                    const Double4 at = all4(double(c)) + ramp;
                    store_lanes(&ox[n], all4(o.x) + at * cx);
                    store_lanes(&oy[n], all4(o.y) + at * cy);
                    store_lanes(&oz[n], all4(o.z) + at * cz);
                    for (int k = 0; k < 4; ++k) shift[n + k] = Int4{int32_t(a), int32_t(b), int32_t(c) + k, 0};
                    for (int k = 0; k < 4; ++k) atom[n + k] = j;
                    n += std::min<int64_t>(4, c1 - c + 1);
                }
            }
        }
        if (home[j] < 0) home[j] = n;
    }

    // Of the ghosts of j those near i, after the first `from` that were found; of i's own those whose shift is
    // positive.
    template <bool Keep, bool Own>
    int64_t search(const Structure& s, int64_t i, int64_t j, int64_t from) {
        const Vec d = s.at(j) - s.at(i);
        const Double4 limit = all4(s.limit_of(i, j)), dx = all4(d.x), dy = all4(d.y), dz = all4(d.z);
        const double *x = ox.data(), *y = oy.data(), *z = oz.data();
        const int64_t end = begin[j + 1];
        int64_t found = from;
        for (int64_t q = Own ? home[j] & ~int64_t(3) : begin[j]; q < end; q += 4) {
            const Double4 vx = dx + load_lanes<Double4>(x + q), vy = dy + load_lanes<Double4>(y + q);
            const Double4 vz = dz + load_lanes<Double4>(z + q), square = (vx * vx + vy * vy) + vz * vz;
            const Mask4 inside = square < limit;
            unsigned near = bits(inside);
            if (Own && q < home[j]) near &= 15u << (home[j] - q);
            if constexpr (Keep) {
                const int32_t at = int32_t(q);
                compress(&squared[found], square, near);
                compress(&hit[found], Int4{at, at + 1, at + 2, at + 3}, near);
            } else if constexpr (!Own) {
                touching |= inside & (square == Double4{});
            }
            found += std::popcount(near);
        }
        return found - from;
    }

    // Of the ghosts of all j >= i those near i, after the first `from` that were found: how many of each j, and where
    // they end.
    int64_t search_row(const Structure& s, int64_t i, int64_t from, int32_t* lengths) {
        int64_t found = from;
        for (int64_t j = i; j < s.n; ++j) {
            lengths[j] = int32_t(i == j ? search<true, true>(s, i, j, found) : search<true, false>(s, i, j, found));
            found += lengths[j];
        }
        return found;
    }

    // Whether a length is zero.
    bool take_roots(int64_t from, int64_t to) {
        Mask4 none{};
        for (int64_t h = from; h < to; h += 4) {
            const Double4 square = load_lanes<Double4>(&squared[h]), lanes = {0, 1, 2, 3};
            none |= (square == Double4{}) & (lanes < all4(double(to - h)));
            store_lanes(&squared[h], root(square));
        }
        return bits(none) != 0;
    }

    // Writes the edges between atom i and all j >= i, which stand from hit `from` on; false where they do not fit.
    template <class Index, class Real>
    bool write_row(const Structure& s, int64_t i, int64_t from, const int32_t* lengths, const Index* ptr,
                   const Edges<Index, Real>& out) {
        const int64_t own = lengths[i], forward = next[i] + (s.half ? 0 : own);
        turn[i] = next[i] + own - 1 + forward;  // two edges that are each other's reverse add up to it
        int64_t found = own;
        for (int64_t j = i + 1; j < s.n; ++j) {
            const int64_t more = lengths[j];
            if (!s.half) {
                turn[j] = next[j] + more - 1 + forward + found;
                next[j] += more;
                if (next[j] > int64_t(ptr[j + 1])) return false;
            }
            found += more;
        }
        if (forward + found != int64_t(ptr[i + 1])) return false;
        std::fill(out.target + ptr[i], out.target + ptr[i + 1], Index(s.first + i));
        if (s.half)
            write<true>(s, i, from, forward, found, out);
        else
            write<false>(s, i, from, forward, found, out);
        return true;
    }

    // Edges of atom i, from a hit on, one after the other from `at`, and their reverses.
    template <bool Half, class Index, class Real>
    void write(const Structure& s, int64_t i, int64_t from, int64_t at, int64_t found, const Edges<Index, Real>& out) {
        for (int64_t h = 0; h < found; ++h) {
            const int64_t e = at + h, g = hit[from + h], j = atom[g];
            const Int4 S = shift[g];
            out.source[e] = Index(s.first + j);
            out.distance[e] = Real(squared[from + h]);
            std::memcpy(&out.shift[3 * e], &S, 12);
            if (Half) {
                out.reverse[e] = -1;
                continue;
            }
            const int64_t back = turn[j] - e;
            const Int4 opposite = -S;
            out.reverse[e] = Index(back);
            out.source[back] = Index(s.first + i);
            out.distance[back] = Real(squared[from + h]);
            std::memcpy(&out.shift[3 * back], &opposite, 12);
            out.reverse[back] = Index(e);
        }
    }

    std::vector<Vec> along;  // positions in the lattice's axes
    double per[3];           // images in one Å, along each axis
    std::vector<double> ox, oy, oz;
    std::vector<int32_t> atom;  // of a ghost
    std::vector<Int4> shift;
    std::vector<int64_t> begin, home;  // where the ghosts of an atom begin, and those with positive shifts
    int64_t n = 0;
    Mask4 touching{};             // lanes that found a length of zero
    std::vector<double> squared;  // of what was found near an atom, then its root
    std::vector<int32_t> hit;     // which ghost
    std::vector<int32_t> length;  // how many of the ghosts of each atom
    std::vector<int64_t> next, turn;
};

}  // namespace pyfast::crystal
