"""What a program knows of its tile: where it lies, its keys, where its bits go."""

import triton
import triton.language as tl

# Columns of layout (L, 3) and of state (L + 1, 4), whose row 0 is the pool and row l + 1 is tensor l.
SIZE, TILES, WORDS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
PREFIX, NEED, OWN, EQUAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def _key32(x, FORMAT: tl.constexpr):
    """The bits of |x| widened to float32, from the bits x; a NaN is anything above 0x7f800000."""
    if FORMAT == "float32":
        key = x & 0x7FFFFFFF
    elif FORMAT == "bfloat16":
        key = (x.to(tl.int32) & 0x7FFF) << 16
    elif FORMAT == "int8":
        key = tl.abs(x.to(tl.int32)).to(tl.float32).to(tl.int32, bitcast=True)
    else:  # the smaller floats, in integers: not every device converts float8, and some flush what is subnormal
        MANTISSA: tl.constexpr = 10 if FORMAT == "float16" else 3 if FORMAT == "float8_e4m3fn" else 2
        BIAS: tl.constexpr = 7 if FORMAT == "float8_e4m3fn" else 15
        a = x.to(tl.int32) & (0x7FFF if FORMAT == "float16" else 0x7F)
        subnormal = (a.to(tl.float32) * 2.0 ** (1 - BIAS - MANTISSA)).to(tl.int32, bitcast=True)
        normal = (a << (23 - MANTISSA)) + ((127 - BIAS) << 23)
        if FORMAT == "float8_e4m3fn":
            special = tl.where(a == 0x7F, 0x7FC00000, normal)
        else:
            special = tl.where(a >= 31 << MANTISSA, normal + (112 << 23), normal)
        key = tl.where(a < 1 << MANTISSA, subnormal, special)
    return key


@triton.jit
def _keys(
    address,
    start,
    size,
    nan_as_zero,
    FORMAT: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
):
    """The keys of one tile, which of them are there, and which are NaN."""
    if FORMAT == "float64":
        pointer = address.to(tl.pointer_type(tl.int64))
    elif FORMAT == "float32":
        pointer = address.to(tl.pointer_type(tl.int32))
    elif FORMAT == "float16" or FORMAT == "bfloat16":
        pointer = address.to(tl.pointer_type(tl.int16))
    else:
        pointer = address.to(tl.pointer_type(tl.int8))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    i = tl.arange(0, TILE)
    inside = i < tl.minimum(size - start, TILE).to(tl.int32)
    if start + TILE <= size:  # noqa: SIM108  (no mask, so as wide as the hardware allows)
        x = tl.load(pointer + start + i)
    else:
        x = tl.load(pointer + start + i, mask=inside, other=0)
    if FORMAT == "float64":
        key = x & 0x7FFFFFFFFFFFFFFF
        nan = key > 0x7FF0000000000000
    else:
        key = _key32(x, FORMAT)
        nan = key > 0x7F800000
        if WIDE:
            quiet = tl.where(nan, 0x7FC00000, key).to(tl.float32, bitcast=True)
            key = quiet.to(tl.float64).to(tl.int64, bitcast=True)
    key = tl.where(nan, tl.where(nan_as_zero != 0, 0, 0x7FF8000000000000 if WIDE else 0x7FC00000), key)
    return key, inside, nan


@triton.jit
def _locate(tiles, layout, base, TILE: tl.constexpr):
    """Tile, tensor, first weight, and size of the tensor, of this program."""
    t = base + tl.program_id(0).to(tl.int64)
    l = tl.load(tiles + t).to(tl.int64)
    return t, l, (t - tl.load(layout + 3 * l + TILES)) * TILE, tl.load(layout + 3 * l + SIZE)


@triton.jit
def _write(bits, layout, l, start, size, keep, TILE: tl.constexpr):
    """64 truths to a word, the first in the lowest bit."""
    lane = tl.reshape(keep, (TILE // 64, 64)).to(tl.int64) << tl.arange(0, 64)[None, :].to(tl.int64)
    w = start // 64 + tl.arange(0, TILE // 64)
    tl.store(bits + tl.load(layout + 3 * l + WORDS) + w, tl.sum(lane, 1), mask=w < tl.cdiv(size, 64))
