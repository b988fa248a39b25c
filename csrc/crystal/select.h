// Which of an atom's neighbours are its k nearest.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "crystal/lanes.h"
#include "crystal/lattice.h"

namespace pyfast::crystal {

enum Ties : int64_t { canonical, include, cdvae };

class Selection {
  public:
    // Of m lengths, those above the minimum, chosen: the k least.
    //
    // canonical: k exactly, those of one length in the order of their vectors, vector(e), which does not depend on how
    // atoms are numbered. include: also what is farther than the k-th by at most the tolerance. cdvae: k exactly, those
    // of one length as they stand. Returns the k-th length, or infinity where there are fewer.
    template <class F>
    double choose(const double* length, int64_t m, int64_t k, int64_t ties, double tolerance, double minimum,
                  bool* chosen, F&& vector) {
        constexpr double none = std::numeric_limits<double>::infinity();
        if (int64_t(keys_.size()) < m + 8) keys_.resize(2 * m + 8);
        double* key = keys_.data();
        int64_t open = 0;
        for (int64_t e = 0; e < m; ++e) {
            chosen[e] = length[e] > minimum;
            key[e] = chosen[e] ? length[e] : none;
            open += chosen[e];
        }
        if (open < k) return none;
        for (int64_t e = m; e < m + 8; ++e) key[e] = none;
        const double last = m <= 64 ? kth_by_rank(m, k) : kth_by_parts(m, k);
        if (open == k) return last;
        if (ties == include) {
            for (int64_t e = 0; e < m; ++e) chosen[e] = chosen[e] && length[e] <= last + tolerance;
            return last;
        }
        int64_t nearer = 0, equal = 0;
        for (int64_t e = 0; e < m; ++e) {
            nearer += chosen[e] && length[e] < last, equal += length[e] == last;
            chosen[e] = chosen[e] && length[e] <= last;
        }
        if (nearer + equal == k) return last;
        equal_.clear();
        for (int64_t e = 0; e < m; ++e)
            if (length[e] == last) equal_.push_back({ties == canonical ? vector(e) : Vec{0, 0, 0}, e});
        std::stable_sort(equal_.begin(), equal_.end(), [](const auto& a, const auto& b) {
            const Vec &v = a.first, &w = b.first;
            return v.x != w.x ? v.x < w.x : v.y != w.y ? v.y < w.y : v.z < w.z;
        });
        for (int64_t q = k - nearer; q < equal; ++q) chosen[equal_[q].second] = false;
        return last;
    }

  private:
    // The k-th is the largest of those that fewer than k are less than: no branches, for rows that are short.
    double kth_by_rank(int64_t m, int64_t k) const {
        using Count4 = Mask4;
        const double* key = keys_.data();
        const Count4 enough = Count4{} + k;
        Double4 largest = all4(-std::numeric_limits<double>::infinity());
        for (int64_t e = 0; e < m; e += 8) {
            const Double4 a = load_lanes<Double4>(key + e), b = load_lanes<Double4>(key + e + 4);
            Count4 less_a{}, less_b{};
            for (int64_t f = 0; f < m; ++f) {
                const Double4 other = all4(key[f]);
                less_a -= other < a, less_b -= other < b;
            }
            const Double4 one = less_a < enough ? a : largest;
            largest = one > largest ? one : largest;
            const Double4 two = less_b < enough ? b : largest;
            largest = two > largest ? two : largest;
        }
        return std::max(std::max(largest[0], largest[1]), std::max(largest[2], largest[3]));
    }

    double kth_by_parts(int64_t m, int64_t k) {
        std::nth_element(keys_.begin(), keys_.begin() + (k - 1), keys_.begin() + m);
        return keys_[k - 1];
    }

    std::vector<double> keys_;
    std::vector<std::pair<Vec, int64_t>> equal_;
};

}  // namespace pyfast::crystal
