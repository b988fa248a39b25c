// Small matrix products in registers: tiles of up to 6 rows by 2 vectors, the widest that the processor has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace pyfast {

#if defined(__AVX512F__)
inline constexpr int vector_bytes = 64;
#elif defined(__AVX__)
inline constexpr int vector_bytes = 32;
#else
inline constexpr int vector_bytes = 16;
#endif

template <class F>
inline constexpr int lanes = vector_bytes / sizeof(F);

template <class F>
struct VectorOf {
    typedef F Type __attribute__((vector_size(vector_bytes), aligned(alignof(F)), may_alias));
};
template <class F>
using Vector = typename VectorOf<F>::Type;

template <class F>
inline Vector<F>& at(F* p) {
    return *reinterpret_cast<Vector<F>*>(p);
}
template <class F>
inline const Vector<F>& at(const F* p) {
    return *reinterpret_cast<const Vector<F>*>(p);
}

// f(0), ..., f(N - 1), each number a constant: what f indexes by it stays in registers.
template <int N, class Function>
[[gnu::always_inline]] inline void unroll(Function f) {
    [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
        (f(std::integral_constant<int, I>{}), ...);
    }(std::make_integer_sequence<int, N>{});
}

// M rows by N vectors of a matrix, while it is being summed.
template <class F, int M, int N>
struct Tile {
    Vector<F> sum[M][N];

    [[gnu::always_inline]] Tile() {  // one by one, or the compiler clears memory that is never memory
#pragma GCC unroll 6
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n) sum[m][n] = Vector<F>{};
    }

    // += a (M, depth) b (depth, N vectors); element (m, p) of a lies at a[m * a_row + p * a_step]
    [[gnu::always_inline]] void add(const F* a, ptrdiff_t a_row, ptrdiff_t a_step, const F* b, ptrdiff_t b_row,
                                    int64_t depth) {
        for (int64_t p = 0; p < depth; ++p, a += a_step, b += b_row) {
            Vector<F> row[N];
            for (int n = 0; n < N; ++n) row[n] = at(b + n * lanes<F>);
#pragma GCC unroll 6
            for (int m = 0; m < M; ++m)
                for (int n = 0; n < N; ++n) sum[m][n] += a[m * a_row] * row[n];
        }
    }
};

// Calls f.operator()<M>(row) for the rows of tiles that make up so many rows, in their order.
template <class Function>
[[gnu::always_inline]] inline void for_rows(int64_t rows, Function f) {
    int64_t row = 0;
    for (; row + 9 <= rows || row + 6 == rows; row += 6) f.template operator()<6>(row);
    if (row + 7 <= rows) {  // 7 and 8 in halves: few rows keep the multipliers waiting
        f.template operator()<4>(row);
        row += 4;
    }
    switch (rows - row) {
        case 1:
            f.template operator()<1>(row);
            break;
        case 2:
            f.template operator()<2>(row);
            break;
        case 3:
            f.template operator()<3>(row);
            break;
        case 4:
            f.template operator()<4>(row);
            break;
        case 5:
            f.template operator()<5>(row);
            break;
    }
}

// Calls f.operator()<N>(column) for every panel, of N vectors of columns.
template <class F, class Function>
[[gnu::always_inline]] inline void for_panels(int64_t columns, Function f) {
    int64_t column = 0;
    for (; column + lanes<F> < columns; column += 2 * lanes<F>) f.template operator()<2>(column);
    if (column < columns) f.template operator()<1>(column);
}

// Calls f.operator()<M, N>(row, column) for every tile of a matrix whose columns are padded to whole vectors; the tiles
// of a column in the order of their rows.
template <class F, class Function>
[[gnu::always_inline]] inline void for_tiles(int64_t rows, int64_t columns, Function f) {
    for_panels<F>(columns, [&]<int N>(int64_t column) {
        for_rows(rows, [&]<int M>(int64_t row) { f.template operator()<M, N>(row, column); });
    });
}

}  // namespace pyfast
