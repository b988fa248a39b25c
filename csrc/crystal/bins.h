// A structure of many atoms: bins at least as wide as the cutoff, and near atoms sought in the bins around.
//
// Distances between what lies around a bin are first taken in float32, from the bin's middle, eight at a time. Those so
// near the cutoff that rounding could decide are decided as everywhere, in float64 from the positions as given.
#pragma once

#include <optional>
#include <vector>

#include "crystal/lanes.h"
#include "crystal/lattice.h"
#include "crystal/request.h"

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

    const Lattice& lattice;
    const Structure& s;
    Reach reach;
    int64_t count[3], around[3];  // bins along each axis, and how many to each side are near
    double widest;                // coordinates around a bin's middle
    std::vector<int32_t> atom;    // sorted by bin
    std::vector<int64_t> begin;   // of each bin
    std::vector<Vec> x, inside;   // as given, and moved into the cell
    std::vector<Shift> moved;
    bool usable = true;

    Bins(const Lattice& lattice, const Structure& s) : lattice(lattice), s(s), reach(lattice, s.cutoff, s.low, s.high) {
        double low[3], extent[3];
        const double far = reach.radius * (1 + 1e-6);
        std::vector<Vec> f(s.n);
        Vec least{1e300, 1e300, 1e300}, most{-1e300, -1e300, -1e300};
        for (int64_t i = 0; i < s.n; ++i) {
            const Vec g{dot(s.x[i], lattice.reciprocal[0]), dot(s.x[i], lattice.reciprocal[1]),
                        dot(s.x[i], lattice.reciprocal[2])};
            f[i] = g;
            least = {std::min(least.x, g.x), std::min(least.y, g.y), std::min(least.z, g.z)};
            most = {std::max(most.x, g.x), std::max(most.y, g.y), std::max(most.z, g.z)};
        }
        const double lows[3] = {least.x, least.y, least.z}, highs[3] = {most.x, most.y, most.z};
        for (int k = 0; k < 3; ++k) {
            low[k] = lattice.periodic[k] ? 0 : lows[k];
            extent[k] = lattice.periodic[k] ? 1 : std::max(highs[k] - lows[k], 1e-300);
            count[k] = int64_t(std::clamp(std::floor(extent[k] * lattice.spacing[k] / far), 1.0, 1e6));
        }
        while (double(count[0]) * double(count[1]) * double(count[2]) > double(s.n) + 1)
            for (int64_t& c : count) c = std::max<int64_t>(1, c - (c + 7) / 8);
        widest = 0;
        for (int k = 0; k < 3; ++k) {
            const double bins = far * double(count[k]) / (extent[k] * lattice.spacing[k]);
            around[k] =
                lattice.periodic[k] ? int64_t(std::min(std::ceil(bins), 1e6)) : std::min<int64_t>(count[k] - 1, 1);
            usable = usable && around[k] <= most_images * count[k];
            const double edge = lattice.periodic[k] ? norm(lattice.cell[k]) : extent[k];
            widest += double(around[k] + 1) * edge / double(count[k]);
        }
        if (!usable) return;
        std::vector<int32_t> bin(s.n);
        std::vector<Shift> move(s.n);
        begin.assign(size() + 1, 0);
        for (int64_t i = 0; i < s.n; ++i) {
            const double g[3] = {f[i].x, f[i].y, f[i].z};
            int64_t at[3];
            int32_t m[3];
            for (int k = 0; k < 3; ++k) {
                const double whole = lattice.periodic[k] ? std::floor(g[k]) : 0;
                m[k] = -int32_t(whole);
                at[k] = std::clamp<int64_t>(int64_t((g[k] - low[k] - whole) / extent[k] * double(count[k])), 0,
                                            count[k] - 1);
            }
            move[i] = {m[0], m[1], m[2]};
            bin[i] = int32_t((at[0] * count[1] + at[1]) * count[2] + at[2]);
            ++begin[bin[i] + 1];
        }
        for (int64_t b = 0; b < size(); ++b) begin[b + 1] += begin[b];
        atom.resize(s.n), x.resize(s.n), inside.resize(s.n), moved.resize(s.n);
        std::vector<int64_t> next(begin.begin(), begin.end() - 1);
        for (int64_t i = 0; i < s.n; ++i) {
            const int64_t q = next[bin[i]]++;
            atom[q] = int32_t(i), x[q] = s.x[i], moved[q] = move[i];
            inside[q] = s.x[i] + lattice.offset(move[i].a, move[i].b, move[i].c);
        }
    }

    int64_t size() const { return count[0] * count[1] * count[2]; }

    // The shift of the edge from atom q, in an image of the cell, to atom p, both by their place in the bins.
    Shift shift(int64_t p, int64_t q, Shift image) const { return image + moved[q] - moved[p]; }

    double squared(int64_t p, int64_t q, Shift t) const {
        const Vec v = (x[q] - x[p]) + lattice.offset(t.a, t.b, t.c);
        return (v.x * v.x + v.y * v.y) + v.z * v.z;
    }
};

// What lies around one bin.
class Around {
  public:
    explicit Around(const Bins& bins) : bins(bins) {
        const double r = bins.reach.radius, margin = 1e-6 * (bins.widest + r) * r;
        slack = margin + 8 * bins.reach.slack * (r + bins.reach.slack);
    }

    bool coincident = false;

    // Gathers the atoms around a bin.
    void gather(int64_t bin) {
        const auto& c = bins.count;
        const int64_t at[3] = {bin / (c[1] * c[2]), bin / c[2] % c[1], bin % c[2]};
        n = 0;
        images.clear();
        const int64_t q0 = bins.begin[bin];
        middle = bins.inside[q0];
        for (int64_t a = at[0] - bins.around[0]; a <= at[0] + bins.around[0]; ++a) {
            if (outside(0, a)) continue;
            const int64_t sa = whole(a, c[0]), ra = a - sa * c[0];
            for (int64_t b = at[1] - bins.around[1]; b <= at[1] + bins.around[1]; ++b) {
                if (outside(1, b)) continue;
                const int64_t sb = whole(b, c[1]), rb = b - sb * c[1];
                int64_t z = at[2] - bins.around[2], last = at[2] + bins.around[2];
                if (!bins.lattice.periodic[2]) z = std::max<int64_t>(z, 0), last = std::min(last, c[2] - 1);
                while (z <= last) {  // bins along c lie side by side, as far as the cell goes
                    const int64_t sc = whole(z, c[2]), rc = z - sc * c[2], run = std::min(c[2] - rc, last - z + 1);
                    const int64_t row = (ra * c[1] + rb) * c[2] + rc;
                    const Shift image{int32_t(sa), int32_t(sb), int32_t(sc)};
                    if (a == at[0] && b == at[1] && sc == 0) own = n - bins.begin[row];  // where atoms of the bin are
                    append(bins.begin[row], bins.begin[row + run], image);
                    z += run;
                }
            }
        }
        const int64_t room = n + 16;
        if (int64_t(lx.size()) < room) lx.resize(2 * room), ly.resize(2 * room), lz.resize(2 * room);
        for (int64_t l = n; l < n + 8; ++l) lx[l] = ly[l] = lz[l] = distant;
    }

    // Calls found(first of eight, which) for what is near atom q of the bin, in the order of gathering.
    template <class F>
    void search(int64_t q, F&& found) {
        const int64_t self = own + q;
        const float x = lx[self], y = ly[self], z = lz[self];
        lx[self] = distant;
        const double limit = bins.s.limit;
        const bool kinds = bins.s.kinds;
        const Float8 sure = all8(kinds ? -1.0f : float(limit - slack)),
                     likely = all8(float(std::min(limit + slack, 3e38)));
        const Float8 tiny = all8(float(std::min(slack, 3e38)));
        const Float8 x8 = all8(x), y8 = all8(y), z8 = all8(z);
        for (int64_t l = 0; l < n; l += 8) {
            const Float8 dx = load_lanes<Float8>(&lx[l]) - x8, dy = load_lanes<Float8>(&ly[l]) - y8;
            const Float8 dz = load_lanes<Float8>(&lz[l]) - z8, square = dx * dx + dy * dy + dz * dz;
            unsigned near = bits(square <= likely);
            if (!near) continue;
            unsigned open = near & ~bits((square < sure) & (square > tiny));
            for (; open; open &= open - 1) {
                const int lane = std::countr_zero(open);
                if (!decide(q, l + lane)) near &= ~(1u << lane);
            }
            if (near) found(l, near);
        }
        lx[self] = x;
    }

    int64_t atom_at(int64_t l) const { return place[l]; }
    Shift image_at(int64_t l) const { return images[image[l]]; }

    int64_t n = 0;
    std::vector<int32_t> place, image;  // in the bins, and which image
    std::vector<Shift> images;

  private:
    static constexpr float distant = 1e18f;

    static int64_t whole(int64_t a, int64_t count) { return a >= 0 ? a / count : -((count - 1 - a) / count); }

    bool outside(int k, int64_t a) const { return !bins.lattice.periodic[k] && (a < 0 || a >= bins.count[k]); }

    void append(int64_t from, int64_t to, Shift t) {
        const int64_t room = n + (to - from) + 16;
        if (int64_t(place.size()) < room) place.resize(2 * room), image.resize(2 * room);
        if (int64_t(lx.size()) < room) lx.resize(2 * room), ly.resize(2 * room), lz.resize(2 * room);
        const Vec off = bins.lattice.offset(t.a, t.b, t.c) - middle;
        const auto near = [](double v) { return float(std::clamp(v, -1e18, 1e18)); };
        const int32_t which = int32_t(images.size());
        images.push_back(t);
        for (int64_t q = from; q < to; ++q, ++n) {
            const Vec v = bins.inside[q] + off;
            lx[n] = near(v.x), ly[n] = near(v.y), lz[n] = near(v.z);
            place[n] = int32_t(q), image[n] = which;
        }
    }

    bool decide(int64_t p, int64_t l) {
        const int64_t q = place[l];
        const Shift t = bins.shift(p, q, images[image[l]]);
        if (p == q && t == Shift{0, 0, 0}) return false;
        const double squared = bins.squared(p, q, t);
        const bool near = squared < bins.s.limit_of(bins.atom[p], bins.atom[q]);
        coincident |= near && squared == 0;
        return near;
    }

    const Bins& bins;
    double slack;
    Vec middle;
    int64_t own = 0;
    std::vector<float> lx, ly, lz;
};

}  // namespace pyfast::crystal
