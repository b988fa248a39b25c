"""Triton kernels for pyfast.prune: radix select over many tensors at once, one program per tile of one tensor.

A round counts one digit of the keys that share the digits found so far, from the top; then one bin is entered. The pool
has its own prefix of digits, and so has every tensor whose minimum lies in a lower bin than the pool's (it *binds*); all
the others follow the pool. When no digit is left, the prefixes are the thresholds, and a last pass writes the bits.
The host never waits for the device.
"""

import functools

import torch
import triton
import triton.language as tl

TILE = 8192  # weights per program
WARPS = 16
# Bits per round. Up to 3.8, tl.histogram is a ballot for every bin, so few bins win, then shared-memory atomics.
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

# Columns of layout (L, 3) and of state (L + 1, 4), whose row 0 is the pool and row l + 1 is tensor l.
SIZE, TILES, WORDS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
PREFIX, NEED, OWN, EQUAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def _key32(x, FORMAT: tl.constexpr):
    """The bits of |x| widened to float32, from the bits x; a NaN is anything above 0x7f800000."""
    if FORMAT == "float32":
        key = x & 0x7FFFFFFF
    elif FORMAT == "bfloat16":
        key = (x.to(tl.int32) & 0x7FFF) << 16
    elif FORMAT == "int8":
        key = tl.abs(x.to(tl.int32)).to(tl.float32).to(tl.int32, bitcast=True)
    else:  # the smaller floats, in integers: not every device converts float8, and some flush what is subnormal
        MANTISSA: tl.constexpr = 10 if FORMAT == "float16" else 3 if FORMAT == "float8_e4m3fn" else 2
        BIAS: tl.constexpr = 7 if FORMAT == "float8_e4m3fn" else 15
        a = x.to(tl.int32) & (0x7FFF if FORMAT == "float16" else 0x7F)
        subnormal = (a.to(tl.float32) * 2.0 ** (1 - BIAS - MANTISSA)).to(tl.int32, bitcast=True)
        normal = (a << (23 - MANTISSA)) + ((127 - BIAS) << 23)
        if FORMAT == "float8_e4m3fn":
            special = tl.where(a == 0x7F, 0x7FC00000, normal)
        else:
            special = tl.where(a >= 31 << MANTISSA, normal + (112 << 23), normal)
        key = tl.where(a < 1 << MANTISSA, subnormal, special)
    return key


@triton.jit
def _keys(address, start, size, nan_as_zero, FORMAT: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr):
    """The keys of one tile, which of them are there, and which are NaN."""
    if FORMAT == "float64":
        pointer = address.to(tl.pointer_type(tl.int64))
    elif FORMAT == "float32":
        pointer = address.to(tl.pointer_type(tl.int32))
    elif FORMAT == "float16" or FORMAT == "bfloat16":
        pointer = address.to(tl.pointer_type(tl.int16))
    else:
        pointer = address.to(tl.pointer_type(tl.int8))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    i = tl.arange(0, TILE)
    inside = i < tl.minimum(size - start, TILE).to(tl.int32)
    if start + TILE <= size:  # without a mask, loads are as wide as the hardware allows
        x = tl.load(pointer + start + i)
    else:
        x = tl.load(pointer + start + i, mask=inside, other=0)
    if WIDE:
        if FORMAT == "float64":
            key = x & 0x7FFFFFFFFFFFFFFF
        else:
            key = _key32(x, FORMAT).to(tl.float32, bitcast=True).to(tl.float64).to(tl.int64, bitcast=True)
        nan = key > 0x7FF0000000000000
        key = tl.where(nan, tl.where(nan_as_zero != 0, 0, 0x7FF8000000000000), key)
    else:
        key = _key32(x, FORMAT)
        nan = key > 0x7F800000
        key = tl.where(nan, tl.where(nan_as_zero != 0, 0, 0x7FC00000), key)
    return key, inside, nan


@triton.jit
def _locate(tiles, layout, base, TILE: tl.constexpr):
    """Tile, tensor, first weight, and size of the tensor, of this program."""
    t = base + tl.program_id(0).to(tl.int64)
    l = tl.load(tiles + t).to(tl.int64)
    return t, l, (t - tl.load(layout + 3 * l + TILES)) * TILE, tl.load(layout + 3 * l + SIZE)


@triton.jit
def _threshold(prefix, low, WIDE: tl.constexpr):
    LAST: tl.constexpr = 0x7FFFFFFFFFFFFFFF if WIDE else 0x7FFFFFFF
    return tl.where(prefix < 0, LAST, prefix << low)


@triton.jit
def _write(bits, layout, l, start, size, keep, TILE: tl.constexpr):
    """64 truths to a word, the first in the lowest bit."""
    lane = tl.reshape(keep, (TILE // 64, 64)).to(tl.int64) << tl.arange(0, 64)[None, :].to(tl.int64)
    w = start // 64 + tl.arange(0, TILE // 64)
    tl.store(bits + tl.load(layout + 3 * l + WORDS) + w, tl.sum(lane, 1), mask=w < tl.cdiv(size, 64))


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
    t, l, start, size = _locate(tiles, layout, base, TILE)
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
    """How many ties each tensor keeps, hence each of its tiles: the first ones. Row of the table; the last is the pool's."""
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
    _write(bits, layout, l, start, size, inside & (key > threshold) | tie & (tl.cumsum(tie.to(tl.int32), 0) <= quota), TILE)


@triton.jit(do_not_specialize=["base"])
def _zero(address, layout, tiles, bits, base, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Stores zeros where the bit is 0. Nothing is read: what stays is not touched."""
    t, l, start, size = _locate(tiles, layout, base, TILE)
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


def _aligned(weights, members):
    return all(weights[l].data_ptr() % 16 == 0 for l in members)


def select(weights, prune, min_keep, ties, nan_as_zero, bits, table):
    weights = [w.contiguous() for w in weights]
    sizes, kinds = tuple(w.numel() for w in weights), tuple(w.dtype for w in weights)
    layers, device = len(weights), table.device
    layout, tiles, groups = _plan(sizes, kinds, device, TILE)
    floor = min_keep if any(min_keep) else [0] * layers
    per_tensor = any(floor)
    room = sum(sizes) - prune - sum(floor)
    dead = -1  # a prefix that no key has
    state = [[0 if room else dead, room, 0, 0]] + [[0 if room or m else dead, m, 0, 0] for m in floor]
    state = _upload([*sum(state, []), *(w.data_ptr() for w in weights)], device)
    address = state[4 * (layers + 1) :]
    wide = torch.float64 in kinds
    above, low = (63, 0) if wide else (31, min((ZERO_BITS[k] for k in kinds), default=0))
    bins, chunk = 1 << WIDTH, 1024
    counts = torch.empty(layers + 1 if per_tensor else 1, bins, dtype=torch.int64, device=device)
    equal, kept = torch.empty(2, len(tiles), dtype=torch.int64, device=device)
    each = [
        (base, count, dict(FORMAT=str(kind)[6:], WIDE=wide, ALIGNED=_aligned(weights, members), TILE=TILE, num_warps=WARPS))
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
