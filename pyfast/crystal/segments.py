"""Sums, means, maxima and softmaxes over the rows of consecutive segments, such as the edges of each atom."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyfast import _ops
from pyfast.crystal._arguments import check_tensor


def segment_sum(x: Tensor, ptr: Tensor) -> Tensor:
    """Sum the rows of each segment, in float64, in order: the same bits on every run.

    Args:
        x: (M, ...) float32 or float64; rows from ``ptr[-1]`` on count for nothing.
        ptr: (S + 1,) int32 or int64: segment s is the rows ``ptr[s]`` to ``ptr[s + 1]``; ``PeriodicGraph.ptr`` for the
            edges of each atom, ``edge_ptr`` for those of each structure, ``atom_ptr`` for its atoms. It says where
            segments begin, and not, as the index of a scatter such as ``edge_index[1]``, which one each row is in.

    Returns:
        (S, ...) sums, 0 of an empty segment; differentiable to any order and in both modes.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if a dtype or device does not fit.
        IndexError: if ``ptr`` does not rise from 0 to at most M (on the CPU; undefined on CUDA).

    Source: a definition.

    Example:
        >>> import torch
        >>> from pyfast import crystal
        >>> crystal.segment_sum(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2, 2, 3]))
        tensor([3., 0., 3.])
    """
    flat, ptr, shape = _check(x, ptr)
    return _sum(flat, ptr).reshape(shape)


def segment_mean(x: Tensor, ptr: Tensor) -> Tensor:
    """Average the rows of each segment.

    Args:
        x: (M, ...) float32 or float64.
        ptr: (S + 1,) int32 or int64, as for ``segment_sum``: ``graph.ptr``, ``edge_ptr`` or ``atom_ptr``.

    Returns:
        (S, ...) means, 0 of an empty segment; differentiable to any order and in both modes.

    Raises:
        ValueError: as ``segment_sum``.
        TypeError: as ``segment_sum``.
        IndexError: as ``segment_sum``.

    Source: a definition.

    Example:
        >>> import torch
        >>> from pyfast import crystal
        >>> crystal.segment_mean(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2, 2, 3]))
        tensor([1.5000, 0.0000, 3.0000])
    """
    flat, ptr, shape = _check(x, ptr)
    counts = ptr.diff().clamp(min=1).to(x.dtype)
    return (_sum(flat, ptr) / counts[:, None]).reshape(shape)


def segment_max(x: Tensor, ptr: Tensor) -> Tensor:
    """Take the maximum of each segment, column by column.

    Args:
        x: (M, ...) float32 or float64; NaN is larger than every number.
        ptr: (S + 1,) int32 or int64, as for ``segment_sum``: ``graph.ptr``, ``edge_ptr`` or ``atom_ptr``.

    Returns:
        (S, ...) maxima, -inf of an empty segment. The gradient goes to the first of equal maxima; differentiable to any
        order, backwards.

    Raises:
        ValueError: as ``segment_sum``.
        TypeError: as ``segment_sum``.
        IndexError: as ``segment_sum``.

    Source: a definition.

    Example:
        >>> import torch
        >>> from pyfast import crystal
        >>> crystal.segment_max(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2, 2, 3]))
        tensor([2., -inf, 3.])
    """
    flat, ptr, shape = _check(x, ptr)
    return _max(flat, ptr)[0].reshape(shape)


def segment_softmax(x: Tensor, ptr: Tensor) -> Tensor:
    """Exponentials of the rows over their sum in each segment, column by column: attention over an atom's edges.

    Args:
        x: (M, ...) float32 or float64.
        ptr: (S + 1,) int32 or int64, as for ``segment_sum``: ``graph.ptr``, ``edge_ptr`` or ``atom_ptr``.

    Returns:
        (M, ...) shares, 0 in rows of no segment; differentiable to any order, backwards.

    Raises:
        ValueError: as ``segment_sum``.
        TypeError: as ``segment_sum``.
        IndexError: as ``segment_sum``.

    Source: a definition.

    Example:
        >>> import torch
        >>> from pyfast import crystal
        >>> crystal.segment_softmax(torch.tensor([1.0, 1.0, 3.0]), torch.tensor([0, 2, 2, 3]))
        tensor([0.5000, 0.5000, 1.0000])
    """
    flat, ptr, _ = _check(x, ptr)
    return _softmax(flat, ptr).reshape(x.shape)


def _check(x: Tensor, ptr: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Rows (M, F), pointers, and the shape of a row per segment."""
    check_tensor("x", x, ("...",))
    if not isinstance(ptr, Tensor):
        raise TypeError(f"ptr must be a tensor, got {type(ptr).__name__}")
    if ptr.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"ptr must be int32 or int64, got {ptr.dtype}")
    if ptr.device != x.device:
        raise TypeError(f"ptr must be on the device of x, {x.device}, got {ptr.device}")
    if x.dim() < 1:
        raise ValueError("x must have rows, got a tensor of no dimensions")
    if ptr.dim() != 1 or not ptr.shape[0]:
        raise ValueError(f"ptr must have shape (segments + 1,), got {tuple(ptr.shape)}")
    columns = 1
    for n in x.shape[1:]:
        columns *= n
    return x.reshape(x.shape[0], columns).contiguous(), ptr.long().contiguous(), (ptr.shape[0] - 1, *x.shape[1:])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.rows = inputs[0].shape[0]
    ctx.save_for_backward(inputs[1])


def _save_max(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.rows = inputs[0].shape[0]
    ctx.save_for_backward(inputs[1], output[1])
    ctx.mark_non_differentiable(output[1])


def _save_softmax(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], output)


def _derive_sum(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _spread(grad.contiguous(), *ctx.saved_tensors, ctx.rows), None


def _derive_spread(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _sum(grad.contiguous(), *ctx.saved_tensors), None, None


def _derive_max(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
    ptr, where = ctx.saved_tensors
    wide = torch.float64  # integers below 2^53 are floats too, and so the one operator spreads both
    first = _spread(where.to(wide), ptr, ctx.rows)
    mine = first == torch.arange(ctx.rows, dtype=wide, device=where.device)[:, None]
    return torch.where(mine, _spread(grad.contiguous(), ptr, ctx.rows), 0), None


def _derive_softmax(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    ptr, p = ctx.saved_tensors
    mean = _sum((p * grad).contiguous(), ptr)
    return p * (grad - _spread(mean, ptr, p.shape[0])), None


_sum: Callable[..., Any] = _ops.define(
    "crystal",
    "segment_sum(Tensor x, Tensor ptr) -> Tensor",
    lambda x, ptr: x.new_empty((ptr.shape[0] - 1, x.shape[1])),
    _save,
    _derive_sum,
    jvp=lambda inputs, tangents, _: _sum(tangents[0].contiguous(), inputs[1]),
)
_spread: Callable[..., Any] = _ops.define(
    "crystal",
    "segment_spread(Tensor g, Tensor ptr, SymInt rows) -> Tensor",
    lambda g, ptr, rows: g.new_empty((rows, g.shape[1])),
    _save,
    _derive_spread,
    jvp=lambda inputs, tangents, _: _spread(tangents[0].contiguous(), *inputs[1:]),
)
_max: Callable[..., Any] = _ops.define(
    "crystal",
    "segment_max(Tensor x, Tensor ptr) -> (Tensor, Tensor)",
    lambda x, ptr: (
        x.new_empty((ptr.shape[0] - 1, x.shape[1])),
        ptr.new_empty((ptr.shape[0] - 1, x.shape[1])),
    ),
    _save_max,
    _derive_max,
)
_softmax: Callable[..., Any] = _ops.define(
    "crystal",
    "segment_softmax(Tensor x, Tensor ptr) -> Tensor",
    lambda x, ptr: torch.empty_like(x),
    _save_softmax,
    _derive_softmax,
)
