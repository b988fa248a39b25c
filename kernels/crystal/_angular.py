"""Sums over triplets whose weights are Legendre series of the angle, and their gradient: programs of atoms."""

import torch
import triton
import triton.language as tl
from pyfast.kernels.crystal._triplets import _edge, _tile
from triton import cdiv, next_power_of_2

BLOCK = 2048  # edges whose sums gemnet holds at a time
PULLING = 8  # warps of _angular_pull: of fewer, each would have to spill


@triton.jit
def _cosine(unit, mine, others, inside, THROUGH: tl.constexpr):
    """Of one edge with others, and the others' unit vectors."""
    x, y, z = tl.load(unit + 3 * mine), tl.load(unit + 3 * mine + 1), tl.load(unit + 3 * mine + 2)
    u = tl.load(unit + 3 * others, mask=inside, other=0.0)
    v = tl.load(unit + 3 * others + 1, mask=inside, other=0.0)
    w = tl.load(unit + 3 * others + 2, mask=inside, other=0.0)
    c = x * u + y * v + z * w
    if THROUGH:
        c = -c
    c = tl.where(c > 1.0, 1.0, c)  # what is not a number stays so
    return tl.where(c < -1.0, -1.0, c), u, v, w


@triton.jit
def _kept(keep, pair, inside, real: tl.constexpr):
    """1 where a pair is a triplet, else 0."""
    return tl.load(keep + pair, mask=inside, other=0).to(real)


@triton.jit
def _series(radial, e, c, kept, i, inside, inner, degrees):
    """(BE, BI) weights: the series of edge e (one, or one to each cosine), at cosines c."""
    weights = tl.zeros([c.shape[0], i.shape[0]], c.dtype)
    before, now = tl.zeros_like(c), kept
    for l in range(degrees):
        r = tl.load(radial + (e[:, None] * inner + i[None, :]) * degrees + l, mask=inside, other=0.0)
        weights += r * now[:, None]
        before, now = now, ((2.0 * l + 1.0) * c * now - l * before) / (l + 1.0)
    return weights


@triton.jit
def _angular(
    x, unit, radial, row, row_ptr, ptr, tile_ptr, keep, out, inner, degrees, columns,
    MOVED: tl.constexpr, THROUGH: tl.constexpr, BE: tl.constexpr, BI: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    a = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1).to(tl.int64) * BI + tl.arange(0, BI)
    k = tl.program_id(2).to(tl.int64) * BF + tl.arange(0, BF)
    begin, last, first, end, tile = _tile(row_ptr, ptr, tile_ptr, a)
    for c in range(begin, last):
        e = _edge(row, c, MOVED)
        sums = tl.zeros((BI, BF), x.dtype.element_ty)
        for at in range(first, end, BE):
            b = at + tl.arange(0, BE).to(tl.int64)
            cosine, _, _, _ = _cosine(unit, e, b, b < end, THROUGH)
            kept = _kept(keep, tile + (c - begin) * (end - first) + b - first, b < end, x.dtype.element_ty)
            known = (b < end)[:, None] & (i < inner)[None, :]
            whose = b if THROUGH else b * 0 + e
            weights = _series(radial, whose, cosine, kept, i, known, inner, degrees)
            inside = (b < end)[:, None] & (k < columns)[None, :]
            v = tl.load(x + b[:, None] * columns + k[None, :], mask=inside, other=0.0)
            sums += tl.sum(weights[:, :, None] * v[:, None, :], 0)
        place = (e * inner + i[:, None]) * columns + k[None, :]
        tl.store(out + place, sums, mask=(i < inner)[:, None] & (k < columns)[None, :])


@triton.jit
def _angular_pull(
    grad, unit, radial, row, row_ptr, ptr, tile_ptr, keep, gx, inner, degrees, columns,
    MOVED: tl.constexpr, THROUGH: tl.constexpr, BE: tl.constexpr, BI: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """What features get: of every column, from the rows of its tile."""
    a = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1).to(tl.int64) * BF + tl.arange(0, BF)
    begin, last, first, end, tile = _tile(row_ptr, ptr, tile_ptr, a)
    for at in range(first, end, BE):
        b = at + tl.arange(0, BE).to(tl.int64)
        sums = tl.zeros((BE, BF), grad.dtype.element_ty)
        for c in range(begin, last):
            e = _edge(row, c, MOVED)
            cosine, _, _, _ = _cosine(unit, e, b, b < end, THROUGH)
            kept = _kept(keep, tile + (c - begin) * (end - first) + b - first, b < end, grad.dtype.element_ty)
            whose = b if THROUGH else b * 0 + e
            for part in range(0, inner, BI):
                i = part + tl.arange(0, BI).to(tl.int64)
                known = (b < end)[:, None] & (i < inner)[None, :]
                weights = _series(radial, whose, cosine, kept, i, known, inner, degrees)
                inside = (i < inner)[:, None] & (k < columns)[None, :]
                g = tl.load(grad + (e * inner + i[:, None]) * columns + k[None, :], mask=inside, other=0.0)
                sums += tl.sum(weights[:, :, None] * g[None, :, :], 1)
        tl.store(gx + b[:, None] * columns + k[None, :], sums, mask=(b < end)[:, None] & (k < columns)[None, :])


@triton.jit
def _angular_turn(
    grad, x, unit, radial, row, row_ptr, ptr, tile_ptr, keep, gunit, gradial, edges, inner, degrees, columns,
    MOVED: tl.constexpr, THROUGH: tl.constexpr, ROWS: tl.constexpr,
    BE: tl.constexpr, BI: tl.constexpr, BF: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """What unit vectors, and what is radial, get: of every row from its columns, or of every column from its rows.

    gunit (blocks of inner, E, 3): each block's share.
    """
    a, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    i, degree = part * BI + tl.arange(0, BI), tl.arange(0, BL)
    begin, last, first, end, tile = _tile(row_ptr, ptr, tile_ptr, a)
    low, high = (begin, last) if ROWS else (first, end)
    start, stop = (first, end) if ROWS else (begin, last)
    real = x.dtype.element_ty
    for n in range(low, high):
        mine = _edge(row, n, ROWS and MOVED)
        gx, gy, gz = tl.zeros((BE,), real), tl.zeros((BE,), real), tl.zeros((BE,), real)
        total = tl.zeros((BI, BL), real)
        for at in range(start, stop, BE):
            p = at + tl.arange(0, BE).to(tl.int64)
            others = p
            if MOVED and not ROWS:
                others = tl.load(row + p, mask=p < stop, other=0).to(tl.int64)
            pair = (n - begin) * (end - first) + p - first if ROWS else (p - begin) * (end - first) + n - first
            kept = _kept(keep, tile + pair, p < stop, real)
            cosine, u, v, w = _cosine(unit, mine, others, p < stop, THROUGH)
            h = tl.zeros((BE, BI), real)  # what each weight of a pair gets
            for begun in range(0, columns, BF):
                k = begun + tl.arange(0, BF).to(tl.int64)
                known = (i < inner)[:, None] & (k < columns)[None, :]
                theirs = (p < stop)[:, None] & (k < columns)[None, :]
                if ROWS:
                    g = tl.load(grad + (mine * inner + i[:, None]) * columns + k[None, :], mask=known, other=0.0)
                    f = tl.load(x + others[:, None] * columns + k[None, :], mask=theirs, other=0.0)
                    h += tl.sum(g[None, :, :] * f[:, None, :], 2)
                else:
                    place = (others[:, None, None] * inner + i[None, :, None]) * columns + k[None, None, :]
                    g = tl.load(grad + place, mask=theirs[:, None, :] & known[None, :, :], other=0.0)
                    f = tl.load(x + mine * columns + k, mask=k < columns, other=0.0)
                    h += tl.sum(g * f[None, None, :], 2)
            whose = others if ROWS == THROUGH else p * 0 + mine  # the edge that is radial
            inside = (p < stop)[:, None] & (i < inner)[None, :]
            before, now, slope_before, slope = kept * 0.0, kept, kept * 0.0, kept * 0.0
            turned = kept * 0.0
            for l in range(degrees):
                r = tl.load(radial + (whose[:, None] * inner + i[None, :]) * degrees + l, mask=inside, other=0.0)
                turned += slope * tl.sum(h * r, 1)
                if ROWS != THROUGH:
                    total += tl.where(degree[None, :] == l, tl.sum(h * now[:, None], 0)[:, None], 0.0)
                after = slope_before + (2.0 * l + 1.0) * now
                slope_before, slope = slope, after
                before, now = now, ((2.0 * l + 1.0) * cosine * now - l * before) / (l + 1.0)
            gx += turned * u
            gy += turned * v
            gz += turned * w
        sign = -1.0 if THROUGH else 1.0
        to = gunit + 3 * (part * edges + mine)
        tl.store(to, sign * tl.sum(gx, 0))
        tl.store(to + 1, sign * tl.sum(gy, 0))
        tl.store(to + 2, sign * tl.sum(gz, 0))
        if ROWS != THROUGH:
            place = gradial + (mine * inner + i[:, None]) * degrees + degree[None, :]
            tl.store(place, total, mask=(i < inner)[:, None] & (degree < degrees)[None, :])


def angular_blocks(inner, columns):
    return {"BE": 8, "BI": min(next_power_of_2(max(inner, 1)), 8), "BF": min(next_power_of_2(max(columns, 1)), 16)}


def angular(x, unit, radial, row, row_ptr, ptr, tile_ptr, keep, through, out):
    out.zero_()
    (_, inner, degrees), columns, atoms = radial.shape, x.shape[1], ptr.shape[0] - 1
    how = angular_blocks(inner, columns)
    if out.numel() and atoms:
        _angular[atoms, cdiv(inner, how["BI"]), cdiv(columns, how["BF"])](
            x, unit, radial, row, row_ptr, ptr, tile_ptr, keep, out, inner, degrees, columns,
            MOVED=row.shape[0] > 0, THROUGH=through, **how,
        )  # fmt: skip


def angular_back(
    grad, x, unit, radial, row, row_ptr, ptr, tile_ptr, keep, through, gx, of_rows, of_columns, gradial
):  # fmt: skip
    for t in (gx, of_rows, of_columns, gradial):
        t.zero_()
    (_, inner, degrees), columns, atoms = radial.shape, x.shape[1], ptr.shape[0] - 1
    how = angular_blocks(inner, columns) | {"MOVED": row.shape[0] > 0, "THROUGH": through}
    if not (grad.numel() and atoms):
        return
    places = unit, radial, row, row_ptr, ptr, tile_ptr, keep
    grid = atoms, cdiv(columns, how["BF"])
    _angular_pull[grid](grad, *places, gx, inner, degrees, columns, **how, num_warps=PULLING)
    edges, parts = x.shape[0], cdiv(inner, how["BI"])
    for rows, gunit in ((True, of_rows), (False, of_columns)):
        shares = gunit.new_zeros((parts, edges, 3))
        _angular_turn[atoms, parts](
            grad, x, *places, shares, gradial, edges, inner, degrees, columns,
            ROWS=rows, BL=next_power_of_2(degrees), **how,
        )  # fmt: skip
        gunit.copy_(shares.sum(0))


def _parts(ptr, tile_ptr, keep):
    """The edges to some atoms after the other, so many that a block is about full, and their tiles."""
    ends, pairs, a = ptr.tolist(), tile_ptr.tolist(), 0
    while a < len(ends) - 1:
        b = a + 1
        while b < len(ends) - 1 and ends[b + 1] - ends[a] <= BLOCK:
            b += 1
        part = ptr[a : b + 1] - ends[a]
        yield slice(ends[a], ends[b]), (ptr[:0], part, part, tile_ptr[a : b + 1] - pairs[a], keep[pairs[a] : pairs[b]])
        a = b


def gemnet(x, unit, radial, weight, ptr, tile_ptr, keep, out):
    out.zero_()
    for here, tiles in _parts(ptr, tile_ptr, keep):
        sums = x.new_empty((here.stop - here.start, radial.shape[1], x.shape[1]))
        angular(x[here], unit[here], radial[here], *tiles, False, sums)
        out[here] = sums.flatten(1) @ weight.flatten(0, 1)


def gemnet_back(grad, x, unit, radial, weight, ptr, tile_ptr, keep, gx, gunit, gradial, gweight):
    for t in (gx, gunit, gradial, gweight):
        t.zero_()
    for here, tiles in _parts(ptr, tile_ptr, keep):
        given, g = (x[here], unit[here], radial[here]), grad[here]
        sums = x.new_empty((len(g), *weight.shape[:2]))
        angular(*given, *tiles, False, sums)
        gweight += (sums.flatten(1).T @ g).view_as(gweight)
        torch.mm(g, weight.flatten(0, 1).T, out=sums.flatten(1))
        columns = torch.empty_like(gunit[here])
        angular_back(sums, *given, *tiles, False, gx[here], gunit[here], columns, gradial[here])
        gunit[here] += columns
