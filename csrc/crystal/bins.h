// A structure of many atoms: bins at least as wide as the cutoff, and near atoms sought in the bins around.
//
// Bins along c lie side by side, so what lies around a bin is a few runs of atoms. Distances to them are first taken in
// float32, eight at a time. Those so near the cutoff that rounding could decide are decided as everywhere, in float64
// from the positions as given.
#pragma once

#include <vector>

#include "crystal/lanes.h"
#include "crystal/lattice.h"
#include "crystal/request.h"
#include "simd.h"

namespace pyfast::crystal {

struct Shift {
    int32_t a, b, c;
    friend auto operator<=>(const Shift&, const Shift&) = default;
    friend Shift operator+(Shift s, Shift t) { return {s.a + t.a, s.b + t.b, s.c + t.c}; }
    friend Shift operator-(Shift s, Shift t) { return {s.a - t.a, s.b - t.b, s.c - t.c}; }
};

// The atoms of a structure sorted into bins, each moved into the cell by its shift.
struct Bins {
    static constexpr int64_t most_images = 64;  // bins to each side: beyond, pairs are as good
    static constexpr double most_around = 4e6;  // atoms around one bin, as laid out for every thread

    const Lattice& lattice;
    const Structure& s;
    Reach reach;
    int64_t count[3], around[3];  // bins along each axis, and how many to each side are near
    double widest = 0;            // the largest coordinate, also of atoms as seen from images of bins
    std::vector<int32_t> atom;    // sorted by bin
    std::vector<int64_t> begin;   // of each bin
    std::vector<Vec> x;           // as given
    std::vector<Shift> moved;
    std::vector<uint8_t> still;     // of each bin, whether all of its atoms were in the cell
    std::vector<float> fx, fy, fz;  // moved into the cell, seen from its middle
    bool usable = true;

    Bins(const Lattice& lattice, const Structure& s) : lattice(lattice), s(s), reach(lattice, s.cutoff, s.low, s.high) {
        double low[3] = {}, extent[3] = {1, 1, 1};
        const double far = reach.radius * (1 + 1e-6);
        for (int k = 0; k < 3; ++k) {
            if (!lattice.periodic[k]) {
                double least = INFINITY, most = -INFINITY;
                for (const Vec& v : s.x) {
                    const double f = dot(v, lattice.reciprocal[k]);
                    least = std::min(least, f), most = std::max(most, f);
                }
                low[k] = least, extent[k] = std::max(most - least, 1e-300);
            }
            count[k] = int64_t(std::clamp(std::floor(extent[k] * lattice.spacing[k] / far), 1.0, 1e6));
        }
        while (double(count[0]) * double(count[1]) * double(count[2]) > double(s.n) + 1)
            for (int64_t& c : count) c = std::max<int64_t>(1, c - (c + 7) / 8);
        Vec middle{0, 0, 0};
        double near = double(s.n);
        for (int k = 0; k < 3; ++k) {
            const double bins = far * double(count[k]) / (extent[k] * lattice.spacing[k]);
            around[k] =
                lattice.periodic[k] ? int64_t(std::min(std::ceil(bins), 1e6)) : std::min<int64_t>(count[k] - 1, 1);
            usable = usable && around[k] <= most_images * count[k];
            near *= lattice.periodic[k] ? double(2 * around[k] + 1) / double(count[k]) : 1.0;
            const double edge = lattice.periodic[k] ? norm(lattice.cell[k]) : extent[k];
            widest += double(around[k] + 1) * edge / double(count[k]);
            middle = middle + 0.5 * lattice.cell[k];
            if (!lattice.periodic[k])  // reciprocal vectors of these axes have no part along the cell
                middle = middle + (low[k] + extent[k] / 2) / dot(lattice.reciprocal[k], lattice.reciprocal[k]) *
                                      lattice.reciprocal[k];
        }
        usable = usable && near <= most_around;
        if (!usable) return;
        std::vector<int32_t> bin(s.n);
        std::vector<Shift> move(s.n);
#pragma omp parallel for schedule(static) if (parallel(4 * s.n))
        for (int64_t i = 0; i < s.n; ++i) {
            int64_t at[3];
            int32_t m[3];
            for (int k = 0; k < 3; ++k) {
                const double f = dot(s.x[i], lattice.reciprocal[k]), whole = lattice.periodic[k] ? std::floor(f) : 0;
                m[k] = -int32_t(whole);
                at[k] =
                    int64_t(std::clamp((f - low[k] - whole) / extent[k] * double(count[k]), 0.0, double(count[k] - 1)));
            }
            move[i] = {m[0], m[1], m[2]};
            bin[i] = int32_t((at[0] * count[1] + at[1]) * count[2] + at[2]);
        }
        begin.assign(size() + 1, 0);
        for (int64_t i = 0; i < s.n; ++i) ++begin[bin[i] + 1];
        for (int64_t b = 0; b < size(); ++b) begin[b + 1] += begin[b];
        still.assign(size(), 1);
        for (int64_t i = 0; i < s.n; ++i) still[bin[i]] &= move[i] == Shift{0, 0, 0};
        atom.resize(s.n);
        {
            std::vector<int64_t> next(begin.begin(), begin.end() - 1);
            for (int64_t i = 0; i < s.n; ++i) atom[next[bin[i]]++] = int32_t(i);
        }
        x.resize(s.n), moved.resize(s.n), fx.resize(s.n), fy.resize(s.n), fz.resize(s.n);
        double largest = 0;
#pragma omp parallel for schedule(static) reduction(max : largest) if (parallel(4 * s.n))
        for (int64_t q = 0; q < s.n; ++q) {
            const int64_t i = atom[q];
            x[q] = s.x[i], moved[q] = move[i];
            const Vec v = (x[q] + lattice.offset(moved[q].a, moved[q].b, moved[q].c)) - middle;
            fx[q] = single(v.x), fy[q] = single(v.y), fz[q] = single(v.z);
            largest = std::max({largest, std::abs(v.x), std::abs(v.y), std::abs(v.z)});
        }
        widest += 2 * largest;
    }

    int64_t size() const { return count[0] * count[1] * count[2]; }

    static float single(double v) { return float(std::clamp(v, -1e18, 1e18)); }

    // The shift of the edge from atom q, in an image of the cell, to atom p, both by their place in the bins.
    Shift shift(int64_t p, int64_t q, Shift image) const { return image + moved[q] - moved[p]; }

    double squared(int64_t p, int64_t q, Shift t) const {
        const Vec v = (x[q] - x[p]) + lattice.offset(t.a, t.b, t.c);
        return (v.x * v.x + v.y * v.y) + v.z * v.z;
    }
};

// What lies around one bin, side by side, in the order of images: atoms of one source come in the order of their
// shifts.
class Around {
  public:
    explicit Around(const Bins& bins) : bins(bins) {
        const double r = bins.reach.radius, limit = bins.s.limit;
        const double error = 1e-6 * (bins.widest + r) + 4 * bins.reach.slack;  // of a length, in float32
        const double slack = error * (2 * r + error);
        sure = all8(bins.s.kinds ? -1.0f : float(limit - slack));
        likely = all8(float(std::min(limit + slack, 3e38)));
        tiny = all8(float(std::min(slack, 3e38)));
    }

    bool coincident = false;
    bool home = false;                // whether no edge between atoms around has a shift
    int64_t n = 0;                    // atoms around
    std::vector<int32_t> place, run;  // of each in the bins, and with which others it was found
    std::vector<float> fx, fy, fz;    // where, and room to read on

    // The cell in which one of them lies.
    Shift image(int64_t h) const { return images[run[h]]; }

    // Finds the atoms around a bin.
    void gather(int64_t bin) {
        const auto& c = bins.count;
        const int64_t at[3] = {bin / (c[1] * c[2]), bin / c[2] % c[1], bin % c[2]};
        n = 0;
        images.clear();
        home = true;
        for (int64_t a = at[0] - bins.around[0]; a <= at[0] + bins.around[0]; ++a) {
            if (outside(0, a)) continue;
            const int64_t sa = whole(a, c[0]), ra = a - sa * c[0];
            for (int64_t b = at[1] - bins.around[1]; b <= at[1] + bins.around[1]; ++b) {
                if (outside(1, b)) continue;
                const int64_t sb = whole(b, c[1]), rb = b - sb * c[1];
                int64_t z = at[2] - bins.around[2], last = at[2] + bins.around[2];
                if (!bins.lattice.periodic[2]) z = std::max<int64_t>(z, 0), last = std::min(last, c[2] - 1);
                while (z <= last) {  // as far as the cell goes
                    const int64_t sc = whole(z, c[2]), rc = z - sc * c[2], run = std::min(c[2] - rc, last - z + 1);
                    const int64_t row = (ra * c[1] + rb) * c[2] + rc;
                    add(bins.begin[row], bins.begin[row + run], {int32_t(sa), int32_t(sb), int32_t(sc)});
                    home = home && images.back() == Shift{0, 0, 0};
                    for (int64_t k = row; k < row + run; ++k) home = home && bins.still[k];
                    z += run;
                }
            }
        }
    }

    // Calls found(first of eight, which) for what is near atom p of the bin, in the order of gathering.
    template <class F>
    void search(int64_t p, F&& found) {
        const Float8 x = all8(bins.fx[p]), y = all8(bins.fy[p]), z = all8(bins.fz[p]);
        for (int64_t q = 0; q < n; q += 8) {
            const Float8 dx = load_lanes<Float8>(&fx[q]) - x, dy = load_lanes<Float8>(&fy[q]) - y;
            const Float8 dz = load_lanes<Float8>(&fz[q]) - z, square = dx * dx + dy * dy + dz * dz;
            unsigned near = bits(square <= likely);
            if (n - q < 8) near &= (1u << (n - q)) - 1;
            unsigned open = near & ~bits((square < sure) & (square > tiny));
            for (; open; open &= open - 1) {
                const int lane = std::countr_zero(open);
                if (!decide(p, place[q + lane], image(q + lane))) near &= ~(1u << lane);
            }
            found(q, near);
        }
    }

  private:
    static int64_t whole(int64_t a, int64_t count) { return a >= 0 ? a / count : -((count - 1 - a) / count); }

    bool outside(int k, int64_t a) const { return !bins.lattice.periodic[k] && (a < 0 || a >= bins.count[k]); }

    void add(int64_t from, int64_t to, Shift t) {
        const int64_t more = to - from;
        if (int64_t(place.size()) < n + more + 8) {
            const int64_t room = 2 * (n + more) + 8;
            place.resize(room), run.resize(room), fx.resize(room), fy.resize(room), fz.resize(room);
        }
        const Vec offset = bins.lattice.offset(t.a, t.b, t.c);
        const float ox = Bins::single(offset.x), oy = Bins::single(offset.y), oz = Bins::single(offset.z);
        for (int64_t k = 0; k < more; ++k) fx[n + k] = bins.fx[from + k] + ox;
        for (int64_t k = 0; k < more; ++k) fy[n + k] = bins.fy[from + k] + oy;
        for (int64_t k = 0; k < more; ++k) fz[n + k] = bins.fz[from + k] + oz;
        for (int64_t k = 0; k < more; ++k) place[n + k] = int32_t(from + k);
        for (int64_t k = 0; k < more; ++k) run[n + k] = int32_t(images.size());
        images.push_back(t);
        n += more;
    }

    bool decide(int64_t p, int64_t q, Shift image) {
        const Shift t = bins.shift(p, q, image);
        if (p == q && t == Shift{0, 0, 0}) return false;
        const double squared = bins.squared(p, q, t);
        const bool near = squared < bins.s.limit_of(bins.atom[p], bins.atom[q]);
        coincident |= near && squared == 0;
        return near;
    }

    const Bins& bins;
    std::vector<Shift> images;
    Float8 sure, likely, tiny;  // squares that need no decision, that need none if larger, and that may be near
};

}  // namespace pyfast::crystal
