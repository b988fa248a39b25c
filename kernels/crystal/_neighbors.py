"""Neighbours: a program for each atom runs over the images of every other that could be near, in the order of the list.

Nothing is sorted, and no program waits for another. Decisions are rounded as on the CPU: these kernels are compiled
without fused multiply-adds. Every atom looks at every atom of its structure, which is best for crystals of up to some
thousands of atoms.
"""

import torch
import triton
import triton.language as tl
from pyfast.kernels.crystal import _lattice

NEIGHBORS = {"BLOCK": 128, "num_warps": 4, "enable_fp_fusion": False}
COINCIDENT = 32


@triton.jit
def _first(per, start, radius):
    return tl.where(per == 0, 0.0, tl.ceil((-radius - start) * per))


@triton.jit
def _images(per, radius):
    return (2 * radius * per).to(tl.int64) + 1


@triton.jit
def _difference(positions, i, j, inside):
    x = tl.load(positions + 3 * j, mask=inside, other=0.0).to(tl.float64) - tl.load(positions + 3 * i).to(tl.float64)
    y = tl.load(positions + 3 * j + 1, mask=inside, other=0.0).to(tl.float64)
    z = tl.load(positions + 3 * j + 2, mask=inside, other=0.0).to(tl.float64)
    return x, y - tl.load(positions + 3 * i + 1).to(tl.float64), z - tl.load(positions + 3 * i + 2).to(tl.float64)


@triton.jit
def _dot(x, y, z, row):
    return (x * tl.load(row) + y * tl.load(row + 1)) + z * tl.load(row + 2)


@triton.jit
def _neighbors(
    positions, atom_ptr, structure, kinds, table, reaches, status, limits, ptr, counts, coincident,
    source, target, shift, distance, num_kinds,
    HALF: tl.constexpr, BY_KIND: tl.constexpr, WRITE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    b = tl.load(structure + i).to(tl.int64)
    first, last = tl.load(atom_ptr + b), tl.load(atom_ptr + b + 1)
    if WRITE:
        begin, end = tl.load(ptr + i).to(tl.int64), tl.load(ptr + i + 1).to(tl.int64)
        wanted = end > begin
    else:
        begin = i * 0
        end = begin
        wanted = tl.load(status + b) == 0
    row = table + 27 * b
    ab, ac, bc = tl.load(row + 10), tl.load(row + 11), tl.load(row + 13)
    per_a, per_b, per_c = tl.load(row + 15), tl.load(row + 16), tl.load(row + 17)
    r = tl.load(reaches + 2 * b)
    wanted_images = tl.where(wanted, 1, 0).to(tl.int64)
    r = tl.where(wanted, r, 0.0)
    na, nb, nc = _images(per_a, r), _images(per_b, r), _images(per_c, r)
    box = na * nb * nc
    total = (last - first) * box * wanted_images
    found = i * 0
    touching = tl.zeros([BLOCK], tl.int32)
    for start in range(0, total, BLOCK):
        t = start + tl.arange(0, BLOCK).to(tl.int64)
        inside = t < total
        j = first + t // box
        at = t % box
        x, y, z = _difference(positions, i, j, inside)
        u, v, w = _dot(x, y, z, row), _dot(x, y, z, row + 3), _dot(x, y, z, row + 6)
        a = _first(per_a, u, r) + (at // (nb * nc)).to(tl.float64)
        p = _first(per_b, v + a * ab, r) + (at // nc % nb).to(tl.float64)
        q = _first(per_c, (w + a * ac) + p * bc, r) + (at % nc).to(tl.float64)
        x += (a * tl.load(row + 18) + p * tl.load(row + 21)) + q * tl.load(row + 24)
        y += (a * tl.load(row + 19) + p * tl.load(row + 22)) + q * tl.load(row + 25)
        z += (a * tl.load(row + 20) + p * tl.load(row + 23)) + q * tl.load(row + 26)
        square = (x * x + y * y) + z * z
        if BY_KIND:
            mine = tl.load(kinds + i)
            limit = tl.load(
                limits + mine * num_kinds + tl.load(kinds + j, mask=inside, other=0), mask=inside, other=0.0
            )
        else:
            limit = tl.load(limits + b)
        self = (j == i) & (a == 0) & (p == 0) & (q == 0)
        near = inside & (square < limit) & ~self
        if HALF:
            positive = (a > 0) | ((a == 0) & ((p > 0) | ((p == 0) & (q > 0))))
            near = near & ((i < j) | ((i == j) & positive))
        n = near.to(tl.int32)
        if WRITE:
            e = begin + found + (tl.cumsum(n, 0) - n).to(tl.int64)
            near = near & (e < end)
            tl.store(source + e, j, mask=near)
            tl.store(target + e, i, mask=near)
            tl.store(shift + 3 * e, a.to(tl.int32), mask=near)
            tl.store(shift + 3 * e + 1, p.to(tl.int32), mask=near)
            tl.store(shift + 3 * e + 2, q.to(tl.int32), mask=near)
            tl.store(distance + e, tl.sqrt(square).to(distance.dtype.element_ty), mask=near)
        else:
            touching |= (near & (square == 0)).to(tl.int32)
        found += tl.sum(n, 0).to(tl.int64)
    if not WRITE:
        tl.store(counts + i, found)
        tl.store(coincident + i, tl.max(touching, 0))


@triton.jit
def _before(source, shift, at, j, a, b, c):
    """Whether the edge at a place of a row comes before the edge from j with this shift."""
    p, q, r = tl.load(shift + 3 * at), tl.load(shift + 3 * at + 1), tl.load(shift + 3 * at + 2)
    k = tl.load(source + at).to(tl.int64)
    return (k < j) | ((k == j) & ((p < a) | ((p == a) & ((q < b) | ((q == b) & (r < c))))))


@triton.jit
def _reverse(source, target, shift, ptr, reverse, edges, N, BLOCK: tl.constexpr):
    """Finds each edge turned round by halving the row of its source."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    inside = e < tl.load(ptr + N).to(tl.int64)
    e = tl.where(inside, e, 0)
    if tl.sum(inside.to(tl.int32), 0) > 0:
        i = tl.load(target + e).to(tl.int64)
        j = tl.load(source + e).to(tl.int64)
        a, b, c = -tl.load(shift + 3 * e), -tl.load(shift + 3 * e + 1), -tl.load(shift + 3 * e + 2)
        low = tl.load(ptr + j).to(tl.int64)
        end = tl.load(ptr + j + 1).to(tl.int64)
        high = end
        for _ in range(32):
            middle = (low + high) // 2
            open = low < high
            before = open & _before(source, shift, tl.where(open, middle, 0), i, a, b, c)
            low = tl.where(before, middle + 1, low)
            high = tl.where(open & ~before, middle, high)
        tl.store(reverse + e, low, mask=inside)


def count(positions, cell, pbc, atom_ptr, cutoff, kinds, inclusive, half, max_edges, counts, status):
    table, reaches, found = _lattice.rows(positions, cell, pbc, atom_ptr, cutoff, kinds, inclusive, max_edges)
    status.copy_(found)
    N, by_kind = len(positions), kinds.numel() > 0
    if N == 0:
        return
    touching = torch.zeros(N, dtype=torch.int32, device=positions.device)
    structure = _structure(atom_ptr, N)
    none = counts
    _neighbors[(N,)](
        positions, atom_ptr, structure, kinds, table, reaches, status, _lattice.limits(cutoff, inclusive),
        none, counts, touching, none, none, none, reaches, len(cutoff),
        HALF=half, BY_KIND=by_kind, WRITE=False, **NEIGHBORS,
    )  # fmt: skip
    before = torch.nn.functional.pad(touching.cumsum(0), (1, 0))[atom_ptr]
    status |= (before.diff() > 0).to(torch.int32) * COINCIDENT


def fill(
    positions, cell, pbc, atom_ptr, cutoff, kinds, inclusive, half, ptr, edges, edge_index, shift, distance, reverse
):
    table, reaches, status = _lattice.rows(positions, cell, pbc, atom_ptr, cutoff, kinds, inclusive, float("inf"))
    edge_index.zero_(), shift.zero_(), distance.zero_(), reverse.fill_(-1)
    N, by_kind = len(positions), kinds.numel() > 0
    if N == 0 or edges == 0:
        return
    source, target = edge_index[0], edge_index[1]
    _neighbors[(N,)](
        positions, atom_ptr, _structure(atom_ptr, N), kinds, table, reaches, status, _lattice.limits(cutoff, inclusive),
        ptr, ptr, ptr, source, target, shift, distance, len(cutoff),
        HALF=half, BY_KIND=by_kind, WRITE=True, **NEIGHBORS,
    )  # fmt: skip
    if not half:
        block = NEIGHBORS["BLOCK"]
        _reverse[(triton.cdiv(edges, block),)](source, target, shift, ptr, reverse, edges, N, BLOCK=block, num_warps=4)


def _structure(atom_ptr, N):
    atoms = torch.arange(N, device=atom_ptr.device)
    return torch.searchsorted(atom_ptr[1:], atoms, right=True).clamp(max=max(len(atom_ptr) - 2, 0))
