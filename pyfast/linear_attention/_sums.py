"""Sums over tokens that are simpler than attention, and their derivatives.

collect = state + sum of k_t v_t'        read_t = scale S' q_t        cumulate_t = start + x_1 + ... + x_t
"""

from typing import Any

import torch
from torch import Tensor

from pyfast import _ops
from pyfast.linear_attention._shapes import add, gather, heads, wide


def _allocate_cumulate(
    x: Tensor, start: Tensor | None, ends: Tensor | None, reverse: bool, strict: bool
) -> tuple[Tensor, Tensor]:
    n = x.shape[0] if ends is None else ends.shape[0] - 1
    return x.new_empty(x.shape), x.new_empty(n, *x.shape[2:])


def _save_cumulate(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[2])
    ctx.flags = inputs[3:]


def _derive_cumulate(ctx: Any, dout: Tensor, dtotal: Tensor) -> tuple[Any, ...]:
    reverse, strict = ctx.flags
    dx, dstart = cumulate(dout, dtotal, ctx.saved_tensors[0], not reverse, strict)
    return dx, dstart if ctx.needs_input_grad[1] else None, None, None, None


def _cumulate_jvp(inputs: tuple[Any, ...], tangents: tuple[Any, ...], outputs: Any) -> tuple[Tensor, Tensor]:
    dx = torch.zeros_like(inputs[0]) if tangents[0] is None else tangents[0]
    return cumulate(dx, tangents[1], *inputs[2:])


def _allocate_collect(k: Tensor, v: Tensor, state: Tensor | None, ends: Tensor | None) -> Tensor:
    n = k.shape[0] if ends is None else ends.shape[0] - 1
    dtype = wide(k) if state is None else state.dtype
    return k.new_empty(n, heads(k, v), k.shape[-1], v.shape[-1], dtype=dtype)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor) or x is None))
    ctx.rest = [x for x in inputs if isinstance(x, float)]


def _derive_collect(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    k, v, _, ends = ctx.saved_tensors
    need = ctx.needs_input_grad
    dk = gather(read(v, dout.mT, ends, 1.0), k.shape[2]) if need[0] else None
    dv = gather(read(k, dout, ends, 1.0), v.shape[2]) if need[1] else None
    return dk, dv, dout if need[2] else None, None


def _collect_jvp(inputs: tuple[Any, ...], tangents: tuple[Any, ...], output: Tensor) -> Tensor:
    k, v, _, ends = inputs
    dk, dv, change, _ = tangents
    if dk is not None:
        change = collect(dk, v, change, ends)
    if dv is not None:
        change = collect(k, dv, change, ends)
    return change.to(output.dtype)


def _allocate_read(q: Tensor, state: Tensor, ends: Tensor | None, scale: float) -> Tensor:
    return q.new_empty(*q.shape[:2], max(q.shape[2], state.shape[1]), state.shape[-1])


def _derive_read(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    q, state, ends = ctx.saved_tensors
    (scale,) = ctx.rest
    need = ctx.needs_input_grad
    dq = gather(read(dout, state.mT, ends, scale), q.shape[2]) if need[0] else None
    dstate = None
    if need[1]:
        dstate = scale * collect(q, dout, None, ends)
        h = state.shape[1]
        dstate = dstate if dstate.shape[1] == h else dstate.unflatten(1, (h, -1)).sum(2)
    return dq, None if dstate is None else dstate.to(state.dtype), None, None


def _read_jvp(inputs: tuple[Any, ...], tangents: tuple[Any, ...], output: Tensor) -> Tensor:
    q, state, ends, scale = inputs
    dq, dstate = tangents[:2]
    change = None if dq is None else read(dq, state, ends, scale)
    return change if dstate is None else add(change, read(q, dstate, ends, scale))  # type: ignore[return-value]


def _rows_of(ends: int, rows: tuple[int, ...]) -> Any:
    return lambda *inputs: rows if inputs[ends] is None else ()


cumulate = _ops.define(
    "linear_attention",
    "cumulate(Tensor x, Tensor? start, Tensor? cu_seqlens, bool reverse, bool strict) -> (Tensor, Tensor)",
    _allocate_cumulate,
    _save_cumulate,
    _derive_cumulate,
    rows=_rows_of(2, (0, 1)),
    jvp=_cumulate_jvp,
)
collect = _ops.define(
    "linear_attention",
    "collect(Tensor k, Tensor v, Tensor? state, Tensor? cu_seqlens) -> Tensor",
    _allocate_collect,
    _save_inputs,
    _derive_collect,
    rows=_rows_of(3, (0, 1, 2)),
    jvp=_collect_jvp,
)
read = _ops.define(
    "linear_attention",
    "read(Tensor q, Tensor state, Tensor? cu_seqlens, float scale) -> Tensor",
    _allocate_read,
    _save_inputs,
    _derive_read,
    rows=_rows_of(2, (0, 1)),
    jvp=_read_jvp,
)
