// Which of 64 weights lie above two bounds: the inner step of every pass, written out for the vector units because
// compilers spend more on narrowing the comparisons to bits than on comparing.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "prune/keys.h"

namespace pyfast::prune {

struct Compared {
    uint64_t above_low, above_high;
    bool nan;  // whether some weight is NaN
};

#if defined(__AVX512BW__)

template <class Code>
struct Lanes {
    using V = __m512i;
    static constexpr int width = 64 / sizeof(Code), count = sizeof(Code);
    static V load(const Code* p) { return _mm512_loadu_si512(p); }
    static V all(Code x) {
        if constexpr (sizeof(Code) == 1) return _mm512_set1_epi8(x);
        if constexpr (sizeof(Code) == 2) return _mm512_set1_epi16(x);
        if constexpr (sizeof(Code) == 4) return _mm512_set1_epi32(x);
        if constexpr (sizeof(Code) == 8) return _mm512_set1_epi64(x);
    }
    static V less_one_magnitude(V v) { return _mm512_sub_epi8(_mm512_abs_epi8(v), _mm512_set1_epi8(1)); }
    static V both(V a, V b) { return _mm512_and_si512(a, b); }
    static uint64_t above(V v, V bound) {
        if constexpr (sizeof(Code) == 1) return _mm512_cmpgt_epi8_mask(v, bound);
        if constexpr (sizeof(Code) == 2) return _mm512_cmpgt_epi16_mask(v, bound);
        if constexpr (sizeof(Code) == 4) return _mm512_cmpgt_epi32_mask(v, bound);
        if constexpr (sizeof(Code) == 8) return _mm512_cmpgt_epi64_mask(v, bound);
    }
    static uint64_t above(const V* v, V bound) {
        uint64_t bits = 0;
        for (int i = 0; i < count; ++i) bits |= above(v[i], bound) << (i * width % 64);
        return bits;
    }
    static V zero_above(V v, V bound) {  // where v > bound: 0
        if constexpr (sizeof(Code) == 1) return _mm512_maskz_mov_epi8(_mm512_cmple_epi8_mask(v, bound), v);
        if constexpr (sizeof(Code) == 2) return _mm512_maskz_mov_epi16(_mm512_cmple_epi16_mask(v, bound), v);
        if constexpr (sizeof(Code) == 4) return _mm512_maskz_mov_epi32(_mm512_cmple_epi32_mask(v, bound), v);
        if constexpr (sizeof(Code) == 8) return _mm512_maskz_mov_epi64(_mm512_cmple_epi64_mask(v, bound), v);
    }
    static bool any_above(const V* v, V bound) {
        uint64_t bits = 0;
        for (int i = 0; i < count; ++i) bits |= above(v[i], bound);
        return bits != 0;
    }
};
#define PYFAST_LANES

#elif defined(__AVX2__)

template <class Code>
struct Lanes {
    using V = __m256i;
    static constexpr int width = 32 / sizeof(Code), count = 2 * sizeof(Code);
    static V load(const Code* p) { return _mm256_loadu_si256(reinterpret_cast<const V*>(p)); }
    static V all(Code x) {
        if constexpr (sizeof(Code) == 1) return _mm256_set1_epi8(x);
        if constexpr (sizeof(Code) == 2) return _mm256_set1_epi16(x);
        if constexpr (sizeof(Code) == 4) return _mm256_set1_epi32(x);
        if constexpr (sizeof(Code) == 8) return _mm256_set1_epi64x(x);
    }
    static V less_one_magnitude(V v) { return _mm256_sub_epi8(_mm256_abs_epi8(v), _mm256_set1_epi8(1)); }
    static V both(V a, V b) { return _mm256_and_si256(a, b); }
    static V greater(V a, V b) {
        if constexpr (sizeof(Code) == 1) return _mm256_cmpgt_epi8(a, b);
        if constexpr (sizeof(Code) == 2) return _mm256_cmpgt_epi16(a, b);
        if constexpr (sizeof(Code) == 4) return _mm256_cmpgt_epi32(a, b);
        if constexpr (sizeof(Code) == 8) return _mm256_cmpgt_epi64(a, b);
    }
    static uint64_t top_bits(V bytes) { return static_cast<uint32_t>(_mm256_movemask_epi8(bytes)); }
    // Packing works within 128-bit halves, hence the permutations.
    static uint64_t above(const V* v, V bound) {
        const auto g = [v, bound](int i) { return greater(v[i], bound); };
        if constexpr (sizeof(Code) == 1) return top_bits(g(0)) | top_bits(g(1)) << 32;
        if constexpr (sizeof(Code) == 2) {
            const auto half = [g](int i) {
                return top_bits(_mm256_permute4x64_epi64(_mm256_packs_epi16(g(i), g(i + 1)), 0xD8));
            };
            return half(0) | half(2) << 32;
        }
        if constexpr (sizeof(Code) == 4) {
            const V order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            const auto half = [g, order](int i) {
                const V words01 = _mm256_packs_epi32(g(i), g(i + 1)), words23 = _mm256_packs_epi32(g(i + 2), g(i + 3));
                return top_bits(_mm256_permutevar8x32_epi32(_mm256_packs_epi16(words01, words23), order));
            };
            return half(0) | half(4) << 32;
        }
        if constexpr (sizeof(Code) == 8) {
            uint64_t bits = 0;
            for (int i = 0; i < count; ++i)
                bits |= static_cast<uint64_t>(_mm256_movemask_pd(_mm256_castsi256_pd(g(i)))) << (4 * i);
            return bits;
        }
    }
    static V zero_above(V v, V bound) { return _mm256_andnot_si256(greater(v, bound), v); }
    static bool any_above(const V* v, V bound) {
        V found = _mm256_setzero_si256();
        for (int i = 0; i < count; ++i) found = _mm256_or_si256(found, greater(v[i], bound));
        return !_mm256_testz_si256(found, found);
    }
};
#define PYFAST_LANES

#endif

template <DType D, bool NanAsZero>
inline Compared compare(const typename Format<D>::Code* x, typename Format<D>::Code low,
                        typename Format<D>::Code high) {
    using Code = typename Format<D>::Code;
    constexpr Code largest = Format<D>::largest;
    constexpr bool has_nan = D != DType::i8;
#if defined(PYFAST_LANES)
    using L = Lanes<Code>;
    typename L::V v[L::count];
    for (int i = 0; i < L::count; ++i) {
        v[i] = L::load(x + i * L::width);
        v[i] = has_nan ? L::both(v[i], L::all(std::numeric_limits<Code>::max())) : L::less_one_magnitude(v[i]);
    }
    const bool nan = has_nan && L::any_above(v, L::all(largest));
    if (NanAsZero && nan)
        for (auto& u : v) u = L::zero_above(u, L::all(largest));
    return {L::above(v, L::all(low)), L::above(v, L::all(high)), nan};
#else
    Compared result{0, 0, false};
    for (int j = 0; j < 64; ++j) {
        Code c = code_of<D>(x[j]);
        if (has_nan && c > largest) {
            result.nan = true;
            if (NanAsZero) c = 0;
        }
        result.above_low |= static_cast<uint64_t>(c > low) << j;
        result.above_high |= static_cast<uint64_t>(c > high) << j;
    }
    return result;
#endif
}

}  // namespace pyfast::prune
