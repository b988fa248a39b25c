// Gamma draws for many parameters at once, side by side in the lanes of vectors.
#pragma once

#include <numeric>
#include <vector>

#include "random.h"
#include "simd.h"

namespace pyfast::spn {

// cos(2 pi u), 0 <= u <= 1, as a sine by its Taylor series: within 1e-15
inline double cos_of_turn(double u) {
    const double a = 6.283185307179586477 * (std::abs(u - 0.5) - 0.25), z = a * a;
    double p = -1 / 121645100408832000.0;
    p = p * z + 1 / 355687428096000.0;
    p = p * z - 1 / 1307674368000.0;
    p = p * z + 1 / 6227020800.0;
    p = p * z - 1 / 39916800.0;
    p = p * z + 1 / 362880.0;
    p = p * z - 1 / 5040.0;
    p = p * z + 1 / 120.0;
    p = p * z - 1 / 6.0;
    return a + a * z * p;
}

// shape[i] becomes the logarithm of a Gamma(shape[i], 1), a function of (seed, what, name[i]) alone; names < 2^48.
//
// Marsaglia and Tsang, "A simple method for generating gamma variables", 2000; below 1 by G(a) = G(a + 1) U^(1 / a), in
// logarithms, as a small shape's draw is smaller than any float. What is refused tries again beside others' second
// attempts.
class Gammas {
  public:
    Gammas(uint64_t seed, uint64_t what) : seed_(seed), what_(what) {}

    void draw(double* shape, const uint64_t* name, int64_t n) {
        left_.resize(n);
        std::iota(left_.begin(), left_.end(), 0);
        for (uint64_t attempt = 1; n > 0; ++attempt) {
            int64_t refused = 0;
            for (int64_t first = 0; first < n; first += N) {
                const int64_t count = std::min<int64_t>(N, n - first);
                double a[N], out[N];
                uint64_t index[N];
                for (int i = 0; i < N; ++i) {  // the lanes beyond repeat the last
                    const int64_t here = left_[first + std::min<int64_t>(i, count - 1)];
                    a[i] = shape[here];
                    index[i] = name[here];
                }
                const uint32_t good = one_each(attempt, a, index, out);
                for (int64_t i = 0; i < count; ++i) {
                    const int64_t here = left_[first + i];
                    if (good >> i & 1)
                        shape[here] = out[i];
                    else
                        left_[refused++] = here;
                }
            }
            n = refused;
        }
    }

  private:
    static constexpr int N = 16;
    uint64_t seed_, what_;
    std::vector<int64_t> left_;

    static uint64_t below_one(double x) {  // 1 or 0, of a positive x
        return (std::bit_cast<uint64_t>(x) - std::bit_cast<uint64_t>(1.0)) >> 63;
    }
    static double pick(uint64_t yes, double a, double b) {
        return std::bit_cast<double>((std::bit_cast<uint64_t>(a) & -yes) | (std::bit_cast<uint64_t>(b) & (yes - 1)));
    }
    static double unit(uint64_t bits) {  // 52 of them, as a number in [0, 1)
        return std::bit_cast<double>(uint64_t(1023) << 52 | bits) - 1;
    }

    // Whether each lane's attempt succeeds, as bits, and with what.
    uint32_t one_each(uint64_t attempt, const double* shape, const uint64_t* name, double* out) const {
        uint64_t index[N];
        for (int i = 0; i < N; ++i) index[i] = attempt << 48 | name[i];
        uint64_t w[4][N];
        random::words<N>(seed_, what_, index, w);
        uint64_t good[N];
        uint64_t small = 0;
        for (int i = 0; i < N; ++i) small |= below_one(shape[i]);
#pragma omp simd
        for (int i = 0; i < N; ++i) {  // choices by bits, as GCC makes branches of comparisons below AVX-512
            // 52 bits for the radius, 32 for the angle, the other 44 for the acceptance
            const double x = std::sqrt(-2 * log_of_normal(1 - unit((w[0][i] << 32 | w[1][i]) >> 12))) *
                             cos_of_turn(unit(w[2][i] << 20));
            const double u = unit((w[3][i] << 12 | (w[1][i] & 0xfff)) << 8 | 128);
            const double d = shape[i] - 1.0 / 3 + pick(below_one(shape[i]), 1, 0), t = 1 + x / std::sqrt(9 * d);
            const uint64_t outside = std::bit_cast<uint64_t>(t) >> 63;
            const double log_v = 3 * log_of_normal(pick(outside, 1, t)), v = t * t * t;  // t = 0 is far from accepted
            const double above = log_of_normal(u) - (0.5 * x * x + d - d * v + d * log_v);
            good[i] = std::bit_cast<uint64_t>(above) >> 63 & ~outside;
            out[i] = log_of_normal(d) + log_v;
        }
        if (small) {
            for (int i = 0; i < N; ++i) index[i] = name[i];  // attempt 0
            random::words<N>(seed_, what_, index, w);
#pragma omp simd
            for (int i = 0; i < N; ++i) {
                const double u = 1 - unit((w[0][i] << 32 | w[1][i]) >> 12);
                out[i] += pick(below_one(shape[i]), log_of_normal(u) / shape[i], 0);
            }
        }
        uint32_t bits = 0;
        for (int i = 0; i < N; ++i) bits |= uint32_t(good[i]) << i;
        return bits;
    }
};

}  // namespace pyfast::spn
