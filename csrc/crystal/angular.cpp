// Sums over triplets whose weights are Legendre series of the angle, made and used tile by tile; and their gradient.
// Reference: pyfast/reference/crystal/triplets.py.
//
//     out[r, i] = sum over c of w[r, c, i] x[c],  w[r, c, i] = sum over l of radial[e, i, l] P_l(+-unit[r] . unit[c])
//
// e being r (GemNet's way), where the sum over l comes last and goes once per row; or, through, c (DimeNet's way), with
// a minus, as unit vectors there point at the middle atom and away from it. What is summed over c is one small matrix
// product for each few rows of a tile: Q (rows of the series, columns of the tile) x (columns, channels).
#include "crystal/angular.h"

namespace pyfast::crystal {
namespace {

struct Sizes {
    int64_t channels, inner, degrees, width;  // width: of the widest tile
    bool through;
};

// One thread's memory, and what is done in it.
template <class T>
struct Work : Columns<T> {
    const Sizes& size;
    int64_t series;  // rows of Q for each row
    T *p, *slope, *q, *y, *z, *radial, *h, *gp, *gx, *gunit, *gradial;

    Work(const Sizes& s, Pieces<T>& memory)
        : Columns<T>(memory, s.channels, s.degrees, s.width, s.through),
          size(s),
          series(s.through ? s.inner : s.degrees) {
        const int64_t wide = this->wide, deep = this->deep, most = std::max(s.inner, s.degrees);
        auto take = [&](T*& piece, int64_t n) { piece = memory.take(n); };
        take(p, s.degrees * wide), take(slope, s.degrees * wide), take(q, together * series * wide);
        take(y, together * most * deep), take(z, s.inner * deep), take(radial, s.inner * s.degrees * wide);
        take(h, s.inner * wide), take(gp, s.degrees * wide), take(gx, s.width * deep), take(gunit, 3 * wide);
        take(gradial, s.inner * s.degrees * wide);
    }

    // The columns of tile a, and what is radial of them.
    void load(const Tiles& tiles, int64_t a, Tensor<const T> x_, Tensor<const T> unit_, Tensor<const T> radial_,
              bool both) {
        const int64_t first = tiles.ptr[a], parts = size.inner * size.degrees;
        Columns<T>::load(x_, unit_, first, tiles.width(a), both);
        if (size.through) this->turn(radial_.data + first * parts, parts, tiles.width(a), radial);
    }

    // Q of one row from its polynomials: they themselves, or each column's series of them.
    void weigh(const T* p_, int64_t width, T* q_) {
        for (int64_t i = 0; i < size.inner; ++i) {
            T* now = q_ + i * this->wide;
            std::fill(now, now + whole<T>(width), T(0));
            for (int64_t l = 0; l < size.degrees; ++l) {
                const T *r = radial + (i * size.degrees + l) * this->wide, *v = p_ + l * this->wide;
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
    Pieces<T> none(nullptr);
    Work<T>(size, none);
    const bool many = parallel(tiles.first[tiles.count] * size.degrees * size.channels);
    for_each_thread<T>(many, none.used, [&](T* memory) {
        Pieces<T> pieces(memory);
        Work<T> work(size, pieces);
#pragma omp for schedule(dynamic, 4)
        for (int64_t a = 0; a < tiles.count; ++a)
            if (tiles.width(a)) f(work, a);
    });
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
                work.template polynomials<false>(unit.row(tiles.edge(a, c + r)), kept, width, p, work.slope);
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
                work.template polynomials<true>(u, keep.data + tiles.first[a] + (c + r) * width, width, p, work.slope);
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
                turning(work, work.gp, work.slope, u, width, of_rows.row(e), work.gunit);
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
