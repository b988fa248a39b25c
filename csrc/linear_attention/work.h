// What one thread works in.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <utility>

#include "linear_attention/memory.h"

namespace pyfast::linear_attention {

enum class Decay { none, scalar, rows, columns };  // of the state: per key dimension, per value dimension

struct Flags {
    bool late;    // the state decays after a token has been read and added, not before
    bool strict;  // a token does not see itself
    bool solve;   // out_t = v_t - S_t' q_t, which is what is added to the state in place of v_t
};

inline int64_t padded(int64_t n, int64_t unit) {
    return (n + unit - 1) / unit * unit;
}

// Numbers that nobody has written yet, from the beginning of a cache line on: no vector lies across two.
template <class F>
struct Buffer {
    static constexpr std::align_val_t line{64};
    struct Free {
        void operator()(F* p) const { ::operator delete(p, line); }
    };
    std::unique_ptr<F[], Free> data;
    explicit Buffer(int64_t n = 0) : data(n ? static_cast<F*>(::operator new(n * sizeof(F), line)) : nullptr) {}
    operator F*() { return data.get(); }
    operator const F*() const { return data.get(); }
};

// What one thread works in. Rows of q and k are K apart, of v and out V padded to whole vectors.
template <class F>
struct Work {
    static constexpr int64_t room = 64;  // tokens
    int64_t chunk, K, V, wide, D;        // tokens in a chunk; sizes; V in whole vectors; decays of a token in rows of D
    Decay decay;
    int64_t c;  // the chunk in whole vectors
    F *q, *k, *kt, *v, *out, *scores, *gate, *up, *down, *head, *last, *both, *fresh_keys, *sum[2], *rest[2], *fresh;
    Buffer<F> memory;         // of them all: a small call would take as long to get it piece by piece as to compute
    F keep = 1;               // what is left of the state after the chunk, where that is one number
    bool fresh_head = false;  // whether `head`, the decay of the first token, is not in E
    Ahead ahead;
    double reach[room];  // E of every token
    F read_factor[room], end_factor[room], denominator[room];

    Work(int64_t chunk, int64_t K, int64_t V, Decay decay)
        : chunk(chunk),
          K(K),
          V(V),
          wide(padded(V, lanes<F>)),
          D(decay == Decay::columns ? wide
            : decay == Decay::rows  ? K
                                    : 0),
          decay(decay),
          c(padded(chunk, lanes<F>)) {
        const int64_t gates = decay == Decay::scalar ? c * c : 0;
        const std::pair<F**, int64_t> parts[] = {
            {&q, c * K},      {&k, c * K},  {&kt, K * c},   {&v, c * wide}, {&out, c * wide}, {&scores, c * c},
            {&gate, gates},   {&up, c * D}, {&down, c * D}, {&head, D},     {&last, D},       {&both, D},
            {&fresh_keys, K}, {&sum[0], D}, {&sum[1], D},   {&rest[0], D},  {&rest[1], D},    {&fresh, D}};
        constexpr int64_t line = 64 / sizeof(F);
        const auto room_of = [](int64_t n) { return n ? padded(n, line) + line : 0; };  // no whole pages: they collide
        int64_t total = 0;
        for (const auto& part : parts) total += room_of(part.second);
        memory = Buffer<F>(total);
        F* place = memory;
        for (const auto& part : parts) {
            *part.first = place;
            place += room_of(part.second);
        }
        std::fill_n(up, c * D, F(1));  // of columns that pad V
        std::fill_n(down, c * D, F(1));
    }
};

}  // namespace pyfast::linear_attention
