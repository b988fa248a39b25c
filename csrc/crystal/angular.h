// What sums over triplets with weights of the angle share: the columns of a tile, polynomials, small products.
#pragma once

#include <algorithm>
#include <vector>

#include "crystal/triplets.h"

namespace pyfast::crystal {

inline constexpr int64_t together = 6;  // rows whose products are one

template <class T>
int64_t whole(int64_t n) {
    return (n + lanes<T> - 1) / lanes<T> * lanes<T>;
}

// out (rows, columns) = a (rows, depth) b (depth, columns), or += it; columns are whole vectors.
template <class T>
[[gnu::noinline]] void multiply(const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_row, int64_t depth,
                                T* out, int64_t out_row, int64_t rows, int64_t columns, bool more = false) {
    for_tiles<T>(rows, columns, [&]<int M, int N>(int64_t row, int64_t column) {
        Tile<T, M, N> tile;
        tile.add(a + row * a_row, a_row, a_step, b + column, b_row, depth);
        T* o = out + row * out_row + column;
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n) {
                Vector<T>& place = at(o + m * out_row + n * lanes<T>);
                place = more ? place + tile.sum[m][n] : tile.sum[m][n];
            }
    });
}

template <class T>
void transpose(const T* a, int64_t a_row, int64_t rows, int64_t columns, T* out, int64_t out_row) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) out[j * out_row + i] = a[i * a_row + j];
}

// Memory handed out piece by piece, each from the start of a cache line on; without a base it only counts.
template <class T>
struct Pieces {
    static constexpr int64_t line = 64 / sizeof(T);
    T* base;
    int64_t used = 0;

    explicit Pieces(T* memory) : base(memory) {
        if (base) base += (64 - reinterpret_cast<uintptr_t>(base) % 64) % 64 / sizeof(T);
    }
    T* take(int64_t n) {
        T* piece = base ? base + used : nullptr;
        used += (n + line - 1) / line * line;
        return piece;
    }
};

// The columns of one tile: features, their transpose, unit vectors by component. Columns, and channels, are padded to
// whole vectors with 0.
template <class T>
struct Columns {
    int64_t channels, degrees, wide, deep;
    T sign;  // of a cosine
    T *x, *xt, *unit, *cosine, *kept;

    Columns(Pieces<T>& memory, int64_t channels_, int64_t degrees_, int64_t widest, bool through)
        : channels(channels_),
          degrees(degrees_),
          wide(whole<T>(widest)),
          deep(whole<T>(channels)),
          sign(through ? T(-1) : T(1)),
          x(memory.take(widest * deep)),
          xt(memory.take(channels * wide)),
          unit(memory.take(3 * wide)),
          cosine(memory.take(wide)),
          kept(memory.take(wide)) {}

    // from (width, n), by columns
    void turn(const T* from, int64_t n, int64_t width, T* to) {
        transpose(from, n, width, n, to, wide);
        for (int64_t j = 0; j < n; ++j) std::fill(to + j * wide + width, to + j * wide + whole<T>(width), T(0));
    }

    void load(Tensor<const T> x_, Tensor<const T> unit_, int64_t first, int64_t width, bool both) {
        for (int64_t b = 0; b < width; ++b) {
            const T* v = x_.row(first + b);
            std::copy(v, v + channels, x + b * deep);
            std::fill(x + b * deep + channels, x + (b + 1) * deep, T(0));
        }
        turn(unit_.row(first), 3, width, unit);
        if (both) turn(x_.row(first), channels, width, xt);
    }

    // Legendre polynomials (degrees, columns) of a row, and their slopes if asked for; 0 where there is no triplet.
    template <bool Slopes>
    void polynomials(const T* u, const bool* keep, int64_t width, T* p, T* slope) {
        const T a = sign * u[0], b = sign * u[1], c = sign * u[2];
        const int64_t padded = whole<T>(width);
        std::copy(keep, keep + width, kept);
        std::fill(kept + width, kept + padded, T(0));
        for (int64_t k = 0; k < padded; ++k)
            cosine[k] = std::clamp(a * unit[k] + b * unit[wide + k] + c * unit[2 * wide + k], T(-1), T(1));
        for (int64_t l = 0; l < degrees; ++l) {
            T *now = p + l * wide, *d = slope + l * wide;
            if (l < 2) {
                for (int64_t k = 0; k < padded; ++k) {
                    now[k] = l ? kept[k] * cosine[k] : kept[k];
                    if constexpr (Slopes) d[k] = l ? kept[k] : T(0);
                }
                continue;
            }
            const T twice = T(2 * l - 1), less = T(l - 1), share = T(1) / T(l);
            for (int64_t k = 0; k < padded; ++k) {
                now[k] = (twice * cosine[k] * (now - wide)[k] - less * (now - 2 * wide)[k]) * share;
                if constexpr (Slopes) d[k] = (d - 2 * wide)[k] + twice * (now - wide)[k];
            }
        }
    }
};

// What rows, whose derivatives by the cosine are the rows of slope and of gp, give unit vectors: each its own, along,
// and all together those of the columns, gunit (3, columns).
template <class T>
void turning(const Columns<T>& columns, const T* gp, const T* slope, const T* u, int64_t width, T* along, T* gunit) {
    const int64_t wide = columns.wide;
    Vector<T> mine[3] = {};
    for (int64_t k = 0; k < width; k += lanes<T>) {
        Vector<T> rising{};
        for (int64_t l = 1; l < columns.degrees; ++l) rising += at(gp + l * wide + k) * at(slope + l * wide + k);
        rising *= columns.sign;
        for (int d = 0; d < 3; ++d) {
            mine[d] += rising * at(columns.unit + d * wide + k);
            at(gunit + d * wide + k) += rising * u[d];
        }
    }
    for (int d = 0; d < 3; ++d) along[d] = total<Vector<T>, T>(mine[d]);
}

// One thread's memory, of so many elements, for each of its threads.
template <class T, class Function>
void for_each_thread(bool many, int64_t need, Function f) {
    need += 2 * Pieces<T>::line;  // to begin with a line, and to share none
#ifdef _OPENMP
    std::vector<T> memory((many ? omp_get_max_threads() : 1) * need);
#pragma omp parallel if (many)
    f(memory.data() + (many ? omp_get_thread_num() : 0) * need);
#else
    std::vector<T> memory(need);
    f(memory.data());
#endif
}

}  // namespace pyfast::crystal
