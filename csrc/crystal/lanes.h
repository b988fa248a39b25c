// Four squared lengths at a time, and what passes of them moved together.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __SSSE3__
#include <immintrin.h>
#endif

namespace pyfast::crystal {

using Double4 = double __attribute__((vector_size(32)));
using Float8 = float __attribute__((vector_size(32)));
using Mask4 = decltype(Double4{} < Double4{});
using Int4 = int32_t __attribute__((vector_size(16)));
using Int8 = int32_t __attribute__((vector_size(32)));

inline Double4 all4(double x) {
    return Double4{x, x, x, x};
}
inline Float8 all8(float x) {
    return Float8{} + x;
}
inline Int8 all8(int32_t x) {
    return Int8{} + x;
}
inline constexpr Int8 ramp8 = {0, 1, 2, 3, 4, 5, 6, 7};

template <class V>
V load_lanes(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class V>
void store_lanes(void* p, V v) {
    std::memcpy(p, &v, sizeof v);
}

inline Double4 root(Double4 v) {
#ifdef __AVX2__
    return std::bit_cast<Double4>(_mm256_sqrt_pd(std::bit_cast<__m256d>(v)));
#else
    for (int i = 0; i < 4; ++i) v[i] = std::sqrt(v[i]);
    return v;
#endif
}

// One bit a lane of what a comparison gave.
inline unsigned bits(Mask4 mask) {
#ifdef __AVX2__
    return unsigned(_mm256_movemask_pd(std::bit_cast<__m256d>(mask)));
#else
    unsigned found = 0;
    for (int i = 0; i < 4; ++i) found |= unsigned(mask[i] & 1) << i;
    return found;
#endif
}
inline unsigned bits(decltype(Float8{} < Float8{}) mask) {
#ifdef __AVX2__
    return unsigned(_mm256_movemask_ps(std::bit_cast<__m256>(mask)));
#else
    unsigned found = 0;
    for (int i = 0; i < 8; ++i) found |= unsigned(mask[i] & 1) << i;
    return found;
#endif
}

// Row m: the lanes whose bits are set in m, first, then anything.
template <int Lanes>
constexpr auto make_order() {
    std::array<std::array<uint8_t, Lanes>, 1 << Lanes> rows{};
    for (int m = 0; m < 1 << Lanes; ++m)
        for (int i = 0, n = 0; i < Lanes; ++i)
            if (m >> i & 1) rows[m][n++] = uint8_t(i);
    return rows;
}
template <int Lanes>
inline constexpr auto order_of = make_order<Lanes>();

// Stores the lanes whose bits are set side by side at p, which must have room for all.
inline void compress(double* p, Double4 v, unsigned mask) {
#ifdef __AVX2__
    static constexpr auto halves = [] {  // of doubles, as a permutation of 32-bit lanes
        std::array<std::array<uint8_t, 8>, 16> rows{};
        for (int m = 0; m < 16; ++m)
            for (int i = 0; i < 8; ++i) rows[m][i] = uint8_t(2 * order_of<4>[m][i / 2] + i % 2);
        return rows;
    }();
    const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&halves[mask])));
    store_lanes(p, _mm256_permutevar8x32_epi32(std::bit_cast<__m256i>(v), order));
#else
    for (int i = 0; i < 4; ++i) p[i] = v[order_of<4>[mask][i]];
#endif
}
inline void compress(int32_t* p, Int4 v, unsigned mask) {
#ifdef __SSSE3__
    static constexpr auto places = [] {  // of bytes
        std::array<std::array<uint8_t, 16>, 16> rows{};
        for (int m = 0; m < 16; ++m)
            for (int i = 0; i < 16; ++i) rows[m][i] = uint8_t(4 * order_of<4>[m][i / 4] + i % 4);
        return rows;
    }();
    store_lanes(p, _mm_shuffle_epi8(std::bit_cast<__m128i>(v), load_lanes<__m128i>(&places[mask])));
#else
    for (int i = 0; i < 4; ++i) p[i] = v[order_of<4>[mask][i]];
#endif
}
inline void compress(int32_t* p, Int8 v, unsigned mask) {
#ifdef __AVX2__
    const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&order_of<8>[mask])));
    store_lanes(p, _mm256_permutevar8x32_epi32(std::bit_cast<__m256i>(v), order));
#else
    for (int i = 0; i < 8; ++i) p[i] = v[order_of<8>[mask][i]];
#endif
}

}  // namespace pyfast::crystal
