"""Messages from neighbours, filtered and summed at their targets without a message ever being stored."""

import torch
from torch import Tensor

from pyfast.crystal import _operators as ops
from pyfast.crystal._arguments import check_graph, check_is_graph, check_tensor, type_of
from pyfast.crystal._graph import PeriodicGraph
from pyfast.crystal.table import RadialTable


def conv(
    x: Tensor,
    filter: Tensor | RadialTable,
    graph: PeriodicGraph,
    distance: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Continuous-filter convolution: every atom sums what its neighbours are, times the filter of the edge between.

    out_i = sum over edges e from j to i of filter_e * x_j, channel by channel. Neither the messages nor, with a table,
    the filters are stored. Sums have a fixed order: the same bits on every run and for any number of threads.

    Args:
        x: (N, F) features of the atoms, float32 or float64.
        filter: (E, F) one filter per edge, of the dtype of ``x``; or a ``RadialTable`` with F channels.
        graph: a ``PeriodicGraph`` of N atoms and E edges: whole, as each edge has one target, and a half list would
            leave half of the messages out.
        distance: (E,) Å, with a table: where to read it. Differentiable; by default the graph's own, without.
        weight: (E,) a factor of each edge's filter, with a table; by default 1.

    Returns:
        (N, F) sums, in the dtype of ``x``; 0 for an atom without neighbours. Differentiable in ``x``, ``filter`` (or
        the parameters of the table's network), ``distance`` and ``weight``, to any order and in both modes.

    Raises:
        ValueError: if a shape does not match, or a distance is outside the table (on the CPU).
        TypeError: if a dtype or device does not match.
        IndexError: if the graph names an atom or edge that is not there (on the CPU; undefined on CUDA).

    Source: Schütt et al., 2017, https://arxiv.org/abs/1706.08566, equation 2.

    Example:
        >>> import torch
        >>> import pyfast.reference.crystal as reference
        >>> from pyfast import crystal
        >>> graph = reference.neighbors(torch.zeros(1, 3), 2 * torch.eye(3), 2.5)
        >>> x, filter = torch.ones(1, 4), torch.full((graph.num_edges, 4), 0.5)
        >>> crystal.conv(x, filter, graph)  # six neighbours
        tensor([[3., 3., 3., 3.]])
    """
    check_is_graph(graph)
    check_tensor("x", x, (graph.num_atoms, "F"))
    check_graph(graph, x, "x")
    columns, edges = x.shape[1], graph.num_edges
    if isinstance(filter, RadialTable):
        r = graph.distance.to(x.dtype) if distance is None else distance
        check_tensor("distance", r, (edges,), x)
        if weight is not None:
            check_tensor("weight", weight, (edges,), x)
        if not filter.exact:
            table = filter.values()
            if table.shape[2] != columns:
                raise ValueError(f"filter must return as many columns as x has, {columns}, got {table.shape[2]}")
            check_tensor("filter", table, (filter.num_knots, 2, columns), x)
            scale = torch.ones_like(r) if weight is None else weight.contiguous()
            return ops.table_conv(
                x.contiguous(), scale, r.contiguous(), table.contiguous(), *ops.rows(graph), filter.minimum,
                filter.spacing, 0,
            )  # fmt: skip
        r = torch.where(graph.mask, r, filter.cutoff)  # a network may be singular where padding is
        each: Tensor = filter(r) if weight is None else filter(r) * weight[:, None]
    elif not isinstance(filter, Tensor):
        hint = "; RadialTable(network, cutoff) makes one of it" if callable(filter) else ""
        raise TypeError(f"filter must be a tensor or a RadialTable, got {type_of(filter)}{hint}")
    elif distance is not None or weight is not None:
        name = "distance" if distance is not None else "weight"
        raise ValueError(f"{name} must be None where filter is a tensor, got a tensor")
    else:
        each = filter
    check_tensor("filter", each, (edges, columns), x)
    return ops.conv(x.contiguous(), each.contiguous(), *ops.rows(graph))
