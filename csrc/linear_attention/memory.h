// Tokens in and out: any dtype, any strides, in either direction of time, to and from the numbers computed with.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "linear_attention/tiles.h"
#include "tensor.h"

namespace pyfast::linear_attention {

// One head of one sequence: `data` is its first token in the order of processing.
template <class S>
struct Tokens {
    S* data = nullptr;
    ptrdiff_t token = 0, element = 0;  // strides
    S* row(int64_t t) const { return data + t * token; }
};

// Row t = scale * token t: (count, size), rows `stride` apart and padded with zeros to `padded`.
template <class S, class F>
void load(Tokens<const S> from, int64_t count, int64_t size, int64_t padded, F scale, F* to, int64_t stride) {
    for (int64_t t = 0; t < count; ++t) {
        const S* x = from.row(t);
        F* y = to + t * stride;
        if (from.element == 1) {
#pragma omp simd
            for (int64_t i = 0; i < size; ++i) y[i] = scale * F(x[i]);
        } else {
            for (int64_t i = 0; i < size; ++i) y[i] = scale * F(x[i * from.element]);
        }
        for (int64_t i = size; i < padded; ++i) y[i] = 0;
    }
}

template <class S, class F>
void store(const F* from, int64_t stride, int64_t count, int64_t size, Tokens<S> to) {
    for (int64_t t = 0; t < count; ++t) {
        const F* x = from + t * stride;
        S* y = to.row(t);
        if (to.element == 1) {
#pragma omp simd
            for (int64_t i = 0; i < size; ++i) y[i] = S(x[i]);
        } else {
            for (int64_t i = 0; i < size; ++i) y[i * to.element] = S(x[i]);
        }
    }
}

// Asks for the tokens that are loaded next: their rows lie far apart, where the processor does not guess.
template <class S>
void prefetch(Tokens<const S> from, int64_t begin, int64_t end, int64_t size) {
    if (from.element != 1) return;
    for (int64_t t = begin; t < end; ++t) {
        const char* x = reinterpret_cast<const char*>(from.row(t));
        for (int64_t i = 0; i < size * int64_t(sizeof(S)); i += 64) __builtin_prefetch(x + i, 0, 2);
    }
}

// (rows, columns) -> (columns, rows padded with zeros to `stride`)
template <class F>
void transpose(const F* from, int64_t from_stride, int64_t rows, int64_t columns, F* to, int64_t stride) {
    typedef F Four __attribute__((vector_size(4 * sizeof(F)), aligned(alignof(F)), may_alias));
    typedef std::conditional_t<sizeof(F) == 4, int32_t, int64_t> Index __attribute__((vector_size(4 * sizeof(F))));
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        int64_t c = 0;
        for (; c + 4 <= columns; c += 4) {
            const F* x = from + r * from_stride + c;
            const Four a = *reinterpret_cast<const Four*>(x), b = *reinterpret_cast<const Four*>(x + from_stride), d = *reinterpret_cast<const Four*>(x + 2 * from_stride),
                       e = *reinterpret_cast<const Four*>(x + 3 * from_stride);
            const Four ab = __builtin_shuffle(a, b, Index{0, 4, 1, 5}), ba = __builtin_shuffle(a, b, Index{2, 6, 3, 7});
            const Four de = __builtin_shuffle(d, e, Index{0, 4, 1, 5}), ed = __builtin_shuffle(d, e, Index{2, 6, 3, 7});
            F* y = to + c * stride + r;
            *reinterpret_cast<Four*>(y) = __builtin_shuffle(ab, de, Index{0, 1, 4, 5});
            *reinterpret_cast<Four*>(y + stride) = __builtin_shuffle(ab, de, Index{2, 3, 6, 7});
            *reinterpret_cast<Four*>(y + 2 * stride) = __builtin_shuffle(ba, ed, Index{0, 1, 4, 5});
            *reinterpret_cast<Four*>(y + 3 * stride) = __builtin_shuffle(ba, ed, Index{2, 3, 6, 7});
        }
        for (; c < columns; ++c)
            for (int64_t i = 0; i < 4; ++i) to[c * stride + r + i] = from[(r + i) * from_stride + c];
    }
    for (; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) to[c * stride + r] = from[r * from_stride + c];
    for (int64_t c = 0; c < columns; ++c)
        for (int64_t i = rows; i < stride; ++i) to[c * stride + i] = 0;
}

}  // namespace pyfast::linear_attention
