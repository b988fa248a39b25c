"""One round: a digit is counted, and every prefix enters one bin."""

import triton
import triton.language as tl
from pyfast.kernels.prune._tiles import NEED, OWN, PREFIX, _keys, _locate


@triton.jit(do_not_specialize=["base", "above", "shift", "per_tensor", "nan_as_zero", "layers"])
def _count(
    address,
    layout,
    tiles,
    state,
    counts,
    table,
    base,
    above,
    shift,
    per_tensor,
    nan_as_zero,
    FIRST: tl.constexpr,
    FORMAT: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BINS: tl.constexpr,
    TILE: tl.constexpr,
):
    """One digit, bits shift to above, of the keys whose higher bits are the tensor's prefix; first also the NaNs."""
    _, l, start, size = _locate(tiles, layout, base, TILE)
    prefix = tl.load(state + 4 * (l + 1) + PREFIX)
    if not FIRST and prefix < 0:
        return
    key, inside, nan = _keys(tl.load(address + l), start, size, nan_as_zero, FORMAT, WIDE, ALIGNED, TILE)
    bin = ((key >> shift) & ((1 << (above - shift)) - 1)).to(tl.int32)
    row = counts + (l + 1) * per_tensor * BINS
    match = inside & ((key >> above) == prefix) if not FIRST else inside
    many = tl.sum(match.to(tl.int32))
    # A few are counted where they are; many go through shared memory, whose atomics bear ties.
    if FIRST or many * 16 > TILE:
        sums = tl.histogram(bin, BINS, mask=match)
        tl.atomic_add(row + tl.arange(0, BINS), sums.to(tl.int64), mask=sums > 0, sem="relaxed")
    else:
        if many > 0:
            tl.atomic_add(row + bin, tl.full((TILE,), 1, tl.int64), mask=match, sem="relaxed")
    if FIRST:
        nans = tl.sum((nan & inside).to(tl.int64))
        if nans > 0:
            tl.atomic_add(table + 4 * l + 3, nans, sem="relaxed")


@triton.jit
def _walk(h, need, BINS: tl.constexpr):
    """The bin of the need-th of the highest, and how many are needed of that bin; the bin is 0 for none."""
    higher = tl.sum(h) - tl.cumsum(h, 0)
    hit = (higher < need) & (need <= higher + h)
    return tl.sum(tl.where(hit, tl.arange(0, BINS), 0)).to(tl.int64), tl.sum(tl.where(hit, need - higher, 0))


@triton.jit
def _enter_own(state, counts, BINS: tl.constexpr):
    """One tensor's own bin; what its minimum leaves goes to the pool."""
    l = tl.program_id(0).to(tl.int64) + 1
    b = tl.arange(0, BINS)
    h = tl.load(counts + l * BINS + b)
    need = tl.load(state + 4 * l + NEED)
    own, rest = _walk(h, need, BINS)
    own = tl.where(need > 0, own, BINS)
    tl.store(state + 4 * l + OWN, own)
    tl.store(state + 4 * l + NEED, rest)
    if tl.load(state + 4 * l + PREFIX) == tl.load(state + PREFIX):
        left = tl.where(b > own, 0, tl.where(b == own, h - rest, h))
        tl.atomic_add(counts + b, left, mask=left > 0, sem="relaxed")


@triton.jit(do_not_specialize=["bits", "layers"])
def _enter_pool(state, counts, bits, layers, BINS: tl.constexpr, CHUNK: tl.constexpr):
    """The pool's bin, and whether each tensor follows it there or goes on alone."""
    prefix = tl.load(state + PREFIX)
    need = tl.load(state + NEED)
    bin, rest = _walk(tl.load(counts + tl.arange(0, BINS)), need, BINS)
    entered = tl.where(prefix < 0, prefix, (prefix << bits) | bin)
    for first in range(0, layers, CHUNK):
        l = first + tl.arange(0, CHUNK)
        row = state + 4 * (l + 1)
        mask = l < layers
        mine = tl.load(row + PREFIX, mask=mask, other=0)
        forced = tl.load(row + NEED, mask=mask, other=0)
        own = tl.load(row + OWN, mask=mask, other=0)
        alone = (mine != prefix) | ((prefix >= 0) & (forced > 0) & (own < bin))
        tl.store(row + PREFIX, tl.where(alone, (mine << bits) | own, entered), mask=mask)
        tl.store(row + NEED, tl.where(alone | (own == bin), forced, 0), mask=mask)
    tl.store(state + PREFIX, entered)
    tl.store(state + NEED, rest)
