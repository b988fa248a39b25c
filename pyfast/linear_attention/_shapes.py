"""Dtypes and heads of the tensors that meet in an operator."""

import math

import torch
from torch import Tensor


def wide(x: Tensor) -> torch.dtype:
    """What kernels compute in, and the dtype of decays and of states that nobody asked for in float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def exact(x: Tensor) -> torch.dtype:
    """What the delta rule's values are kept in: each corrects the sum of those before, and rounding would add up.

    A processor computes in it at half the speed; a GPU's matrix units would not at all.
    """
    return torch.float64 if x.device.type == "cpu" else wide(x)


def heads(*tensors: Tensor) -> int:
    """The number of heads: tensors with fewer share each of theirs among several."""
    sizes = [x.shape[2] for x in tensors]
    most = max(sizes)
    return most if all(n and most % n == 0 for n in sizes) else math.lcm(*sizes)


def spread(x: Tensor, h: int) -> Tensor:
    """(B, T, H / g, ...) -> (B, T, H, ...)."""
    return x if x.shape[2] == h else x.repeat_interleave(h // x.shape[2], 2)


def weigh(x: Tensor, weights: Tensor) -> Tensor:
    """(B, T, H / g, D) times (B, T, H / g') -> (B, T, H, D)."""
    h = heads(x, weights)
    return spread(weights, h).unsqueeze(-1) * spread(x, h)


def gather(x: Tensor, h: int) -> Tensor:
    """The adjoint of ``spread``: (B, T, H, ...) -> (B, T, H / g, ...)."""
    return x if x.shape[2] == h else x.unflatten(2, (h, -1)).sum(3)


def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
