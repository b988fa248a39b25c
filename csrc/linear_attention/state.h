// What a head remembers.
#pragma once

#include <algorithm>
#include <cmath>

#include "linear_attention/work.h"

namespace pyfast::linear_attention {

// States lie in memory as tiles walk through them: in panels of two vectors of columns, the last perhaps of one, each
// row after row. Calls f(first column, columns, place) for each.
template <class F, class Function>
void each_panel(int64_t K, int64_t wide, Function f) {
    constexpr int64_t most = 2 * lanes<F>;
    for (int64_t column = 0; column < wide; column += most) f(column, std::min(most, wide - column), column * K);
}

// A sum of k_t v_t' of one head, (K, wide), and of keys, (K,), in double; unwritten while `zero`.
struct Sum {
    Buffer<double> state, keys;
    int64_t size, key_size;
    bool zero = true;

    Sum(int64_t K, int64_t wide, bool normalize)
        : state(K * wide), keys(normalize ? K : 0), size(K * wide), key_size(normalize ? K : 0) {}
    void copy(const Sum& other) {
        zero = other.zero;
        if (zero) return;
        std::copy_n(+other.state, size, +state);
        std::copy_n(+other.keys, key_size, +keys);
    }
    void clear() {
        std::fill_n(+state, size, 0.0);
        std::fill_n(+keys, key_size, 0.0);
        zero = false;
    }
};

// The state of one head: in double, as it was some chunks ago; what the chunks since then have added; and the sum of
// both, rounded, from which tokens read. So that roundings do not add up, and are not made in double every chunk.
//
// And what a segment of its tokens has added to it, for those who must know: so that a sequence gives the same bits
// whether its segments are worked on one after the other or side by side.
template <class F>
struct State {
    Sum whole, part;
    Buffer<F> narrow, narrow_keys;
    Buffer<F> recent, recent_keys;
    Buffer<double> left, recent_left;      // what is left of the state of the segment's beginning, and of `whole`,
    double log_left = 0, log_recent = 0;   // per row or column, or of all of it
    bool empty = true, up_to_date = true;  // `narrow` is 0 and unwritten; `recent` is
    Decay decay;

    // Without `remembers`, for tokens that read only each other.
    State(const Work<F>& w, bool normalize, bool segments, bool remembers)
        : whole(remembers ? w.K : 0, w.wide, normalize && remembers),
          part(segments ? w.K : 0, w.wide, segments && normalize),
          narrow(whole.size),
          narrow_keys(whole.key_size),
          recent(whole.size),
          recent_keys(whole.key_size),
          left(segments ? w.D : 0),
          recent_left(w.D),
          decay(w.decay) {
        std::fill_n(+recent_left, w.D, 1.0);
    }

    void round() {
        empty = whole.zero;
        if (empty) return;
        for (int64_t i = 0; i < whole.size; ++i) narrow[i] = F(whole.state[i]);
        for (int64_t i = 0; i < whole.key_size; ++i) narrow_keys[i] = F(whole.keys[i]);
    }

    // What tokens read decays, by a factor per row or column.
    void scale(const Work<F>& w, const F* by) {
        if (empty) return;
        each_panel<F>(w.K, w.wide, [&](int64_t column, int64_t columns, int64_t place) {
            for (int64_t i = 0; i < w.K; ++i, place += columns)
                for (int64_t j = 0; j < columns; ++j) narrow[place + j] *= by[decay == Decay::rows ? i : column + j];
        });
        for (int64_t i = 0; i < whole.key_size; ++i) narrow_keys[i] *= by[i];
    }

    // Adds what is recent to `whole`, or `part`, or both.
    void settle(const Work<F>& w, bool to_whole, bool to_part) {
        if (up_to_date) return;
        if (to_whole) settle<true>(w, whole);
        if (to_part) settle<false>(w, part);
        log_left += log_recent;
        if (to_part)
            for (int64_t i = 0; i < w.D; ++i) left[i] *= recent_left[i];
        std::fill_n(+recent_left, w.D, 1.0);
        log_recent = 0;
        up_to_date = true;
    }

  private:
    template <bool Round>
    void settle(const Work<F>& w, Sum& sum) {
        if (sum.zero) sum.clear();
        const double keep = std::exp(log_recent);
        each_panel<F>(w.K, w.wide, [&](int64_t column, int64_t columns, int64_t place) {
            for (int64_t i = 0; i < w.K; ++i, place += columns) {
                double* to = sum.state + place;
                const F* from = recent + place;
                const double row = decay == Decay::rows ? recent_left[i] : keep;
                const double* own = recent_left + column;
                if (decay == Decay::columns) {
#pragma omp simd
                    for (int64_t j = 0; j < columns; ++j) to[j] = to[j] * own[j] + double(from[j]);
                } else {
#pragma omp simd
                    for (int64_t j = 0; j < columns; ++j) to[j] = to[j] * row + double(from[j]);
                }
                F* rounded = narrow + place;
                if constexpr (Round) {
#pragma omp simd
                    for (int64_t j = 0; j < columns; ++j) rounded[j] = F(to[j]);
                }
            }
        });
        for (int64_t i = 0; i < sum.key_size; ++i) {
            sum.keys[i] = sum.keys[i] * (decay == Decay::rows ? recent_left[i] : keep) + double(recent_keys[i]);
            if (Round) narrow_keys[i] = F(sum.keys[i]);
        }
    }
};

}  // namespace pyfast::linear_attention
