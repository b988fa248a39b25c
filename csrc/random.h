// Counter-based random numbers: Philox-4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011.
//
// A number is a function of (seed, what, index) alone: which chain, what it is for, which element. No state, no order,
// no thread. With what = 0 these are Triton's tl.randint4x(seed, index) and tl.rand(seed, index); otherwise
// tl.philox(seed, index, index >> 32, what, what >> 32) in 32-bit words. Reference: pyfast/reference/random.py.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace pyfast::random {

using Words = std::array<uint32_t, 4>;

inline Words philox(uint64_t key, Words c) {
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t(0xD2511F53) * c[0], b = uint64_t(0xCD9E8D57) * c[2];
        c = {uint32_t(b >> 32) ^ c[1] ^ k0, uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ k1, uint32_t(a)};
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return c;
}

// Four independent words of 32 random bits.
inline Words bits(uint64_t seed, uint64_t what, uint64_t index) {
    return philox(seed, {uint32_t(index), uint32_t(index >> 32), uint32_t(what), uint32_t(what >> 32)});
}

// A word as a float in [0, 1), in steps of 2^-31, as Triton rounds it.
inline float uniform(uint32_t word) {
    const int32_t x = std::bit_cast<int32_t>(word);
    return float(x < 0 ? ~x : x) * 4.6566127342e-10f;
}

// Two words as a double in [0, 1), in steps of 2^-53.
inline double uniform(uint32_t high, uint32_t low) {
    return double((uint64_t(high) << 32 | low) >> 11) * 0x1p-53;
}

// Four words of as many blocks as a vector has lanes, in the lower halves of lanes of 64 bits. The upper halves hold
// anything until the end: no multiplication reads them.
#if defined(__AVX512F__)
using Lanes = uint64_t __attribute__((vector_size(64)));
inline Lanes product(Lanes a, uint32_t b) {
    return Lanes(_mm512_maskz_mul_epu32(0xff, __m512i(a), _mm512_set1_epi64(b)));
}
#elif defined(__AVX2__)
using Lanes = uint64_t __attribute__((vector_size(32)));
inline Lanes product(Lanes a, uint32_t b) {
    return Lanes(_mm256_mul_epu32(__m256i(a), _mm256_set1_epi64x(b)));
}
#elif defined(__SSE2__)
using Lanes = uint64_t __attribute__((vector_size(16)));
inline Lanes product(Lanes a, uint32_t b) {
    return Lanes(_mm_mul_epu32(__m128i(a), _mm_set1_epi64x(b)));
}
#else
using Lanes = uint64_t __attribute__((vector_size(16)));
inline Lanes product(Lanes a, uint32_t b) {
    return (a & 0xffffffff) * b;
}
#endif

// The four words of N indices, side by side.
template <int N>
inline void words(uint64_t seed, uint64_t what, const uint64_t* index, uint64_t (&out)[4][N]) {
    constexpr int wide = sizeof(Lanes) / sizeof(uint64_t), vectors = N / wide;
    static_assert(N % wide == 0);
    Lanes c[4][vectors];
    std::memcpy(c[0], index, sizeof(c[0]));
    for (int v = 0; v < vectors; ++v) c[1][v] = c[0][v] >> 32, c[2][v] = what - Lanes{}, c[3][v] = c[2][v] >> 32;
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        for (int v = 0; v < vectors; ++v) {
            const Lanes a = product(c[0][v], 0xD2511F53), b = product(c[2][v], 0xCD9E8D57);
            c[0][v] = (b >> 32) ^ c[1][v] ^ k0, c[1][v] = b;
            c[2][v] = (a >> 32) ^ c[3][v] ^ k1, c[3][v] = a;
        }
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    for (auto& word : c)
        for (Lanes& x : word) x &= 0xffffffff;
    std::memcpy(out, c, sizeof(out));
}

// As uniform(high, low), without the conversion of 64-bit integers that AVX-512 alone has for vectors: the upper bits
// become a multiple of 2^32 beside 2^84, the lower ones a number beside 2^52, and both are taken off again.
inline double uniform_of(uint64_t high, uint64_t low) {
    const uint64_t k = (high << 32 | low) >> 11;
    const double upper = std::bit_cast<double>(k >> 32 | 0x4530000000000000) - 0x1.00000001p84;
    return (upper + std::bit_cast<double>((k & 0xffffffff) | 0x4330000000000000)) * 0x1p-53;
}

// The doubles in [0, 1) of their first two words.
template <int N>
inline void uniforms(uint64_t seed, uint64_t what, const uint64_t* index, double* out) {
    uint64_t c[4][N];
    words<N>(seed, what, index, c);
#pragma omp simd
    for (int i = 0; i < N; ++i) out[i] = uniform_of(c[0][i], c[1][i]);
}

}  // namespace pyfast::random
