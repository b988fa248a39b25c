"""One sequence over many ranks: every rank sums up its tokens, and one exchange tells it the state that it begins with.

What a rank does to the state is S -> D S + A, with A the state that it reaches from zero, and D the product of its
decays or, for the delta rule, the (K, K) matrix that erases. All ranks' A and D are gathered, and each rank composes
those before it, in float64. Source: Sun et al., 2025, https://arxiv.org/abs/2502.07563 (LASP-2), which has no decays.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pyfast import _ranks
from pyfast.linear_attention import _operators as ops
from pyfast.linear_attention import _sums
from pyfast.linear_attention._shapes import heads, spread, wide

_GIVEN = ("None", "a tensor")
_DTYPES = (None, torch.float32, torch.float64, torch.bfloat16, torch.float16)
_FIELDS: dict[str, Sequence[Any]] = {
    "the batch of q": (),
    "the heads of q": (),
    "the most heads of k, v, decay and beta": (),
    "the size K of k": (),
    "the size V of v": (),
    "the dtype of q": _DTYPES,
    "the dtype of initial_state": _DTYPES,
    "decay": ("None", "one per head and token", "one per head, token and dimension"),
    "beta": _GIVEN,
    "normalize": (False, True),
    "causal": (False, True),
    "reverse": (False, True),
}


def states(
    q: Tensor,
    write: Tensor,
    values: Tensor,
    decay: Tensor | None,
    erase: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    normalize: bool,
    causal: bool,
    reverse: bool,
    group: Any,
) -> tuple[Tensor, Tensor]:
    """The state before the first token of this rank, and the state after all tokens of all ranks, in float64.

    ``write``, ``values`` and ``erase`` are this rank's tokens: S_t = A_t + write_t (values_t - A_t' erase_t)', A_t the
    decayed state; without ``erase``, S_t = A_t + write_t values_t'. Without ``causal`` tokens read the second state.

    ``initial_state`` is the same on all ranks. Gradients are those of the sum of all ranks' losses: whole for a rank's
    own tokens; for what ranks share, as ``initial_state`` and (H,) decays, a rank's share, to be summed over the ranks.
    Every rank has to take part in the backward pass.
    """
    rank, size = _ranks.place(group)
    if cu_seqlens is not None:
        refuse(group)
        raise ValueError("cu_seqlens must be None with group, got a tensor")
    tokens = [x for x in (write, values, decay, erase) if x is not None]
    width = heads(*tokens)
    step, own = _own(write, values, decay, erase, width, reverse)
    packed = own.flatten() if step is None else torch.cat([own.flatten(), step.flatten()])
    if not torch.compiler.is_compiling() and not (q.is_cuda and torch.cuda.is_current_stream_capturing()):
        dtypes = _DTYPES.index(q.dtype), _DTYPES.index(None if initial_state is None else initial_state.dtype)
        sizes = q.shape[0], q.shape[2], width, own.shape[2], own.shape[3] - normalize
        kind = 0 if decay is None else decay.dim() - 2
        wanted = _agree((*sizes, *dtypes, kind, erase is not None, normalize, causal, reverse), packed, group)
        if wanted and not packed.requires_grad:
            packed = packed.detach().requires_grad_()  # others' gradients need this rank in the backward pass
    gathered = _Gather.apply(packed, group) if packed.numel() else packed.expand(size, 0)
    h = max(width, q.shape[2]) if causal else width

    def part(row: Tensor, like: Tensor, start: int) -> Tensor:
        found = row[start : start + like.numel()].view(like.shape)
        return found if found.shape[1] == h else found.repeat_interleave(h // found.shape[1], 1)

    # A sum of no rows is zero, but ties the first rank, which reads no other's, to them: all meet in the backward pass.
    state = part(gathered[:0].sum(0), own, 0)
    state = first = state if initial_state is None else state + initial_state
    for i in reversed(range(size)) if reverse else range(size):
        first = state if i == rank else first
        if step is not None:
            factor = part(gathered[i], step, own.numel())
            state = factor * state if erase is None else factor @ state
        state = state + part(gathered[i], own, 0)
    return first, state


def refuse(group: Any) -> None:
    """Tell the other ranks that this one is about to raise, so that they raise too, and do not wait for it."""
    if isinstance(group, dist.ProcessGroup):
        _ranks.exchange([1] + [0] * (1 + len(_FIELDS)), group)


def _own(
    write: Tensor, values: Tensor, decay: Tensor | None, erase: Tensor | None, h: int, reverse: bool
) -> tuple[Tensor | None, Tensor]:
    """What these tokens do to a state: a factor (B, H, 1 or K, 1) or matrix (B, H, K, K), and a sum (B, H, K, V)."""
    b, k, v = write.shape[0], write.shape[3], values.shape[3]
    zeros = torch.zeros(b, h, k, v, dtype=torch.float64, device=write.device)
    if erase is not None:
        nothing = values.new_zeros(*values.shape[:3], k)
        both = spread(torch.cat([values, nothing], -1).to(wide(values)), h)
        eye = torch.eye(k, dtype=torch.float64, device=write.device).expand(b, h, k, k)
        start = torch.cat([zeros, eye], -1)  # the columns of a state do not meet
        _, last = ops.solve(erase, write, both, decay, start, None, True, reverse, False)
        return last[..., v:], last[..., :v]
    if decay is None:
        return None, _sums.collect(write, values, zeros[:, : heads(write, values)], None)
    decay = spread(decay if decay.dim() == 4 else decay.unsqueeze(-1), h)
    rest, _ = _sums.cumulate(decay, None, None, not reverse, True)  # of a token, until the end
    write = spread(write, h).to(decay.dtype) * rest.exp()
    total = decay.sum(1, dtype=torch.float64).exp().unsqueeze(-1)
    return total, _sums.collect(write, values.to(decay.dtype), zeros, None)


def _agree(numbers: Sequence[int], packed: Tensor, group: Any) -> bool:
    """Raise on all ranks unless all have the same numbers; returns whether one of them wants gradients."""
    wish = 1 + packed.requires_grad if torch.is_grad_enabled() else 0
    failed, wishes, *columns = zip(*_ranks.exchange([0, wish, *numbers], group), strict=True)
    _ranks.check_valid(failed)
    for (field, names), column in zip(_FIELDS.items(), columns, strict=True):
        if len(set(column)) > 1:
            got = ", ".join(f"{names[x] if names else x} on {_ranks.named(column, x)}" for x in dict.fromkeys(column))
            raise ValueError(f"{field} must be the same on all ranks of group, got {got}")
    if 0 in wishes and 2 in wishes:
        raise ValueError(
            f"gradients must be enabled on all ranks of group, got torch.no_grad() on {_ranks.named(wishes, 0)}"
        )
    return 2 in wishes


class _Gather(torch.autograd.Function):
    """(n,) on each of R ranks -> the same (R, n) on all; its adjoint is ``_Reduce``, whose adjoint it is."""

    @staticmethod
    def forward(x: Tensor, group: Any) -> Tensor:
        x = x.contiguous()
        found = x.new_empty(dist.get_world_size(group), *x.shape)
        dist.all_gather(list(found), x, group)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, dfound: Tensor) -> tuple[Tensor, None]:
        return _Reduce.apply(dfound, ctx.group), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: Any) -> Tensor:
        return _Gather.apply(dx, ctx.group)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, Any], x: Tensor, group: Any) -> tuple[Tensor, int]:
        return _Gather.apply(x, group), in_dims[0] + 1


class _Reduce(torch.autograd.Function):
    """(R, n) on each of R ranks -> (n,), the sum of all ranks' rows for this one, in the order of the ranks."""

    @staticmethod
    def forward(x: Tensor, group: Any) -> Tensor:
        x = x.contiguous()
        found = torch.empty_like(x)
        dist.all_to_all_single(found, x, group=group)
        return found.sum(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(dout, ctx.group), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: Any) -> Tensor:
        return _Reduce.apply(dx, ctx.group)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, Any], x: Tensor, group: Any) -> tuple[Tensor, int]:
        return _Reduce.apply(x.movedim(in_dims[0], -1), group), x.dim() - 2
