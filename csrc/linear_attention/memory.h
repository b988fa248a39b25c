// Tokens in and out: any dtype, any strides, in either direction of time, to and from the numbers computed with.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "tensor.h"
#include "tiles.h"

namespace pyfast::linear_attention {

// One head of one sequence: `data` is its first token in the order of processing; strides in elements.
struct Tokens {
    char* data = nullptr;
    ptrdiff_t token = 0, element = 0;
    dlpack::DType dtype{};

    template <class S>
    S* row(int64_t t) const {
        return reinterpret_cast<S*>(data) + t * token;
    }
    Tokens from(int64_t t) const { return {data + t * token * (dtype.bits / 8), token, element, dtype}; }

    // Calls f with a null pointer to the type of the elements.
    template <class Function>
    void typed(Function f) const {
        if (dtype == dlpack::dtype<float>)
            f(static_cast<float*>(nullptr));
        else if (dtype == dlpack::dtype<double>)
            f(static_cast<double*>(nullptr));
        else if (dtype == dlpack::dtype<Half>)
            f(static_cast<Half*>(nullptr));
        else
            f(static_cast<Bfloat*>(nullptr));
    }
};

// Row t = scale * token t: (count, size), rows `stride` apart and padded with zeros to `padded`.
template <class F>
void load(Tokens from, int64_t count, int64_t size, int64_t padded, F scale, F* to, int64_t stride) {
    from.typed([&]<class S>(S*) {
        for (int64_t t = 0; t < count; ++t) {
            const S* x = from.row<S>(t);
            F* y = to + t * stride;
            if (from.element == 1) {
#pragma omp simd
                for (int64_t i = 0; i < size; ++i) y[i] = scale * F(x[i]);
            } else {
                for (int64_t i = 0; i < size; ++i) y[i] = scale * F(x[i * from.element]);
            }
            for (int64_t i = size; i < padded; ++i) y[i] = 0;
        }
    });
}

template <class F>
void store(const F* from, int64_t stride, int64_t count, int64_t size, Tokens to) {
    to.typed([&]<class S>(S*) {
        for (int64_t t = 0; t < count; ++t) {
            const F* x = from + t * stride;
            S* y = to.row<S>(t);
            if (to.element == 1) {
#pragma omp simd
                for (int64_t i = 0; i < size; ++i) y[i] = S(x[i]);
            } else {
                for (int64_t i = 0; i < size; ++i) y[i * to.element] = S(x[i]);
            }
        }
    });
}

// Asks for the tokens that are loaded next, a few lines at a time between other work: the processor does not guess
// where they lie, and it can wait for no more than some lines at once. All heads of a token at a time: they are
// neighbours.
class Ahead {
    struct Stream {
        const char* at;
        ptrdiff_t row;
        int64_t bytes;
        bool written = false;
    };
    Stream streams[5];
    int count = 0, stream = 0;
    int64_t rows = 0, done = 0;  // rows to go; bytes done of this one

  public:
    void aim(int64_t tokens) { count = stream = 0, rows = tokens, done = 0; }
    // Tokens from `begin` on, of the heads from first to last.
    void follow(Tokens first, Tokens last, int64_t begin, int64_t size, bool written = false) {
        if (!first.data || first.element != 1 || !size || !rows) return;
        const int64_t bytes = first.dtype.bits / 8, row = first.token * bytes;
        const int64_t span = last.data - first.data + size * bytes;
        if (span > 0 && span <= std::abs(row)) streams[count++] = {first.data + begin * row, row, span, written};
    }
    void some() {
        if (!rows || !count) return;
        Stream& s = streams[stream];
        const int64_t end = std::min(done + 256, s.bytes);
        for (; done < end; done += 64)
            s.written ? __builtin_prefetch(s.at + done, 1, 3) : __builtin_prefetch(s.at + done, 0, 2);
        if (done < s.bytes) return;
        done = 0, s.at += s.row;
        if (++stream == count) stream = 0, --rows;
    }
    void rest() {
        while (rows && count) some();
    }
};

// (rows, columns) -> (columns, rows), each of the latter `stride` apart
template <class F>
void transpose(const F* from, int64_t from_stride, int64_t rows, int64_t columns, F* to, int64_t stride) {
    typedef F Four __attribute__((vector_size(4 * sizeof(F)), aligned(alignof(F)), may_alias));
    typedef std::conditional_t<sizeof(F) == 4, int32_t, int64_t> Index __attribute__((vector_size(4 * sizeof(F))));
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        int64_t c = 0;
        for (; c + 4 <= columns; c += 4) {
            const F* x = from + r * from_stride + c;
            const Four a = *reinterpret_cast<const Four*>(x), b = *reinterpret_cast<const Four*>(x + from_stride),
                       d = *reinterpret_cast<const Four*>(x + 2 * from_stride),
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
}

}  // namespace pyfast::linear_attention
