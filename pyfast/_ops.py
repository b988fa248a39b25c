"""The one place where an operator meets its devices, and where it learns to be differentiated, batched and compiled.

An operator is three functions: ``pyfast._C.family.name`` (C++) and ``pyfast.kernels.family.name`` (Triton), which share
one signature, inputs first and outputs last; and ``allocate``, which makes the outputs and so doubles as the shape rule
that ``torch.compile`` traces with. Where it has a derivative, ``save`` and ``backward`` say which, as they would for
``torch.library.register_autograd``.

Why not ``register_autograd`` itself: its operators cannot be called under ``torch.func``, and forward mode loses the
tangent in silence. Here the autograd kernel is the same ``autograd.Function``, entered as PyTorch's kernels are, one
level of ``torch.func`` at a time; eager calls enter it directly and skip a trip through the dispatcher.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.utils._pytree import tree_leaves, tree_map

from pyfast import _C

_library = torch.library.Library("pyfast", "DEF")
_below_autograd = torch._C._AutoDispatchBelowAutograd
_any_requires_grad = torch._C._any_requires_grad  # looks into lists of tensors too
_func_active = torch._C._are_functorch_transforms_active
_is_compiling = torch.compiler.is_compiling
_grad_enabled = torch.is_grad_enabled
_modes_active = torch._C._len_torch_dispatch_stack
_profiler_enabled = torch._C._autograd._profiler_enabled
_tracing = torch._C._get_tracing_state  # of torch.jit.trace, which sees what the dispatcher does
_keys = torch._C._dispatch_keys
with torch.inference_mode():
    _inference = torch.empty(0)
_PLAIN = {_keys(x).raw_repr() for x in (torch.empty(0), _inference)}  # on the CPU, dense, and nothing else
_DENSE = {Tensor, torch.nn.Parameter}
_unwrap_if_dead = torch._C._functorch.unwrap_if_dead  # what torch.func left in a graph that outlives it


def define(
    family: str,
    schema: str,
    allocate: Callable[..., Any],
    save: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    *,
    rows: Sequence[int] | Callable[..., Sequence[int]] = (),
    jvp: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register ``pyfast::family_schema`` for CPU, CUDA and tracing, and return the function that runs it.

    Args:
        family: the room: the module of ``pyfast``, ``pyfast._C`` and ``pyfast.kernels`` that holds the operator.
        schema: PyTorch's, without the family: ``"name(Tensor x) -> Tensor"``. ``Tensor(a!)`` and ``Tensor(a!)[]`` are
            changed in place, and their version counters rise.
        allocate: makes the outputs, unwritten, from the inputs; runs on meta tensors too.
        save: ``save(ctx, inputs, output)`` keeps what ``backward`` needs.
        backward: ``backward(ctx, *grads)`` returns one gradient or None for each input (a list for a list), through
            PyTorch's operators and ours; where those have derivatives, so has this. Without it, differentiating raises.
        rows: positions of the inputs whose first dimension counts independent rows, as that of every output then must.
            ``torch.vmap`` over these inputs alone is one call on more rows; any other ``vmap`` is a loop. A function of
            the inputs where that depends on them.
        jvp: ``jvp(inputs, tangents, outputs)`` returns the outputs' tangents, through PyTorch's operators and ours; an
            input without one has None. Without it, forward mode raises.

    Returns:
        A function of the schema's arguments, by position.
    """
    name = schema.partition("(")[0]
    operator = f"{family}_{name}"
    cpp = getattr(getattr(_C, family), name)
    _library.define(f"{family}_{schema}", tags=(torch.Tag.needs_exact_strides,))
    op = getattr(torch.ops.pyfast, operator).default
    arguments = op._schema.arguments
    lists = any("List[Tensor]" in str(a.type) or "List[Optional[Tensor]]" in str(a.type) for a in arguments)
    tensors = [i for i, a in enumerate(arguments) if "Tensor" in str(a.type)]
    mutated = [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]

    def cpu(*inputs: Any) -> Any:
        outputs = allocate(*inputs)
        torch.get_num_threads()  # a thread's first call hands OpenMP the count that torch was told
        cpp(*inputs, *_as_tuple(outputs))
        return _result(outputs)

    def cuda(*inputs: Any) -> Any:
        outputs = allocate(*inputs)
        kernel = getattr(importlib.import_module(f"pyfast.kernels.{family}"), name)
        with torch.cuda.device(next(x.device for x in tree_leaves(inputs) if isinstance(x, Tensor))):
            kernel(*inputs, *_as_tuple(outputs))
        return _result(outputs)

    def meta(*inputs: Any) -> Any:
        return _result(allocate(*inputs))

    def no_derivative(*_: Any) -> Any:
        raise NotImplementedError(
            f"pyfast::{operator} has no derivative; differentiate pyfast.reference.{family} instead"
        )

    def no_forward_mode(*_: Any) -> Any:
        raise NotImplementedError(f"pyfast::{operator} has no forward-mode derivative; use reverse mode")

    def forward(ctx: Any, *inputs: Any) -> Any:
        if lists:
            ctx.unflatten, inputs = inputs[-1], inputs[-1](inputs[:-1])
        if _func_active():  # the transforms outside this one still have to see what happens
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), _below_autograd():
                outputs = op(*inputs)
        elif not lists and _direct([inputs[i] for i in tensors]):
            outputs = cpu(*inputs)
        else:
            with _below_autograd():
                outputs = op(*inputs)
        if save is not None:
            save(ctx, inputs, outputs)
        if jvp is not None and forward_ad._current_level >= 0:
            with forward_ad._set_fwd_grad_enabled(True):
                if _has_tangent(inputs):
                    ctx.tangents_of = inputs, outputs  # until the call of forward_mode that follows at once
        return outputs

    def forward_mode(ctx: Any, *tangents: Any) -> Any:
        inputs, outputs = ctx.tangents_of
        del ctx.tangents_of
        primals = [forward_ad.unpack_dual(x).primal if isinstance(x, Tensor) else x for x in inputs]
        with forward_ad._set_fwd_grad_enabled(True):  # forward over forward: PyTorch turns it off here
            return jvp(primals, tangents, outputs)  # type: ignore[misc]

    def backward_lists(ctx: Any, *grads: Any) -> Any:
        needed = ctx.needs_input_grad
        ctx.needs_input_grad = ctx.unflatten(needed[:-1])
        try:
            inner = _as_tuple(backward(ctx, *grads) if backward else no_derivative())
        finally:
            ctx.needs_input_grad = needed
        return *_flatten(inner), None

    methods = {
        "forward": staticmethod(forward),
        "backward": staticmethod(backward_lists if lists else backward or no_derivative),
        "jvp": staticmethod(no_forward_mode if jvp is None else forward_mode),
    }
    node: Any = type(f"pyfast_{operator}", (_SingleLevelFunction,), methods)

    def record(inputs: Sequence[Any]) -> Any:
        if lists:
            return node.apply(*_flatten(inputs), _unflatten([len(x) if _is_list(x) else -1 for x in inputs]))
        return node.apply(*inputs)

    def autograd(_: Any, *inputs: Any) -> Any:
        if forward_ad._current_level >= 0:
            with forward_ad._set_fwd_grad_enabled(True):
                if _has_tangent(inputs):
                    if jvp is None:
                        no_forward_mode()
                    with enable_single_level_autograd_function():
                        return record(inputs)
        if torch.is_grad_enabled() and _any_requires_grad(*inputs):
            with enable_single_level_autograd_function():
                return record(inputs)
        with _below_autograd():
            return op(*inputs)

    def autograd_in_place(_: Any, *inputs: Any) -> Any:
        changed = _flatten([inputs[i] for i in mutated])
        if torch.is_grad_enabled() and any(x.requires_grad and not x.is_leaf for x in changed):
            no_derivative()
        with _below_autograd():
            return op(*inputs)

    def bump_versions(_: Any, *inputs: Any) -> Any:
        changed = _flatten([inputs[i] for i in mutated])
        torch.autograd.graph.increment_version([x for x in changed if not x.is_inference()])
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return op(*inputs)

    def batched(info: Any, in_dims: Any, *inputs: Any) -> Any:
        if mutated:
            raise NotImplementedError(f"pyfast::{operator} changes its inputs in place and has no rule for torch.vmap")
        n = info.batch_size
        folds = rows(*inputs) if callable(rows) else rows
        if folds and all(dim is None or i in folds for i, dim in enumerate(in_dims)):
            count = _each(inputs[folds[0]], in_dims[folds[0]], 0).shape[0]
            folded = (
                _fold(x, dim, n) if i in folds and x is not None else x
                for i, (x, dim) in enumerate(zip(inputs, in_dims, strict=True))
            )
            outputs = tree_map(lambda x: x.unflatten(0, (n, count)), run(*folded))
            return outputs, tree_map(lambda _: 0, outputs)
        if n == 0:
            one = allocate(*(_each(x, dim, 0) for x, dim in zip(inputs, in_dims, strict=True)))
            return tree_map(lambda x: x.new_empty(0, *x.shape), one), tree_map(lambda _: 0, one)
        each = [run(*(_each(x, dim, i) for x, dim in zip(inputs, in_dims, strict=True))) for i in range(n)]
        if isinstance(each[0], tuple):
            return tuple(map(torch.stack, zip(*each, strict=True))), (0,) * len(each[0])
        return torch.stack(each), 0

    def run(*inputs: Any) -> Any:
        if _is_compiling() or _func_active() or forward_ad._current_level >= 0 or lists or mutated or _tracing():
            return op(*inputs)
        # Where plain tensors lie on the CPU and no mode listens, the dispatcher would do nothing but find the kernel.
        direct = not (_modes_active() or _profiler_enabled())
        wants_grad = False
        for i in tensors:
            x = inputs[i]
            if x is not None:
                if _keys(x).raw_repr() not in _PLAIN:
                    direct = False
                    x = _unwrap_if_dead(x)
                    inputs = *inputs[:i], x, *inputs[i + 1 :]
                wants_grad = wants_grad or x.requires_grad
        if wants_grad and _grad_enabled():
            return node.apply(*inputs)
        if direct:
            return cpu(*inputs)
        with _below_autograd():
            return op(*inputs)

    _library.impl(operator, cpu, "CPU")
    _library.impl(operator, cuda, "CUDA")
    _library.impl(operator, meta, "Meta")
    _library.impl(operator, autograd_in_place if mutated else autograd, "Autograd", with_keyset=True)
    if mutated:
        _library.impl(operator, bump_versions, "ADInplaceOrView", with_keyset=True)
    torch.library.register_vmap(op, batched, lib=_library)
    run.__name__ = run.__qualname__ = operator
    return run


_LARGE = 2**20  # bytes: less is not worth pages of its own
_DLPACK = {
    torch.int32: (0, 32), torch.int64: (0, 64),
    torch.float16: (2, 16), torch.float32: (2, 32), torch.float64: (2, 64), torch.bfloat16: (4, 16),
}  # fmt: skip


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """``like.new_empty(shape)`` for an output that may be large: on the CPU, memory that is quick to write first.

    Its storage is not PyTorch's: ``resize_`` cannot enlarge it.
    """
    dtype = like.dtype if dtype is None else dtype
    if type(like) not in _DENSE or like.device.type != "cpu" or dtype not in _DLPACK or min(shape, default=0) < 1:
        return like.new_empty(shape, dtype=dtype)
    capsule = None
    if _LARGE <= math.prod(shape) * dtype.itemsize < 2**48:
        capsule = _C.memory.allocate(shape, *_DLPACK[dtype])
    if capsule is not None:
        return torch.utils.dlpack.from_dlpack(capsule)
    return like.new_empty(shape, dtype=dtype)


def plain(*tensors: Any) -> bool:
    """Whether an operator of these would only call a kernel: no gradient, transform, mode or trace, no subclass.

    Where they lie, and whether there is memory that holds their numbers, is for the kernel to find out.
    """
    if _is_compiling() or _func_active() or forward_ad._current_level >= 0:
        return False
    if _modes_active() or _profiler_enabled() or _tracing():
        return False
    for x in tensors:  # not by dispatch keys: to look at them takes as long as to compute
        if type(x) not in _DENSE or x.is_neg():
            return False
    return not (_grad_enabled() and _any_requires_grad(*tensors))


def _direct(tensors: Iterable[Any]) -> bool:
    """Whether the dispatcher would do nothing with these, below autograd, but find the CPU's kernel."""
    if _modes_active() or _profiler_enabled() or _tracing():
        return False
    return all(x is None or _keys(x).raw_repr() in _PLAIN for x in tensors)


def _has_tangent(inputs: Sequence[Any]) -> bool:
    leaves = (x for x in tree_leaves(inputs) if isinstance(x, Tensor))
    return any(forward_ad.unpack_dual(x).tangent is not None for x in leaves)


def _as_tuple(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _result(outputs: Any) -> Any:
    """What the dispatcher wants of an operator that returns nothing is None."""
    return None if isinstance(outputs, tuple) and not outputs else outputs


def _is_list(x: Any) -> bool:
    return isinstance(x, (list, tuple))


def _flatten(inputs: Sequence[Any]) -> list[Any]:
    return [leaf for x in inputs for leaf in (x if _is_list(x) else [x])]


def _unflatten(lengths: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """The inverse of ``_flatten`` for inputs of these lengths, -1 for what was no list."""

    def unflatten(leaves: Sequence[Any]) -> tuple[Any, ...]:
        rest = iter(leaves)
        return tuple(next(rest) if n < 0 else [next(rest) for _ in range(n)] for n in lengths)

    return unflatten


def _each(x: Any, dim: Any, i: int) -> Any:
    """The i-th of a batch: kernels want it contiguous."""
    if _is_list(dim):
        return [_each(y, d, i) for y, d in zip(x, dim, strict=True)]
    if dim is not None and x.shape[dim] == 0:
        return x.new_zeros(x.movedim(dim, 0).shape[1:])  # of an empty batch only the shape
    return x if dim is None else x.select(dim, i).contiguous()


def _fold(x: Tensor, dim: int | None, n: int) -> Tensor:
    """(rows, ...) with a batch dimension, or without, -> (n * rows, ...)."""
    x = x.expand(n, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1).contiguous()
