"""Edge vectors, their adjoint, and nearest images; in float64 whatever memory holds."""

import torch
import triton
import triton.language as tl
from pyfast.kernels.crystal._messages import _edges, _row
from triton import cdiv

BE = 128


@triton.jit
def _vectors(
    x, cell, shift, other, edge, row, structure, used, out, positions, MOVED: tl.constexpr, BE: tl.constexpr
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    inside = p < tl.minimum(tl.load(used).to(tl.int64), positions)
    e, j = _edges(other, edge, p, inside, MOVED)
    i = tl.load(row + p, mask=inside, other=0)
    b = tl.load(structure + i, mask=inside, other=0)
    for k in range(3):
        v = tl.load(x + 3 * j + k, mask=inside, other=0.0).to(tl.float64)
        v -= tl.load(x + 3 * i + k, mask=inside, other=0.0).to(tl.float64)
        image = tl.zeros((BE,), tl.float64)
        for a in range(3):
            s = tl.load(shift + 3 * e + a, mask=inside, other=0).to(tl.float64)
            image += s * tl.load(cell + 9 * b + 3 * a + k, mask=inside, other=0.0).to(tl.float64)
        tl.store(out + 3 * e + k, v + image, mask=inside)


@triton.jit
def _row_sum(g, edge, begin, end, k, MOVED: tl.constexpr, BE: tl.constexpr):
    total = tl.zeros((BE,), tl.float64)
    for first in range(begin, end, BE):
        p = first + tl.arange(0, BE).to(tl.int64)
        e = tl.load(edge + p, mask=p < end, other=0).to(tl.int64) if MOVED else p
        total += tl.load(g + 3 * e + k, mask=p < end, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit
def _pull(
    g, edge, ptr, edge_t, ptr_t, dx, MOVED: tl.constexpr, MOVED_T: tl.constexpr, BE: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    begin, end = _row(ptr, i)
    begin_t, end_t = _row(ptr_t, i)
    for k in range(3):
        out = _row_sum(g, edge_t, begin_t, end_t, k, MOVED_T, BE)
        tl.store(dx + 3 * i + k, out - _row_sum(g, edge, begin, end, k, MOVED, BE))


@triton.jit
def _strain(g, shift, edge_ptr, dcell, BE: tl.constexpr):
    b, a = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin, end = _row(edge_ptr, b)
    for k in range(3):
        total = tl.zeros((BE,), tl.float64)
        for first in range(begin, end, BE):
            e = first + tl.arange(0, BE).to(tl.int64)
            s = tl.load(shift + 3 * e + a, mask=e < end, other=0).to(tl.float64)
            total += s * tl.load(g + 3 * e + k, mask=e < end, other=0.0).to(tl.float64)
        tl.store(dcell + 9 * b + 3 * a + k, tl.sum(total, 0))


@triton.jit
def _shorten(a, v, vector):
    """A vector less the nearest multiple of another, and whether that is any; lanes of no vector go along."""
    q = tl.floor(tl.sum(a * v * vector, 0) / tl.sum(v * v * vector, 0) + 0.5)
    q = tl.where(tl.abs(q) > 0, q, 0.0)  # not by vectors of no length
    return a - q * v, q != 0


@triton.jit
def _reduce(axes):
    """Short vectors of the lattice of three, eight lanes each: x, y, z, and steps along the three that they are of.

    As in csrc/crystal/geometry.cpp: by pairs, then each by sums and differences of the other two.
    """
    at = axes + 24 * tl.program_id(0).to(tl.int64) + tl.arange(0, 8)
    vector = tl.where(tl.arange(0, 8) < 3, 1.0, 0.0).to(tl.float64)
    a, b, c = tl.load(at), tl.load(at + 8), tl.load(at + 16)
    rounds = 0
    while rounds < 200:
        a, more = _shorten(a, b, vector)
        a, found = _shorten(a, c, vector)
        more = more | found
        b, found = _shorten(b, a, vector)
        more = more | found
        b, found = _shorten(b, c, vector)
        more = more | found
        c, found = _shorten(c, a, vector)
        more = more | found
        c, found = _shorten(c, b, vector)
        more = more | found
        if not more:
            a, more = _shorten(a, b - c, vector)
            a, found = _shorten(a, b + c, vector)
            more = more | found
            b, found = _shorten(b, c - a, vector)
            more = more | found
            b, found = _shorten(b, c + a, vector)
            more = more | found
            c, found = _shorten(c, a - b, vector)
            more = more | found
            c, found = _shorten(c, a + b, vector)
            more = more | found
        rounds = tl.where(more, rounds + 1, 200)
    tl.store(at, a)
    tl.store(at + 8, b)
    tl.store(at + 16, c)


@triton.jit
def _span(y, width, left):
    reach = tl.sqrt(tl.maximum(left, 0.0)) / width
    low = tl.ceil(-y / width - reach - 1e-9).to(tl.int64)
    return low, tl.floor(-y / width + reach + 1e-9).to(tl.int64) + 1


@triton.jit
def _nearest(y, start, structure, part, steps, shift):
    """Of the images within the one found plane by plane, the shortest: one axis after the other, one vector each."""
    m = tl.program_id(0).to(tl.int64)
    at = part + 9 * tl.load(structure + m)
    y0, y1, y2 = tl.load(y + 3 * m), tl.load(y + 3 * m + 1), tl.load(y + 3 * m + 2)
    p00, p01, p02 = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    p11, p12, p22 = tl.load(at + 4), tl.load(at + 5), tl.load(at + 8)
    best = (y0 * y0 + y1 * y1 + y2 * y2) * (1 + 1e-12) + 1e-300
    none = tl.zeros((), tl.int64)
    a, b, c = none, none, none
    low0, high0 = _span(y0, p00, best)
    for i0 in range(low0, high0):
        s0 = none + i0  # a tensor in the interpreter too
        t0 = s0.to(tl.float64)
        x0, x1, x2 = y0 + tl.where(s0 == 0, 0.0, t0 * p00), y1 + t0 * p01, y2 + t0 * p02
        low1, high1 = _span(x1, p11, best - x0 * x0)
        for i1 in range(low1, high1):
            s1 = none + i1
            t1 = s1.to(tl.float64)
            z1, z2 = x1 + tl.where(s1 == 0, 0.0, t1 * p11), x2 + t1 * p12
            low2, high2 = _span(z2, p22, best - x0 * x0 - z1 * z1)
            for i2 in range(low2, high2):
                s2 = none + i2
                z = z2 + tl.where(s2 == 0, 0.0, s2.to(tl.float64) * p22)
                length = x0 * x0 + z1 * z1 + z * z
                nearer = length < best
                best = tl.where(nearer, length, best)
                a, b, c = tl.where(nearer, s0, a), tl.where(nearer, s1, b), tl.where(nearer, s2, c)
    a += tl.load(start + 3 * m)
    b += tl.load(start + 3 * m + 1)
    c += tl.load(start + 3 * m + 2)
    of = steps + 9 * tl.load(structure + m)
    for k in range(3):
        total = a * tl.load(of + k) + b * tl.load(of + 3 + k) + c * tl.load(of + 6 + k)
        tl.store(shift + 3 * m + k, total.to(tl.int32))


def _segment(ptr, count):
    places = torch.arange(count, device=ptr.device)
    return torch.searchsorted(ptr, places, right=True) - 1


def vectors(x, cell, shift, other, edge, ptr, other_t, edge_t, ptr_t, edge_ptr, atom_ptr, out):
    out.zero_()  # padding
    count = other.shape[0]
    if count and x.shape[0]:
        row, structure = _segment(ptr, count), _segment(atom_ptr, x.shape[0])
        _vectors[(cdiv(count, BE),)](
            x, cell, shift, other, edge, row, structure, ptr[-1:], out, count, MOVED=edge.shape[0] > 0, BE=BE
        )


def vectors_adjoint(g, shift, other, edge, ptr, other_t, edge_t, ptr_t, edge_ptr, atom_ptr, dx, dcell):
    if dx.shape[0]:
        moved = {"MOVED": edge.shape[0] > 0, "MOVED_T": edge_t.shape[0] > 0}
        _pull[(dx.shape[0],)](g, edge, ptr, edge_t, ptr_t, dx, **moved, BE=32)
    if dcell.shape[0]:
        _strain[dcell.shape[0], 3](g, shift, edge_ptr, dcell, BE=BE)


def nearest_shift(vector, cell, structure, periodic, shift):
    x = vector.double()
    axes = torch.zeros(len(cell), 3, 8, dtype=torch.float64, device=cell.device)
    axes[:, :, :3] = torch.where(periodic[:, :, None], cell, 0)
    axes[:, :, 3:6] = torch.eye(3, device=cell.device)
    if len(cell):
        _reduce[(len(cell),)](axes, num_warps=1)
    order = axes[:, :, :3].norm(dim=2).argsort(dim=1, descending=True)  # none of no length before others
    axes = axes.gather(1, order[:, :, None].expand(-1, -1, 8))
    axis, steps = axes[:, :, :3].contiguous(), axes[:, :, 3:6].long().contiguous()
    basis, part = torch.zeros_like(axis), torch.zeros_like(axis)
    for k in (2, 1, 0):
        rest = axis[:, k]
        for _ in range(2):
            for m in range(2, k, -1):
                rest = rest - (rest * basis[:, m]).sum(1, keepdim=True) * basis[:, m]
        out = rest.norm(dim=1)
        on = out > 0
        basis[:, k] = torch.where(on[:, None], rest / out[:, None], 0)
        part[:, k] = torch.where(on[:, None], (basis @ axis[:, k, :, None])[..., 0], 0)
        part[:, k, k] = torch.where(on, out, torch.inf)
    start = torch.zeros(len(x), 3, dtype=torch.int64, device=x.device)
    for k in range(3):
        t = -((x * basis[structure, k]).sum(1) / part[structure, k, k]).round()
        start[:, k] = t.long()
        x = x + t[:, None] * axis[structure, k]
    y = (basis[structure] @ x[:, :, None])[..., 0].contiguous()
    if len(x):
        _nearest[(len(x),)](y, start, structure, part, steps, shift)
