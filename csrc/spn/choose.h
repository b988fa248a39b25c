// Choices among the children of a sum, whose shares are known up to a common factor.
#pragma once

#include <algorithm>
#include <utility>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "spn/laws.h"
#include "tiles.h"

namespace pyfast::spn {

template <class F>
inline double total_of(const F* share, int64_t n) {
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += double(share[j]);
    return sum;
}

// How many lanes are at most `left`.
#if defined(__AVX512F__)
inline int count_up_to(const Vector<float>& x, float left) {
    return __builtin_popcount(_mm512_cmp_ps_mask(__m512(x), _mm512_set1_ps(left), _CMP_LE_OQ));
}
inline int count_up_to(const Vector<double>& x, double left) {
    return __builtin_popcount(_mm512_cmp_pd_mask(__m512d(x), _mm512_set1_pd(left), _CMP_LE_OQ));
}
#elif defined(__AVX2__)
inline int count_up_to(const Vector<float>& x, float left) {
    return __builtin_popcount(_mm256_movemask_ps(_mm256_cmp_ps(__m256(x), _mm256_set1_ps(left), _CMP_LE_OQ)));
}
inline int count_up_to(const Vector<double>& x, double left) {
    return __builtin_popcount(_mm256_movemask_pd(_mm256_cmp_pd(__m256d(x), _mm256_set1_pd(left), _CMP_LE_OQ)));
}
#else
template <class F>
inline int count_up_to(const Vector<F>& x, F left) {
    int count = 0;
    for (int i = 0; i < lanes<F>; ++i) count += x[i] <= left;
    return count;
}
#endif

// Each lane the sum of itself and of those before it.
template <class F, int step = 1>
[[gnu::always_inline]] inline Vector<F> running(const Vector<F>& x) {
    constexpr int n = lanes<F>;
#if defined(__AVX2__) && !defined(__AVX512F__)
    // within halves, where shuffles are cheap; then what the low half comes to is added to the high one
    if constexpr (sizeof(F) == 4) {
        __m256 sum = __m256(x);
        sum += _mm256_castsi256_ps(_mm256_slli_si256(_mm256_castps_si256(sum), 4));
        sum += _mm256_castsi256_ps(_mm256_slli_si256(_mm256_castps_si256(sum), 8));
        const __m256 low = _mm256_permute2f128_ps(sum, sum, 0x08);
        return Vector<F>(sum + _mm256_shuffle_ps(low, low, 0xff));
    } else {
        __m256d sum = __m256d(x);
        sum += _mm256_castsi256_pd(_mm256_slli_si256(_mm256_castpd_si256(sum), 8));
        const __m256d low = _mm256_permute2f128_pd(sum, sum, 0x08);
        return Vector<F>(sum + _mm256_shuffle_pd(low, low, 0xf));
    }
#else
    if constexpr (step == n) {
        return x;
    } else {
        const auto shifted = [&]<size_t... i>(std::index_sequence<i...>) {
            return __builtin_shufflevector(x, Vector<F>{}, (int(i) < step ? n + int(i) : int(i) - step)...);
        }(std::make_index_sequence<n>());
        return running<F, step * 2>(x + shifted);
    }
#endif
}

// The first of n indices at which the sum of shares exceeds u times the whole, 0 <= u < 1; never one whose share is 0,
// but where all are. vector(v) is the v-th vector of shares, share(i) a single one.
//
// Whole vectors are searched without a branch, as none could be foretold: sums of groups of vectors, then the group
// that it falls into. What is left over goes one by one.
template <class F, class At, class One>
[[gnu::always_inline]] inline int choose(At vector, One share, int64_t n, double u) {
    constexpr int most = 16, wide = lanes<F>;
    const int64_t whole = n / wide;
    Vector<F> before[most];
    F ends[most + 1] = {}, total = 0;  // of groups: the sum before it
    int groups = 0;
    int64_t size = 1;  // vectors in a group
    while (size * most < whole) size *= 2;
    if (size == 1) {
        for (; groups < whole; ++groups) before[groups] = running<F>(vector(groups));
    } else {
        for (int64_t first = 0; first < whole; first += size) {
            Vector<F> sum = vector(first);
            for (int64_t v = first + 1; v < std::min(first + size, whole); ++v) sum += vector(v);
            before[groups++] = running<F>(sum);
        }
    }
    for (int g = 0; g < groups; ++g) ends[g + 1] = total += before[g][wide - 1];
    F tail = 0;
    for (int64_t i = whole * wide; i < n; ++i) tail += share(i);
    const F want = F(u * (double(total) + double(tail)));
    int group = 0;
    for (int g = 1; g <= groups; ++g) group += ends[g] <= want;
    F left = want - ends[group];
    int64_t j = whole * wide;
    if (group < groups) {
        int64_t v = group * size;
        Vector<F> sums = size == 1 ? before[group] : running<F>(vector(v));
        for (const int64_t last = std::min(v + size, whole) - 1; v < last && sums[wide - 1] <= left; ++v) {
            left -= sums[wide - 1];
            sums = running<F>(vector(v + 1));
        }
        j = v * wide + count_up_to(sums, left);
    } else {
        for (; j < n && !(left < share(j)); ++j) left -= share(j);
    }
    j = std::min(j, n - 1);
    if (share(j) > 0) return int(j);
    // rounding has left something over, or has made a sum of nothing: the nearest before, else after
    for (int64_t i = j; i-- > 0;)
        if (share(i) > 0) return int(i);
    for (int64_t i = j + 1; i < n; ++i)
        if (share(i) > 0) return int(i);
    return 0;
}

template <class F>
inline int choose(const F* share, int64_t n, double u) {
    return choose<F>([&](int64_t v) { return at(share + v * lanes<F>); }, [&](int64_t i) { return share[i]; }, n, u);
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
