"""The operators of messages along edges, and their derivatives, which are the same operators.

``conv`` sums filter_e x_j at every target i; ``product`` is x_j g_i for every edge. Each is bilinear, and the gradients
of either are the two again, on the edges or on the same edges sorted by source. With filters scale_e T_d(r_e) read
from a table, T_d its d-th derivative along r, there are three:

    table_conv   out_i = sum over e of scale_e T_d(r_e) x_j        (rows, F)
    table_dot    out_e = T_d(r_e) . (x_j g_i)                       (E,)
    table_sums   the sum over e of scale_e x_j g_i, times the weights with which T_d(r_e) reads each knot  (K, 2, F)

and the gradients of each are the three again, along r with d + 1. So every order of derivative, in both modes, is
exact, needs no atomics, and is the same bits on every run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pyfast import _ops


class Rows(NamedTuple):
    """Edges by target, and by source: row i of the first has positions ptr[i] to ptr[i + 1].

    Attributes:
        other: (E,) the row at the edge's other end, by position.
        edge: (E,) the edge, by position; empty where positions are edges.
        ptr: (rows + 1,).
        other_t: as ``other``, of the edges by source.
        edge_t: as ``edge``.
        ptr_t: as ``ptr``.
    """

    other: Tensor
    edge: Tensor
    ptr: Tensor
    other_t: Tensor
    edge_t: Tensor
    ptr_t: Tensor

    @property
    def turned(self) -> "Rows":
        """The same edges, backwards."""
        return Rows(*self[3:], *self[:3])


_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # of a graph: sorted once, however many layers there are


def rows(graph: Any) -> Rows:
    """The edges of a graph from atoms to atoms, both ways."""
    index, ptr = graph.edge_index, graph.ptr
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return sort_rows(index[0], index[1], ptr, ptr.shape[0] - 1)
    version = [None if x.is_inference() else x._version for x in (index, ptr)]
    found = _known.get(index)
    if found is None or found[0] != version or found[1] is not ptr:
        found = version, ptr, sort_rows(index[0], index[1], ptr, ptr.shape[0] - 1)
        _known[index] = found
    return found[2]


def sort_rows(source: Tensor, target: Tensor, ptr: Tensor, sources: int) -> Rows:
    """Both orders of edges that come sorted by target."""
    source, target, ptr = (x.detach().to(torch.int64, copy=True) for x in (source, target, ptr))
    return Rows(source, source.new_empty(0), ptr, *transpose(source, target, ptr, sources))


def _turn(views: Any) -> tuple[Tensor, ...]:
    return (*views[3:], *views[:3])


def total(terms: list[Any]) -> Any:
    return None if not terms else terms[0] if len(terms) == 1 else torch.stack(terms).sum(0)


def moved(operator: Callable[..., Any], inputs: Any, tangents: Any, places: Any) -> list[Any]:
    """The operator with each of these inputs, in turn, replaced by its tangent."""
    moving = [n for n in places if tangents[n] is not None]
    return [operator(*inputs[:n], tangents[n].contiguous(), *inputs[n + 1 :]) for n in moving]


def bilinear(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The forward derivative of what is linear in each of its first two arguments."""

    def jvp(inputs: Any, tangents: Any, outputs: Any) -> Any:
        return total(moved(operator(), inputs, tangents, range(2)))

    return jvp


def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.rest = tuple(x for x in inputs if not isinstance(x, Tensor))


def _allocate_conv(x: Tensor, filter: Tensor, other: Tensor, edge: Tensor, ptr: Tensor, *_: Any) -> Tensor:
    return x.new_empty((ptr.shape[0] - 1, x.shape[1]))


def _derive_conv(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, filter, *views = ctx.saved_tensors
    grad, need = grad.contiguous(), ctx.needs_input_grad
    dx = conv(grad, filter, *_turn(views)) if need[0] else None
    return dx, product(x, grad, *views) if need[1] else None, *6 * (None,)


def _allocate_product(x: Tensor, g: Tensor, other: Tensor, *_: Any) -> Tensor:
    return _ops.empty(x, other.shape[0], x.shape[1])


def _derive_product(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, g, *views = ctx.saved_tensors
    grad, need = grad.contiguous(), ctx.needs_input_grad
    dx = conv(g, grad, *_turn(views)) if need[0] else None
    return dx, conv(x, grad, *views) if need[1] else None, *6 * (None,)


def _allocate_transpose(source: Tensor, target: Tensor, used: Tensor, sources: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(source), torch.empty_like(source), source.new_empty(sources + 1)


def _allocate_table_conv(
    x: Tensor, scale: Tensor, r: Tensor, table: Tensor, other: Tensor, edge: Tensor, ptr: Tensor, *_: Any
) -> Tensor:
    return x.new_empty((ptr.shape[0] - 1, x.shape[1]))


def _allocate_table_dot(x: Tensor, g: Tensor, r: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(r)


def _allocate_table_sums(x: Tensor, *inputs: Any) -> Tensor:
    return x.new_empty((inputs[-4], 2, x.shape[1]))


def _derive_table_conv(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, r, table, *views = ctx.saved_tensors
    grad, need, (start, spacing, order) = grad.contiguous(), ctx.needs_input_grad, ctx.rest
    dx = table_conv(grad, scale, r, table, *_turn(views), *ctx.rest) if need[0] else None
    dscale = table_dot(x, grad, r, table, *views, *ctx.rest) if need[1] else None
    dr = scale * table_dot(x, grad, r, table, *views, start, spacing, order + 1) if need[2] else None
    dtable = table_sums(x, grad, scale, r, *views, table.shape[0], *ctx.rest) if need[3] else None
    return dx, dscale, dr, dtable, *9 * (None,)


def _derive_table_dot(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, g, r, table, *views = ctx.saved_tensors
    grad, need, (start, spacing, order) = grad.contiguous(), ctx.needs_input_grad, ctx.rest
    dx = table_conv(g, grad, r, table, *_turn(views), *ctx.rest) if need[0] else None
    dg = table_conv(x, grad, r, table, *views, *ctx.rest) if need[1] else None
    dr = grad * table_dot(x, g, r, table, *views, start, spacing, order + 1) if need[2] else None
    dtable = table_sums(x, g, grad, r, *views, table.shape[0], *ctx.rest) if need[3] else None
    return dx, dg, dr, dtable, *9 * (None,)


def _derive_table_sums(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, g, scale, r, *views = ctx.saved_tensors
    table, need, (_, *rest) = grad.contiguous(), ctx.needs_input_grad, ctx.rest
    start, spacing, order = rest
    dx = table_conv(g, scale, r, table, *_turn(views), *rest) if need[0] else None
    dg = table_conv(x, scale, r, table, *views, *rest) if need[1] else None
    dscale = table_dot(x, g, r, table, *views, *rest) if need[2] else None
    dr = scale * table_dot(x, g, r, table, *views, start, spacing, order + 1) if need[3] else None
    return dx, dg, dscale, dr, *10 * (None,)


def _along_r(operator: Callable[..., Any], at: int, factor: int | None) -> Callable[..., Any]:
    """The forward derivative of the three: linear in all but r, along which the order rises by one."""

    def jvp(inputs: Any, tangents: Any, outputs: Any) -> Any:
        terms = moved(operator(), inputs, tangents, [n for n in range(4) if n != at])
        if tangents[at] is not None:
            higher = (*inputs[:-1], inputs[-1] + 1)
            if factor is None:
                terms.append(tangents[at] * operator()(*higher))
            else:
                scaled = (inputs[factor] * tangents[at]).contiguous()
                terms.append(operator()(*higher[:factor], scaled, *higher[factor + 1 :]))
        return total(terms)

    return jvp


_VIEWS = ", ".join(f"Tensor {name}" for name in Rows._fields)
_PIECES = "float start, float spacing, int order"

conv: Callable[..., Any] = _ops.define(
    "crystal",
    f"conv(Tensor x, Tensor filter, {_VIEWS}) -> Tensor",
    _allocate_conv,
    save,
    _derive_conv,
    jvp=bilinear(lambda: conv),
)
product: Callable[..., Any] = _ops.define(
    "crystal",
    f"product(Tensor x, Tensor g, {_VIEWS}) -> Tensor",
    _allocate_product,
    save,
    _derive_product,
    jvp=bilinear(lambda: product),
)
transpose: Callable[..., Any] = _ops.define(
    "crystal",
    "transpose(Tensor source, Tensor target, Tensor used, SymInt sources) -> (Tensor, Tensor, Tensor)",
    _allocate_transpose,
)
table_conv: Callable[..., Any] = _ops.define(
    "crystal",
    f"table_conv(Tensor x, Tensor scale, Tensor r, Tensor table, {_VIEWS}, {_PIECES}) -> Tensor",
    _allocate_table_conv,
    save,
    _derive_table_conv,
    jvp=_along_r(lambda: table_conv, 2, 1),
)
table_dot: Callable[..., Any] = _ops.define(
    "crystal",
    f"table_dot(Tensor x, Tensor g, Tensor r, Tensor table, {_VIEWS}, {_PIECES}) -> Tensor",
    _allocate_table_dot,
    save,
    _derive_table_dot,
    jvp=_along_r(lambda: table_dot, 2, None),
)
table_sums: Callable[..., Any] = _ops.define(
    "crystal",
    f"table_sums(Tensor x, Tensor g, Tensor scale, Tensor r, {_VIEWS}, SymInt knots, {_PIECES}) -> Tensor",
    _allocate_table_sums,
    save,
    _derive_table_sums,
    jvp=_along_r(lambda: table_sums, 3, 2),
)
