// Densities that users write, compiled to functions that are known here by their addresses.
//
// A leaf with such a density follows one of several candidates, which differ in their parameters. The leaf's numbers
// are the log probability of each: 0 for the one that was drawn, or shares of all. Its statistics are how many values
// it saw and, in quanta, the sums of what the user's function says of each.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace pyfast::spn {

struct Own {
    static constexpr int most = 8;  // statistics

    void (*statistics_of)(double x, double* statistics) = nullptr;
    double (*log_density)(double n, const double* statistics, const double* parameters) = nullptr;
    double (*quantile)(double u, const double* parameters) = nullptr;  // may be missing
    int64_t size = 0, candidates = 0, each = 0;                        // statistics; candidates; parameters of one
    const double *quanta = nullptr, *parameters = nullptr;             // (size), (candidates, each)

    int64_t in_quanta(double statistic, int64_t j) const { return std::llrint(statistic * quanta[j]); }

    // What leaves remember of x.
    void statistics(double x, double* out) const {
        statistics_of(x, out);
        for (int64_t j = 0; j < size; ++j) out[j] = double(in_quanta(out[j], j)) / quanta[j];
    }

    // Whether leaves can count x.
    bool fits(double x, bool counted) const {
        double s[most];
        if (!statistics_of || !std::isfinite(x)) return std::isfinite(x);
        statistics_of(x, s);
        for (int64_t j = 0; j < size; ++j)
            if (!(std::abs(s[j]) < 1e300) || (counted && !(std::abs(s[j]) * quanta[j] < 1073741824.0))) return false;
        return true;
    }

    void observe(int64_t* counts, double x, int64_t times) const {
        double s[most];
        statistics_of(x, s);
        counts[0] += times;
        for (int64_t j = 0; j < size; ++j) counts[1 + j] += times * in_quanta(s[j], j);
    }

    // log of the sum over candidates of exp(log share) times the density of n values with these statistics; on the way
    // each(candidate, log of its part)
    template <class Real, class Each>
    double mixed(const Real* log_share, double n, const double* s, Each each_part) const {
        double top = -INFINITY, total = 0;
        for (int64_t m = 0; m < candidates; ++m) {
            if (!(double(log_share[m]) > -1e30)) continue;
            const double part = double(log_share[m]) + log_density(n, s, parameters + m * each);
            if (!(part > -INFINITY)) continue;
            each_part(m, part);
            if (part > top) {
                total = total * std::exp(top - part) + 1;
                top = part;
            } else
                total += std::exp(part - top);
        }
        return total > 0 ? top + std::log(total) : -INFINITY;
    }
    template <class Real>
    double mixed(const Real* log_share, const double* s) const {
        return mixed(log_share, 1, s, [](int64_t, double) {});
    }
    template <class Real>
    double log_value(const Real* log_share, double x) const {
        double s[most];
        statistics(x, s);
        return mixed(log_share, s);
    }

    // The log of the evidence of what a leaf has seen.
    double sums(const int64_t* counts, double* s) const {
        for (int64_t j = 0; j < size; ++j) s[j] = double(counts[1 + j]) / quanta[j];
        return double(counts[0]);
    }
    double log_evidence(const double* prior, const int64_t* counts) const {
        double s[most];
        const double n = sums(counts, s);
        return mixed(prior, n, s, [](int64_t, double) {});
    }
    double log_predictive(const double* prior, const int64_t* counts, double x) const {
        double seen[most], s[most];
        const double n = sums(counts, seen), before = mixed(prior, n, seen, [](int64_t, double) {});
        statistics(x, s);
        for (int64_t j = 0; j < size; ++j) s[j] += seen[j];
        return mixed(prior, n + 1, s, [](int64_t, double) {}) - before;
    }

    // out = log probability of each candidate given what a leaf has seen
    template <class Real>
    void posterior(const double* prior, const int64_t* counts, Real* out) const {
        double s[most];
        const double n = sums(counts, s);
        for (int64_t m = 0; m < candidates; ++m) out[m] = Real(-INFINITY);
        const double all = mixed(prior, n, s, [](int64_t, double) {});
        mixed(prior, n, s, [&](int64_t m, double part) { out[m] = Real(part - all); });
    }

    // out = how the log of the leaf's value at x changes with each number
    template <class Real>
    void derivatives(const Real* log_share, double x, double* out) const {
        double s[most];
        statistics(x, s);
        for (int64_t m = 0; m < candidates; ++m) out[m] = 0;
        const double all = mixed(log_share, s);
        if (all > -INFINITY) mixed(log_share, 1, s, [&](int64_t m, double part) { out[m] = std::exp(part - all); });
    }

    // The first candidate at which the sum of shares exceeds u times the whole.
    template <class Real>
    int64_t choose(const Real* log_share, double u) const {
        double top = -INFINITY, total = 0;
        for (int64_t m = 0; m < candidates; ++m) top = std::max(top, double(log_share[m]));
        for (int64_t m = 0; m < candidates; ++m) total += std::exp(double(log_share[m]) - top);
        double left = u * total;
        int64_t last = 0;
        for (int64_t m = 0; m < candidates; ++m) {
            const double share = std::exp(double(log_share[m]) - top);
            if (!(share > 0)) continue;
            if (left < share) return m;
            left -= share;
            last = m;
        }
        return last;  // what rounding has left over
    }
};

}  // namespace pyfast::spn
