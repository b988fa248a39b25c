"""Long-tailed classification: losses that know how rare a class is."""

import math
from typing import Any

import torch
from torch import Tensor

from pyfast import _ops


def loss(logits: Tensor, target: Tensor, prior: Tensor, tau: float = 1.0) -> Tensor:
    """Cross-entropy of logits shifted by the class prior, so that rare classes get a larger margin.

    Computed in float32 for float16 and bfloat16 logits, and otherwise in their own dtype. A logit of -inf excludes its
    class; a NaN or +inf makes its row's loss NaN.

    Args:
        logits: (n, c), float16, bfloat16, float32 or float64, with any strides.
        target: (n,), int64 class indices in [0, c).
        prior: (c,), floating point: positive class frequencies; need not sum to one.
        tau: strength of the adjustment; 0 is plain cross-entropy.

    Returns:
        (n,) losses in nats, in the dtype of ``logits``. Differentiable, twice, in ``logits`` and ``prior``.

    Raises:
        ValueError: if a shape does not match, ``tau`` is not finite, or (on the CPU; elsewhere the loss is then not
            finite) an element of ``prior`` is not positive and finite.
        TypeError: if a dtype or device does not match.
        IndexError: if a target is outside [0, c) (on the CPU; undefined on CUDA).

    Example:
        >>> import pyfast, torch
        >>> logits, target = torch.zeros(1, 2), torch.tensor([1])
        >>> pyfast.longtail.loss(logits, target, prior=torch.tensor([0.75, 0.25]))  # log 4
        tensor([1.3863])

    Source: Menon et al., 2021, https://arxiv.org/abs/2007.07314, equation 10.
    """
    if logits.dim() != 2:
        raise ValueError(f"logits must have shape (n, c), got {tuple(logits.shape)}")
    n, c = logits.shape
    if target.shape != (n,):
        raise ValueError(f"target must have shape ({n},) to match logits ({n}, {c}), got {tuple(target.shape)}")
    if prior.shape != (c,):
        raise ValueError(f"prior must have shape ({c},) to match logits ({n}, {c}), got {tuple(prior.shape)}")
    if logits.dtype not in _FLOATS:
        raise TypeError(f"logits must be float16, bfloat16, float32 or float64, got {logits.dtype}")
    if target.dtype != torch.int64:
        raise TypeError(f"target must be torch.int64, got {target.dtype}")
    if prior.dtype not in _FLOATS:
        raise TypeError(f"prior must be float16, bfloat16, float32 or float64, got {prior.dtype}")
    if target.device != logits.device:
        raise TypeError(f"target must be on the device of logits, {logits.device}, got {target.device}")
    if prior.device != logits.device:
        raise TypeError(f"prior must be on the device of logits, {logits.device}, got {prior.device}")
    if not -math.inf < tau < math.inf:
        raise ValueError(f"tau must be finite, got {tau}")
    prior = prior.contiguous()  # before the logarithm, whose last bit depends on the layout
    wide = prior if prior.dtype in (torch.float32, torch.float64) else prior.float()
    bias = (tau * wide.log()).to(_wide(logits))
    out, _ = _loss(logits.contiguous(), target.contiguous(), bias)
    return out


_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _wide(x: Tensor) -> torch.dtype:
    """The dtype that kernels compute in: of the bias, and of the norm they keep for the backward pass."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# The derivatives take norm, (n, 2), for what it is, a function of logits and bias, and count its share there.


def _allocate_curvature(v: Tensor, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad), torch.empty_like(v)


def _allocate_loss_backward(grad: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits)


def _save_loss_backward(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _derive_loss_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    bias = ctx.saved_tensors[3]
    dgrad, dlogits = _curvature(v.contiguous(), *ctx.saved_tensors)
    return dgrad, dlogits, None, dlogits.sum(0, dtype=bias.dtype) if ctx.needs_input_grad[3] else None, None


def _allocate_loss(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    n = logits.shape[0]
    return logits.new_empty(n), logits.new_empty(n, 2, dtype=_wide(logits))


def _save_loss(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _derive_loss(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    bias = ctx.saved_tensors[2]
    dlogits = _loss_backward(grad.contiguous(), *ctx.saved_tensors)
    return dlogits, None, dlogits.sum(0, dtype=bias.dtype) if ctx.needs_input_grad[2] else None


_curvature = _ops.define(
    "longtail",
    "curvature(Tensor v, Tensor grad, Tensor logits, Tensor target, Tensor bias, Tensor norm) -> (Tensor, Tensor)",
    _allocate_curvature,
    rows=(0, 1, 2, 3, 5),
)
_loss_backward = _ops.define(
    "longtail",
    "loss_backward(Tensor grad, Tensor logits, Tensor target, Tensor bias, Tensor norm) -> Tensor",
    _allocate_loss_backward,
    _save_loss_backward,
    _derive_loss_backward,
    rows=(0, 1, 2, 4),
)
_loss = _ops.define(
    "longtail",
    "loss(Tensor logits, Tensor target, Tensor bias) -> (Tensor, Tensor)",
    _allocate_loss,
    _save_loss,
    _derive_loss,
    rows=(0, 1),
)
