// The periodic images around a point of a crystal, by distance: for kernels that do not know how far they must look.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

#include "vector.h"

namespace pyfast::crystal {

// A basis of the same lattice whose vectors are as short as possible (Minkowski's, by Semaev's greedy steps), so that
// few boxes of it cover a sphere however skewed the given cell is.
struct Reduced {
    std::array<Vector, 3> basis;                  // rows
    std::array<std::array<int64_t, 3>, 3> steps;  // basis = steps * cell
    std::array<Vector, 3> dual;                   // dot(dual[k], x) is the k-th fractional coordinate
    Vector spacing;                               // between lattice planes

    explicit Reduced(const double* cell) {
        for (int k = 0; k < 3; ++k) {
            basis[k] = {cell[3 * k], cell[3 * k + 1], cell[3 * k + 2]};
            steps[k] = {k == 0, k == 1, k == 2};
        }
        for (int round = 0; round < 200 && shorten(); ++round) {
        }
        const double volume = dot(basis[0], cross(basis[1], basis[2]));
        for (int k = 0; k < 3; ++k) {
            dual[k] = (1 / volume) * cross(basis[(k + 1) % 3], basis[(k + 2) % 3]);
            spacing[k] = 1 / std::sqrt(dot(dual[k], dual[k]));
        }
    }

    Vector at(double a, double b, double c) const { return a * basis[0] + (b * basis[1] + c * basis[2]); }

    // Whether its volume is a number that can be divided by.
    bool sound() const {
        const double sum = spacing[0] + spacing[1] + spacing[2];
        return std::isfinite(sum) && spacing[0] > 0 && spacing[1] > 0 && spacing[2] > 0;
    }

    // No point of space is farther than this from a lattice point.
    double covering() const {
        double sum = 0;
        for (const Vector& b : basis) sum += std::sqrt(dot(b, b));
        return 0.5 * sum;
    }

  private:
    bool shorten() {
        for (int pass = 0; pass < 2; ++pass)  // shortest first
            for (int k = 0; k < 2; ++k)
                if (dot(basis[k], basis[k]) > dot(basis[k + 1], basis[k + 1]))
                    std::swap(basis[k], basis[k + 1]), std::swap(steps[k], steps[k + 1]);
        return closest(1, 0) || closest(2, 1);
    }

    // Take from basis[k] the vector nearest to it of the lattice that basis[0..last] span, if that makes it shorter.
    bool closest(int k, int last) {
        Vector best = basis[k];
        auto best_steps = steps[k];
        const double aa = dot(basis[0], basis[0]), ak = dot(basis[0], basis[k]);
        double a = ak / aa, b = 0;
        if (last) {
            const double ab = dot(basis[0], basis[1]), bb = dot(basis[1], basis[1]), bk = dot(basis[1], basis[k]);
            const double area = aa * bb - ab * ab;
            a = (ak * bb - bk * ab) / area, b = (bk * aa - ak * ab) / area;
        }
        bool better = false;
        for (int da = -1; da <= 1; ++da)
            for (int db = -last; db <= last; ++db) {
                const double m = std::nearbyint(a) + da, n = last ? std::nearbyint(b) + db : 0;
                const Vector shorter = basis[k] - (m * basis[0] + n * basis[1]);
                if (!(dot(shorter, shorter) < dot(best, best) * (1 - 1e-12)) || std::abs(m) > 1e9 || std::abs(n) > 1e9)
                    continue;
                best = shorter, better = true;
                for (int c = 0; c < 3; ++c)
                    best_steps[c] = steps[k][c] - int64_t(m) * steps[0][c] - int64_t(n) * steps[1][c];
            }
        basis[k] = best, steps[k] = best_steps;
        return better;
    }
};

struct Image {
    double distance2;
    int64_t atom;  // of the crystal
    std::array<int64_t, 3> box;
    Vector vector;  // from the point
    bool operator<(const Image& other) const {
        return std::tie(distance2, atom, box) < std::tie(other.distance2, other.atom, other.box);
    }
};

// The atoms of one crystal, in bins of its reduced cell.
class Images {
  public:
    // position (n, 3)
    Images(const double* position, int64_t n, const double* cell) : lattice_(cell), n_(n) {
        if (!lattice_.sound()) return;
        volume_ = std::abs(dot(lattice_.basis[0], cross(lattice_.basis[1], lattice_.basis[2])));
        const double side = std::cbrt(volume_ / double(std::max<int64_t>(n, 1)));  // about one atom in a bin
        for (int k = 0; k < 3; ++k) bins_[k] = std::clamp<int64_t>(int64_t(lattice_.spacing[k] / side), 1, n + 1);
        while (bins_[0] * bins_[1] * bins_[2] > 8 * n + 8)
            for (auto& b : bins_) b = (b + 1) / 2;
        wrapped_.resize(n), fraction_.resize(n), outside_.resize(n), bin_.resize(n);
        start_.assign(bins_[0] * bins_[1] * bins_[2] + 1, 0);
        for (int64_t i = 0; i < n; ++i) {
            const Vector x{position[3 * i], position[3 * i + 1], position[3 * i + 2]};
            std::array<int64_t, 3> b;
            for (int k = 0; k < 3; ++k) {
                const double f = dot(lattice_.dual[k], x), whole = std::floor(f);
                outside_[i][k] = whole;
                fraction_[i][k] = f - whole;
                b[k] = std::min(int64_t(fraction_[i][k] * double(bins_[k])), bins_[k] - 1);
            }
            wrapped_[i] = x - lattice_.at(outside_[i][0], outside_[i][1], outside_[i][2]);
            bin_[i] = (b[0] * bins_[1] + b[1]) * bins_[2] + b[2];
            ++start_[bin_[i] + 1];
        }
        for (size_t b = 1; b < start_.size(); ++b) start_[b] += start_[b - 1];
        member_.resize(n);
        std::vector<int64_t> next(start_.begin(), start_.end() - 1);
        for (int64_t i = 0; i < n; ++i) member_[next[bin_[i]]++] = i;
    }

    const Reduced& lattice() const { return lattice_; }

    // How many images the boxes hold that a sphere of this radius touches, at most.
    double images_in(double radius) const {
        double boxes = 1;
        for (double s : lattice_.spacing) boxes *= 2 * radius / s + 2;
        return boxes * double(n_);
    }

    // A sphere of this radius holds about so many atoms.
    double radius_of(double atoms) const {
        return std::cbrt(0.75 / 3.14159265358979323846 * atoms * volume_ / double(n_));
    }

    // Append the images with inner < distance <= outer around atom i, itself left out.
    void around(int64_t i, double inner, double outer, std::vector<Image>& found) const {
        std::array<int64_t, 3> first, last;
        for (int k = 0; k < 3; ++k) {  // a little more, as fractions are rounded
            const double half = outer / lattice_.spacing[k] * (1 + 1e-9) + 1e-9;
            first[k] = int64_t(std::floor((fraction_[i][k] - half) * double(bins_[k])));
            last[k] = int64_t(std::floor((fraction_[i][k] + half) * double(bins_[k])));
        }
        const double inner2 = inner < 0 ? -1 : inner * inner, outer2 = outer * outer;
        std::array<int64_t, 3> box;
        Place x(first[0], bins_[0]);
        for (int64_t a = first[0]; a <= last[0]; ++a, x.step()) {
            Place y(first[1], bins_[1]);
            for (int64_t b = first[1]; b <= last[1]; ++b, y.step()) {
                Place z(first[2], bins_[2]);
                for (int64_t c = first[2]; c <= last[2]; ++c, z.step()) {
                    const int64_t bin = (x.bin * bins_[1] + y.bin) * bins_[2] + z.bin;
                    if (start_[bin] == start_[bin + 1]) continue;
                    box = {x.box, y.box, z.box};
                    const Vector origin = lattice_.at(double(box[0]), double(box[1]), double(box[2])) - wrapped_[i];
                    const bool home = box[0] == 0 && box[1] == 0 && box[2] == 0;
                    for (int64_t m = start_[bin]; m < start_[bin + 1]; ++m) {
                        const int64_t j = member_[m];
                        const Vector v = wrapped_[j] + origin;
                        const double d2 = dot(v, v);
                        if (d2 <= outer2 && d2 > inner2 && !(home && j == i)) found.push_back({d2, j, box, v});
                    }
                }
            }
        }
    }

    // The shift of an image in the given cell, between positions as given: vector = x_j + shift * cell - x_i. False if
    // it does not fit.
    bool shift(int64_t i, const Image& image, int32_t* out) const {
        double sum[3] = {};
        for (int k = 0; k < 3; ++k) {
            const double step = double(image.box[k]) - outside_[image.atom][k] + outside_[i][k];
            for (int c = 0; c < 3; ++c) sum[c] += step * double(lattice_.steps[k][c]);
        }
        for (int c = 0; c < 3; ++c) {
            if (!(std::abs(sum[c]) <= double(std::numeric_limits<int32_t>::max()))) return false;
            out[c] = int32_t(sum[c]);
        }
        return true;
    }

  private:
    // A bin of space is a bin of the cell in a box of the lattice.
    struct Place {
        int64_t box, bin, bins;
        Place(int64_t at, int64_t bins) : box(at >= 0 ? at / bins : -((bins - 1 - at) / bins)), bins(bins) {
            bin = at - box * bins;
        }
        void step() {
            if (++bin == bins) ++box, bin = 0;
        }
    };

    Reduced lattice_;
    int64_t n_;
    double volume_ = 0;
    std::array<int64_t, 3> bins_{};
    std::vector<Vector> wrapped_, fraction_, outside_;
    std::vector<int64_t> bin_, start_, member_;
};

}  // namespace pyfast::crystal
