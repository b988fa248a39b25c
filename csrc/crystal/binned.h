// The rows of a structure in bins: counted, then written in order.
#pragma once

#include <atomic>

#include "crystal/bins.h"
#include "simd.h"

namespace pyfast::crystal {

// Whether a half list keeps the edge from j to i.
inline bool first_half(int64_t i, int64_t j, Shift t) {
    return i < j || (i == j && t > Shift{0, 0, 0});
}

// Sorts the edges of one atom by source and shift.
class Sorter {
  public:
    struct Found {
        double squared;
        Shift shift;
    };
    std::vector<int32_t> source;
    std::vector<Found> found;
    std::vector<int32_t> order;  // the n-th in order, after sort()
    int64_t n = 0;

    void reserve(int64_t room) {
        if (int64_t(source.size()) < room + 8) source.resize(2 * room + 8), found.resize(2 * room);
    }

    void sort() {
        if (int64_t(order.size()) < n) order.resize(2 * n), rank.resize(2 * n + 8);
        if (n <= 160) {  // count what comes before each: no branches
            int32_t* __restrict r = rank.data();
            const int32_t* __restrict from = source.data();
            for (int64_t k = n; k < n + 8; ++k) source[k] = 0;
            for (int64_t k = 0; k < n; k += 8) {
                const Int8 mine = load_lanes<Int8>(from + k);
                Int8 before = {};
                for (int64_t e = 0; e < k; ++e) before -= all8(from[e]) <= mine;
                for (int64_t e = k; e < std::min(k + 8, n); ++e)
                    before -= (all8(from[e]) < mine) | ((all8(from[e]) == mine) & (all8(int32_t(e - k)) < ramp8));
                for (int64_t e = k + 8; e < n; ++e) before -= all8(from[e]) < mine;
                store_lanes(r + k, before);
            }
            for (int64_t e = 0; e < n; ++e) order[r[e]] = int32_t(e);
        } else {
            for (int64_t e = 0; e < n; ++e) order[e] = int32_t(e);
            std::sort(order.begin(), order.begin() + n,
                      [this](int32_t e, int32_t f) { return source[e] != source[f] ? source[e] < source[f] : e < f; });
        }
        for (int64_t k = 1; k < n; ++k) {  // images of one source
            const int32_t e = order[k];
            int64_t at = k;
            for (; at > 0 && source[order[at - 1]] == source[e] && found[order[at - 1]].shift > found[e].shift; --at)
                order[at] = order[at - 1];
            order[at] = e;
        }
    }

  private:
    std::vector<int32_t> rank;
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
                around.search(p, [&](int64_t l, unsigned near) {
                    if (!s.half) {
                        found += std::popcount(near);
                        return;
                    }
                    for (; near; near &= near - 1) {
                        const int64_t at = l + std::countr_zero(near), q = around.atom_at(at);
                        found += first_half(bins.atom[p], bins.atom[q], bins.shift(p, q, around.image_at(at)));
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
        Sorter row;
        std::vector<int32_t> near_places;
#pragma omp for schedule(dynamic, 64)
        for (int64_t b = 0; b < bins.size(); ++b) {
            if (bins.begin[b] == bins.begin[b + 1]) continue;
            around.gather(b);
            row.reserve(around.n + 8);
            if (int64_t(near_places.size()) < around.n + 16) near_places.resize(2 * around.n + 16);
            for (int64_t p = bins.begin[b]; p < bins.begin[b + 1]; ++p) {
                int64_t found = 0;
                around.search(p, [&](int64_t l, unsigned near) {
                    const int32_t first = int32_t(l);
                    compress(&near_places[found], ramp8 + first, near);
                    found += std::popcount(near);
                });
                row.n = 0;
                const int64_t i = bins.atom[p];
                for (int64_t k = 0; k < found; ++k) {
                    const int64_t q = around.atom_at(near_places[k]);
                    const Shift t = bins.shift(p, q, around.image_at(near_places[k]));
                    row.source[row.n] = bins.atom[q];
                    row.found[row.n] = {bins.squared(p, q, t), t};
                    row.n += !s.half || first_half(i, bins.atom[q], t);
                }
                if (row.n != int64_t(ptr[i + 1]) - int64_t(ptr[i])) {
                    wrong = true;
                    continue;
                }
                row.sort();
                for (int64_t k = 0; k < row.n; ++k) {
                    const int64_t e = int64_t(ptr[i]) + k, from = row.order[k];
                    const auto& [squared, shift] = row.found[from];
                    out.source[e] = Index(s.first + row.source[from]);
                    out.target[e] = Index(s.first + i);
                    out.distance[e] = Real(std::sqrt(squared));
                    out.shift[3 * e] = shift.a, out.shift[3 * e + 1] = shift.b, out.shift[3 * e + 2] = shift.c;
                }
            }
        }
    }
    return !wrong;
}

// Finds the reverse of every edge of a structure whose neighbours are mutual: targets in order meet the edges of each
// source in the order in which they stand there, but for the images of one source, which meet theirs backwards.
template <class Index, class Real>
void reverse_rows(const Structure& s, const Index* ptr, const Edges<Index, Real>& out) {
    const int64_t edges = int64_t(ptr[s.n]) - int64_t(ptr[0]);
#pragma omp parallel if (parallel(edges))
    {
#ifdef _OPENMP
        const int64_t parts = omp_get_num_threads(), part = omp_get_thread_num();
#else
        const int64_t parts = 1, part = 0;
#endif
        const int64_t from = s.n * part / parts, to = s.n * (part + 1) / parts;
        std::vector<Index> next(ptr, ptr + s.n);
        if (from > 0)
            for (int64_t j = 0; j < s.n; ++j)
                next[j] = Index(std::lower_bound(out.source + ptr[j], out.source + ptr[j + 1], Index(s.first + from)) -
                                out.source);
        for (int64_t i = from; i < to; ++i)
            for (int64_t e = ptr[i]; e < int64_t(ptr[i + 1]);) {
                const Index source = out.source[e];
                int64_t end = e + 1;
                while (end < int64_t(ptr[i + 1]) && out.source[end] == source) ++end;
                Index& at = next[source - Index(s.first)];
                for (int64_t k = e; k < end; ++k) out.reverse[k] = Index(at + (end - 1 - k));
                at += Index(end - e);
                e = end;
            }
    }
}

}  // namespace pyfast::crystal
