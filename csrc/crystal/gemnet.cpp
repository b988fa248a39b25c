// GemNet's bilinear layer on sums over triplets, and its gradient. Reference: pyfast/reference/crystal/triplets.py.
//
//     out[r, o] = sum over i, c of z[r, i, c] weight[i, c, o]
//     z[r, i] = sum over l of radial[r, i, l] y[r, l],  y[r, l] = sum over b of P_l(unit[r] . unit[b]) x[b]
//
// Rows go through in batches that stay in the cache: z is made, and one product of a batch with the packed weight ends
// it. Backwards, z is made again. Atoms go through in runs, each with a share of the weight's gradient; where they
// begin depends on the tiles alone: the same bits on any number of threads.
#include <memory>

#include "crystal/angular.h"

namespace pyfast::crystal {
namespace {

constexpr int64_t batch = 96;    // rows, a multiple of `together`
constexpr int64_t least = 1024;  // edges that are worth a share of the weight's gradient
constexpr int64_t most = 64;     // shares

constexpr int64_t few = 64;  // terms that are summed before they join their sum

constexpr int64_t nothing = 0;

template <class T>
struct Layer {
    Tensor<const T> x, unit, radial;
    Tiles tiles;
    Tensor<const bool> keep;
    int64_t channels, inner, degrees, outputs, flat, row, width = 0;  // row: of z; width: of the widest tile

    Layer(Tensor<const T> x_, Tensor<const T> unit_, Tensor<const T> radial_, Tensor<const T> weight, Ints ptr,
          Ints tile_ptr, Tensor<const bool> keep_)
        : x(x_),
          unit(unit_),
          radial(radial_),
          tiles(Ints{nullptr, &nothing}, ptr, ptr, tile_ptr, x.size(0), keep_.size(0)),
          keep(keep_),
          channels(x.size(1)),
          inner(radial.size(1)),
          degrees(radial.size(2)),
          outputs(weight.size(2)),
          flat(inner * channels) {
        constexpr int64_t line = Pieces<T>::line;
        row = (whole<T>(flat) + line - 1) / line * line;
        if (row / line % 2 == 0) row += line;  // an odd number of lines: rows do not meet in one set of the cache
        for (int64_t a = 0; a < tiles.count; ++a) width = std::max(width, tiles.width(a));
    }

    // Runs of atoms with about so many edges: where each begins, and the end.
    std::vector<int64_t> runs(int64_t edges) const {
        std::vector<int64_t> starts{0};
        for (int64_t a = 1; a < tiles.count; ++a)
            if (tiles.ptr[a] - tiles.ptr[starts.back()] >= edges) starts.push_back(a);
        if (tiles.count) starts.push_back(tiles.count);
        return starts;
    }
};

// (depth, columns), element (p, j) at b[p * step + j * next], as panels, padded to whole vectors with 0.
template <class T>
std::unique_ptr<T[]> pack(const T* b, int64_t step, int64_t next, int64_t depth, int64_t columns) {
    std::unique_ptr<T[]> packed(new T[depth * whole<T>(columns)]);
    for_panels<T>(whole<T>(columns), [&]<int N>(int64_t column) {
        T* to = packed.get() + column * depth;
        const int64_t wide = N * lanes<T>, some = std::min(wide, columns - column);
        for (int64_t p = 0; p < depth; ++p, to += wide) {
            for (int64_t j = 0; j < some; ++j) to[j] = b[p * step + (column + j) * next];
            std::fill(to + some, to + wide, T(0));
        }
    });
    return packed;
}

// out (rows, columns) = a (rows, depth) b, which is packed. Sums of sums of a few terms: they round less.
template <class T>
[[gnu::noinline]] void multiply_packed(const T* a, int64_t a_row, const T* b, int64_t depth, T* out, int64_t out_row,
                                       int64_t rows, int64_t columns) {
    for (int64_t p = 0; p == 0 || p < depth; p += few)
        for_tiles<T>(rows, columns, [&]<int M, int N>(int64_t row, int64_t column) {
            constexpr int64_t wide = N * lanes<T>;
            Tile<T, M, N> tile;
            tile.add(a + row * a_row + p, a_row, 1, b + column * depth + p * wide, wide, std::min(few, depth - p));
            T* o = out + row * out_row + column;
            for (int m = 0; m < M; ++m)
                for (int n = 0; n < N; ++n) {
                    Vector<T>& place = at(o + m * out_row + n * lanes<T>);
                    place = p ? place + tile.sum[m][n] : tile.sum[m][n];
                }
        });
}

// One thread's memory: of a few rows (p to one), of a tile (gx, gunit), of a batch (z to out).
template <class T>
struct Work : Columns<T> {
    const Layer<T>& layer;
    T *p, *slope, *y, *z, *one, *out = nullptr, *dy, *gp, *gx, *gunit, *dz;

    Work(const Layer<T>& all, Pieces<T>& memory, bool back)
        : Columns<T>(memory, all.channels, all.degrees, all.width, false), layer(all) {
        const int64_t wide = this->wide, deep = this->deep, some = together * all.degrees;
        p = memory.take(some * wide), slope = memory.take(some * wide), y = memory.take(some * deep);
        z = memory.take(batch * all.row), one = memory.take(all.inner * deep);
        if (!back) {
            out = memory.take(batch * whole<T>(all.outputs));
            return;
        }
        dy = memory.take(some * deep), gp = memory.take(some * wide);
        gx = memory.take(all.width * deep), gunit = memory.take(3 * wide), dz = memory.take(batch * all.row);
    }

    // y and z of a few rows of tile a.
    template <bool Slopes>
    void sums(int64_t a, int64_t first, int64_t rows, T* z_) {
        const int64_t wide = this->wide, deep = this->deep, width = layer.tiles.width(a), degrees = layer.degrees;
        for (int64_t r = 0; r < rows; ++r) {
            const bool* kept = layer.keep.data + layer.tiles.first[a] + (first + r - layer.tiles.ptr[a]) * width;
            const int64_t to = r * degrees * wide;
            this->template polynomials<Slopes>(layer.unit.row(first + r), kept, width, p + to, slope + to);
        }
        multiply(p, wide, 1, this->x, deep, width, y, deep, rows * degrees, deep);
        for (int64_t r = 0; r < rows; ++r, z_ += layer.row) {
            T* to = layer.channels == deep ? z_ : one;
            multiply(radial(first + r), degrees, 1, y + r * degrees * deep, deep, degrees, to, deep, layer.inner, deep);
            for (int64_t i = 0; to == one && i < layer.inner; ++i)
                std::copy(one + i * deep, one + i * deep + layer.channels, z_ + i * layer.channels);
        }
    }
    const T* radial(int64_t e) const { return layer.radial.data + e * layer.inner * layer.degrees; }
};

// f(work, run) for every run, on many threads if they pay.
template <class T, class Function>
void for_each_run(const Layer<T>& layer, const std::vector<int64_t>& runs, bool back, Function f) {
    Pieces<T> count(nullptr);
    Work<T>(layer, count, back);
    for_each_thread<T>(parallel(layer.tiles.rows * layer.flat * layer.outputs), count.used, [&](T* memory) {
        Pieces<T> pieces(memory);
        Work<T> work(layer, pieces, back);
#pragma omp for schedule(dynamic)
        for (size_t run = 1; run < runs.size(); ++run) f(work, run - 1);
    });
}

// The rows of atoms a to b, by batches: begin(row, rows) of one; step(tile, row, rows) of a few rows of a tile, which
// is opened before and closed after them all; end(row, rows).
template <class Begin, class Open, class Step, class Close, class End>
void walk(const Tiles& tiles, int64_t a, int64_t b, Begin begin, Open open, Step step, Close close, End end) {
    const int64_t* ptr = tiles.ptr;
    for (int64_t row = ptr[a], last = a; row < ptr[b];) {
        while (last < b && ptr[last + 1] <= row + batch) ++last;
        const int64_t stop = ptr[last] > row ? ptr[last] : row + batch;  // whole tiles, or a part of one too large
        begin(row, stop - row);
        for (int64_t r = row; r < stop;) {
            while (ptr[a + 1] <= r) ++a;
            if (r == ptr[a]) open(a);
            const int64_t rows = std::min(together, std::min(stop, ptr[a + 1]) - r);
            step(a, r, rows);
            r += rows;
            if (r == ptr[a + 1]) close(a);
        }
        end(row, stop - row);
        row = stop;
    }
}

// out (E, O) of x (E, C), unit (E, 3), radial (E, I, L), weight (I, C, O)
template <class T>
void gemnet(Tensor<const T> x, Tensor<const T> unit, Tensor<const T> radial, Tensor<const T> weight, Ints ptr,
            Ints tile_ptr, Tensor<const bool> keep, Tensor<T> out) {
    const Layer<T> layer(x, unit, radial, weight, ptr, tile_ptr, keep);
    const int64_t outputs = layer.outputs, full = whole<T>(outputs);
    const auto packed = pack(weight.data, outputs, 1, layer.flat, outputs);
    const std::vector<int64_t> runs = layer.runs(2 * batch);
    std::fill(out.row(layer.tiles.rows), out.row(x.size(0)), T(0));
    for_each_run(layer, runs, false, [&](Work<T>& work, size_t run) {
        int64_t begun = 0;
        walk(
            layer.tiles, runs[run], runs[run + 1], [&](int64_t row, int64_t) { begun = row; },
            [&](int64_t a) { work.load(x, unit, layer.tiles.ptr[a], layer.tiles.width(a), false); },
            [&](int64_t a, int64_t row, int64_t rows) {
                work.template sums<false>(a, row, rows, work.z + (row - begun) * layer.row);
            },
            [](int64_t) {},
            [&](int64_t row, int64_t rows) {
                T* to = full == outputs ? out.row(row) : work.out;
                multiply_packed(work.z, layer.row, packed.get(), layer.flat, to, full, rows, full);
                for (int64_t r = 0; to == work.out && r < rows; ++r)
                    std::copy(to + r * full, to + r * full + outputs, out.row(row + r));
            });
    });
}

// out (rows, columns), contiguous: the dots of every row of a with every row of b, both of depth whole vectors.
template <class T>
void dots(const T* a, int64_t rows, const T* b, int64_t columns, int64_t depth, T* out) {
    for_rows(rows, [&]<int M>(int64_t row) {
        for (int64_t column = 0; column < columns; ++column) {
            Vector<T> sum[M] = {};
            for (int64_t k = 0; k < depth; k += lanes<T>) {
                const Vector<T> v = at(b + column * depth + k);
#pragma GCC unroll 6
                for (int m = 0; m < M; ++m) sum[m] += at(a + (row + m) * depth + k) * v;
            }
            for (int m = 0; m < M; ++m) out[(row + m) * columns + column] = total<Vector<T>, T>(sum[m]);
        }
    });
}

// The gradients of sum(grad (E, O) * out): gx (E, C), gunit (E, 3), gradial (E, I, L), gweight (I, C, O).
template <class T>
void gemnet_back(Tensor<const T> grad, Tensor<const T> x, Tensor<const T> unit, Tensor<const T> radial,
                 Tensor<const T> weight, Ints ptr, Ints tile_ptr, Tensor<const bool> keep, Tensor<T> gx,
                 Tensor<T> gunit, Tensor<T> gradial, Tensor<T> gweight) {
    const Layer<T> layer(x, unit, radial, weight, ptr, tile_ptr, keep);
    const Tiles& tiles = layer.tiles;
    const int64_t channels = layer.channels, inner = layer.inner, degrees = layer.degrees, outputs = layer.outputs;
    const int64_t parts = inner * degrees, used = tiles.rows, edges = x.size(0), full = whole<T>(layer.flat);
    std::fill(gx.row(used), gx.row(edges), T(0));
    std::fill(gunit.row(used), gunit.row(edges), T(0));
    std::fill(gradial.data + used * parts, gradial.data + edges * parts, T(0));
    const auto turned = pack(weight.data, 1, outputs, outputs, layer.flat);
    const std::vector<int64_t> runs = layer.runs(std::max(least, used / most));
    const int64_t each = outputs * full, shares = int64_t(runs.size()) - 1;
    std::unique_ptr<T[]> sums(new T[each * shares]);  // (runs, O, I C)
    for_each_run(layer, runs, true, [&](Work<T>& work, size_t run) {
        const int64_t wide = work.wide, deep = work.deep;
        T* share = sums.get() + each * run;
        std::fill(share, share + each, T(0));
        int64_t begun = 0;
        walk(
            tiles, runs[run], runs[run + 1],
            [&](int64_t row, int64_t rows) {
                begun = row;
                multiply_packed(grad.row(row), outputs, turned.get(), outputs, work.dz, layer.row, rows, full);
            },
            [&](int64_t a) {
                work.load(x, unit, tiles.ptr[a], tiles.width(a), true);
                std::fill(work.gx, work.gx + tiles.width(a) * deep, T(0));
                std::fill(work.gunit, work.gunit + 3 * wide, T(0));
            },
            [&](int64_t a, int64_t row, int64_t rows) {
                const int64_t width = tiles.width(a);
                work.template sums<true>(a, row, rows, work.z + (row - begun) * layer.row);
                for (int64_t r = 0; r < rows; ++r) {
                    const T *y = work.y + r * degrees * deep, *dz = work.dz + (row + r - begun) * layer.row;
                    if (channels != deep) {
                        for (int64_t i = 0; i < inner; ++i) {
                            std::copy(dz + i * channels, dz + (i + 1) * channels, work.one + i * deep);
                            std::fill(work.one + i * deep + channels, work.one + (i + 1) * deep, T(0));
                        }
                        dz = work.one;
                    }
                    dots(dz, inner, y, degrees, deep, gradial.data + (row + r) * parts);
                    multiply(work.radial(row + r), 1, degrees, dz, deep, inner, work.dy + r * degrees * deep, deep,
                             degrees, deep);
                }
                multiply(work.dy, deep, 1, work.xt, wide, channels, work.gp, wide, rows * degrees, whole<T>(width));
                multiply(work.p, 1, wide, work.dy, deep, rows * degrees, work.gx, deep, width, deep, true);
                for (int64_t r = 0; r < rows; ++r) {
                    T along[3];
                    turning(work, work.gp + r * degrees * wide, work.slope + r * degrees * wide, unit.row(row + r),
                            width, along, work.gunit);
                    for (int d = 0; d < 3; ++d) work.gunit[d * wide + row + r - tiles.ptr[a]] += along[d];
                }
            },
            [&](int64_t a) {
                const int64_t first = tiles.ptr[a], width = tiles.width(a);
                for (int64_t b = 0; b < width; ++b)
                    std::copy(work.gx + b * deep, work.gx + b * deep + channels, gx.row(first + b));
                transpose(work.gunit, wide, 3, width, gunit.row(first), 3);
            },
            [&](int64_t row, int64_t rows) {
                multiply(grad.row(row), 1, outputs, work.z, layer.row, rows, share, full, outputs, full, true);
            });
    });
#pragma omp parallel for if (parallel(each * shares))
    for (int64_t o = 0; o < outputs; ++o)
        for (int64_t p = 0; p < layer.flat; ++p) {
            T sum = 0;
            for (int64_t run = 0; run < shares; ++run) sum += sums[run * each + o * full + p];
            gweight[p * outputs + o] = sum;
        }
}

template <class T>
void bind(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("gemnet", &gemnet<T>, nogil);
    m.def("gemnet_back", &gemnet_back<T>, nogil);
}

}  // namespace

void bind_gemnet(py::module_& m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace pyfast::crystal
