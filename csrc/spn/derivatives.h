// Derivatives of a leaf's log density in its parameters.
#pragma once

#include <limits>

#include "spn/leaves.h"

namespace pyfast::spn {

// d log Gamma(x) / dx for x > 0: recurrence up to 10, then the asymptotic series, whose error is below 1e-16 there.
inline double digamma(double x) {
    if (!(x > 0)) return std::numeric_limits<double>::quiet_NaN();
    double below = 0;
    for (; x < 10; ++x) below += 1 / x;
    const double u = 1 / (x * x);
    const double series =
        u * (1.0 / 12 -
             u * (1.0 / 120 - u * (1.0 / 252 - u * (1.0 / 240 - u * (1.0 / 132 - u * (691.0 / 32760 - u / 12))))));
    return std::log(x) - 0.5 / x - series - below;
}

// Of a family that is no table, in all four numbers; x is not missing. See log_density.
template <class F>
inline void derivatives(uint8_t family, const F* parameters, F value, double* out) {
    const double x = double(value), c1 = double(parameters[1]), c2 = double(parameters[2]);
    const double away = x - double(parameters[3]), square = away * away;
    out[0] = 1;
    out[3] = 0;
    switch (family) {
        case student:
            out[1] = std::log1p(c2 * square);
            out[2] = c1 * square / (1 + c2 * square);
            out[3] = -2 * c1 * c2 * away / (1 + c2 * square);
            return;
        case negative_binomial:
            out[1] = digamma(x + c1);
            out[2] = x;
            return;
        case lomax:
            out[1] = std::log1p(c2 * x);
            out[2] = c1 * x / (1 + c2 * x);
            return;
        default:
            out[1] = x;
            out[2] = square;
            out[3] = -2 * c2 * away;
    }
}

}  // namespace pyfast::spn
