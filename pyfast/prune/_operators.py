"""The two raw operators of the family: find the mask, apply the mask."""

import torch
from torch import Tensor

from pyfast import _ops


def words(tensor: Tensor) -> int:
    """64-bit words that a tensor's mask takes."""
    return (tensor.numel() + 63) // 64


def _bits_and_table(weights: list[Tensor], *_: object) -> tuple[Tensor, Tensor]:
    n = sum(words(w) for w in weights)
    return weights[0].new_empty(n, dtype=torch.int64), weights[0].new_empty(len(weights) + 1, 4, dtype=torch.int64)


def _nothing(*_: object) -> tuple[()]:
    return ()


select = _ops.define(
    "prune",
    "select(Tensor[] weights, int prune, int[] min_keep, str ties, bool nan_as_zero) -> (Tensor, Tensor)",
    _bits_and_table,
)
apply = _ops.define("prune", "apply(Tensor(a!)[] weights, Tensor bits) -> ()", _nothing)
