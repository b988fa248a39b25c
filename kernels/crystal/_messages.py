"""Messages summed by rows of edges: one program per row and block of columns; BE edges of a row at a time."""

import torch
import triton
import triton.language as tl
from triton import cdiv, next_power_of_2

TILE = 2048  # numbers in registers at a time, of each operand


@triton.jit
def _row(ptr, i):
    return tl.load(ptr + i).to(tl.int64), tl.load(ptr + i + 1).to(tl.int64)


@triton.jit
def _edges(other, edge, p, inside, MOVED: tl.constexpr):
    """The edges at positions p, and the rows at their other ends."""
    o = tl.load(other + p, mask=inside, other=0).to(tl.int64)
    if MOVED:
        return tl.load(edge + p, mask=inside, other=0).to(tl.int64), o
    return p, o


@triton.jit
def _conv(
    x, filter, other, edge, ptr, out, columns, MOVED: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BF + tl.arange(0, BF)
    begin, end = _row(ptr, i)
    sums = tl.zeros((BE, BF), x.dtype.element_ty)
    for first in range(begin, end, BE):
        p = first + tl.arange(0, BE).to(tl.int64)
        e, j = _edges(other, edge, p, p < end, MOVED)
        inside = (p < end)[:, None] & (c < columns)[None, :]
        w = tl.load(filter + e[:, None] * columns + c[None, :], mask=inside, other=0.0)
        v = tl.load(x + j[:, None] * columns + c[None, :], mask=inside, other=0.0)
        sums += w * v
    tl.store(out + i * columns + c, tl.sum(sums, 0), mask=c < columns)


@triton.jit
def _product(
    x, g, other, edge, ptr, out, columns, MOVED: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BF + tl.arange(0, BF)
    begin, end = _row(ptr, i)
    mine = tl.load(g + i * columns + c, mask=c < columns, other=0.0)
    for first in range(begin, end, BE):
        p = first + tl.arange(0, BE).to(tl.int64)
        e, j = _edges(other, edge, p, p < end, MOVED)
        inside = (p < end)[:, None] & (c < columns)[None, :]
        v = tl.load(x + j[:, None] * columns + c[None, :], mask=inside, other=0.0)
        tl.store(out + e[:, None] * columns + c[None, :], v * mine[None, :], mask=inside)


def blocks(columns):
    width = min(next_power_of_2(max(columns, 1)), 128)
    return {"BE": min(TILE // width, 32), "BF": width}


def _launch(kernel, columns, ptr, *args, edge):
    rows = ptr.shape[0] - 1
    if rows and columns:
        how = blocks(columns)
        kernel[rows, cdiv(columns, how["BF"])](*args, columns, MOVED=edge.shape[0] > 0, **how)


def conv(x, filter, other, edge, ptr, other_t, edge_t, ptr_t, out):
    _launch(_conv, x.shape[1], ptr, x, filter, other, edge, ptr, out, edge=edge)


def product(x, g, other, edge, ptr, other_t, edge_t, ptr_t, out):
    out.zero_()  # padding
    _launch(_product, x.shape[1], ptr, x, g, other, edge, ptr, out, edge=edge)


def transpose(source, target, used, sources, other, edge, ptr):
    position = torch.arange(source.shape[0], device=source.device)
    real = position < used[-1]
    keys = torch.where(real, source, sources)
    order = torch.argsort(keys, stable=True)
    edge.copy_(torch.where(real, order, 0))
    other.copy_(torch.where(real, target[order], 0))
    ptr.copy_(torch.searchsorted(keys[order], torch.arange(sources + 1, device=source.device)))
