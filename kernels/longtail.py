"""Triton kernels for pyfast.longtail: one program per row, classes in blocks.

x = logits + bias throughout. WIDE, the type computed in, is that of bias: float32, or float64 for float64 logits.
"""

import triton
import triton.language as tl


@triton.jit
def _loss(logits, target, bias, out, norm, c, BLOCK: tl.constexpr):
    WIDE: tl.constexpr = bias.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    peak = tl.full((), float("-inf"), WIDE)
    total = tl.zeros((), WIDE)
    for start in range(0, c, BLOCK):
        j = start + tl.arange(0, BLOCK).to(tl.int64)
        x = tl.load(logits + row * c + j, mask=j < c, other=float("-inf")).to(WIDE)
        x += tl.load(bias + j, mask=j < c, other=0.0)
        high = tl.maximum(peak, tl.max(x, 0))
        shift = tl.where(high == float("-inf"), 0.0, high)  # -inf - -inf would be NaN
        total = total * tl.exp(peak - shift) + tl.sum(tl.exp(x - shift), 0)
        peak = high
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    label = tl.load(target + row)
    x = tl.load(logits + row * c + label).to(WIDE) + tl.load(bias + label)
    tl.store(norm + 2 * row, peak)
    tl.store(norm + 2 * row + 1, total)
    tl.store(out + row, tl.log(total) - (x - peak))


@triton.jit
def _softmax(logits, bias, norm, row, j, c):
    WIDE: tl.constexpr = bias.dtype.element_ty
    x = tl.load(logits + row * c + j, mask=j < c, other=float("-inf")).to(WIDE) + tl.load(
        bias + j, mask=j < c, other=0.0
    )
    return tl.exp(x - tl.load(norm + 2 * row)) / tl.load(norm + 2 * row + 1)


@triton.jit
def _loss_backward(grad, logits, target, bias, norm, dlogits, c, BLOCK: tl.constexpr):
    WIDE: tl.constexpr = bias.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, c, BLOCK):
        j = start + tl.arange(0, BLOCK).to(tl.int64)
        p = _softmax(logits, bias, norm, row, j, c) - (j == tl.load(target + row)).to(WIDE)
        tl.store(dlogits + row * c + j, tl.load(grad + row).to(WIDE) * p, mask=j < c)


@triton.jit
def _curvature(v, grad, logits, target, bias, norm, dgrad, dlogits, c, BLOCK: tl.constexpr):
    WIDE: tl.constexpr = bias.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    mean = tl.zeros((), WIDE)
    for start in range(0, c, BLOCK):
        j = start + tl.arange(0, BLOCK).to(tl.int64)
        direction = tl.load(v + row * c + j, mask=j < c, other=0.0).to(WIDE)
        mean += tl.sum(tl.where(j < c, _softmax(logits, bias, norm, row, j, c) * direction, 0.0), 0)
    for start in range(0, c, BLOCK):
        j = start + tl.arange(0, BLOCK).to(tl.int64)
        direction = tl.load(v + row * c + j, mask=j < c, other=0.0).to(WIDE)
        d = tl.load(grad + row).to(WIDE) * _softmax(logits, bias, norm, row, j, c) * (direction - mean)
        tl.store(dlogits + row * c + j, d, mask=j < c)
    tl.store(dgrad + row, mean - tl.load(v + row * c + tl.load(target + row)).to(WIDE))


def _launch(kernel, logits, *args):
    n, c = logits.shape
    if n:
        kernel[(n,)](*args, c, BLOCK=min(triton.next_power_of_2(c), 2048))


def loss(logits, target, bias, out, norm):
    _launch(_loss, logits, logits, target, bias, out, norm)


def loss_backward(grad, logits, target, bias, norm, dlogits):
    _launch(_loss_backward, logits, grad, logits, target, bias, norm, dlogits)


def curvature(v, grad, logits, target, bias, norm, dgrad, dlogits):
    _launch(_curvature, logits, v, grad, logits, target, bias, norm, dgrad, dlogits)
