"""What all kernels of the family share: numbers with exponents of their own, as in csrc/spn/panels.h, and uniforms."""

import triton
import triton.language as tl

IMPOSSIBLE = tl.constexpr(-1e30)  # stands for the logarithm of 0 where a product with 0 must be 0
# A region whose largest number shrinks to less may have lost what matters, as numbers end at 2^-126 and 2^-1022.
WEAK, WEAK_DOUBLE = tl.constexpr(2.0**-90), tl.constexpr(2.0**-980)
# Exponents of a region: the lowest, three of which still add up in 32 bits; below the other, rows are too far away.
LOWEST, FAR = tl.constexpr(-(1 << 28)), tl.constexpr(-(1 << 27))
LN2_WHOLE = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
# log 2 in two parts, the first of few bits: its product with an exponent is exact
LN2 = tl.constexpr(0.693359375)
LN2_REST = tl.constexpr(-2.12194440054690583e-4)


@triton.jit
def _exponent(x):
    """Of a positive number: x * 2^-exponent lies in [1, 2), below if x is not normal; 0 for 0 and for NaN."""
    if x.dtype == tl.float64:
        e = tl.maximum(((x.to(tl.int64, bitcast=True) >> 52) - 1023).to(tl.int32), -1022)
    else:
        e = tl.maximum((x.to(tl.int32, bitcast=True) >> 23) - 127, -126)
    return tl.where(x > 0, e, 0)


@triton.jit
def _power(e, F: tl.constexpr):
    """2^e; 0 below what F holds, and the largest power of F above."""
    if F.is_fp64():
        power = ((tl.minimum(tl.maximum(e, -1023), 1023) + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    else:
        power = ((tl.minimum(tl.maximum(e, -127), 127) + 127).to(tl.int32) << 23).to(tl.float32, bitcast=True)
    return power


@triton.jit
def _split(log):
    """A logarithm above IMPOSSIBLE as a whole number n and what is left: exp(log) = 2^n exp(rest).

    Far from 0 nothing but rounding is left, which must not become a number.
    """
    n = tl.floor(log * LOG2E)
    return n, tl.minimum(tl.maximum((log - n * LN2) - n * LN2_REST, 0), LN2_WHOLE)


@triton.jit
def _words(seed, what, index):
    """random.bits(seed, what, index) in csrc/random.h."""
    low = index.to(tl.uint32)
    none = low * 0
    high = (index >> 32).to(tl.uint32)
    return tl.philox(seed, low, high, none + what.to(tl.uint32), none + (what >> 32).to(tl.uint32))


@triton.jit
def _unit(high, low):
    """Two words as a number in [0, 1), in steps of 2^-53."""
    word = (high.to(tl.uint64) << 32) | low.to(tl.uint64)
    return (word >> 11).to(tl.int64).to(tl.float64) * (2.0**-53)


@triton.jit
def _uniform(seed, what, index):
    """The number of the first two words."""
    high, low, _, _ = _words(seed, what, index)
    return _unit(high, low)
