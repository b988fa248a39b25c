"""Messages whose filters are read from a table of cubic Hermite pieces, and the adjoints of that."""

import torch
import triton
import triton.language as tl
from pyfast.kernels.crystal._messages import _edges, _row
from triton import cdiv, next_power_of_2

TILE = 1024


@triton.jit
def _weights(r, scale, start, spacing, pieces, ORDER: tl.constexpr):
    """The piece, and the weights of value, slope, next value and next slope; in float64, as on the CPU."""
    u = (r.to(tl.float64) - start) / spacing
    k = tl.minimum(tl.maximum(tl.where(u > 0, u, 0.0).to(tl.int64), 0), pieces - 1)
    t, q = u - k.to(tl.float64), scale.to(tl.float64)
    if ORDER == 0:
        up = t * t * (3 - 2 * t)
        a, b, c, d = 1 - up, t * (1 - t) * (1 - t), up, t * t * (t - 1)
    elif ORDER == 1:
        up = 6 * t * (1 - t)
        a, b, c, d = -up, (3 * t - 4) * t + 1, up, t * (3 * t - 2)
        q = q / spacing
    elif ORDER == 2:
        up = 6 - 12 * t
        a, b, c, d = -up, 6 * t - 4, up, 6 * t - 2
        q = q / (spacing * spacing)
    else:
        one = 1 + 0 * t
        a, b, c, d = 12 * one, 6 * one, -12 * one, 6 * one
        q = q / (spacing * spacing * spacing) if ORDER == 3 else 0 * q
    x = r.dtype
    return k, (q * a).to(x), (q * b).to(x), (q * c).to(x), (q * d).to(x)


@triton.jit
def _read(table, k, wa, wb, wc, wd, c, columns, inside):
    at = table + (2 * k * columns)[:, None] + c[None, :]
    f = wa[:, None] * tl.load(at, mask=inside, other=0.0)
    f += wb[:, None] * tl.load(at + columns, mask=inside, other=0.0)
    f += wc[:, None] * tl.load(at + 2 * columns, mask=inside, other=0.0)
    f += wd[:, None] * tl.load(at + 3 * columns, mask=inside, other=0.0)
    return f


@triton.jit
def _table_conv(
    x, scale, r, table, other, edge, ptr, out, knots, columns,
    start: tl.float64, spacing: tl.float64, ORDER: tl.constexpr,
    MOVED: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BF + tl.arange(0, BF)
    begin, end = _row(ptr, i)
    sums = tl.zeros((BE, BF), x.dtype.element_ty)
    for first in range(begin, end, BE):
        p = first + tl.arange(0, BE).to(tl.int64)
        e, j = _edges(other, edge, p, p < end, MOVED)
        inside = (p < end)[:, None] & (c < columns)[None, :]
        distance = tl.load(r + e, mask=p < end, other=0.0)
        k, wa, wb, wc, wd = _weights(
            distance, tl.load(scale + e, mask=p < end, other=0.0), start, spacing, knots - 1, ORDER
        )
        f = _read(table, k, wa, wb, wc, wd, c, columns, inside)
        sums += f * tl.load(x + j[:, None] * columns + c[None, :], mask=inside, other=0.0)
    tl.store(out + i * columns + c, tl.sum(sums, 0), mask=c < columns)


@triton.jit
def _table_dot(
    x, g, r, table, other, edge, ptr, out, knots, columns,
    start: tl.float64, spacing: tl.float64, ORDER: tl.constexpr,
    MOVED: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    begin, end = _row(ptr, i)
    for first in range(begin, end, BE):
        p = first + tl.arange(0, BE).to(tl.int64)
        e, j = _edges(other, edge, p, p < end, MOVED)
        distance = tl.load(r + e, mask=p < end, other=0.0)
        k, wa, wb, wc, wd = _weights(distance, 1 + 0 * distance, start, spacing, knots - 1, ORDER)
        sums = tl.zeros((BE, BF), x.dtype.element_ty)
        for column in range(0, columns, BF):
            c = column + tl.arange(0, BF).to(tl.int64)
            inside = (p < end)[:, None] & (c < columns)[None, :]
            f = _read(table, k, wa, wb, wc, wd, c, columns, inside)
            f *= tl.load(x + j[:, None] * columns + c[None, :], mask=inside, other=0.0)
            sums += f * tl.load(g + i * columns + c, mask=c < columns, other=0.0)[None, :]
        tl.store(out + e, tl.sum(sums, 1), mask=p < end)


@triton.jit
def _table_sums(
    x, g, scale, r, position, row, other, edge, bucket, out, knots, columns,
    start: tl.float64, spacing: tl.float64, ORDER: tl.constexpr,
    MOVED: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Knot m is the first of piece m and the second of piece m - 1: one sum over the visits of each."""
    m = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BF + tl.arange(0, BF)
    value = tl.zeros((BE, BF), x.dtype.element_ty)
    slope = tl.zeros((BE, BF), x.dtype.element_ty)
    begin, end = tl.load(bucket + tl.maximum(m - 1, 0)).to(tl.int64), tl.load(bucket + m + 1).to(tl.int64)
    for first in range(begin, end, BE):
        q = first + tl.arange(0, BE).to(tl.int64)
        p = tl.load(position + q, mask=q < end, other=0)
        i = tl.load(row + p, mask=q < end, other=0)
        e, j = _edges(other, edge, p, q < end, MOVED)
        inside = (q < end)[:, None] & (c < columns)[None, :]
        distance = tl.load(r + e, mask=q < end, other=0.0)
        k, wa, wb, wc, wd = _weights(
            distance, tl.load(scale + e, mask=q < end, other=0.0), start, spacing, knots - 1, ORDER
        )
        both = tl.load(x + j[:, None] * columns + c[None, :], mask=inside, other=0.0)
        both *= tl.load(g + i[:, None] * columns + c[None, :], mask=inside, other=0.0)
        value += tl.where(k == m, wa, wc)[:, None] * both
        slope += tl.where(k == m, wb, wd)[:, None] * both
    tl.store(out + 2 * m * columns + c, tl.sum(value, 0), mask=c < columns)
    tl.store(out + (2 * m + 1) * columns + c, tl.sum(slope, 0), mask=c < columns)


def table_blocks(columns, wide):
    width = min(next_power_of_2(max(columns, 1)), 64)
    return {"BE": min(TILE // width // (4 if wide else 1), 32), "BF": width}


def table_conv(x, scale, r, table, other, edge, ptr, other_t, edge_t, ptr_t, start, spacing, order, out):
    rows, columns = out.shape
    how = table_blocks(columns, x.element_size() == 8)
    if rows and columns:
        _table_conv[rows, cdiv(columns, how["BF"])](
            x, scale, r, table, other, edge, ptr, out, table.shape[0], columns, start, spacing, ORDER=min(order, 4),
            MOVED=edge.shape[0] > 0, **how,
        )  # fmt: skip


def table_dot(x, g, r, table, other, edge, ptr, other_t, edge_t, ptr_t, start, spacing, order, out):
    out.zero_()  # padding
    rows, columns = g.shape
    how = table_blocks(columns, x.element_size() == 8)
    if rows and columns:
        _table_dot[(rows,)](
            x, g, r, table, other, edge, ptr, out, table.shape[0], columns, start, spacing, ORDER=min(order, 4),
            MOVED=edge.shape[0] > 0, **how,
        )  # fmt: skip


def table_sums(x, g, scale, r, other, edge, ptr, other_t, edge_t, ptr_t, knots, start, spacing, order, out):
    columns = out.shape[2]
    places = torch.arange(other.shape[0], device=x.device)
    real = places < ptr[-1]
    row = torch.searchsorted(ptr, places, right=True) - 1
    e = torch.where(real, edge, 0) if edge.shape[0] else places
    piece = ((r[e].double() - start) / spacing).clamp(0, knots - 2).nan_to_num().long()
    piece = torch.where(real, piece, knots)
    position = torch.argsort(piece, stable=True)
    bucket = torch.searchsorted(piece[position], torch.arange(knots + 1, device=x.device))
    how = table_blocks(columns, x.element_size() == 8)
    if columns:
        _table_sums[knots, cdiv(columns, how["BF"])](
            x, g, scale, r, position, row, other, edge, bucket, out, knots, columns, start, spacing,
            ORDER=min(order, 4), MOVED=edge.shape[0] > 0, **how,
        )  # fmt: skip
