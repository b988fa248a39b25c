// Posterior predictives of the leaves that are no tables, from the integer statistics of leaves.h.
#pragma once

#include <algorithm>

#include "spn/leaves.h"

namespace pyfast::spn {

// log Gamma(a + x) - log Gamma(a) for a > 0, x >= 0, without the cancellation of two large logarithms
inline double log_rising(double a, double x) {
    double below = 1, above = 1;  // Gamma(a) = Gamma(a + i) / (a (a + 1) ... (a + i - 1))
    while (a < 10) {
        below *= a;
        above *= a + x;
        a += 1;
    }
    // Stirling's series, what it begins with in front: at 10 the next term is below 1e-15
    const auto series = [](double y) {
        const double z = 1 / (y * y);
        return (1.0 / 12 -
                z * (1.0 / 360 - z * (1.0 / 1260 - z * (1.0 / 1680 - z * (1.0 / 1188 - z * (691.0 / 360360)))))) /
               y;
    };
    return (a - 0.5) * std::log1p(x / a) + x * (std::log(a + x) - 1) + series(a + x) - series(a) +
           std::log(below / above);
}

// log p(x | what the leaf has observed), less what all leaves of the column share. prior: as the layout says.
inline double log_predictive(uint8_t family, const double* prior, const Moments& seen, double x) {
    const double n = seen.n;
    if (family == gaussian) {  // Student's t
        const double kappa = prior[1] + n, mean = (prior[1] * prior[0] + seen.sum) / kappa, a = prior[2] + n / 2;
        double b = prior[3];
        if (n > 0) {
            const double average = seen.sum / n, off = average - prior[0];
            b += 0.5 * std::max(0.0, seen.squares - seen.sum * average) + 0.5 * prior[1] * n * off * off / kappa;
        }
        const double spread = 2 * b * (kappa + 1) / kappa, off = x - mean;
        return log_rising(a, 0.5) - 0.5 * std::log(3.141592653589793 * spread) -
               (a + 0.5) * std::log1p(off * off / spread);
    }
    if (family == poisson) {  // negative binomial, times x!
        const double a = prior[0] + seen.sum, b = prior[1] + n;
        return log_rising(a, x) - a * std::log1p(1 / b) - x * std::log1p(b);
    }
    const double a = prior[0] + n, b = prior[1] + seen.sum;  // Lomax
    return std::log(a / (b + x)) - a * std::log1p(x / b);
}

}  // namespace pyfast::spn
