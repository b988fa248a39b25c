"""Pairs of edges that meet at an atom: one program per atom, row or column of its tile, and block of channels."""

import triton
import triton.language as tl
from pyfast.kernels.crystal._messages import _row
from triton import cdiv, next_power_of_2


@triton.jit
def _tile(row_ptr, ptr, tile_ptr, a):
    """Of an atom: where its rows begin and end, its columns, and where its pairs begin."""
    begin, last = _row(row_ptr, a)
    first, end = _row(ptr, a)
    return begin, last, first, end, tl.load(tile_ptr + a).to(tl.int64)


@triton.jit
def _edge(row, c, MOVED: tl.constexpr):
    """The edge of row c."""
    return tl.load(row + c).to(tl.int64) if MOVED else c


@triton.jit
def _pair_sum(
    m, x, row, row_ptr, ptr, tile_ptr, out, degrees, columns, MOVED: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr
):  # fmt: skip
    a, l = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    k = tl.program_id(2).to(tl.int64) * BF + tl.arange(0, BF)
    begin, last, first, end, tile = _tile(row_ptr, ptr, tile_ptr, a)
    for c in range(begin, last):
        e = _edge(row, c, MOVED)
        sums = tl.zeros((BE, BF), x.dtype.element_ty)
        for at in range(first, end, BE):
            b = at + tl.arange(0, BE).to(tl.int64)
            w = tl.load(m + (tile + (c - begin) * (end - first) + b - first) * degrees + l, mask=b < end, other=0.0)
            inside = (b < end)[:, None] & (k < columns)[None, :]
            sums += w[:, None] * tl.load(x + b[:, None] * columns + k[None, :], mask=inside, other=0.0)
        tl.store(out + (e * degrees + l) * columns + k, tl.sum(sums, 0), mask=k < columns)


@triton.jit
def _pair_back(
    m, y, row, row_ptr, ptr, tile_ptr, out, degrees, columns, MOVED: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr
):  # fmt: skip
    a = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1).to(tl.int64) * BF + tl.arange(0, BF)
    begin, last, first, end, tile = _tile(row_ptr, ptr, tile_ptr, a)
    for at in range(first, end, BE):
        b = at + tl.arange(0, BE).to(tl.int64)
        sums = tl.zeros((BE, BF), y.dtype.element_ty)
        for c in range(begin, last):
            e = _edge(row, c, MOVED)
            place = (tile + (c - begin) * (end - first) + b - first) * degrees
            for l in range(degrees):
                w = tl.load(m + place + l, mask=b < end, other=0.0)
                v = tl.load(y + (e * degrees + l) * columns + k, mask=k < columns, other=0.0)
                sums += w[:, None] * v[None, :]
        inside = (b < end)[:, None] & (k < columns)[None, :]
        tl.store(out + b[:, None] * columns + k[None, :], sums, mask=inside)


@triton.jit
def _pair_dot(
    y, x, row, row_ptr, ptr, tile_ptr, out, degrees, columns, MOVED: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr
):  # fmt: skip
    a, l = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    begin, last, first, end, tile = _tile(row_ptr, ptr, tile_ptr, a)
    for c in range(begin, last):
        e = _edge(row, c, MOVED)
        for at in range(first, end, BE):
            b = at + tl.arange(0, BE).to(tl.int64)
            sums = tl.zeros((BE, BF), x.dtype.element_ty)
            for start in range(0, columns, BF):
                k = start + tl.arange(0, BF).to(tl.int64)
                inside = (b < end)[:, None] & (k < columns)[None, :]
                v = tl.load(x + b[:, None] * columns + k[None, :], mask=inside, other=0.0)
                u = tl.load(y + (e * degrees + l) * columns + k, mask=k < columns, other=0.0)
                sums += v * u[None, :]
            place = (tile + (c - begin) * (end - first) + b - first) * degrees + l
            tl.store(out + place, tl.sum(sums, 1), mask=b < end)


def pair_blocks(columns):
    return {"BE": 8, "BF": min(next_power_of_2(max(columns, 1)), 64)}


def pair_sum(m, x, row, row_ptr, ptr, tile_ptr, out):
    out.zero_()
    _, degrees, columns = out.shape
    how, atoms = pair_blocks(columns), ptr.shape[0] - 1
    if out.numel() and atoms:
        grid = atoms, degrees, cdiv(columns, how["BF"])
        _pair_sum[grid](m, x, row, row_ptr, ptr, tile_ptr, out, degrees, columns, MOVED=row.shape[0] > 0, **how)


def pair_back(m, y, row, row_ptr, ptr, tile_ptr, out):
    out.zero_()
    _, degrees, columns = y.shape
    how, atoms = pair_blocks(columns), ptr.shape[0] - 1
    if out.numel() and atoms:
        grid = atoms, cdiv(columns, how["BF"])
        _pair_back[grid](m, y, row, row_ptr, ptr, tile_ptr, out, degrees, columns, MOVED=row.shape[0] > 0, **how)


def pair_dot(y, x, row, row_ptr, ptr, tile_ptr, pairs, out):
    out.zero_()
    _, degrees, columns = y.shape
    how, atoms = pair_blocks(columns), ptr.shape[0] - 1
    if out.numel() and atoms:
        _pair_dot[atoms, degrees](
            y, x, row, row_ptr, ptr, tile_ptr, out, degrees, columns, MOVED=row.shape[0] > 0, **how
        )
