"""One pass over the tokens of a head, in chunks, with a tile of its state in registers.

    S_t = diag(exp(decay_t)) S_{t-1} + write k_t v_t',   out_t = read S_t' q_t

Inside a chunk, with E_t the sum of its decays up to t: out = exp(E) q S + (q k' * exp(E_t - E_u)) v, products of small
matrices; S is kept divided by `write`. A token after t must not reach it even if it is not finite: scores are selected,
not multiplied by 0; and since a product of matrices adds 0 v_u too, a chunk in which a v_u is not finite is added up
token by token.
"""

import triton
import triton.language as tl
from pyfast.kernels.linear_attention._decay import _gates, _read_by_column, _scores_by_row
from pyfast.kernels.linear_attention._tiles import _add_dot, _cast, _dot, _load, _part, _span

# Decays of the state: none, one number, one per key dimension, one per value dimension.
NONE, SCALAR, ROWS, COLUMNS = (tl.constexpr(i) for i in range(4))


@triton.jit
def _add_values(
    o, scores, values, v, v_t, v_v, start, count, j, V, sign,
    STRICT: tl.constexpr, FACTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds scores values to o; what is not finite is multiplied by the scores of those only who may see it."""
    finite = tl.abs(values.to(o.dtype)) < float("inf")
    if tl.max(tl.max(tl.where(finite, 0, 1), 1), 0) == 0:
        o = _add_dot(scores.to(FACTORS), values.to(FACTORS), o, PRECISION)
    else:
        t = tl.arange(0, scores.shape[0])
        row = tl.zeros((), tl.int64) + sign * start
        for u in range(scores.shape[0]):
            inside = j < tl.where(start + u < count, V, 0)
            value = tl.load(v + row * v_t + j * v_v, inside, 0.0).to(o.dtype)
            score = tl.sum(tl.where(t[None, :] == u, scores, 0.0), 1)
            o += tl.where(t[:, None] >= u + STRICT, score[:, None] * value[None, :], 0.0)
            row += sign
    return o


@triton.jit
def _substitute(scores, x):
    """x_t - the sum of scores_tu x_u over u < t, row by row: x solves a triangular system."""
    t = tl.arange(0, scores.shape[0])
    for u in range(scores.shape[0] - 1):
        row = tl.sum(tl.where((t == u)[:, None], x, 0.0), 0)
        column = tl.sum(tl.where((t == u)[None, :], scores, 0.0), 1)
        x = tl.where((t > u)[:, None], x - column[:, None] * row[None, :], x)
    return x


@triton.jit
def _state(base, stride_k, stride_v, tile, zero, K, V, BK: tl.constexpr, BV: tl.constexpr):
    """Where the cells of a tile lie, which of them there are, and where the sum of keys lies: after the last column."""
    i = (zero + tl.arange(0, BK)).to(tl.int64)
    j = (zero + tile * BV + tl.arange(0, BV)).to(tl.int64)
    cells = (i < K)[:, None] & (j < V)[None, :]
    return base + i[:, None] * stride_k + j[None, :] * stride_v, cells, base + i * stride_k + V * stride_v


@triton.jit
def _attend(
    q, k, v, decay, state, ends, out, last, denominator, total,
    q_b, q_t, q_h, q_k, k_b, k_t, k_h, k_k, v_b, v_t, v_h, v_v, decay_b, decay_t, decay_h, decay_d,
    state_n, state_p, state_h, state_k, state_v, ends_n, out_b, out_t, out_h, out_v,
    last_n, last_p, last_h, last_k, last_v, denominator_b, denominator_t, denominator_h,
    T, H, Gq, Gk, Gv, Gd, Gs, K, V, P, shift, read: tl.float64, write: tl.float64, eps: tl.float64,
    WIDE: tl.constexpr, FACTORS: tl.constexpr, ADDED: tl.constexpr, PRECISION: tl.constexpr,
    DECAY: tl.constexpr, SOLVE: tl.constexpr, STRICT: tl.constexpr, REVERSE: tl.constexpr, NORMALIZE: tl.constexpr,
    DOUBLE: tl.constexpr, LONG: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Program: a tile of value dimensions, a part of the tokens, a head of a sequence. Absent tensors are None.

    Without `out`, the state alone is computed. `total` is for the sum of a part's decays. `shift` is 1 where decays
    come late, which is one token later. Products of matrices are of FACTORS, or of ADDED in what is added to the state;
    all else is computed in WIDE.
    """
    STATE: tl.constexpr = tl.float64 if DOUBLE else WIDE
    program = tl.program_id(0)
    tiles = tl.maximum(tl.cdiv(V, BV), 1)
    tile, p, task = program % tiles, program // tiles % P, (program // tiles // P).to(tl.int64)
    n, h = task // H, task % H
    begin, count = _span(ends, ends_n, n, T)
    lo, hi = _part(p, P, count, BT)
    b = n if ends is None else n * 0
    sign = -1 if REVERSE else 1
    first = begin + count - 1 if REVERSE else begin
    k += b * k_b + h // Gk * k_h + first * k_t
    v += b * v_b + h // Gv * v_h + first * v_t
    if out is not None:
        q += b * q_b + h // Gq * q_h + first * q_t
        out += b * out_b + h * out_h + first * out_t
    if DECAY != NONE:
        decay += b * decay_b + h // Gd * decay_h + (first - sign * shift) * decay_t

    INDEX: tl.constexpr = tl.int64 if LONG else tl.int32  # of what lies in a token
    local = tl.arange(0, BT)
    i = tl.arange(0, BK).to(INDEX)
    j = tile.to(INDEX) * BV + tl.arange(0, BV).to(INDEX)
    d, D = (i, K) if DECAY == ROWS else (j, V)
    writes = tl.full((), write, STATE)
    silent = writes == 0
    unit = tl.where(silent, 1.0, writes)
    scale = (tl.full((), read, STATE) * unit).to(WIDE)
    S = tl.zeros((BK, BV), STATE)
    z = tl.zeros((BK,), STATE)
    if state is not None:
        state += n * state_n + p * state_p + h // Gs * state_h
        place, cells, keys_place = _state(state, state_k, state_v, tile, 0, K, V, BK, BV)
        S = tl.load(place, cells, 0.0).to(STATE) * (1.0 / unit)
        if NORMALIZE:
            z = tl.load(keys_place, i < K, 0.0).to(STATE)
    done = lo
    if total is not None:
        left = tl.zeros((BK if DECAY == ROWS else BV,), tl.float64) if DECAY > SCALAR else tl.zeros((), tl.float64)

    for start in range(lo, hi, BT):
        t = start + local
        inside = t < hi
        row = sign * t.to(tl.int64)
        # Of t, not of `local`: what does not change is kept in registers through the loop.
        seen = t[:, None] > t[None, :] if STRICT else t[:, None] >= t[None, :]
        keys = _load(k, row, k_t, inside, i, k_k, K)
        values = _load(v, row, v_t, inside, j, v_v, tl.where(silent, 0, V))
        decays = inside & (t >= shift)
        if DECAY == SCALAR:
            a = tl.load(decay + row * decay_t, decays, 0.0).to(WIDE)
            to_here, gate, to_end, to_all = _gates(a, PRECISION)
        elif DECAY != NONE:
            a = _load(decay, row, decay_t, decays, d, decay_d, D).to(WIDE)
        if DECAY != NONE and total is not None:
            left += tl.sum(tl.where(a < -1e4, -1e4, a.to(tl.float64)), 0)
        if out is not None:
            queries = _load(q, row, q_t, inside, i, q_k, K)
            narrow = _cast(S, FACTORS)
            if DECAY == ROWS:
                scores = _scores_by_row(
                    queries.to(WIDE), k, k_t, k_k, decay, decay_t, decay_d, start, hi, i, K, sign,
                    BT, WIDE,
                )  # fmt: skip
                decayed = queries.to(WIDE) * tl.exp(tl.cumsum(a, 0))
                o = _dot(decayed.to(FACTORS), narrow, PRECISION).to(WIDE)
            else:
                scores = _dot(queries, tl.trans(keys), PRECISION).to(WIDE)
                o = _dot(queries.to(FACTORS), narrow, PRECISION).to(WIDE)
                if DECAY == SCALAR:
                    o *= to_here[:, None]
                    scores *= gate
                elif DECAY == COLUMNS:
                    o *= tl.exp(tl.cumsum(a, 0))
            scores = tl.where(seen, scores, 0.0)
            if NORMALIZE:
                reader = decayed if DECAY == ROWS else queries.to(WIDE)
                past = tl.sum(reader * z.to(WIDE)[None, :], 1)
                if DECAY == SCALAR:
                    past *= to_here
                below = scale * (past + tl.sum(scores, 1))
            if SOLVE:
                o = _substitute(scores, values.to(WIDE) - o)
                result = o
            elif DECAY == COLUMNS:
                result = scale * _read_by_column(
                    o, scores, v, v_t, v_v, decay, decay_t, decay_d, start, hi, j, V, sign,
                    BT, STRICT, WIDE,
                )  # fmt: skip
            else:
                result = scale * _add_values(
                    o, scores, values, v, v_t, v_v, start, hi, j, V, sign, STRICT, FACTORS, PRECISION
                )
            if NORMALIZE:
                result /= (below + tl.full((), eps, WIDE))[:, None]
                where = denominator + b * denominator_b + h * denominator_h + (first + row) * denominator_t
                tl.store(where, below, t < tl.where(tile == 0, hi, 0))
            tl.store(
                out + row[:, None] * out_t + j[None, :] * out_v,
                _cast(result, out.dtype.element_ty),
                inside[:, None] & (j < V)[None, :],
            )
        if SOLVE:
            values = tl.where(inside[:, None], o, 0.0)
        if DECAY > SCALAR:
            after = (local + 1 < BT) & (t + 1 < hi) & (t + 1 >= shift)
            rest = _load(decay, row + sign, decay_t, after, d, decay_d, D).to(WIDE)
            to_end = tl.exp(tl.cumsum(rest, 0, reverse=True))
            to_all = tl.exp(tl.sum(a, 0))
        if DECAY == SCALAR:
            values = values.to(WIDE) * to_end[:, None]
            S *= to_all.to(STATE)
        elif DECAY == COLUMNS:
            values = values.to(WIDE) * to_end
            S *= to_all.to(STATE)[None, :]
        writers = keys
        if DECAY == ROWS:
            writers = (keys.to(WIDE) * to_end).to(ADDED)
            S *= to_all.to(STATE)[:, None]
        S = _add_dot(tl.trans(writers.to(ADDED)), values.to(ADDED), S, PRECISION)
        if NORMALIZE:
            added = keys.to(WIDE)
            if DECAY == SCALAR:
                z *= to_all.to(STATE)
                added *= to_end[:, None]
            elif DECAY == ROWS:
                z *= to_all.to(STATE)
                added *= to_end
            z += tl.sum(added, 0).to(STATE)
        done += BT

    if last is not None:
        S *= unit
        if DECAY != NONE:
            here = (shift > 0) & (count > 0) & (p == P - 1)
            where = decay + sign * count.to(tl.int64) * decay_t  # that is one late
            if DECAY == SCALAR:
                a = tl.load(where, here, 0.0).to(WIDE)
            else:
                a = tl.load(where + d * decay_d, d < tl.where(here, D, 0), 0.0).to(WIDE)
            if total is not None:
                left += tl.where(a < -1e4, -1e4, a.to(tl.float64))
            a = tl.exp(a).to(STATE)
            S *= a[None, :] if DECAY == COLUMNS else a[:, None] if DECAY == ROWS else a
            if DECAY <= ROWS:
                z *= a
        last += n * last_n + p * last_p + h * last_h
        # Places are computed anew, from a 0 only known now: kept through the loop, they would fill the registers.
        place, cells, keys_place = _state(last, last_k, last_v, tile, 16 * tl.minimum(done, 0), K, V, BK, BV)
        tl.store(place, _cast(S, last.dtype.element_ty), cells)
        if NORMALIZE:
            tl.store(keys_place, z.to(last.dtype.element_ty), i < tl.where(tile == 0, K, 0))
    if total is not None:
        part = task.to(tl.int64) * P + p
        if DECAY <= SCALAR:
            tl.store(total + part, left, tile == 0)
        else:
            tl.store(total + part * D + d, left, d < (tl.where(tile == 0, D, 0) if DECAY == ROWS else D))
