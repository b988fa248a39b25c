"""Triton kernels for pyfast.prune: radix select over many tensors at once, one program per tile of one tensor.

A round counts one digit of the keys that share the digits found so far, from the top; then one bin is entered. The
pool has its own prefix of digits, and so has every tensor whose minimum lies in a lower bin than the pool's: it binds.
All the others follow the pool. When no digit is left, the prefixes are the thresholds, and a last pass writes the bits.
The host never waits for the device.
"""

import functools

import torch
import triton
from pyfast.kernels.prune._bits import _mark, _settle, _share, _zero
from pyfast.kernels.prune._rounds import _count, _enter_own, _enter_pool

TILE = 8192  # weights per program
WARPS = 16
# Bits per round. tl.histogram is a ballot for every bin in Triton 3.6, so few bins win; shared-memory atomics in 3.9.
WIDTH = 11 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else 8
RADIX = 3  # the table's word for this algorithm

# Low bits of the 31-bit key that are zero in every value of the type.
ZERO_BITS = {
    torch.float32: 0,
    torch.float16: 13,
    torch.bfloat16: 16,
    torch.int8: 17,
    torch.float8_e4m3fn: 20,
    torch.float8_e5m2: 21,
}


@functools.lru_cache(maxsize=8)  # training prunes the same model again and again
def _plan(sizes, kinds, device, tile):
    """Layout and tiles on the device, and per kind (kind, its tensors, first tile, number of tiles)."""
    groups, owner, layout, count, words = [], [], [[n, 0, 0] for n in sizes], 0, 0
    for l, n in enumerate(sizes):
        layout[l][2], words = words, words + (n + 63) // 64
    for kind in dict.fromkeys(kinds):
        members = [l for l, k in enumerate(kinds) if k == kind]
        base = count
        for l in members:
            layout[l][1] = count
            count += -(-sizes[l] // tile)
        groups.append((kind, members, base, count - base))
        owner += members
    owner = torch.tensor(owner, dtype=torch.int64)
    tiles = owner.repeat_interleave(torch.tensor([-(-sizes[l] // tile) for l in owner.tolist()], dtype=torch.int64))
    return _upload(layout, device).view(-1, 3), tiles.to(torch.int32).to(device), groups


def _upload(values, device):
    host = torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def select(weights, prune, min_keep, ties, nan_as_zero, bits, table):
    weights = [w.contiguous() for w in weights]
    sizes, kinds = tuple(w.numel() for w in weights), tuple(w.dtype for w in weights)
    layers, device = len(weights), table.device
    layout, tiles, groups = _plan(sizes, kinds, device, TILE)
    floor = min_keep if any(min_keep) else [0] * layers
    per_tensor = any(floor)
    room = sum(sizes) - prune - sum(floor)
    dead = -1  # a prefix that no key has
    state = [0 if room else dead, room, 0, 0]
    for m in floor:
        state += 0 if room or m else dead, m, 0, 0
    state = _upload([*state, *(w.data_ptr() for w in weights)], device)
    address = state[4 * (layers + 1) :]
    wide = torch.float64 in kinds
    above, low = (63, 0) if wide else (31, min((ZERO_BITS[k] for k in kinds), default=0))
    bins, chunk = 1 << WIDTH, 1024
    counts = torch.empty(layers + 1 if per_tensor else 1, bins, dtype=torch.int64, device=device)
    equal, kept = torch.empty(2, len(tiles), dtype=torch.int64, device=device)
    each = [
        (
            base,
            count,
            {
                "FORMAT": str(kind)[6:],
                "WIDE": wide,
                "ALIGNED": all(weights[l].data_ptr() % 16 == 0 for l in members),
                "TILE": TILE,
                "num_warps": WARPS,
            },
        )
        for kind, members, base, count in groups
    ]
    table.zero_()
    passes = 1
    while above > low:
        shift = max(low, above - WIDTH)
        counts.zero_()
        for base, count, how in each:
            _count[(count,)](
                address, layout, tiles, state, counts, table, base, above, shift, int(per_tensor), int(nan_as_zero),
                FIRST=passes == 1, BINS=bins, **how,
            )  # fmt: skip
        if per_tensor:
            _enter_own[(layers,)](state, counts, BINS=bins)
        _enter_pool[(1,)](state, counts, above - shift, layers, BINS=bins, CHUNK=chunk)
        above, passes = shift, passes + 1
    for base, count, how in each:
        _mark[(count,)](address, layout, tiles, state, equal, bits, table, base, low, int(nan_as_zero), **how)
    _share[(layers + 1,)](
        layout, state, equal, kept, table, low, layers, passes,
        ALL=ties == "keep_all", NONE=ties == "prune_all", PATH=RADIX, WIDE=wide, CHUNK=chunk, TILE=TILE,
    )  # fmt: skip
    if ties != "keep_all":
        for base, count, how in each:
            _settle[(count,)](address, layout, tiles, state, equal, kept, bits, base, low, int(nan_as_zero), **how)


def apply(weights, bits):
    dense = [w.contiguous() for w in weights]
    layout, tiles, groups = _plan(tuple(w.numel() for w in dense), tuple(w.dtype for w in dense), bits.device, TILE)
    address = _upload([w.data_ptr() for w in dense], bits.device)
    for kind, _, base, count in groups:
        _zero[(count,)](address, layout, tiles, bits, base, WIDTH=kind.itemsize, TILE=TILE, num_warps=WARPS)
    for w, d in zip(weights, dense, strict=True):
        if d is not w and d.data_ptr() != w.data_ptr():
            w.detach().copy_(d)
