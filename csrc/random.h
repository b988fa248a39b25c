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

// The four words of N indices, side by side in the lanes of vectors.
template <int N>
inline void words(uint64_t seed, uint64_t what, const uint64_t* index, uint32_t (&c)[4][N]) {
    for (int i = 0; i < N; ++i)
        c[0][i] = uint32_t(index[i]), c[1][i] = uint32_t(index[i] >> 32), c[2][i] = uint32_t(what),
        c[3][i] = uint32_t(what >> 32);
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; ++round) {
#pragma omp simd
        for (int i = 0; i < N; ++i) {
            const uint64_t a = uint64_t(0xD2511F53) * c[0][i], b = uint64_t(0xCD9E8D57) * c[2][i];
            c[0][i] = uint32_t(b >> 32) ^ c[1][i] ^ k0, c[1][i] = uint32_t(b);
            c[2][i] = uint32_t(a >> 32) ^ c[3][i] ^ k1, c[3][i] = uint32_t(a);
        }
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
}

// The doubles in [0, 1) of their first two words.
template <int N>
inline void uniforms(uint64_t seed, uint64_t what, const uint64_t* index, double* out) {
    uint32_t c[4][N];
    words<N>(seed, what, index, c);
    for (int i = 0; i < N; ++i) out[i] = uniform(c[0][i], c[1][i]);
}

}  // namespace pyfast::random
