// Non-negative numbers far below double's smallest: products of a thousand likelihoods, without logarithms.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace pyfast::spn {

// m * 2^(256 e). Kept normal: m in [2^-256, 2^256], or zero. Numbers of one size mostly share their e.
struct Scaled {
    double m = 1;
    int32_t e = 0;

    static constexpr int32_t lowest = -(1 << 29);  // the e of zero, so that no other number is aligned to it

    Scaled() = default;
    Scaled(double mantissa, int32_t exponent) : m(mantissa), e(exponent) { normalise(); }
    explicit Scaled(double x) : m(x) { normalise(); }

    static Scaled from_log(double log) {
        const double bits = log * 1.4426950408889634;
        if (std::abs(bits) < 250) return {std::exp2(bits), 0};
        if (!(bits > -1e11)) return {bits != bits ? bits : 0.0, 0};
        if (bits > 1e11) return {INFINITY, 0};
        const double whole = std::nearbyint(bits / 256);
        return {std::exp2(bits - 256 * whole), int32_t(whole)};
    }

    void normalise() {
        if (m >= 0x1p-256 && m <= 0x1p256) [[likely]]
            return;
        rescale();
    }

    Scaled& operator*=(const Scaled& other) {
        m *= other.m;
        e = std::clamp(e + other.e, lowest, -lowest);
        normalise();
        return *this;
    }

    Scaled& operator*=(double factor) {
        m *= factor;
        normalise();
        return *this;
    }

    Scaled& operator+=(const Scaled& other) {
        if (e == other.e) {
            m += other.m;
        } else if (e > other.e) {
            m += shifted(other.m, other.e - e);
        } else {
            m = shifted(m, e - other.e) + other.m;
            e = other.e;
        }
        normalise();
        return *this;
    }

    double log() const { return std::log(m) + double(e) * 177.445678223346; }  // 256 log 2

    [[gnu::noinline, gnu::cold]] void rescale() {
        if (m == 0) e = lowest;
        for (; m > 0 && m < 0x1p-256; --e) m *= 0x1p256;
        for (; m > 0x1p256 && m < INFINITY; ++e) m *= 0x1p-256;
    }

    // m * 2^(256 steps), steps < 0. What is left out is below 2^-256 of what it is added to.
    static double shifted(double m, int32_t steps) {
        return steps == -1 ? m * 0x1p-256 : steps == -2 ? m * 0x1p-512 : 0;
    }
};

// a / b as a double, infinite or zero where it is out of range
inline double ratio(const Scaled& a, const Scaled& b) {
    if (a.e == b.e) return a.m / b.m;
    const int32_t steps = a.e - b.e;
    return a.m / b.m * (steps > 3 ? INFINITY : steps < -3 ? 0 : std::ldexp(1.0, 256 * steps));
}

}  // namespace pyfast::spn
