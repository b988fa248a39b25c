"""The k nearest of every atom: a program for each halves the numbers between which the k-th key lies, key after key."""

import torch
import triton
import triton.language as tl

NEAREST = {"BLOCK": 128, "num_warps": 4, "enable_fp_fusion": False}
CANONICAL, INCLUDE, CDVAE = 0, 1, 2


@triton.jit
def _ordered(x):
    """A float64 as an int64 of the same order; both zeros alike."""
    n = (x + 0.0).to(tl.int64, bitcast=True)
    return tl.where(n < 0, n ^ 0x7FFFFFFFFFFFFFFF, n)


@triton.jit
def _key(e, inside, i, row, edge_index, shift, distance, positions, KEY: tl.constexpr):
    """Key 0 is the length, 1 to 3 the vector, 4 the place."""
    if KEY == 0:
        key = _ordered(tl.load(distance + e, mask=inside, other=0.0))
    elif KEY == 4:
        key = e
    else:
        c: tl.constexpr = KEY - 1
        j = tl.load(edge_index + e, mask=inside, other=0)
        d = tl.load(positions + 3 * j + c, mask=inside, other=0.0) - tl.load(positions + 3 * i + c)
        p = tl.load(shift + 3 * e, mask=inside, other=0).to(tl.float64)
        q = tl.load(shift + 3 * e + 1, mask=inside, other=0).to(tl.float64)
        r = tl.load(shift + 3 * e + 2, mask=inside, other=0).to(tl.float64)
        key = _ordered(d + ((p * tl.load(row + c) + q * tl.load(row + 3 + c)) + r * tl.load(row + 6 + c)))
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
        # Keys decided so far: an edge is still open if it has all of them.
        at0, at1, at2, at3 = n * 0, n * 0, n * 0, n * 0
        for KEY in tl.static_range(5):
            if (TIES == 0) | (KEY == 0) | ((TIES == 2) & (KEY == 4)):
                low, high = n * 0 - 0x7FFFFFFFFFFFFFFF, n * 0 + 0x7FFFFFFFFFFFFFFF
                below = n * 0
                while low < high:  # the least key at or below which `left` open edges lie
                    middle = (low >> 1) + (high >> 1) + (low & high & 1)
                    count = n * 0
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
                        count += tl.sum((open & (key <= middle)).to(tl.int64), 0)
                    enough = count >= left
                    high = tl.where(enough, middle, high)
                    low = tl.where(enough, low, middle + 1)
                    below = tl.where(enough, below, count)
                # `below` lie strictly below the key found, as the last count that was not enough was taken just there
                if KEY == 0:
                    at0 = low
                if KEY == 1:
                    at1 = low
                if KEY == 2:
                    at2 = low
                if KEY == 3:
                    at3 = low
                last = low
                left -= below
        for start in range(begin, end, BLOCK):
            e = start + lanes
            inside = e < end
            d = tl.load(distance + e, mask=inside, other=-1.0)
            keep = inside & (d > minimum)
            k0 = _key(e, inside, i, row, edge_index, shift, distance, positions, 0)
            if TIES == 1:
                limit = at0.to(tl.float64, bitcast=True) + tolerance
                keep &= d <= limit
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
