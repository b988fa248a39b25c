"""Logit adjustment for long-tailed classification."""

import torch
from torch import Tensor

from pyfast import _ops


def loss(logits: Tensor, target: Tensor, prior: Tensor, tau: float = 1.0) -> Tensor:
    """Cross-entropy of logits shifted by the class prior.

    Args:
        logits: (n, c), float32 or float64.
        target: (n,), int64 class indices in [0, c).
        prior: (c,), positive class frequencies; need not sum to one.
        tau: strength of the adjustment; 0 is plain cross-entropy.

    Returns:
        (n,) losses, in nats. Differentiable, once, in ``logits`` and ``prior``.

    Raises:
        ValueError: if a shape does not match.
        IndexError: if a target is outside [0, c) (CPU only; undefined on CUDA).

    Source: Menon et al., 2021, https://arxiv.org/abs/2007.07314, equation 10.
    """
    n, c = logits.shape
    if target.shape != (n,):
        raise ValueError(f"target must have shape ({n},) to match logits {tuple(logits.shape)}, got {tuple(target.shape)}")
    if prior.shape != (c,):
        raise ValueError(f"prior must have shape ({c},) to match logits {tuple(logits.shape)}, got {tuple(prior.shape)}")
    bias = (tau * prior.log()).to(logits.dtype)
    out, _ = _forward(logits.contiguous(), target.contiguous(), bias.contiguous())
    return out


def _like_logits(grad, logits, *_):
    return torch.empty_like(logits)


def _two_per_row(logits, *_):
    return logits.new_empty(len(logits)), logits.new_empty(len(logits))


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx, grad, _):
    dlogits = _backward(grad.contiguous(), *ctx.saved_tensors)
    return dlogits, None, dlogits.sum(0)


_backward = _ops.define(
    "longtail",
    "loss_backward(Tensor grad, Tensor logits, Tensor target, Tensor bias, Tensor lse) -> Tensor",
    _like_logits,
)
_forward = _ops.define(
    "longtail",
    "loss(Tensor logits, Tensor target, Tensor bias) -> (Tensor, Tensor)",
    _two_per_row,
    _save,
    _gradient,
)
