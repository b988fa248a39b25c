"""Likelihoods of encoded rows as an operator with a derivative in weights and leaves."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyfast import _ops


def _allocate_log_prob(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.float64)


def _save_log_prob(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, leaves, graph = inputs
    ctx.save_for_backward(x, weights, leaves, *graph)


def _derive_log_prob(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if ctx.needs_input_grad[0]:
        raise NotImplementedError("log_prob has no derivative in x; differentiate pyfast.reference.spn instead")
    x, weights, leaves, *graph = ctx.saved_tensors
    dweights, dleaves = log_prob_backward(grad.contiguous(), x, weights, leaves, graph)
    return None, dweights, dleaves, [None] * len(graph)


def _allocate_log_prob_backward(
    grad: Tensor, x: Tensor, weights: Tensor, leaves: Tensor, graph: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weights), torch.empty_like(leaves)


log_prob_backward = _ops.define(
    "spn",
    "log_prob_backward(Tensor grad, Tensor x, Tensor weights, Tensor leaves, Tensor[] graph) -> (Tensor, Tensor)",
    _allocate_log_prob_backward,
)
log_prob = _ops.define(
    "spn",
    "log_prob(Tensor x, Tensor weights, Tensor leaves, Tensor[] graph) -> Tensor",
    _allocate_log_prob,
    _save_log_prob,
    _derive_log_prob,
    rows=(0,),
)
