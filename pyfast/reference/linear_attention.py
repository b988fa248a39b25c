"""Linear attention as a recurrence, one token at a time.

S_t = diag(exp(decay_t)) S_{t-1} + k_t v_t', o_t = scale S_t' q_t: Katharopoulos et al., 2020, arXiv:2006.16236, eq. 16 to 20;
with decay, Sun et al., 2023, arXiv:2307.08621 (per head), Dao and Gu, 2024, arXiv:2405.21060 (per token), Yang et al., 2023,
arXiv:2312.06635 (per token and dimension); the delta rule, Yang et al., 2024, arXiv:2406.06484 and arXiv:2412.06464.
"""

import torch


def attention(
    q,
    k,
    v,
    *,
    scale=None,
    causal=True,
    reverse=False,
    decay=None,
    beta=None,
    normalize=False,
    eps=1e-6,
    initial_state=None,
    cu_seqlens=None,
):
    """Returns out (B, T, H, V) and the last state (N, H, K, V); with ``normalize`` its last column holds the sum of keys."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if normalize:
        v = torch.cat([v, v.new_ones(*v.shape[:-1], 1)], -1)
    if cu_seqlens is None:
        pairs = [(q[b], k[b], v[b], *(None if x is None else x[b] for x in (decay_of(q, k, v, decay), beta))) for b in range(len(q))]
    else:
        edges = cu_seqlens.tolist()
        parts = (q, k, v, decay_of(q, k, v, decay), beta)
        pairs = [[None if x is None else x[0, a:b] for x in parts] for a, b in zip(edges, edges[1:], strict=False)]
    outs, states = [], []
    for n, sequence in enumerate(pairs):
        start = None if initial_state is None else initial_state[n]
        out, state = recurrence(*sequence, start, scale, causal, reverse)
        outs.append(out)
        states.append(state)
    out = torch.stack(outs) if cu_seqlens is None else torch.cat(outs)[None]
    if normalize:
        out = out[..., :-1] / (out[..., -1:] + eps)
    return out.to(q.dtype), torch.stack(states)


def decay_of(q, k, v, decay):
    """One logarithm per token and head, or per token, head and dimension."""
    if decay is None or decay.dim() > 1:
        return decay
    return decay.expand(*k.shape[:2], -1)


def recurrence(q, k, v, decay, beta, state, scale, causal, reverse):
    """One sequence: q (T, H, K), k (T, H, K), v (T, H, V), decay (T, H) or (T, H, K), beta (T, H), state (H, K, V)."""
    heads = max(x.shape[1] for x in (q, k, v))
    q, k, v, decay, beta = (x if x is None else x.repeat_interleave(heads // x.shape[1], 1) for x in (q, k, v, decay, beta))
    if state is None:
        state = v.new_zeros(heads, k.shape[-1], v.shape[-1])
    outs = {}
    tokens = range(len(k))
    for t in reversed(tokens) if reverse else tokens:
        if decay is not None:
            a = decay[t].exp()
            state = (a[:, None, None] if a.dim() == 1 else a[:, :, None]) * state
        value = v[t]
        if beta is not None:
            value = beta[t][:, None] * (value - (state * k[t][:, :, None]).sum(1))
        state = state + k[t][:, :, None] * value[:, None, :]
        if causal:
            outs[t] = scale * (state * q[t][:, :, None]).sum(1)
    if not causal:
        return scale * (state * q[..., None]).sum(2), state
    if not outs:
        return v.new_zeros(0, heads, v.shape[-1]), state
    return torch.stack([outs[t] for t in tokens]), state
