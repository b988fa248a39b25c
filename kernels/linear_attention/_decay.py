"""Decays of a chunk of tokens: a chunk may forget all (-inf) or much, and what follows has its full precision.

Only sums of few decays are exponentiated, or differences of sums that hold more digits than the result. Where decays
come late they act one token later, that is all.
"""

import triton
import triton.language as tl


@triton.jit
def _gates(a, PRECISION: tl.constexpr):
    """Of decays a (tokens,): what is left of the state at every token, of a token at later ones, at the end, in all.

    What stands above the diagonal means nothing. Sums are float64; for products in float32 they are split in two
    float32, whose differences have full precision. For tensor cores one suffices: below -104, exp is 0.
    """
    if a.dtype == tl.float64:
        t = tl.arange(0, a.shape[0])
        steps = tl.where(t[:, None] > t[None, :], a[:, None], 0.0)
        near, far = tl.cumsum(steps, 0), tl.sum(steps, 0)
        reach, total = tl.cumsum(a, 0), tl.sum(a, 0)
    else:
        least = -1e4 if PRECISION == "ieee" else -104.0
        a = tl.where(a < least, least, a).to(tl.float64)  # -inf - -inf would be NaN
        sums, sum = tl.cumsum(a, 0), tl.sum(a, 0)
        reach, total = sums.to(tl.float32), sum.to(tl.float32)
        near, far = reach[:, None] - reach[None, :], total - reach
        if PRECISION == "ieee":
            rest = (sums - reach.to(tl.float64)).to(tl.float32)
            near += rest[:, None] - rest[None, :]
            far += (sum - total.to(tl.float64)).to(tl.float32) - rest
    return tl.exp(reach), tl.exp(near), tl.exp(far), tl.exp(total)


@triton.jit
def _scores_by_row(
    q, k, k_t, k_k, decay, decay_t, decay_d, start, count, i, K, sign, BT: tl.constexpr, WIDE: tl.constexpr
):
    """(tokens, tokens) q_t k_u' with the decays between u and t, per key dimension; 0 where t < u.

    One u at a time, from the last: the decays between u and every later t grow by one term.
    """
    t = tl.arange(0, BT)
    between = tl.zeros(q.shape, WIDE)
    scores = tl.zeros((BT, BT), WIDE)
    for step in range(BT):
        u = BT - 1 - step
        inside = i < tl.where(start + u < count, K, 0)
        key = tl.load(k + sign * (start + u).to(tl.int64) * k_t + i * k_k, inside, 0.0).to(WIDE)
        then = i < tl.where(start + u + 1 < count, K, 0)
        a = tl.load(decay + sign * (start + u + 1).to(tl.int64) * decay_t + i * decay_d, then, 0.0).to(WIDE)
        between = tl.where((t > u)[:, None], between + a[None, :], 0.0)
        score = tl.sum(q * key[None, :] * tl.exp(between), 1)
        scores = tl.where((t[None, :] == u) & (t[:, None] >= u), score[:, None], scores)
    return scores


@triton.jit
def _read_by_column(
    o, scores, v, v_t, v_v, decay, decay_t, decay_d, start, count, j, V, sign,
    BT: tl.constexpr, STRICT: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Adds scores v to o (tokens, V), with the decays between u and t, per value dimension."""
    t = tl.arange(0, BT)
    between = tl.zeros(o.shape, WIDE)
    for step in range(BT):
        u = BT - 1 - step
        inside = j < tl.where(start + u < count, V, 0)
        value = tl.load(v + sign * (start + u).to(tl.int64) * v_t + j * v_v, inside, 0.0).to(WIDE)
        then = j < tl.where(start + u + 1 < count, V, 0)
        a = tl.load(decay + sign * (start + u + 1).to(tl.int64) * decay_t + j * decay_d, then, 0.0).to(WIDE)
        between = tl.where((t > u)[:, None], between + a[None, :], 0.0)
        score = tl.sum(tl.where(t[None, :] == u, scores, 0.0), 1)
        o += tl.where((t[:, None] >= u + STRICT), score[:, None] * tl.exp(between) * value[None, :], 0.0)
    return o
