"""Decays of a chunk of tokens. Only sums of them are exponentiated, never a difference of large sums: a chunk may
forget all (-inf) or much, and what follows is exact. Where decays come late they act one token later, that is all.
"""

import triton
import triton.language as tl


@triton.jit
def _gates(a, seen, WIDE: tl.constexpr):
    """Of decays a (tokens,): what is left of the state at every token, of a token at later ones, at the end, in all.

    The sums of float32 decays are float64, split in two float32: their differences have full precision.
    """
    if WIDE == tl.float64:
        t = tl.arange(0, a.shape[0])
        steps = tl.where(t[:, None] > t[None, :], a[:, None], 0.0)
        near = tl.cumsum(steps, 0)
        far = tl.sum(steps, 0)
        reach = tl.cumsum(a, 0)
        total = tl.sum(a, 0)
    else:
        a = tl.where(a < -1e4, -1e4, a.to(tl.float64))  # exp of either is 0; -inf - -inf would be NaN
        sums = tl.cumsum(a, 0)
        all = tl.sum(a, 0)
        high, high_all = sums.to(tl.float32), all.to(tl.float32)
        low, low_all = (sums - high.to(tl.float64)).to(tl.float32), (all - high_all.to(tl.float64)).to(tl.float32)
        near = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
        far = (high_all - high) + (low_all - low)
        reach = high
        total = high_all
    return tl.exp(reach), tl.where(seen, tl.exp(tl.where(seen, near, 0.0)), 0.0), tl.exp(far), tl.exp(total)


@triton.jit
def _scores_by_row(
    q, k, k_t, k_k, decay, decay_t, decay_d, first, first_decay, start, count, i, K, sign, BT: tl.constexpr, WIDE: tl.constexpr
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
        key = tl.load(k + (first + sign * (start + u)) * k_t + i * k_k, inside, 0.0).to(WIDE)
        then = i < tl.where(start + u + 1 < count, K, 0)
        a = tl.load(decay + (first_decay + sign * (start + u + 1)) * decay_t + i * decay_d, then, 0.0).to(WIDE)
        between = tl.where((t > u)[:, None], between + a[None, :], 0.0)
        score = tl.sum(q * key[None, :] * tl.exp(between), 1)
        scores = tl.where((t[None, :] == u) & (t[:, None] >= u), score[:, None], scores)
    return scores


@triton.jit
def _read_by_column(
    o, scores, v, v_t, v_v, decay, decay_t, decay_d, first, first_decay, start, count, j, V, sign,
    BT: tl.constexpr, STRICT: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """o (tokens, V) + scores v with the decays between u and t, per value dimension."""
    t = tl.arange(0, BT)
    between = tl.zeros(o.shape, WIDE)
    for step in range(BT):
        u = BT - 1 - step
        inside = j < tl.where(start + u < count, V, 0)
        value = tl.load(v + (first + sign * (start + u)) * v_t + j * v_v, inside, 0.0).to(WIDE)
        then = j < tl.where(start + u + 1 < count, V, 0)
        a = tl.load(decay + (first_decay + sign * (start + u + 1)) * decay_t + j * decay_d, then, 0.0).to(WIDE)
        between = tl.where((t > u)[:, None], between + a[None, :], 0.0)
        score = tl.sum(tl.where(t[None, :] == u, scores, 0.0), 1)
        o += tl.where((t[:, None] >= u + STRICT), score[:, None] * tl.exp(between) * value[None, :], 0.0)
    return o
