"""Triton kernels for pyfast.longtail: one program per row, classes in blocks."""

import triton
import triton.language as tl


@triton.jit
def _forward(logits, target, bias, out, lse, c, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    peak = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    for start in range(0, c, BLOCK):
        j = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * c + j, mask=j < c, other=float("-inf")) + tl.load(bias + j, mask=j < c, other=0.0)
        high = tl.maximum(peak, tl.max(x))
        total = total * tl.exp(peak - high) + tl.sum(tl.exp(x - high))
        peak = high
    label = tl.load(target + row)
    norm = peak + tl.log(total)
    tl.store(lse + row, norm)
    tl.store(out + row, norm - (tl.load(logits + row * c + label) + tl.load(bias + label)))


@triton.jit
def _backward(grad, logits, target, bias, lse, dlogits, c, BLOCK: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    j = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * c + j, mask=j < c) + tl.load(bias + j, mask=j < c)
    p = tl.exp(x - tl.load(lse + row)) - (j == tl.load(target + row)).to(tl.float32)
    tl.store(dlogits + row * c + j, tl.load(grad + row) * p, mask=j < c)


def loss(logits, target, bias, out, lse):
    n, c = logits.shape
    _forward[(n,)](logits, target, bias, out, lse, c, BLOCK=min(triton.next_power_of_2(c), 4096))


def loss_backward(grad, logits, target, bias, lse, dlogits):
    n, c = logits.shape
    block = min(triton.next_power_of_2(c), 1024)
    _backward[(n, triton.cdiv(c, block))](grad, logits, target, bias, lse, dlogits, c, BLOCK=block)
