"""Linear attention as a recurrence, one token at a time.

S_t = diag(exp(decay_t)) S_{t-1} + k_t v_t', o_t = scale S_t' q_t: Katharopoulos et al., 2020, arXiv:2006.16236,
equations 16 to 20; with decay, Sun et al., 2023, arXiv:2307.08621 (per head), Dao and Gu, 2024, arXiv:2405.21060 (per
token), Yang et al., 2023, arXiv:2312.06635 (per token and dimension); the delta rule, Yang et al., 2024,
arXiv:2406.06484 and arXiv:2412.06464.
"""

import torch
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    reverse: bool = False,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    normalize: bool = False,
    eps: float = 1e-6,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns out (B, T, H, V) and the last state (N, H, K, V); with ``normalize`` its last column sums the keys."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if normalize:
        v = torch.cat([v, v.new_ones(*v.shape[:-1], 1)], -1)
    decay = decay_of(k, decay)
    parts = (q, k, v, decay, beta)
    outs, states = [], []
    edges = [] if cu_seqlens is None else cu_seqlens.tolist()
    for n in range(len(q) if cu_seqlens is None else len(edges) - 1):
        place = n if cu_seqlens is None else (0, slice(edges[n], edges[n + 1]))
        start = None if initial_state is None else initial_state[n]
        sequence = (None if x is None else x[place] for x in parts)
        out, state = recurrence(*sequence, start, scale, causal, reverse)  # type: ignore[arg-type, call-arg]
        outs.append(out)
        states.append(state)
    out = torch.stack(outs) if cu_seqlens is None else torch.cat(outs)[None]
    if normalize:
        out = out[..., :-1] / (out[..., -1:] + eps)
    return out.to(q.dtype), torch.stack(states)


def decay_of(k: Tensor, decay: Tensor | None) -> Tensor | None:
    """One logarithm per token and head, or per token, head and dimension."""
    if decay is None or decay.dim() > 1:
        return decay
    return decay.expand(*k.shape[:2], -1)


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    beta: Tensor | None,
    state: Tensor | None,
    scale: float,
    causal: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """One sequence: q (T, H, K), k (T, H, K), v (T, H, V), decay (T, H) or (T, H, K), beta (T, H), state (H, K, V)."""
    heads = max(x.shape[1] for x in (q, k, v))
    q, k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (q, k, v))
    decay, beta = (x if x is None else x.repeat_interleave(heads // x.shape[1], 1) for x in (decay, beta))
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
