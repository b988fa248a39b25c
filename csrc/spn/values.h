// Draws of values from leaves.
#pragma once

#include "spn/laws.h"
#include "spn/leaves.h"

namespace pyfast::spn {

// Poisson(rate). Few expected: counting exponential arrivals by one product of uniforms at a time is slow, so by
// inversion; many: PTRS of Hoermann, "The transformed rejection method for generating Poisson random variables", 1993.
inline double poisson_draw(double rate, Stream& stream) {
    if (!(rate > 0)) return 0;
    if (rate < 10) {
        for (;;) {
            double left = stream.uniform(), term = std::exp(-rate);
            for (int x = 0; x < 1000; ++x) {
                if (left < term) return x;
                left -= term;
                term *= rate / (x + 1);
            }
        }
    }
    const double b = 0.931 + 2.53 * std::sqrt(rate), a = -0.059 + 0.02483 * b;
    const double inverse = 1.1239 + 1.1328 / (b - 3.4), squeeze = 0.9277 - 3.6224 / (b - 2);
    for (;;) {
        const random::Words w = stream.words();
        const double u = random::uniform(w[0], w[1]) - 0.5, v = random::uniform(w[2], w[3]);
        const double us = 0.5 - std::abs(u), k = std::floor((2 * a / us + b) * u + rate + 0.43);
        if (us >= 0.07 && v <= squeeze) return k;
        if (k < 0 || (us < 0.013 && v > us)) continue;
        if (std::log(v) + std::log(inverse) - std::log(a / (us * us) + b) <=
            k * std::log(rate) - rate - log_factorial(k))
            return k;
    }
}

// A value of a leaf that is no table.
template <class F>
double value_draw(uint8_t family, const F* p, Stream& stream) {
    switch (family) {
        case gaussian:
            return double(p[3]) + normal(stream) / std::sqrt(-2 * double(p[2]));
        case poisson:
            return poisson_draw(-double(p[0]), stream);
        case exponential:
            return -std::log1p(-stream.uniform()) / -double(p[1]);
        case student: {  // (x - m)^2 c2 = t^2 / dof with dof = -2 c1 - 1
            const double dof = -2 * double(p[1]) - 1, chi = 2 * std::exp(log_gamma_draw(0.5 * dof, stream));
            return double(p[3]) + normal(stream) / std::sqrt(chi * double(p[2]));
        }
        case negative_binomial: {  // a Poisson whose rate is Gamma(c1) times q / (1 - q), q = exp(c2)
            const double q = std::exp(double(p[2]));
            return poisson_draw(std::exp(log_gamma_draw(double(p[1]), stream)) * q / (1 - q), stream);
        }
        default: {  // Lomax: exponential, its rate Gamma(-c1 - 1) times c2
            const double rate = std::exp(log_gamma_draw(-double(p[1]) - 1, stream)) * double(p[2]);
            return -std::log1p(-stream.uniform()) / rate;
        }
    }
}

// A value of a leaf whose density is the user's own.
template <class F>
double value_draw(const Own& o, const F* log_share, Stream& stream) {
    const int64_t candidate = o.choose(log_share, stream.uniform());
    return o.quantile(stream.uniform(), o.parameters + candidate * o.each);
}

}  // namespace pyfast::spn
