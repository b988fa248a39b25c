// Choices among the children of a sum, whose shares are known up to a common factor.
#pragma once

#include "spn/laws.h"
#include "tiles.h"

namespace pyfast::spn {

template <class F>
inline double total_of(const F* share, int64_t n) {
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += double(share[j]);
    return sum;
}

// The first index at which the sum of shares exceeds u times the whole, 0 <= u < 1; never one whose share is 0, but
// where all are. Sums of groups first, then the group that it falls into.
template <class F>
inline int choose(const F* share, int64_t n, double u) {
    constexpr int most = 128, wide = lanes<F>;
    double sums[most];
    int64_t size = 2 * wide;
    while (size * most < n) size *= 2;
    double total = 0;
    int groups = 0;
    int64_t j = 0;
    for (; j + size <= n; j += size) {
        Vector<F> sum = at(share + j) + at(share + j + wide);
        for (int64_t i = 2 * wide; i < size; i += wide) sum += at(share + j + i);
        F half[wide / 2];
        for (int i = 0; i < wide / 2; ++i) half[i] = sum[i] + sum[i + wide / 2];
        for (int step = wide / 4; step > 0; step /= 2)
            for (int i = 0; i < step; ++i) half[i] += half[i + step];
        total += sums[groups++] = double(half[0]);
    }
    double tail = 0;
    for (int64_t i = j; i < n; ++i) tail += double(share[i]);
    double left = u * (total + tail);
    int64_t first = 0;
    for (int g = 0; g < groups && left >= sums[g]; ++g, first += size) left -= sums[g];
    int64_t last = -1;
    for (j = first; j < n; ++j) {
        const double here = double(share[j]);
        if (here > 0) last = j;
        if (left < here) return int(j);
        left -= here;
    }
    if (last >= 0) return int(last);  // what rounding has left over goes to the last
    for (j = n - 1; j > 0 && !(share[j] > 0);) --j;
    return int(j);
}

// Sends each of `times` equal rows to a child of its own: by choices, or by binomials that make a multinomial. Calls
// send(j, how many).
template <class F, class Send>
inline void share_out(const F* share, int64_t n, int64_t times, uint64_t seed, uint64_t what, uint64_t index,
                      Send send) {
    if (times == 1) {
        const random::Words w = random::bits(seed, what, index);
        return send(choose(share, n, random::uniform(w[0], w[1])), 1);
    }
    Stream stream(seed, what, index);
    if (times <= n / 2) {  // fewer choices than binomials
        for (int64_t i = 0; i < times; ++i) send(choose(share, n, stream.uniform()), 1);
        return;
    }
    double rest = total_of(share, n);
    int64_t last = 0;
    for (int64_t j = 0; j < n; ++j)
        if (share[j] > 0) last = j;
    for (int64_t j = 0; j <= last && times > 0; ++j) {
        const double here = double(share[j]);
        if (!(here > 0)) continue;
        // what rounding leaves over when the shares are used up goes to the last
        const int64_t count = j == last ? times : binomial(times, std::min(here / rest, 1.0), stream);
        rest -= here;
        times -= count;
        if (count) send(j, count);
    }
}

}  // namespace pyfast::spn
