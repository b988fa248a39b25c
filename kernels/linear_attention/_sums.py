"""Running sums, reading of a state that does not change, and the states between the parts of a sequence."""

import triton
import triton.language as tl
from pyfast.kernels.linear_attention._tiles import _cast, _dot, _load, _part, _span


@triton.jit
def _join(
    parts, total, state, last, state_n, state_h, state_k, state_v, last_n, last_h, last_k, last_v,
    D, total_k, total_v, H, Hs, K, V, P, BLOCK: tl.constexpr,
):  # fmt: skip
    """What each part of a sequence adds, in parts (N, H, P, K, V), becomes the state before it; and the last state.

    `total` (N, H, P, D) is the sum of a part's decays, for all of the state or for each of its rows or columns.
    """
    task = tl.program_id(0).to(tl.int64)
    n, h = task // H, task % H
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    inside = x < K * V
    i, j = x // V, x % V
    S = tl.zeros((BLOCK,), parts.dtype.element_ty)
    if state is not None:
        place = state + n * state_n + h * Hs // H * state_h + i * state_k + j * state_v
        S = tl.load(place, inside, 0.0).to(parts.dtype.element_ty)
    total += task * P * D + i * total_k + j * total_v
    for p in range(P):
        place = parts + (task * P + p) * K * V + x
        added = tl.load(place, inside, 0.0)
        tl.store(place, S, inside)
        S = S * tl.exp(tl.load(total + p * D, inside, 0.0)).to(S.dtype) + added
    if last is not None:
        place = last + n * last_n + h * last_h + i * last_k + j * last_v
        tl.store(place, S.to(last.dtype.element_ty), inside)


@triton.jit
def _read(
    q, state, ends, out, q_b, q_t, q_h, q_k, state_n, state_h, state_k, state_v, ends_n, out_b, out_t, out_h, out_v,
    T, H, Hq, Hs, K, V, P, scale: tl.float64,
    WIDE: tl.constexpr, FACTORS: tl.constexpr, PRECISION: tl.constexpr,
    BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """out_t = scale state' q_t. Program: a tile of value dimensions, a part of the tokens, a head of a sequence."""
    program = tl.program_id(0)
    tiles = tl.cdiv(V, BV)
    tile, p, task = program % tiles, program // tiles % P, (program // tiles // P).to(tl.int64)
    n, h = task // H, task % H
    begin, count = _span(ends, ends_n, n, T)
    lo, hi = _part(p, P, count, BT)
    b = n if ends is None else n * 0
    i = tl.arange(0, BK).to(tl.int64)
    j = tile * BV + tl.arange(0, BV).to(tl.int64)
    state += n * state_n + h * Hs // H * state_h
    cells = (i < K)[:, None] & (j < V)[None, :]
    S = _cast(tl.load(state + i[:, None] * state_k + j[None, :] * state_v, cells, 0.0), FACTORS)
    q += b * q_b + h * Hq // H * q_h
    out += b * out_b + h * out_h
    for start in range(lo, hi, BT):
        t = start + tl.arange(0, BT)
        row = begin + t.to(tl.int64)
        queries = _load(q, row, q_t, t < hi, i, q_k, K)
        o = _dot(queries.to(FACTORS), S, PRECISION).to(WIDE) * tl.full((), scale, WIDE)
        place = out + row[:, None] * out_t + j[None, :] * out_v
        tl.store(place, o.to(out.dtype.element_ty), (t < hi)[:, None] & (j < V)[None, :])


@triton.jit
def _cumulate(
    x, start, ends, out, total, x_b, x_t, x_h, x_d, start_n, start_h, start_d, ends_n, out_b, out_t, out_h, out_d,
    total_n, total_h, total_d, T, H, D, shift, REVERSE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Sums in float64 along time, `shift` tokens late. Program: a tile of dimensions of a head of a sequence."""
    program = tl.program_id(0)
    tiles = tl.cdiv(D, BD)
    tile, task = program % tiles, (program // tiles).to(tl.int64)
    n, h = task // H, task % H
    begin, count = _span(ends, ends_n, n, T)
    b = n if ends is None else n * 0
    sign = -1 if REVERSE else 1
    first = begin + count - 1 if REVERSE else begin
    d = tile * BD + tl.arange(0, BD).to(tl.int64)
    x += b * x_b + h * x_h
    out += b * out_b + h * out_h
    sums = tl.zeros((BD,), tl.float64)
    if start is not None:
        sums = tl.load(start + n * start_n + h * start_h + d * start_d, d < D, 0.0).to(tl.float64)
    for block in range(0, count, BT):
        t = block + tl.arange(0, BT)
        row = first + sign * t.to(tl.int64)
        new = _load(x, row - sign * shift, x_t, (t < count) & (t >= shift), d, x_d, D).to(tl.float64)
        place = out + row[:, None] * out_t + d[None, :] * out_d
        reach = sums[None, :] + tl.cumsum(new, 0)
        tl.store(place, reach.to(out.dtype.element_ty), (t < count)[:, None] & (d < D)[None, :])
        sums += tl.sum(new, 0)
    final = d < tl.where((shift > 0) & (count > 0), D, 0)
    sums += tl.load(x + (first + sign * (count - 1)) * x_t + d * x_d, final, 0.0).to(tl.float64)
    place = total + n * total_n + h * total_h + d * total_d
    tl.store(place, sums.to(total.dtype.element_ty), d < D)
