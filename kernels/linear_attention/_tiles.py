"""What the kernels of linear attention share: where a program works, tiles of tokens, products of small matrices."""

import triton
import triton.language as tl

# Triton's interpreter multiplies the bit patterns of bfloat16.
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    """The product; of different dtypes, in the wider, in float32 at least. `PRECISION` is of float32."""
    if a.dtype == tl.float64 or b.dtype == tl.float64:
        product = tl.dot(a.to(tl.float64), b.to(tl.float64))
    elif a.dtype != b.dtype or (_INTERPRETED and a.dtype == tl.bfloat16):
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    else:
        product = tl.dot(a, b, input_precision=PRECISION)
    return product


@triton.jit
def _add_dot(a, b, sum, PRECISION: tl.constexpr):
    """The product is added to the sum, which may be wider."""
    if sum.dtype == tl.float64:
        sum += _dot(a, b, PRECISION).to(tl.float64)
    elif a.dtype != b.dtype or (_INTERPRETED and a.dtype == tl.bfloat16):
        sum = tl.dot(a.to(tl.float32), b.to(tl.float32), acc=sum, input_precision=PRECISION)
    else:
        sum = tl.dot(a, b, acc=sum, input_precision=PRECISION)
    return sum


@triton.jit
def _cast(x, TYPE: tl.constexpr):
    """By way of float32: Triton's interpreter cannot go from float64 to bfloat16 at once."""
    if x.dtype == tl.float64 and not TYPE.is_fp64():
        x = x.to(tl.float32)
    return x.to(TYPE)


@triton.jit
def _load(base, row, stride_t, inside, i, stride_i, size):
    """(tokens, i), zeros where there are none."""
    return tl.load(base + row[:, None] * stride_t + i[None, :] * stride_i, inside[:, None] & (i < size)[None, :], 0.0)


@triton.jit
def _span(ends, ends_stride, n, T):
    """Where sequence n begins, and how many tokens it has."""
    if ends is None:
        begin, count = n * 0, T
    else:
        begin = tl.load(ends + n * ends_stride)
        count = (tl.load(ends + (n + 1) * ends_stride) - begin).to(tl.int32)
    return begin, count


@triton.jit
def _part(p, P, count, BLOCK: tl.constexpr):
    """Part p of P of a sequence, in whole blocks: from, up to."""
    length = tl.cdiv(tl.cdiv(count, P), BLOCK) * BLOCK
    return tl.minimum(p * length, count), tl.minimum((p + 1) * length, count)
