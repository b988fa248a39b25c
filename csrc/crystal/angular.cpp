// Sums over triplets whose weights are Legendre series of the angle, made and used tile by tile; and their gradient.
// Reference: pyfast/reference/crystal/triplets.py.
//
//     out[r, i] = sum over c of w[r, c, i] x[c],  w[r, c, i] = sum over l of radial[e, i, l] P_l(+-unit[r] . unit[c])
//
// e being r (GemNet's way), where the sum over l comes last and goes once per row; or, through, c (DimeNet's way), with
// a minus, as unit vectors there point at the middle atom and away from it. What is summed over c is one small matrix
// product for each few rows of a tile: Q (rows of the series, columns of the tile) x (columns, channels).
#include <algorithm>
#include <vector>

#include "crystal/triplets.h"

namespace pyfast::crystal {
namespace {

constexpr int64_t together = 6;  // rows whose products are one

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

struct Sizes {
    int64_t channels, inner, degrees, width;  // width: of the widest tile
    bool through;
};

// One thread's memory, and what is done in it. Columns of a tile, and channels, are padded to whole vectors with 0.
template <class T>
struct Work {
    const Sizes& size;
    int64_t wide, deep, series;  // columns and channels with padding; rows of Q for each row
    int64_t used = 0;
    T *x, *xt, *unit, *p, *slope, *q, *y, *z, *radial, *h, *gp, *gx, *gunit, *gradial, *cosine;

    Work(const Sizes& s, T* memory) : size(s), wide(whole<T>(s.width)), deep(whole<T>(s.channels)) {
        series = s.through ? s.inner : s.degrees;
        const int64_t most = std::max(s.inner, s.degrees);
        auto take = [&](T*& p_, int64_t n) { p_ = memory ? memory + used : nullptr, used += n; };
        take(x, s.width * deep), take(xt, s.channels * wide), take(unit, 3 * wide);
        take(p, together * s.degrees * wide), take(slope, s.degrees * wide), take(q, together * series * wide);
        take(y, together * most * deep), take(z, s.inner * deep), take(radial, s.inner * s.degrees * wide),
            take(h, s.inner * wide);
        take(gp, s.degrees * wide), take(gx, s.width * deep), take(gunit, 3 * wide);
        take(gradial, s.inner * s.degrees * wide), take(cosine, wide);
    }

    // The columns of tile a: features, their transpose, unit vectors by component, and what is radial of them.
    void load(const Tiles& tiles, int64_t a, Tensor<const T> x_, Tensor<const T> unit_, Tensor<const T> radial_,
              bool both) {
        const int64_t width = tiles.width(a), first = tiles.ptr[a], parts = size.inner * size.degrees;
        const int64_t padded = whole<T>(width);
        for (int64_t b = 0; b < width; ++b) {
            const T* v = x_.row(first + b);
            std::copy(v, v + size.channels, x + b * deep);
            std::fill(x + b * deep + size.channels, x + (b + 1) * deep, T(0));
        }
        auto turned = [&](const T* from, int64_t n, T* to) {
            transpose(from, n, width, n, to, wide);
            for (int64_t j = 0; j < n; ++j) std::fill(to + j * wide + width, to + j * wide + padded, T(0));
        };
        turned(unit_.row(first), 3, unit);
        if (both) turned(x_.row(first), size.channels, xt);
        if (size.through) turned(radial_.data + first * parts, parts, radial);
    }

    // Legendre polynomials (degrees, columns) of row r, and their slopes if asked for; 0 where there is no triplet.
    template <bool Slopes>
    void polynomials(const T* u, const bool* keep, int64_t width, T* p_) {
        const T sign = size.through ? T(-1) : T(1), a = sign * u[0], b = sign * u[1], c = sign * u[2];
        const int64_t padded = whole<T>(width);
        for (int64_t k = 0; k < padded; ++k)
            cosine[k] = std::clamp(a * unit[k] + b * unit[wide + k] + c * unit[2 * wide + k], T(-1), T(1));
        for (int64_t l = 0; l < size.degrees; ++l) {
            T *now = p_ + l * wide, *d = slope + l * wide;
            if (l < 2) {
                for (int64_t k = 0; k < padded; ++k) {
                    const T kept = k < width && keep[k] ? T(1) : T(0);
                    now[k] = l ? kept * cosine[k] : kept;
                    if constexpr (Slopes) d[k] = l ? kept : T(0);
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

    // Q of one row from its polynomials: they themselves, or each column's series of them.
    void weigh(const T* p_, int64_t width, T* q_) {
        for (int64_t i = 0; i < size.inner; ++i) {
            T* now = q_ + i * wide;
            std::fill(now, now + whole<T>(width), T(0));
            for (int64_t l = 0; l < size.degrees; ++l) {
                const T *r = radial + (i * size.degrees + l) * wide, *v = p_ + l * wide;
                for (int64_t k = 0; k < whole<T>(width); ++k) now[k] += r[k] * v[k];
            }
        }
    }
};

template <class T>
Sizes sizes_of(const Tiles& tiles, Tensor<const T> x, Tensor<const T> radial, bool through) {
    Sizes s{x.size(1), radial.size(1), radial.size(2), 0, through};
    for (int64_t a = 0; a < tiles.count; ++a) s.width = std::max(s.width, tiles.width(a));
    return s;
}

template <class T, class Function>
void for_each_tile(const Tiles& tiles, const Sizes& size, Function f) {
    const int64_t need = Work<T>(size, nullptr).used;
    const bool many = parallel(tiles.first[tiles.count] * size.degrees * size.channels);
#ifdef _OPENMP
    std::vector<T> memory((many ? omp_get_max_threads() : 1) * need);
#else
    std::vector<T> memory(need);
#endif
#pragma omp parallel if (many)
    {
#ifdef _OPENMP
        Work<T> work(size, memory.data() + (many ? omp_get_thread_num() : 0) * need);
#else
        Work<T> work(size, memory.data());
#endif
#pragma omp for schedule(dynamic, 4)
        for (int64_t a = 0; a < tiles.count; ++a)
            if (tiles.width(a)) f(work, a);
    }
}

// out (E, I, C) of x (E, C), unit (E, 3), radial (E, I, L)
template <class T>
void angular(Tensor<const T> x, Tensor<const T> unit, Tensor<const T> radial, Ints row, Ints row_ptr, Ints ptr,
             Ints tile_ptr, Tensor<const bool> keep, bool through, Tensor<T> out) {
    const Tiles tiles(row, row_ptr, ptr, tile_ptr, x.size(0), keep.size(0));
    const Sizes size = sizes_of(tiles, x, radial, through);
    const int64_t each = size.inner * size.channels;
    std::fill(out.data, out.data + x.size(0) * each, T(0));  // of edges that are no rows, or have no columns
    for_each_tile<T>(tiles, size, [&](Work<T>& work, int64_t a) {
        const int64_t width = tiles.width(a), wide = work.wide, deep = work.deep;
        work.load(tiles, a, x, unit, radial, false);
        for (int64_t c = 0; c < tiles.height(a); c += together) {
            const int64_t rows = std::min(together, tiles.height(a) - c);
            for (int64_t r = 0; r < rows; ++r) {
                const bool* kept = keep.data + tiles.first[a] + (c + r) * width;
                T* p = through ? work.p : work.q + r * work.series * wide;
                work.template polynomials<false>(unit.row(tiles.edge(a, c + r)), kept, width, p);
                if (through) work.weigh(p, width, work.q + r * work.series * wide);
            }
            multiply(work.q, wide, 1, work.x, deep, width, work.y, deep, rows * work.series, deep);
            for (int64_t r = 0; r < rows; ++r) {
                const int64_t e = tiles.edge(a, c + r);
                const T* sums = work.y + r * work.series * deep;
                T* o = out.data + e * each;
                if (!through) {
                    const T* mine = radial.data + e * size.inner * size.degrees;
                    T* to = size.channels == deep ? o : work.z;
                    multiply(mine, size.degrees, 1, sums, deep, size.degrees, to, deep, size.inner, deep);
                    if (to == o) continue;
                    sums = to;
                }
                for (int64_t i = 0; i < size.inner; ++i)
                    std::copy(sums + i * deep, sums + i * deep + size.channels, o + i * size.channels);
            }
        }
    });
}

// The gradients of sum(grad (E, I, C) * out): gx (E, C), gunit (E, 3) of rows and of columns, gradial (E, I, L).
template <class T>
void angular_back(Tensor<const T> grad, Tensor<const T> x, Tensor<const T> unit, Tensor<const T> radial, Ints row,
                  Ints row_ptr, Ints ptr, Ints tile_ptr, Tensor<const bool> keep, bool through, Tensor<T> gx,
                  Tensor<T> of_rows, Tensor<T> of_columns, Tensor<T> gradial) {
    const Tiles tiles(row, row_ptr, ptr, tile_ptr, x.size(0), keep.size(0));
    const Sizes size = sizes_of(tiles, x, radial, through);
    const int64_t parts = size.inner * size.degrees, each = size.inner * size.channels, edges = x.size(0);
    std::fill(gx.data, gx.data + edges * size.channels, T(0));
    std::fill(of_rows.data, of_rows.data + edges * 3, T(0));
    std::fill(of_columns.data, of_columns.data + edges * 3, T(0));
    std::fill(gradial.data, gradial.data + edges * parts, T(0));
    for_each_tile<T>(tiles, size, [&](Work<T>& work, int64_t a) {
        const int64_t width = tiles.width(a), wide = work.wide, deep = work.deep, padded = whole<T>(width);
        const T sign = through ? T(-1) : T(1);
        work.load(tiles, a, x, unit, radial, true);
        std::fill(work.gx, work.gx + width * deep, T(0));
        std::fill(work.gunit, work.gunit + 3 * wide, T(0));
        if (through) std::fill(work.gradial, work.gradial + parts * wide, T(0));
        for (int64_t c = 0; c < tiles.height(a); c += together) {
            const int64_t rows = std::min(together, tiles.height(a) - c);
            for (int64_t r = 0; r < rows; ++r) {
                const int64_t e = tiles.edge(a, c + r);
                const T *g = grad.data + e * each, *u = unit.row(e);
                T *q = work.q + r * work.series * wide, *p = through ? work.p : q;
                work.template polynomials<true>(u, keep.data + tiles.first[a] + (c + r) * width, width, p);
                // h (I, columns): what each weight gets; from it what the polynomials and what is radial get
                multiply(g, size.channels, 1, work.xt, wide, size.channels, work.h, wide, size.inner, padded);
                if (through) {
                    work.weigh(p, width, q);
                    std::fill(work.gp, work.gp + size.degrees * wide, T(0));
                    for (int64_t i = 0; i < size.inner; ++i)
                        for (int64_t l = 0; l < size.degrees; ++l) {
                            const T *h = work.h + i * wide, *v = p + l * wide, *m = work.radial;
                            T *to = work.gradial + (i * size.degrees + l) * wide, *slopes = work.gp + l * wide;
                            m += (i * size.degrees + l) * wide;
                            for (int64_t k = 0; k < padded; ++k) to[k] += h[k] * v[k], slopes[k] += h[k] * m[k];
                        }
                    for (int64_t i = 0; i < size.inner; ++i) {
                        T* to = work.y + (r * size.inner + i) * deep;
                        std::copy(g + i * size.channels, g + (i + 1) * size.channels, to);
                        std::fill(to + size.channels, to + deep, T(0));
                    }
                } else {
                    const T* mine = radial.data + e * parts;
                    multiply(mine, 1, size.degrees, work.h, wide, size.inner, work.gp, wide, size.degrees, padded);
                    for (int64_t i = 0; i < size.inner; ++i)
                        for (int64_t l = 0; l < size.degrees; ++l) {
                            const T *h = work.h + i * wide, *v = p + l * wide;
                            Vector<T> sum{};
                            for (int64_t k = 0; k < padded; k += lanes<T>) sum += at(h + k) * at(v + k);
                            gradial[e * parts + i * size.degrees + l] = total<Vector<T>, T>(sum);
                        }
                    T* to = work.y + r * size.degrees * deep;
                    if (size.channels == deep) {
                        multiply(mine, 1, size.degrees, g, deep, size.inner, to, deep, size.degrees, deep);
                    } else {
                        for (int64_t l = 0; l < size.degrees; ++l)
                            for (int64_t k = 0; k < deep; ++k) {
                                T sum = 0;
                                for (int64_t i = 0; k < size.channels && i < size.inner; ++i)
                                    sum += mine[i * size.degrees + l] * g[i * size.channels + k];
                                to[l * deep + k] = sum;
                            }
                    }
                }
                T* mine = of_rows.row(e);
                Vector<T> along[3] = {};
                for (int64_t k = 0; k < padded; k += lanes<T>) {
                    Vector<T> slope{};
                    for (int64_t l = 1; l < size.degrees; ++l)
                        slope += at(work.gp + l * wide + k) * at(work.slope + l * wide + k);
                    slope *= sign;
                    for (int d = 0; d < 3; ++d) {
                        along[d] += slope * at(work.unit + d * wide + k);
                        at(work.gunit + d * wide + k) += slope * u[d];
                    }
                }
                for (int d = 0; d < 3; ++d) mine[d] = total<Vector<T>, T>(along[d]);
            }
            multiply(work.q, 1, wide, work.y, deep, rows * work.series, work.gx, deep, width, deep, true);
        }
        const int64_t first = tiles.ptr[a];
        for (int64_t b = 0; b < width; ++b)
            std::copy(work.gx + b * deep, work.gx + b * deep + size.channels, gx.row(first + b));
        transpose(work.gunit, wide, 3, width, of_columns.row(first), 3);
        if (through) transpose(work.gradial, wide, parts, width, gradial.data + first * parts, parts);
    });
}

template <class T>
void bind(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("angular", &angular<T>, nogil);
    m.def("angular_back", &angular_back<T>, nogil);
}

}  // namespace

void bind_angular(py::module_& m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace pyfast::crystal
