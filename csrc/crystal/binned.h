// The rows of a structure in bins: counted, then written in order.
#pragma once

#include <atomic>
#include <vector>

#include "crystal/bins.h"
#include "simd.h"

namespace pyfast::crystal {

// Whether a half list keeps the edge from j to i.
inline bool first_half(int64_t i, int64_t j, Shift t) {
    return i < j || (i == j && t > Shift{0, 0, 0});
}

// The edges of one atom, sorted by source and shift.
class Row {
  public:
    int64_t n = 0;

    void reserve(int64_t room) {
        if (int64_t(source_.size()) >= room + 16) return;
        for (auto* column : {&source_, &sorted_source_, &rank_}) column->resize(2 * room + 16);
        for (auto* column : {&squared_, &sorted_squared_}) column->resize(2 * room + 16);
        for (auto* column : {&shift_, &sorted_shift_}) column->resize(2 * room + 16);
    }

    void add(int32_t source, double squared, Shift t) {
        source_[n] = source, squared_[n] = squared, shift_[n] = t;
        ++n;
    }

    // Writes them from edge `at` on.
    template <class Index, class Real>
    void write(Index first, Index target, int64_t at, const Edges<Index, Real>& out) {
        sort();
        for (int64_t k = 0; k < n; k += 4)
            store_lanes(&sorted_squared_[k], root(load_lanes<Double4>(&sorted_squared_[k])));
        for (int64_t k = 0; k < n; ++k) out.source[at + k] = first + Index(sorted_source_[k]);
        for (int64_t k = 0; k < n; ++k) out.target[at + k] = target;
        for (int64_t k = 0; k < n; ++k) out.distance[at + k] = Real(sorted_squared_[k]);
        std::memcpy(&out.shift[3 * at], sorted_shift_.data(), n * sizeof(Shift));
    }

  private:
    void sort() {
        int32_t* __restrict r = rank_.data();
        const int32_t* __restrict from = source_.data();
        if (n <= 160) {  // count what comes before each: no branches
            for (int64_t k = n; k < n + 8; ++k) source_[k] = 0;
            for (int64_t k = 0; k < n; k += 8) {
                const Int8 mine = load_lanes<Int8>(from + k);
                Int8 before = {};
                for (int64_t e = 0; e < k; ++e) before -= all8(from[e]) <= mine;
                for (int64_t e = k; e < std::min(k + 8, n); ++e)
                    before -= (all8(from[e]) < mine) | ((all8(from[e]) == mine) & (all8(int32_t(e - k)) < ramp8));
                for (int64_t e = k + 8; e < n; ++e) before -= all8(from[e]) < mine;
                store_lanes(r + k, before);
            }
        } else {
            order_.resize(n);
            for (int64_t e = 0; e < n; ++e) order_[e] = int32_t(e);
            std::sort(order_.begin(), order_.end(),
                      [from](int32_t e, int32_t f) { return from[e] != from[f] ? from[e] < from[f] : e < f; });
            for (int64_t k = 0; k < n; ++k) r[order_[k]] = int32_t(k);
        }
        for (int64_t e = 0; e < n; ++e)
            sorted_source_[r[e]] = source_[e], sorted_squared_[r[e]] = squared_[e], sorted_shift_[r[e]] = shift_[e];
        bool repeated = false;
        for (int64_t k = 1; k < n; ++k) repeated |= sorted_source_[k] == sorted_source_[k - 1];
        for (int64_t k = 1; repeated && k < n; ++k) {  // images of one source
            const Shift shift = sorted_shift_[k];
            const double squared = sorted_squared_[k];
            int64_t at = k;
            for (; at > 0 && sorted_source_[at - 1] == sorted_source_[k] && sorted_shift_[at - 1] > shift; --at)
                sorted_shift_[at] = sorted_shift_[at - 1], sorted_squared_[at] = sorted_squared_[at - 1];
            sorted_shift_[at] = shift, sorted_squared_[at] = squared;
        }
    }

    std::vector<int32_t> source_, sorted_source_, rank_, order_;
    std::vector<double> squared_, sorted_squared_;
    std::vector<Shift> shift_, sorted_shift_;
};

inline void count_rows(const Bins& bins, int64_t* counts, bool& any_coincident) {
    const Structure& s = bins.s;
    bool coincident = false;
#pragma omp parallel reduction(|| : coincident) if (parallel(64 * s.n))
    {
        Around around(bins);
#pragma omp for schedule(dynamic, 64)
        for (int64_t b = 0; b < bins.size(); ++b) {
            if (bins.begin[b] == bins.begin[b + 1]) continue;
            around.gather(b);
            for (int64_t p = bins.begin[b]; p < bins.begin[b + 1]; ++p) {
                int64_t found = 0;
                around.search(p, [&](size_t run, int64_t q, unsigned near) {
                    if (!s.half) {
                        found += std::popcount(near);
                        return;
                    }
                    for (; near; near &= near - 1) {
                        const int64_t l = q + std::countr_zero(near);
                        found += first_half(bins.atom[p], bins.atom[l], bins.shift(p, l, around.runs[run].image));
                    }
                });
                counts[bins.atom[p]] = found;
            }
        }
        coincident = around.coincident;
    }
    any_coincident = coincident;
}

// False, with rows unwritten, where the pointers do not fit.
template <class Index, class Real>
bool fill_rows(const Bins& bins, const Index* ptr, const Edges<Index, Real>& out) {
    const Structure& s = bins.s;
    std::atomic<bool> wrong = false;
#pragma omp parallel if (parallel(64 * s.n))
    {
        Around around(bins);
        Row row;
        std::vector<int32_t> place, run_of;  // of what is near an atom
#pragma omp for schedule(dynamic, 64)
        for (int64_t b = 0; b < bins.size(); ++b) {
            if (bins.begin[b] == bins.begin[b + 1]) continue;
            around.gather(b);
            row.reserve(around.n);
            if (int64_t(place.size()) < around.n + 16) place.resize(2 * around.n + 16), run_of.resize(place.size());
            for (int64_t p = bins.begin[b]; p < bins.begin[b + 1]; ++p) {
                int64_t found = 0;
                around.search(p, [&](size_t run, int64_t q, unsigned near) {
                    compress(&place[found], ramp8 + int32_t(q), near);
                    store_lanes(&run_of[found], all8(int32_t(run)));
                    found += std::popcount(near);
                });
                row.n = 0;
                const int64_t i = bins.atom[p];
                for (int64_t k = 0; k < found; ++k) {
                    const int64_t q = place[k];
                    const Shift t = bins.shift(p, q, around.runs[run_of[k]].image);
                    if (!s.half || first_half(i, bins.atom[q], t)) row.add(bins.atom[q], bins.squared(p, q, t), t);
                }
                if (row.n != int64_t(ptr[i + 1]) - int64_t(ptr[i]))
                    wrong = true;
                else
                    row.write(Index(s.first), Index(s.first + i), int64_t(ptr[i]), out);
            }
        }
    }
    return !wrong;
}

// Finds the reverse of every edge of a structure whose neighbours are mutual: targets in order meet the edges of each
// source in the order in which they stand there, but for the images of one source, which meet theirs backwards.
template <class Place, class Index, class Real>
void reverse_rows_in(const Structure& s, const Index* ptr, const Edges<Index, Real>& out) {
#pragma omp parallel if (parallel(int64_t(ptr[s.n]) - int64_t(ptr[0])))
    {
#ifdef _OPENMP
        const int64_t parts = omp_get_num_threads(), part = omp_get_thread_num();
#else
        const int64_t parts = 1, part = 0;
#endif
        const int64_t from = s.n * part / parts, to = s.n * (part + 1) / parts;
        std::vector<Place> next(ptr, ptr + s.n);
        if (from > 0)
            for (int64_t j = 0; j < s.n; ++j)
                next[j] = Place(std::lower_bound(out.source + ptr[j], out.source + ptr[j + 1], Index(s.first + from)) -
                                out.source);
        for (int64_t i = from; i < to; ++i)
            for (int64_t e = ptr[i]; e < int64_t(ptr[i + 1]);) {
                const Index source = out.source[e];
                int64_t end = e + 1;
                while (end < int64_t(ptr[i + 1]) && out.source[end] == source) ++end;
                Place& at = next[source - Index(s.first)];
                for (int64_t k = e; k < end; ++k) out.reverse[k] = Index(at + (end - 1 - k));
                at += Place(end - e);
                e = end;
            }
    }
}

// The same with places as small as there is room for: fewer of them leave the cache.
template <class Index, class Real>
void reverse_rows(const Structure& s, const Index* ptr, const Edges<Index, Real>& out) {
    if (int64_t(ptr[s.n]) <= std::numeric_limits<int32_t>::max())
        reverse_rows_in<int32_t>(s, ptr, out);
    else
        reverse_rows_in<int64_t>(s, ptr, out);
}

}  // namespace pyfast::crystal
