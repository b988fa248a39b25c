// Draws from distributions, each from a stream of random words of its own.
#pragma once

#include <cmath>
#include <cstdint>

#include "random.h"

namespace pyfast::spn {

// Random words without end for one draw that may need many: a key derived from (seed, what, index), then a counter.
class Stream {
  public:
    Stream(uint64_t seed, uint64_t what, uint64_t index) {
        const random::Words w = random::bits(seed, what, index);
        key_ = uint64_t(w[1]) << 32 | w[0];
        what_ = uint64_t(w[3]) << 32 | w[2];
    }
    random::Words words() { return random::bits(key_, what_, next_++); }
    double uniform() {  // [0, 1)
        const random::Words w = words();
        return random::uniform(w[0], w[1]);
    }

  private:
    uint64_t key_, what_, next_ = 0;
};

inline double log_factorial(double n) {
    int sign;
    return ::lgamma_r(n + 1, &sign);
}

// Binomial(n, p). Few successes expected: inversion, counting up from 0. Many: BTRS of Hoermann, "The generation of
// binomial random variates", 1993.
inline int64_t binomial(int64_t n, double p, Stream& stream) {
    if (!(p > 0) || n <= 0) return 0;
    if (p >= 1) return n;
    if (p > 0.5) return n - binomial(n, 1 - p, stream);
    const double q = 1 - p;
    if (double(n) * p < 10) {
        const double odds = p / q, a = (double(n) + 1) * odds;
        for (;;) {
            double left = stream.uniform(), term = std::exp(double(n) * std::log1p(-p));
            for (int64_t x = 0; x <= n && x < 1000; ++x) {
                if (left < term) return x;
                left -= term;
                term *= a / double(x + 1) - odds;
            }  // what rounding has left beyond the last term: again
        }
    }
    const double spread = std::sqrt(double(n) * p * q), b = 1.15 + 2.53 * spread, a = -0.0873 + 0.0248 * b + 0.01 * p;
    const double center = double(n) * p + 0.5, alpha = (2.83 + 5.1 / b) * spread, squeeze = 0.92 - 4.2 / b;
    const double mode = std::floor((double(n) + 1) * p), log_odds = std::log(p / q);
    const double peak = log_factorial(mode) + log_factorial(double(n) - mode);
    for (;;) {
        const random::Words w = stream.words();
        const double u = random::uniform(w[0], w[1]) - 0.5, v = random::uniform(w[2], w[3]);
        const double us = 0.5 - std::abs(u), k = std::floor((2 * a / us + b) * u + center);
        if (!(k >= 0 && k <= double(n))) continue;
        if (us >= 0.07 && v <= squeeze) return int64_t(k);
        const double density = peak - log_factorial(k) - log_factorial(double(n) - k) + (k - mode) * log_odds;
        if (std::log(v * alpha / (a / (us * us) + b)) <= density) return int64_t(k);
    }
}

inline double normal(Stream& stream) {  // Box and Muller; the radius to 53 bits
    const random::Words w = stream.words();
    const double radius = std::sqrt(-2 * std::log(1 - random::uniform(w[0], w[1])));
    return radius * std::cos(6.283185307179586477 * random::uniform(w[2], w[3]));
}

// log of a Gamma(shape, 1). Marsaglia and Tsang, "A simple method for generating gamma variables", 2000; below 1 by
// G(a) = G(a + 1) U^(1 / a), in logarithms, as a small shape's draw is smaller than any float.
inline double log_gamma_draw(double shape, Stream& stream) {
    if (shape < 1) return log_gamma_draw(shape + 1, stream) + std::log1p(-stream.uniform()) / shape;
    const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
    for (;;) {
        const double x = normal(stream), t = 1 + c * x;
        if (!(t > 0)) continue;
        const double v = t * t * t, u = 1 - stream.uniform();
        if (std::log(u) < 0.5 * x * x + d - d * v + d * std::log(v)) return std::log(d) + std::log(v);
    }
}

}  // namespace pyfast::spn
