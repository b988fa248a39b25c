"""Sums, maxima and softmaxes of rows in consecutive segments: one program per segment and block of columns."""

import torch
import triton
import triton.language as tl
from pyfast.kernels.crystal._messages import _row
from triton import cdiv, next_power_of_2


@triton.jit
def _segment_sum(x, ptr, out, columns, BE: tl.constexpr, BF: tl.constexpr):
    s = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BF + tl.arange(0, BF)
    begin, end = _row(ptr, s)
    sums = tl.zeros((BE, BF), tl.float64)
    for first in range(begin, end, BE):
        e = first + tl.arange(0, BE).to(tl.int64)
        inside = (e < end)[:, None] & (c < columns)[None, :]
        sums += tl.load(x + e[:, None] * columns + c[None, :], mask=inside, other=0.0).to(tl.float64)
    tl.store(out + s * columns + c, tl.sum(sums, 0), mask=c < columns)


@triton.jit
def _segment_max(x, ptr, out, where, columns, BF: tl.constexpr):
    s = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BF + tl.arange(0, BF)
    begin, end = _row(ptr, s)
    most = tl.full((BF,), float("-inf"), x.dtype.element_ty)
    at = tl.zeros((BF,), tl.int64) + tl.where(begin < end, begin, -1)
    for e in range(begin, end):
        v = tl.load(x + e * columns + c, mask=c < columns, other=0.0)
        more = (v > most) | ((v != v) & (most == most))
        most, at = tl.where(more, v, most), tl.where(more, e, at)
    tl.store(out + s * columns + c, most, mask=c < columns)
    tl.store(where + s * columns + c, at, mask=c < columns)


@triton.jit
def _segment_softmax(x, ptr, out, columns, BF: tl.constexpr):
    s = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BF + tl.arange(0, BF)
    begin, end = _row(ptr, s)
    peak = tl.full((BF,), float("-inf"), x.dtype.element_ty)
    for e in range(begin, end):
        peak = tl.maximum(peak, tl.load(x + e * columns + c, mask=c < columns, other=0.0))
    total = tl.zeros((BF,), tl.float64)
    for e in range(begin, end):
        total += tl.exp(tl.load(x + e * columns + c, mask=c < columns, other=0.0) - peak).to(tl.float64)
    for e in range(begin, end):
        p = tl.exp(tl.load(x + e * columns + c, mask=c < columns, other=0.0) - peak).to(tl.float64)
        tl.store(out + e * columns + c, p / total, mask=c < columns)


def segment_block(columns):
    return min(next_power_of_2(max(columns, 1)), 128)


def _grid(ptr, columns):
    return ptr.shape[0] - 1, cdiv(columns, segment_block(columns))


def segment_sum(x, ptr, out):
    if out.numel():
        width = segment_block(x.shape[1])
        _segment_sum[_grid(ptr, x.shape[1])](x, ptr, out, x.shape[1], BE=max(1024 // width, 1), BF=width)


def segment_spread(g, ptr, rows, out):
    places = torch.arange(rows, device=g.device)
    if out.numel() and len(g):
        segment = (torch.searchsorted(ptr, places, right=True) - 1).clamp(max=len(g) - 1)
        out.copy_(torch.where((places < ptr[-1])[:, None], g[segment], 0))
    else:
        out.zero_()


def segment_max(x, ptr, out, where):
    if out.numel():
        _segment_max[_grid(ptr, x.shape[1])](x, ptr, out, where, x.shape[1], BF=segment_block(x.shape[1]))


def segment_softmax(x, ptr, out):
    out.zero_()
    if out.numel() and ptr.shape[0] > 1:
        _segment_softmax[_grid(ptr, x.shape[1])](x, ptr, out, x.shape[1], BF=segment_block(x.shape[1]))
