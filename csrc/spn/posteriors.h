// What a leaf's statistics make of its prior: the posterior, the predictive, the evidence.
#pragma once

#include <algorithm>

#include "spn/leaves.h"

namespace pyfast::spn {

inline constexpr double log_two_pi = 1.83787706640934548356;

inline double log_gamma(double x) {
    int sign;
    return ::lgamma_r(x, &sign);
}

// Normal-inverse-gamma posterior of a Gaussian's mean and precision.
struct Normal {
    double m, kappa, a, b;
    Normal(const double* prior, const Moments& o) {
        const double mean = o.n > 0 ? o.sum / o.n : 0, spread = std::max(o.squares - o.sum * mean, 0.0);
        kappa = prior[1] + o.n;
        m = (prior[1] * prior[0] + o.sum) / kappa;
        a = prior[2] + 0.5 * o.n;
        b = prior[3] + 0.5 * spread + 0.5 * prior[1] * o.n * (mean - prior[0]) * (mean - prior[0]) / kappa;
    }
};

// Gamma posterior of a rate.
struct Rate {
    double a, b;
    Rate(uint8_t family, const double* prior, const Moments& o)
        : a(prior[0] + (family == poisson ? o.sum : o.n)), b(prior[1] + (family == poisson ? o.n : o.sum)) {}
};

// The parameters of a leaf's predictive, as leaves.h reads them.
template <class F>
inline void predict_leaf(uint8_t family, const double* prior, const int64_t* counts, int64_t width, double quantum,
                         F* out) {
    if (family == table) {
        double total = 0;
        for (int64_t c = 0; c < width; ++c) total += prior[c] + double(counts[c]);
        for (int64_t c = 0; c < width; ++c) out[c] = F(std::log((prior[c] + double(counts[c])) / total));
        return;
    }
    const Moments o(counts, quantum);
    double c0, c1, c2, m = 0;
    if (family == gaussian) {  // Student's t
        const Normal p(prior, o);
        const double dof = 2 * p.a, square = p.b * (1 + 1 / p.kappa) / p.a;
        c0 = log_gamma(0.5 * (dof + 1)) - log_gamma(0.5 * dof) - 0.5 * std::log(dof * square * 3.14159265358979323846);
        c1 = -0.5 * (dof + 1);
        c2 = 1 / (dof * square);
        m = p.m;
    } else {
        const Rate p(family, prior, o);
        if (family == poisson) {  // negative binomial
            c0 = p.a * (std::log(p.b) - std::log(p.b + 1)) - log_gamma(p.a);
            c1 = p.a;
            c2 = -std::log(p.b + 1);
        } else {  // Lomax
            c0 = std::log(p.a) - std::log(p.b);
            c1 = -(p.a + 1);
            c2 = 1 / p.b;
        }
    }
    out[0] = F(c0), out[1] = F(c1), out[2] = F(c2), out[3] = F(m);
}

// log of the probability of what a leaf has seen, its parameters integrated out
inline double log_evidence(uint8_t family, const double* prior, const int64_t* counts, int64_t width, double quantum) {
    if (family == table) {
        double mass = 0, n = 0, out = 0;
        for (int64_t c = 0; c < width; ++c) {
            mass += prior[c], n += double(counts[c]);
            if (counts[c]) out += log_gamma(prior[c] + double(counts[c])) - log_gamma(prior[c]);
        }
        return out + log_gamma(mass) - log_gamma(mass + n);
    }
    const Moments o(counts, quantum);
    if (o.n == 0) return 0;
    if (family == gaussian) {
        const Normal p(prior, o);
        return -0.5 * o.n * log_two_pi + 0.5 * std::log(prior[1] / p.kappa) + prior[2] * std::log(prior[3]) -
               p.a * std::log(p.b) + log_gamma(p.a) - log_gamma(prior[2]);
    }
    const Rate p(family, prior, o);
    return prior[0] * std::log(prior[1]) - p.a * std::log(p.b) + log_gamma(p.a) - log_gamma(prior[0]);
}

}  // namespace pyfast::spn
