"""From thresholds to bits, and from bits to pruned weights."""

import triton
import triton.language as tl
from pyfast.kernels.prune._tiles import EQUAL, NEED, PREFIX, SIZE, TILES, WORDS, _keys, _locate, _write


@triton.jit
def _threshold(prefix, low, WIDE: tl.constexpr):
    LAST: tl.constexpr = 0x7FFFFFFFFFFFFFFF if WIDE else 0x7FFFFFFF
    return tl.where(prefix < 0, LAST, prefix << low)


@triton.jit(do_not_specialize=["base", "low", "nan_as_zero"])
def _mark(
    address,
    layout,
    tiles,
    state,
    equal,
    bits,
    table,
    base,
    low,
    nan_as_zero,
    FORMAT: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Bits of all weights at or above the threshold, and how many are above, how many at it."""
    t, l, start, size = _locate(tiles, layout, base, TILE)
    key, inside, _ = _keys(tl.load(address + l), start, size, nan_as_zero, FORMAT, WIDE, ALIGNED, TILE)
    threshold = _threshold(tl.load(state + 4 * (l + 1) + PREFIX), low, WIDE)
    _write(bits, layout, l, start, size, inside & (key >= threshold), TILE)
    ties = tl.sum((inside & (key == threshold)).to(tl.int64))
    tl.store(equal + t, ties)
    above = tl.sum((inside & (key > threshold)).to(tl.int64))
    if above > 0:
        tl.atomic_add(table + 4 * l, above, sem="relaxed")
    if ties > 0:
        tl.atomic_add(state + 4 * (l + 1) + EQUAL, ties, sem="relaxed")


@triton.jit
def _pool_ties(state, l, mask):
    """Ties at the pool's threshold that no minimum forces."""
    row = state + 4 * (l + 1)
    follows = tl.load(row + PREFIX, mask=mask, other=0) == tl.load(state + PREFIX)
    free = tl.load(row + EQUAL, mask=mask, other=0) - tl.load(row + NEED, mask=mask, other=0)
    return tl.where(follows & mask, free, 0)


@triton.jit(do_not_specialize=["low", "layers", "passes"])
def _share(
    layout,
    state,
    equal,
    kept,
    table,
    low,
    layers,
    passes,
    ALL: tl.constexpr,
    NONE: tl.constexpr,
    PATH: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """How many ties a tensor keeps, hence each of its tiles, and its row of the table; the last row is the pool's."""
    l = tl.program_id(0).to(tl.int64)
    pool = tl.load(state + PREFIX)
    if l == layers:
        tl.store(table + 4 * l + 1, _threshold(pool, low, WIDE))
        tl.store(table + 4 * l + 2, PATH)
        tl.store(table + 4 * l + 3, passes)
        return
    before = tl.zeros((), tl.int64)
    total = tl.zeros((), tl.int64)
    for first in range(0, layers, CHUNK):
        j = first + tl.arange(0, CHUNK)
        free = _pool_ties(state, j, j < layers)
        before += tl.sum(tl.where(j < l, free, 0))
        total += tl.sum(free)
    room = tl.load(state + NEED)
    prefix = tl.load(state + 4 * (l + 1) + PREFIX)
    ties = tl.load(state + 4 * (l + 1) + EQUAL)
    quota = tl.load(state + 4 * (l + 1) + NEED)
    if prefix == pool and not (NONE and room < total):
        quota += tl.minimum(tl.maximum(room - before, 0), ties - quota)
    if ALL:
        quota = ties
    whole = tl.load(table + 4 * l) + quota
    tl.store(table + 4 * l, whole)
    tl.store(table + 4 * l + 1, _threshold(prefix, low, WIDE))
    tl.store(table + 4 * l + 2, (prefix != pool).to(tl.int64))
    tl.atomic_add(table + 4 * layers, whole, sem="relaxed")
    t = tl.load(layout + 3 * l + TILES)
    end = t + tl.cdiv(tl.load(layout + 3 * l + SIZE), TILE)
    while t < end:
        i = t + tl.arange(0, CHUNK)
        here = tl.load(equal + i, mask=i < end, other=0)
        left = quota - (tl.cumsum(here, 0) - here)
        tl.store(kept + i, tl.minimum(tl.maximum(left, 0), here), mask=i < end)
        quota -= tl.sum(here)
        t += CHUNK


@triton.jit(do_not_specialize=["base", "low", "nan_as_zero"])
def _settle(
    address,
    layout,
    tiles,
    state,
    equal,
    kept,
    bits,
    base,
    low,
    nan_as_zero,
    FORMAT: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
):
    """The bits again, of the few tiles that do not keep all their ties."""
    t, l, start, size = _locate(tiles, layout, base, TILE)
    quota = tl.load(kept + t)
    if quota == tl.load(equal + t):
        return
    key, inside, _ = _keys(tl.load(address + l), start, size, nan_as_zero, FORMAT, WIDE, ALIGNED, TILE)
    threshold = _threshold(tl.load(state + 4 * (l + 1) + PREFIX), low, WIDE)
    tie = inside & (key == threshold)
    _write(
        bits, layout, l, start, size, inside & (key > threshold) | tie & (tl.cumsum(tie.to(tl.int32), 0) <= quota), TILE
    )


@triton.jit(do_not_specialize=["base"])
def _zero(address, layout, tiles, bits, base, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Stores zeros where the bit is 0. Nothing is read: what stays is not touched."""
    _, l, start, size = _locate(tiles, layout, base, TILE)
    i = tl.arange(0, TILE)
    inside = i < tl.minimum(size - start, TILE).to(tl.int32)
    word = tl.load(bits + tl.load(layout + 3 * l + WORDS) + start // 64 + i // 64, mask=inside, other=0)
    pruned = inside & (((word >> (i % 64).to(tl.int64)) & 1) == 0)
    address = tl.load(address + l)
    if WIDTH == 8:
        pointer = address.to(tl.pointer_type(tl.int64))
    elif WIDTH == 4:
        pointer = address.to(tl.pointer_type(tl.int32))
    elif WIDTH == 2:
        pointer = address.to(tl.pointer_type(tl.int16))
    else:
        pointer = address.to(tl.pointer_type(tl.int8))
    tl.store(pointer + start + i, tl.zeros((TILE,), pointer.dtype.element_ty), mask=pruned)
