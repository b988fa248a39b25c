"""The operators of linear attention, and their derivatives, which are calls of the same operators.

``attend`` is linear in each of q, k and v, and its gradients are attention again, with the tensors in other roles:

    S_t = exp(decay_t) S_{t-1} + write k_t v_t'        out_t = read S_t' q_t          (K, V), one state per head
    dq  = attend(dout, v, k)     dk = attend(v, dout, q), reversed     dv = attend(k, q, dout), reversed

The adjoint of "decay, add, read" in one direction of time is "add, read, decay" in the other, hence ``late``; a decay
per key dimension of the state is one per value dimension of its transpose, hence ``columns``. ``solve`` is the delta
rule's triangular system, x_t = v_t - S_{t-1}' p_t with S_t = exp(decay_t) S_{t-1} + k_t x_t', and its adjoint solves
the transposed one. So every order of derivative, in both modes, is exact, and is computed by the same two kernels.
"""

from typing import Any

import torch
from torch import Tensor

from pyfast import _C, _ops
from pyfast.linear_attention._shapes import add, exact, gather, heads, spread, wide
from pyfast.linear_attention._sums import cumulate


def _exactly(*tensors: Any) -> list[Any]:
    return [None if x is None else x.to(exact(x)) for x in tensors]


def _mT(state: Tensor | None) -> Tensor | None:
    return None if state is None else state.mT


def _is_vector(decay: Tensor | None) -> bool:
    return decay is not None and decay.dim() == 4


def _zeros(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return v.new_zeros(*q.shape[:2], heads(q, k, v), v.shape[-1])


def _results(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, ends: Tensor | None, last: bool, more: int = 0
) -> tuple[Tensor, Tensor]:
    """What is read, and the last state, of ``more`` columns than v has; empty if it is not wanted."""
    b, t, h, _ = q.shape
    _, _, hk, key = k.shape
    _, _, hv, value = v.shape
    if not h == hk == hv:
        h = heads(q, k, v)
    n = b if ends is None else ends.shape[0] - 1
    out = v.new_empty((b, t, h, value))
    if not last:
        return out, v.new_empty((n, 0))
    return out, v.new_empty((n, h, key, value + more), dtype=wide(q) if state is None else state.dtype)


def _allocate_attend(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None, ends: Tensor | None, *flags: Any
) -> tuple[Tensor, Tensor]:
    return _results(q, k, v, state, ends, flags[2])


def _decay_gradient(
    decay: Tensor,
    pairs: tuple[Any, ...],
    last: Tensor | None,
    dlast: Tensor | None,
    ends: Tensor | None,
    reverse: bool,
    late: bool,
    columns: bool,
) -> Tensor:
    """A reader t and a writer u meet in exp(E_t - E_u), E the sum of decays: so dE = x dx, summed back over time."""
    reader, dreader, writer, dwriter = pairs
    h = dreader.shape[2]
    vector = _is_vector(decay)
    dtype = decay.dtype
    change = spread(reader, h).to(dtype) * dreader.to(dtype) - spread(writer, h).to(dtype) * dwriter.to(dtype)
    end = None
    if dlast is not None and last is not None:
        end = (last * dlast).to(dtype)
        end = end.sum(-2 if columns else -1) if vector else end.sum((-2, -1))
    if not vector:
        change = change.sum(-1)
    change, _ = cumulate(change, end, ends, not reverse, late)
    return gather(change, decay.shape[2])


def _save_attend(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    out, last = output
    ctx.flags = inputs[6:]
    ctx.set_materialize_grads(False)
    keep_last = inputs[3] is not None and inputs[8]
    ctx.save_for_backward(*inputs[:6], out if inputs[12] else None, last if keep_last else None)


def _derive_attend(ctx: Any, dout: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
    return *_attend_gradients(ctx, ctx.saved_tensors, dout, dlast), None, None, None, None, None, None, None, None


def _attend_gradients(
    ctx: Any, saved: tuple[Any, ...], dout: Tensor | None, dlast: Tensor | None, width: int | None = None
) -> tuple[Any, ...]:
    """Of attend's six tensors. Of v, only the first ``width`` columns are wanted."""
    q, k, v, decay, state, ends, out, last = saved
    read, write, keep, reverse, late, strict, columns = ctx.flags
    need = ctx.needs_input_grad
    flipped = _is_vector(decay) and not columns
    dlast = dlast if keep else None
    dout = _zeros(q, k, v) if dout is None else dout
    # The gradient of a decay is a sum of differences: 16 bits of its terms would not do.
    q_, k_ = (q.to(wide(q)), k.to(wide(k))) if need[3] else (q, k)
    dq = dk = dv = ddecay = dstate = None
    if need[0] or (need[3] and not columns):
        dq, _ = attend(dout, v, k_, decay, _mT(state), ends, read, write, False, reverse, late, strict, flipped)
    if need[1] or need[4] or (need[3] and not columns):
        flags = write, read, need[4], not reverse, not late, strict, flipped
        dk, dstate = attend(v, dout, q_, decay, _mT(dlast), ends, *flags)
    if need[2] or (need[3] and columns):
        flags = write, read, False, not reverse, not late, strict, columns
        of_v = dout if width is None else dout[..., :width]  # a slice has no rule for batched gradients
        last_of_v = dlast if dlast is None or width is None else dlast[..., :width]
        dv, _ = attend(k, q, of_v, decay, last_of_v, ends, *flags)
    if need[3]:
        pairs = (out, dout, v, dv) if columns else (q, dq, k, dk)
        ddecay = _decay_gradient(decay, pairs, last, dlast, ends, reverse, late, columns)
    return (
        gather(dq, q.shape[2]).to(q.dtype) if need[0] else None,  # type: ignore[arg-type]
        gather(dk, k.shape[2]).to(k.dtype) if need[1] else None,  # type: ignore[arg-type]
        gather(dv, v.shape[2]) if need[2] else None,  # type: ignore[arg-type]
        ddecay,
        dstate.mT.to(state.dtype) if need[4] else None,  # type: ignore[union-attr]
        None,
    )


def _decay_tangents(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, ddecay: Tensor, ends: Tensor | None, reverse: bool, late: bool
) -> tuple[Tensor, Tensor]:
    """How the sums of decays up to every token, and to the end, change: shapes that multiply tokens and states."""
    reach, total = cumulate(spread(ddecay, heads(q, k, v)).to(exact(q)), None, ends, reverse, late)
    return (reach, total) if _is_vector(decay) else (reach.unsqueeze(-1), total.unsqueeze(-1))


def _attend_jvp(inputs: tuple[Any, ...], tangents: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> tuple[Any, Any]:
    q, k, v, decay, state, ends, read, write, keep, reverse, late, strict, columns = inputs
    dq, dk, dv, ddecay, dstate = tangents[:5]
    flags = read, write, keep, reverse, late, strict, columns
    out, last = outputs
    dout = dlast = None
    if ddecay is not None:
        # Sums over all of time are multiplied by tokens, and cancel: their rounding would not.
        q, k, v, dq, dk, dv = _exactly(q, k, v, dq, dk, dv)
        h = heads(q, k, v)
        reach, total = _decay_tangents(q, k, v, decay, ddecay, ends, reverse, late)
        if columns:
            dv = -spread(v, h) * reach if dv is None else spread(dv, h) - spread(v, h) * reach
            dout = out * reach
        else:
            change_q, change_k = spread(q, h) * reach, spread(k, h) * reach
            dq = change_q if dq is None else spread(dq, h) + change_q
            dk = -change_k if dk is None else spread(dk, h) - change_k
        if keep:
            dlast = last * (total.unsqueeze(-2) if columns else total.unsqueeze(-1))
    if dq is not None:
        dout = add(dout, attend(dq, k, v, decay, state, ends, read, write, False, *flags[3:])[0])
    if dk is not None or dstate is not None:
        dk = torch.zeros_like(k) if dk is None else dk
        o, end = attend(q, dk, v, decay, dstate, ends, *flags)
        dout, dlast = add(dout, o), add(dlast, end)
    if dv is not None:
        o, end = attend(q, k, dv.to(v.dtype), decay, None, ends, *flags)
        dout, dlast = add(dout, o), add(dlast, end)
    dout = None if dout is None else dout.to(out.dtype)
    return dout, dlast.to(last.dtype) if keep and dlast is not None else torch.zeros_like(last)


def _rows(*inputs: Any) -> tuple[int, ...]:
    """Sequences of a batch are rows; sequences packed into one are not."""
    return (0, 1, 2, 3, 4) if inputs[5] is None else ()


def _allocate_normalized(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None, ends: Tensor | None, *flags: Any
) -> tuple[Tensor, Tensor, Tensor]:
    out, last = _results(q, k, v, state, ends, flags[2], more=1)
    return out, last, q.new_empty(out.shape[:3], dtype=wide(q))


def with_ones(v: Tensor) -> Tensor:
    """The sum of keys is the state of one more value, which is always one."""
    return torch.cat([v, v.new_ones(*v.shape[:-1], 1)], -1)


def _save_normalized(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    out, last, denominator = output
    read, ctx.eps, keep, reverse = inputs[6:]
    ctx.flags = read, 1.0, keep, reverse, False, False, False
    ctx.set_materialize_grads(False)
    keep_last = inputs[3] is not None and keep
    ctx.save_for_backward(*inputs[:6], out, denominator, last if keep_last else None)


def _derive_normalized(
    ctx: Any, dout: Tensor | None, dlast: Tensor | None, ddenominator: Tensor | None
) -> tuple[Any, ...]:
    q, k, v, decay, state, ends, out, denominator, last = ctx.saved_tensors
    dout = _zeros(q, k, v) if dout is None else dout
    if out.dtype != wide(q):  # 16 bits of it would not do for the difference below
        out, _, _ = attend_normalized(q, k, v.to(wide(q)), decay, state, ends, *ctx.flags[:1], ctx.eps, *ctx.flags[2:4])
    dsum = dout / (denominator + ctx.eps).unsqueeze(-1)
    below = -(dsum * out).sum(-1, keepdim=True)
    below = below if ddenominator is None else below + ddenominator.unsqueeze(-1)
    saved = q, k, with_ones(v.to(dsum.dtype)), decay, state, ends, None, last
    dq, dk, dv, *rest = _attend_gradients(ctx, saved, torch.cat([dsum, below], -1), dlast, v.shape[-1])
    return dq, dk, None if dv is None else dv.to(v.dtype), *rest, None, None, None, None


def _normalized_jvp(
    inputs: tuple[Any, ...], tangents: tuple[Any, ...], outputs: tuple[Tensor, Tensor, Tensor]
) -> tuple[Any, Any, Any]:
    q, k, v, decay, state, ends, read, eps, keep, reverse = inputs
    out, last, denominator = outputs
    if out.dtype != wide(q):  # as in the backward pass
        out, _, _ = attend_normalized(q, k, v.to(wide(q)), *inputs[3:])
    dv = None if tangents[2] is None else tangents[2].to(wide(q))
    dv = None if dv is None else torch.nn.functional.pad(dv, (0, 1))
    sums = q, k, with_ones(v.to(wide(q))), decay, state, ends, read, 1.0, keep, reverse, False, False, False
    changes = *tangents[:2], dv, *tangents[3:6]
    dsums, dlast = _attend_jvp(sums, changes, (out, last))
    below = dsums[..., -1:]
    dout = (dsums[..., :-1] - out * below) / (denominator + eps).unsqueeze(-1)
    return dout.to(outputs[0].dtype), dlast, below.squeeze(-1).to(denominator.dtype)


def _allocate_solve(
    p: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None, ends: Tensor | None, *flags: Any
) -> tuple[Tensor, Tensor]:
    return _results(p, k, v, state, ends, flags[0])


def _save_solve(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, last = output
    ctx.flags = inputs[6:]
    ctx.set_materialize_grads(False)
    keep_last = inputs[3] is not None and inputs[6]
    ctx.save_for_backward(*inputs[:2], *inputs[3:6], x, last if keep_last else None)
    ctx.value_heads = inputs[2].shape[2]


def _derive_solve(ctx: Any, dx: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
    p, k, decay, state, ends, x, last = ctx.saved_tensors
    keep, reverse, late = ctx.flags
    need = ctx.needs_input_grad
    columns = _is_vector(decay)
    dx = torch.zeros_like(x) if dx is None else dx
    end = None if dlast is None or not keep else -dlast
    w, dstate = solve(k, p, dx, decay, end, ends, need[4], not reverse, not late)
    p_, k_ = (p.to(wide(p)), k.to(wide(k))) if need[3] else (p, k)  # as in attend's
    dp = dk = ddecay = None
    if need[0] or need[3]:
        args = decay, _mT(state), ends, 1.0, 1.0, False, reverse, late, True, columns
        dp = -attend(w, x, k_, *args)[0]
    if need[1] or need[3]:
        args = decay, _mT(end), ends, 1.0, 1.0, False, not reverse, not late, True, columns
        dk = -attend(x, w, p_, *args)[0]
    if need[3]:
        sums = last, dlast if keep else None, ends, reverse, late, False
        ddecay = _decay_gradient(decay, (p, dp, k, dk), *sums)
    return (
        gather(dp, p.shape[2]).to(p.dtype) if need[0] else None,  # type: ignore[arg-type]
        gather(dk, k.shape[2]).to(k.dtype) if need[1] else None,  # type: ignore[arg-type]
        gather(w, ctx.value_heads) if need[2] else None,
        ddecay,
        (-dstate).to(state.dtype) if need[4] else None,
        None,
        None,
        None,
        None,
    )


def _solve_jvp(inputs: tuple[Any, ...], tangents: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> tuple[Any, Any]:
    p, k, v, decay, state, ends, keep, reverse, late = inputs
    dp, dk, dv, ddecay, dstate = tangents[:5]
    x, last = outputs
    p_, k_, x_ = p, k, x
    flags = 1.0, 1.0, keep, reverse, late, True, False
    h = x.shape[2]
    dlast = None
    change = None if dv is None else spread(dv, h)
    if ddecay is not None:
        p_, k_, x_, dp, dk = _exactly(p, k, x, dp, dk)  # as in attend's
        reach, total = _decay_tangents(p, k, v, decay, ddecay, ends, reverse, late)
        change_p, change_k = spread(p_, h) * reach, spread(k_, h) * reach
        dp = change_p if dp is None else spread(dp, h) + change_p
        dk = -change_k if dk is None else spread(dk, h) - change_k
        if keep:
            dlast = last * total.unsqueeze(-1)
    if dp is not None:
        change = add(change, -attend(dp, k_, x_, decay, state, ends, 1.0, 1.0, False, *flags[3:])[0])
    if dk is not None:
        o, end = attend(p_, dk, x_, decay, None, ends, *flags)
        change, dlast = add(change, -o), add(dlast, end)
    change = torch.zeros_like(x) if change is None else change.to(x.dtype)
    dx, end = solve(p, k, change, decay, dstate, ends, keep, reverse, late)
    return dx, add(dlast, end).to(last.dtype) if keep else end  # type: ignore[union-attr]


attend = _ops.define(
    "linear_attention",
    "attend(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? state, Tensor? cu_seqlens, float read, float write, "
    "bool last, bool reverse, bool late, bool strict, bool columns) -> (Tensor, Tensor)",
    _allocate_attend,
    _save_attend,
    _derive_attend,
    rows=_rows,
    jvp=_attend_jvp,
)
attend_normalized = _ops.define(
    "linear_attention",
    "attend_normalized(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? state, Tensor? cu_seqlens, float read, "
    "float eps, bool last, bool reverse) -> (Tensor, Tensor, Tensor)",
    _allocate_normalized,
    _save_normalized,
    _derive_normalized,
    rows=_rows,
    jvp=_normalized_jvp,
)
attend_into = _ops.define(
    "linear_attention",
    "attend_into(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? state, Tensor? cu_seqlens, float read, "
    "float write, bool last, bool reverse, bool late, bool strict, bool columns, Tensor(a!) out) -> Tensor",
    lambda *inputs: _allocate_attend(*inputs[:-1])[1],
)
attend_normalized_into = _ops.define(
    "linear_attention",
    "attend_normalized_into(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? state, Tensor? cu_seqlens, "
    "float read, float eps, bool last, bool reverse, Tensor(a!) out) -> (Tensor, Tensor)",
    lambda *inputs: _allocate_normalized(*inputs[:-1])[1:],
)
solve = _ops.define(
    "linear_attention",
    "solve(Tensor p, Tensor k, Tensor v, Tensor? decay, Tensor? state, Tensor? cu_seqlens, bool last, bool reverse, "
    "bool late) -> (Tensor, Tensor)",
    _allocate_solve,
    _save_solve,
    _derive_solve,
    rows=_rows,
    jvp=_solve_jvp,
)


# Found once: to look them up takes a tenth of a small call.
_attend_plain, _step_plain = _C.linear_attention.attend_plain, _C.linear_attention.step_plain
_plain, _get_num_threads = _ops.plain, torch.get_num_threads
_empty_like, _contiguous = torch.empty_like, torch.contiguous_format


def attend_plain(q: Any, k: Any, v: Any, scale: float | None) -> Tensor | None:
    """``attend`` without options of tensors that fit each other, on the CPU, without a gradient; None of any others.

    What a small call takes is spent in looking at its arguments: this looks once, and in C++.
    """
    if not _plain(q, k, v):
        return None
    _get_num_threads()  # a thread's first call hands OpenMP the count that torch was told
    try:
        out = _empty_like(v, memory_format=_contiguous)
    except RuntimeError:  # of what has no strides
        return None
    return out if _attend_plain(q, k, v, out, scale) else None


def step_plain(
    q: Any,
    k: Any,
    v: Any,
    state: Any,
    decay: Any,
    beta: Any,
    scale: float | None,
    normalize: bool,
    eps: float,
) -> tuple[Tensor, Tensor] | None:
    """One token of tensors that fit each other, on the CPU, without a gradient; None of any others."""
    given = [x for x in (state, decay, beta) if x is not None]
    if not _plain(q, k, v, *given) or not q.dim() == k.dim() == v.dim() == 3:
        return None
    _get_num_threads()  # as above
    b, h, key = q.shape
    hv, value = v.shape[1:]
    h = max(h, k.shape[1], hv)
    try:  # whichever takes less time
        out = _empty_like(v, memory_format=_contiguous) if h == hv else v.new_empty((b, h, value))
        if state is None:
            last = v.new_empty((b, h, key, value + normalize), dtype=wide(q))
        elif state.shape[-1:] == (value + normalize,):
            last = _empty_like(state, memory_format=_contiguous)
        else:
            return None
    except RuntimeError:  # of a device without memory
        return None
    return (out, last) if _step_plain(q, k, v, decay, beta, state, out, last, scale, eps) else None
