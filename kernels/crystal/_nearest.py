"""The k nearest of every atom: a program for each goes from one length to the next until it has k, key after key."""

import torch
import triton
import triton.language as tl

NEAREST = {"BLOCK": 128, "num_warps": 4, "enable_fp_fusion": False}
CANONICAL, INCLUDE, CDVAE = 0, 1, 2


@triton.jit
def _key(e, inside, i, row, edge_index, shift, distance, positions, KEY: tl.constexpr):
    """Key 0 is the length, 1 to 3 the vector, 4 the place."""
    if KEY == 0:
        key = tl.load(distance + e, mask=inside, other=0.0)
    elif KEY == 4:
        key = e.to(tl.float64)
    else:
        c: tl.constexpr = KEY - 1
        j = tl.load(edge_index + e, mask=inside, other=0)
        d = tl.load(positions + 3 * j + c, mask=inside, other=0.0) - tl.load(positions + 3 * i + c)
        p = tl.load(shift + 3 * e, mask=inside, other=0).to(tl.float64)
        q = tl.load(shift + 3 * e + 1, mask=inside, other=0).to(tl.float64)
        r = tl.load(shift + 3 * e + 2, mask=inside, other=0).to(tl.float64)
        key = d + ((p * tl.load(row + c) + q * tl.load(row + 3 + c)) + r * tl.load(row + 6 + c))
    return key


@triton.jit
def _choose(
    edge_index, shift, distance, ptr, positions, cells, structure, chosen, k, tolerance, minimum,
    TIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    row = cells + 9 * tl.load(structure + i)
    begin, end = tl.load(ptr + i), tl.load(ptr + i + 1)
    lanes = tl.arange(0, BLOCK).to(tl.int64)
    for start in range(begin, end, BLOCK):
        e = start + lanes
        inside = e < end
        tl.store(chosen + e, tl.load(distance + e, mask=inside, other=0.0) > minimum, mask=inside)
    n = end * 0
    for start in range(begin, end, BLOCK):
        e = start + lanes
        n += tl.sum(((e < end) & (tl.load(distance + e, mask=e < end, other=-1.0) > minimum)).to(tl.int64), 0)
    left = n * 0 + k
    if n > k:
        infinite = left.to(tl.float64) + float("inf")
        at0, at1, at2, at3, last = infinite, infinite, infinite, infinite, infinite  # keys of the last that is chosen
        for KEY in tl.static_range(5):
            if (TIES == 0) | (KEY == 0) | ((TIES == 2) & (KEY == 4)):
                at, below, seen = -infinite, left * 0, left * 0
                while seen < left:  # `seen` open edges have keys up to `at`, `below` of them smaller ones
                    least, count = infinite, left * 0
                    for start in range(begin, end, BLOCK):
                        e = start + lanes
                        inside = e < end
                        open = inside & (tl.load(distance + e, mask=inside, other=-1.0) > minimum)
                        if KEY > 0:
                            open &= _key(e, inside, i, row, edge_index, shift, distance, positions, 0) == at0
                        if TIES == 0:
                            if KEY > 1:
                                open &= _key(e, inside, i, row, edge_index, shift, distance, positions, 1) == at1
                            if KEY > 2:
                                open &= _key(e, inside, i, row, edge_index, shift, distance, positions, 2) == at2
                            if KEY > 3:
                                open &= _key(e, inside, i, row, edge_index, shift, distance, positions, 3) == at3
                        key = _key(e, inside, i, row, edge_index, shift, distance, positions, KEY)
                        key = tl.where(open & (key > at), key, float("inf"))
                        mine = tl.min(key, 0)
                        equal = tl.sum((open & (key == mine)).to(tl.int64), 0)
                        count = tl.where(mine < least, equal, tl.where(mine == least, count + equal, count))
                        least = tl.minimum(mine, least)
                    at, below, seen = least, seen, seen + count
                left -= below
                if KEY == 0:
                    at0 = at
                if KEY == 1:
                    at1 = at
                if KEY == 2:
                    at2 = at
                if KEY == 3:
                    at3 = at
                last = at
        for start in range(begin, end, BLOCK):
            e = start + lanes
            inside = e < end
            d = tl.load(distance + e, mask=inside, other=-1.0)
            keep = inside & (d > minimum)
            k0 = _key(e, inside, i, row, edge_index, shift, distance, positions, 0)
            if TIES == 1:
                keep &= d <= at0 + tolerance
            elif TIES == 2:
                keep &= (k0 < at0) | ((k0 == at0) & (e <= last))
            else:
                k1 = _key(e, inside, i, row, edge_index, shift, distance, positions, 1)
                k2 = _key(e, inside, i, row, edge_index, shift, distance, positions, 2)
                k3 = _key(e, inside, i, row, edge_index, shift, distance, positions, 3)
                last_key = (k3 < at3) | ((k3 == at3) & (e <= last))
                keep &= (k0 < at0) | (
                    (k0 == at0) & ((k1 < at1) | ((k1 == at1) & ((k2 < at2) | ((k2 == at2) & last_key))))
                )
            tl.store(chosen + e, keep, mask=inside)


def choose(edge_index, shift, distance, ptr, positions, cell, pbc, atom_ptr, k, ties, tolerance, minimum, chosen):
    chosen.zero_()
    N = len(ptr) - 1
    if N == 0:
        return
    atoms = torch.arange(N, device=ptr.device)
    structure = torch.searchsorted(atom_ptr[1:], atoms, right=True)
    cells = torch.where(pbc[..., None], cell, 0.0).contiguous()
    _choose[(N,)](
        edge_index, shift, distance, ptr, positions, cells, structure, chosen,
        k, tolerance, minimum, TIES=ties, **NEAREST,
    )  # fmt: skip


def keep(
    edge_index,
    shift,
    distance,
    reverse,
    ptr,
    chosen,
    count,
    kept_index,
    kept_shift,
    kept_distance,
    kept_reverse,
    kept_ptr,
):
    place = torch.nn.functional.pad(chosen.cumsum(0), (1, 0))
    kept = torch.nonzero_static(chosen, size=count).squeeze(1)
    torch.index_select(edge_index, 1, kept, out=kept_index)
    torch.index_select(shift, 0, kept, out=kept_shift)
    torch.index_select(distance, 0, kept, out=kept_distance)
    back = reverse[kept]
    kept_reverse.copy_(torch.where((back >= 0) & chosen[back], place[back], -1))
    kept_ptr.copy_(place[ptr])
