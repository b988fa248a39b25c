// What a weight is worth: a monotone integer of its magnitude.
//
// A *code* is the magnitude in the weight's own width (sign bit cleared, or |q| - 1 for int8, whose -128 would not fit
// otherwise); a *key* is the magnitude widened exactly to the bits of a float (31 bits), or of a double (63 bits) when
// some weight is one. Codes order the weights of one dtype, keys order all. Integers need no care for denormals, -0 or
// flush-to-zero modes.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace pyfast::prune {

enum class DType { f64, f32, f16, bf16, e4m3, e5m2, i8 };

template <DType>
struct Format;  // Code: signed, which x86 compares directly; largest: the greatest code but NaN;
                // zero_bits: how many last bits of every 31-bit key are zero, which a radix need not look at

template <>
struct Format<DType::f64> {
    using Code = int64_t;
    static constexpr Code largest = 0x7ff0000000000000, zero_bits = 0;
};
template <>
struct Format<DType::f32> {
    using Code = int32_t;
    static constexpr Code largest = 0x7f800000, zero_bits = 0;
};
template <>
struct Format<DType::f16> {
    using Code = int16_t;
    static constexpr Code largest = 0x7c00, zero_bits = 13;
};
template <>
struct Format<DType::bf16> {
    using Code = int16_t;
    static constexpr Code largest = 0x7f80, zero_bits = 16;
};
template <>
struct Format<DType::e4m3> {
    using Code = int8_t;
    static constexpr Code largest = 0x7e, zero_bits = 20;
};
template <>
struct Format<DType::e5m2> {
    using Code = int8_t;
    static constexpr Code largest = 0x7c, zero_bits = 21;
};
template <>
struct Format<DType::i8> {
    using Code = int8_t;
    static constexpr Code largest = 127, zero_bits = 16;
};

template <DType D>
inline typename Format<D>::Code code_of(typename Format<D>::Code bits) {
    using Code = typename Format<D>::Code;
    if constexpr (D == DType::i8)
        return static_cast<Code>(bits < 0 ? ~bits : bits - 1);  // -q - 1 = ~q
    else
        return static_cast<Code>(bits & std::numeric_limits<Code>::max());
}

template <class Key>
inline constexpr Key last = std::is_same_v<Key, int32_t> ? Key(0x7fffffff) : Key(0x7fffffffffffffff);

namespace detail {
// The largest product is normal, so flush-to-zero cannot touch it.
inline int32_t small(int32_t mantissa, float unit) {
    return std::bit_cast<int32_t>(static_cast<float>(mantissa) * unit);
}

template <DType D>
inline int32_t narrow_key(typename Format<D>::Code code) {
    const auto c = static_cast<int32_t>(code);
    if constexpr (D == DType::i8) return small(c + 1, 1.0F);
    if constexpr (D == DType::f32) return c;
    if constexpr (D == DType::bf16) return c << 16;
    if constexpr (D == DType::f16 || D == DType::e5m2) {
        const int32_t half = D == DType::f16 ? c : c << 8;
        if (half == 0x7c00) return 0x7f800000;
        return half < 0x400 ? small(half, 0x1p-24F) : (half << 13) + (112 << 23);
    }
    if constexpr (D == DType::e4m3) return c < 8 ? small(c, 0x1p-9F) : (c << 20) + (120 << 23);
    return c;
}

inline int64_t widen(int32_t key) {
    if (key == 0x7f800000) return 0x7ff0000000000000;
    if (key < 0x800000) return std::bit_cast<int64_t>(static_cast<double>(key) * 0x1p-149);
    return (int64_t{key} << 29) + (int64_t{1023 - 127} << 52);
}
}  // namespace detail

// The key of a code that is not NaN.
template <DType D, class Key>
inline Key number_key(typename Format<D>::Code code) {
    if constexpr (D == DType::f64)
        return static_cast<Key>(code);
    else if constexpr (std::is_same_v<Key, int64_t>)
        return detail::widen(detail::narrow_key<D>(code));
    else
        return detail::narrow_key<D>(code);
}

template <DType D>
inline bool is_nan(typename Format<D>::Code code) {
    return D != DType::i8 && code > Format<D>::largest;
}

// All NaN have one key, above infinity, or that of zero.
template <DType D, class Key, bool NanAsZero = false>
inline Key key_of(typename Format<D>::Code code) {
    constexpr Key nan = sizeof(Key) == 4 ? Key(0x7fc00000) : Key(0x7ff8000000000000);
    if (is_nan<D>(code)) return NanAsZero ? Key(0) : nan;
    return number_key<D, Key>(code);
}

// The greatest code whose key is below the bound; one less than the lowest code if there is none.
template <DType D, class Key>
inline typename Format<D>::Code code_below(Key bound) {
    using Code = typename Format<D>::Code;
    if constexpr (D == DType::f64) {  // codes are keys, but for the one key of all NaN
        const Code b = bound;
        return b > 0x7ff8000000000000 ? std::numeric_limits<Code>::max() : std::min(b - 1, Format<D>::largest);
    }
    int64_t low = (D == DType::i8 ? -1 : 0) - 1, high = std::numeric_limits<Code>::max();
    while (low < high) {
        const int64_t middle = low + (high - low) / 2 + 1;
        if (key_of<D, Key>(static_cast<Code>(middle)) < bound)
            low = middle;
        else
            high = middle - 1;
    }
    return static_cast<Code>(low);
}

// Calls f with the dtype as a constant.
template <class F>
auto with_dtype(DType dtype, F&& f) {
    switch (dtype) {
        case DType::f64:
            return f(std::integral_constant<DType, DType::f64>{});
        case DType::f32:
            return f(std::integral_constant<DType, DType::f32>{});
        case DType::f16:
            return f(std::integral_constant<DType, DType::f16>{});
        case DType::bf16:
            return f(std::integral_constant<DType, DType::bf16>{});
        case DType::e4m3:
            return f(std::integral_constant<DType, DType::e4m3>{});
        case DType::e5m2:
            return f(std::integral_constant<DType, DType::e5m2>{});
        case DType::i8:
            break;
    }
    return f(std::integral_constant<DType, DType::i8>{});
}

}  // namespace pyfast::prune
