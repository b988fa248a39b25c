"""Global magnitude pruning with a minimum per layer: Gupta et al., 2022, https://arxiv.org/abs/2209.14624, section 3.

The paper's scalar threshold is taken to be exact: precisely ``prune`` weights fall, ties by position.
"""

import torch
from torch import Tensor

LAST = {torch.int32: 0x7FFFFFFF, torch.int64: 0x7FFFFFFFFFFFFFFF}


def keys(weights: list[Tensor], nan_as_zero: bool = False) -> list[Tensor]:
    """Integers in the order of |w|: the bit patterns of |w| as float32, or as float64 if any weight is."""
    wide = any(w.dtype == torch.float64 for w in weights)
    magnitudes = [w.to(torch.float64 if wide else torch.float32).abs().flatten() for w in weights]
    fill = 0.0 if nan_as_zero else torch.nan  # one NaN, above infinity
    return [a.where(~a.isnan(), fill).view(torch.int64 if wide else torch.int32) for a in magnitudes]


def global_magnitude_mask(weights: list[Tensor], prune: int) -> list[Tensor]:
    """True for every weight but the ``prune`` of smallest magnitude in all; of equals, the first are kept."""
    key = torch.cat(keys(weights))
    order = key.sort(descending=True, stable=True).indices
    keep = torch.ones_like(key, dtype=torch.bool)
    keep[order[len(order) - prune :]] = False
    return [m.view(w.shape) for m, w in zip(keep.split([w.numel() for w in weights]), weights, strict=True)]


def select(
    weights: list[Tensor], prune: int, min_keep: list[int], ties: str = "first", nan_as_zero: bool = False
) -> tuple[list[Tensor], list[tuple[int, int, bool]], tuple[int, int]]:
    """The masks, a (kept, threshold key, binds) per tensor, and the (kept, threshold key) of the whole.

    The first ``min_keep[l]`` of every tensor are kept; then, of all the others together, the first until none but
    ``prune`` are left. A minimum binds where its last weight lies below the threshold of the others.
    """
    key = keys(weights, nan_as_zero)
    floor = min_keep or [0] * len(weights)
    order = [k.sort(descending=True, stable=True).indices for k in key]
    forced = [torch.zeros_like(k, dtype=torch.bool) for k in key]
    for f, o, m in zip(forced, order, floor, strict=True):
        f[o[:m]] = True
    everything, taken = torch.cat(key), torch.cat(forced)
    pool = (~taken).nonzero()[:, 0]
    pool = pool[everything[pool].sort(descending=True, stable=True).indices]
    room = len(pool) - prune
    threshold = int(everything[pool[room - 1]]) if room else LAST[everything.dtype]
    taken[pool[:room]] = True
    split = bool(0 < room < len(pool) and everything[pool[room]] == threshold)
    masks, rows = [], []
    for k, f, o, m, mask in zip(key, forced, order, floor, taken.split([len(k) for k in key]), strict=True):
        binds = bool(m and k[o[m - 1]] < threshold)
        own = int(k[o[m - 1]]) if binds else threshold
        if ties == "keep_all" and (binds or room):
            mask = mask | (k == own)
        if ties == "prune_all" and split and not binds:
            mask = mask & ((k != own) | f)
        masks.append(mask)
        rows.append((int(mask.sum()), own, binds))
    return [m.view(w.shape) for m, w in zip(masks, weights, strict=True)], rows, (sum(r[0] for r in rows), threshold)
