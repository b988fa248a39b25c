// What a leaf says of a value: its log density, and the statistics that its posterior needs.
#pragma once

#include "spn/graph.h"

namespace pyfast::spn {

// log f(x), less what all leaves of the column share; 0 where x is missing. For a family with parameters
// c0 + c1 x + c2 (x - m)^2, which loses no digits when a leaf is narrow and far from 0.
template <class Real>
inline Real log_density(uint8_t family, const Real* p, Real x) {
    if (x != x) return 0;
    if (family == table) return p[int64_t(x)];
    const Real away = x - p[3];
    int sign;
    switch (family) {
        case student:
            return p[0] + p[1] * std::log1p(p[2] * away * away);
        case negative_binomial:
            return Real(double(p[0]) + ::lgamma_r(double(x) + double(p[1]), &sign) + double(p[2]) * double(x));
        case lomax:
            return p[0] + p[1] * std::log1p(p[2] * x);
        default:
            return p[0] + p[1] * x + p[2] * away * away;
    }
}

// Of leaf parameters p of a column.
template <class Real>
inline Real log_density(const Graph& g, int64_t v, const Real* p, Real x) {
    if (g.family[v] == own) [[unlikely]]
        return x == x ? Real(g.owns[v].log_value(p, double(x))) : Real(0);
    return log_density(g.family[v], p, x);
}

// Adds `times` observations of x to a leaf's statistics, all of them integers, so that no order shows in the sum:
// a table's counts; otherwise the number, the sum and the sum of squares (in two words) of x in quanta.
template <class Real>
inline void observe(uint8_t family, int64_t* statistics, Real x, double quantum, int64_t times) {
    if (x != x) return;
    if (family == table) {
        statistics[int64_t(x)] += times;
        return;
    }
    const int64_t q = std::llrint(double(x) * quantum), square = q * q, mask = (int64_t(1) << 30) - 1;
    statistics[0] += times;
    statistics[1] += times * q;
    statistics[2] += times * (square & mask);
    statistics[3] += times * (square >> 30);
}

template <class Real>
inline void observe(const Graph& g, int64_t v, int64_t* statistics, Real x, int64_t times) {
    if (g.family[v] == own) [[unlikely]] {
        if (x == x) g.owns[v].observe(statistics, double(x), times);
        return;
    }
    observe(g.family[v], statistics, x, g.quantum[v], times);
}

// The number, the sum and the sum of squares of what a leaf has observed.
struct Moments {
    double n, sum, squares;
    Moments(const int64_t* statistics, double quantum)
        : n(double(statistics[0])),
          sum(double(statistics[1]) / quantum),
          squares((double(statistics[3]) * 1073741824.0 + double(statistics[2])) / (quantum * quantum)) {}
};

}  // namespace pyfast::spn
