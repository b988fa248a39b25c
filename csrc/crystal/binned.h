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

// The edges of one atom: found in the order of images, written in the order of sources.
template <class Index, class Real>
class Row {
  public:
    explicit Row(const Bins& bins) : bins(bins) {}

    // The edges of atom p to those of what lies around it that were hit, as many as `room`, from edge `at` on.
    bool write(const Around& around, int64_t p, int64_t found, int64_t at, int64_t room,
               const Edges<Index, Real>& out) {
        const Structure& s = bins.s;
        const int64_t i = bins.atom[p];
        if (s.half) found = halve(around, p, found);
        if (found != room) return false;
        for (int64_t k = 0; k < found; ++k) source[k] = bins.atom[around.place[hit[k]]];
        measure(around, p, found);
        rank_sources(found);
        const int32_t *from = source.data(), *r = rank.data();
        const double* d = distance.data();
        const Int4* t = shift.data();
        Index* const to = out.source + at;
        Real* const length = out.distance + at;
        int32_t* const cells = out.shift + 3 * at;
        const Index first = Index(s.first);
        for (int64_t k = 0; k < found; ++k) to[r[k]] = first + Index(from[k]);
        for (int64_t k = 0; k < found; ++k) length[r[k]] = Real(d[k]);
        if (around.home)
            std::fill(cells, cells + 3 * found, 0);
        else
            for (int64_t k = 0; k < found; ++k) std::memcpy(cells + 3 * r[k], &t[k], 12);
        std::fill(out.target + at, out.target + at + found, Index(s.first + i));
        return true;
    }

    // Room for as many hits.
    void reserve(int64_t n) {
        if (int64_t(hit.size()) >= n + 16) return;
        for (auto* column : {&hit, &source, &rank, &order, &other}) column->resize(2 * n + 16);
        distance.resize(hit.size()), shift.resize(hit.size());
    }

    std::vector<int32_t> hit;  // among what lies around

  private:
    int64_t halve(const Around& around, int64_t p, int64_t found) {
        int64_t kept = 0;
        for (int64_t k = 0; k < found; ++k) {
            const int32_t h = hit[k], q = around.place[h];
            hit[kept] = h;
            kept += first_half(bins.atom[p], bins.atom[q], bins.shift(p, q, around.image(h)));
        }
        return kept;
    }

    // Shifts and distances, four at a time.
    void measure(const Around& around, int64_t p, int64_t found) {
        const Vec own = bins.x[p];
        for (int64_t k = found; k < found + 3; ++k) hit[k] = 0;
        for (int64_t k = 0; k < found; k += 4) {
            const Vec* x[4];
            for (int m = 0; m < 4; ++m) x[m] = &bins.x[around.place[hit[k + m]]];
            Double4 vx = Double4{x[0]->x, x[1]->x, x[2]->x, x[3]->x} - all4(own.x);
            Double4 vy = Double4{x[0]->y, x[1]->y, x[2]->y, x[3]->y} - all4(own.y);
            Double4 vz = Double4{x[0]->z, x[1]->z, x[2]->z, x[3]->z} - all4(own.z);
            if (!around.home) {
                Vec o[4];
                for (int m = 0; m < 4; ++m) {
                    const int32_t h = hit[k + m];
                    const Shift t = bins.shift(p, around.place[h], around.image(h));
                    shift[k + m] = Int4{t.a, t.b, t.c, 0};
                    o[m] = bins.lattice.offset(t.a, t.b, t.c);
                }
                vx += Double4{o[0].x, o[1].x, o[2].x, o[3].x};
                vy += Double4{o[0].y, o[1].y, o[2].y, o[3].y};
                vz += Double4{o[0].z, o[1].z, o[2].z, o[3].z};
            }
            store_lanes(&distance[k], root((vx * vx + vy * vy) + vz * vz));
        }
    }

    // Where each source stands among all: equal ones as they come.
    void rank_sources(int64_t n) {
        int32_t *r = rank.data(), *from = source.data();
        if (n > 160) return rank_by_digits(n);
        for (int64_t k = n; k < n + 8; ++k) from[k] = 0;
        for (int64_t k = 0; k < n; k += 8) {  // count what comes before each: no branches
            const Int8 mine = load_lanes<Int8>(from + k);
            Int8 before = {};
            for (int64_t e = 0; e < k; ++e) before -= all8(from[e]) <= mine;
            for (int64_t e = k; e < std::min(k + 8, n); ++e)
                before -= (all8(from[e]) < mine) | ((all8(from[e]) == mine) & (all8(int32_t(e - k)) < ramp8));
            for (int64_t e = k + 8; e < n; ++e) before -= all8(from[e]) < mine;
            store_lanes(r + k, before);
        }
    }

    void rank_by_digits(int64_t n) {
        for (int64_t k = 0; k < n; ++k) order[k] = int32_t(k);
        for (int digit = 0; (bins.s.n - 1) >> digit; digit += 8) {
            int32_t start[257] = {};
            for (int64_t k = 0; k < n; ++k) ++start[(source[k] >> digit & 255) + 1];
            for (int b = 0; b < 256; ++b) start[b + 1] += start[b];
            for (int64_t k = 0; k < n; ++k) other[start[source[order[k]] >> digit & 255]++] = order[k];
            order.swap(other);
        }
        for (int64_t k = 0; k < n; ++k) rank[order[k]] = int32_t(k);
    }

    const Bins& bins;
    std::vector<int32_t> source, rank, order, other;
    std::vector<double> distance;
    std::vector<Int4> shift;
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
                around.search(p, [&](int64_t q, unsigned near) {
                    if (!s.half) {
                        found += std::popcount(near);
                        return;
                    }
                    for (; near; near &= near - 1) {
                        const int64_t h = q + std::countr_zero(near), l = around.place[h];
                        found += first_half(bins.atom[p], bins.atom[l], bins.shift(p, l, around.image(h)));
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
        Row<Index, Real> row(bins);
#pragma omp for schedule(dynamic, 64)
        for (int64_t b = 0; b < bins.size(); ++b) {
            if (bins.begin[b] == bins.begin[b + 1]) continue;
            around.gather(b);
            row.reserve(around.n);
            for (int64_t p = bins.begin[b]; p < bins.begin[b + 1]; ++p) {
                int64_t found = 0;
                around.search(p, [&](int64_t q, unsigned near) {
                    compress(&row.hit[found], ramp8 + int32_t(q), near);
                    found += std::popcount(near);
                });
                const Index* at = &ptr[bins.atom[p]];
                if (!row.write(around, p, found, int64_t(at[0]), int64_t(at[1]) - int64_t(at[0]), out)) wrong = true;
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
