// Matrices transposed in registers, a square of vectors at a time.
#pragma once

#include <utility>

#include "tiles.h"

namespace pyfast::spn {

template <class F, int step, size_t... i>
[[gnu::always_inline]] inline void swap_lanes(Vector<F>& a, Vector<F>& b, std::index_sequence<i...>) {
    constexpr int n = lanes<F>;
    const Vector<F> low = __builtin_shufflevector(a, b, (int(i) & step ? n + int(i) - step : int(i))...);
    b = __builtin_shufflevector(a, b, (int(i) & step ? n + int(i) : int(i) + step)...);
    a = low;
}

template <class F, int step>
[[gnu::always_inline]] inline void swap_blocks(Vector<F>* rows) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes<F>; ++i)
        if (!(i & step)) swap_lanes<F, step>(rows[i], rows[i + step], std::make_index_sequence<lanes<F>>());
    if constexpr (step > 1) swap_blocks<F, step / 2>(rows);
}

// out (columns, rows) = in (rows, columns) transposed, both multiples of a vector; the strides from row to row.
template <class F>
inline void transpose(int64_t rows, int64_t columns, const F* in, int64_t in_row, F* out, int64_t out_row) {
    constexpr int n = lanes<F>;
    for (int64_t r = 0; r < rows; r += n)
        for (int64_t c = 0; c < columns; c += n) {
            Vector<F> part[n];
#pragma GCC unroll 16
            for (int i = 0; i < n; ++i) part[i] = at(in + (r + i) * in_row + c);
            swap_blocks<F, n / 2>(part);
#pragma GCC unroll 16
            for (int i = 0; i < n; ++i) at(out + (c + i) * out_row + r) = part[i];
        }
}

}  // namespace pyfast::spn
