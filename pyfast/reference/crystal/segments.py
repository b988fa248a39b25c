"""Rows in consecutive segments, one segment after the other."""

from collections.abc import Callable

import torch
from torch import Tensor


def reduce(x: Tensor, ptr: Tensor, of: Callable[[Tensor], Tensor], empty: float = 0.0) -> Tensor:
    parts = [x[a:b] for a, b in zip(ptr.tolist(), ptr[1:].tolist(), strict=False)]
    none = torch.full(x.shape[1:], empty, dtype=x.dtype)
    return torch.stack([of(p) if len(p) else none for p in parts]) if parts else x.new_empty(0, *x.shape[1:])


def softmax(x: Tensor, ptr: Tensor) -> Tensor:
    parts = [x[a:b].softmax(0) for a, b in zip(ptr.tolist(), ptr[1:].tolist(), strict=False)]
    return torch.cat([*parts, torch.zeros_like(x[int(ptr[-1]) :])])
