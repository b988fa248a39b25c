"""Batches of what was made one by one, and back."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from pyfast.crystal._arguments import Crystals
from pyfast.crystal._graph import PeriodicGraph

Parts = TypeVar("Parts", Crystals, PeriodicGraph)


def join(parts: Iterable[Any]) -> Any:
    """Crystals side by side, as one batch; graphs side by side, as one graph; and what holds them.

    It is a ``collate_fn`` for DataLoaders: of tuples, lists or dicts that hold Crystals, graphs and other things it
    joins each, tensors and numbers as PyTorch's ``default_collate`` does.

    Args:
        parts: Crystals, or graphs, or what holds them alike; at least one.

    Returns:
        What ``parts`` are, of all their structures in order. A graph is, to the bit, what one call for the batch would
        have made.

    Raises:
        ValueError: if there are no parts, graphs have padding, some have vectors and others none, or indices of 32
            bits do not reach.
        TypeError: if dtypes or devices differ.

    Source: https://docs.pytorch.org/docs/stable/data.html, on working with ``collate_fn``.

    >>> import torch
    >>> from pyfast import crystal
    >>> cubic = 3 * torch.eye(3)
    >>> one, two = (crystal.neighbors(torch.zeros(1, 3), side * cubic, 4.0) for side in (1.0, 1.2))
    >>> crystal.join([one, two])
    PeriodicGraph(2 structures, 2 atoms, 12 edges)
    """
    parts = list(parts)
    if not parts:
        raise ValueError("parts must hold at least one, got none")
    return collate(parts, collate_fn_map=_JOIN)


def split(batch: Parts) -> list[Parts]:
    """The structures of a batch, or of a graph, one by one: the inverse of ``join``.

    Args:
        batch: Crystals or a graph; padding is left out.

    Returns:
        As many as there are structures, each a batch of one. Tensors are views where they can be.

    Raises:
        TypeError: if ``batch`` is neither.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.split.html, for batches.

    >>> import torch
    >>> from pyfast import crystal
    >>> cells = torch.eye(3).expand(2, 3, 3) * torch.tensor([3.0, 3.6])[:, None, None]
    >>> graph = crystal.radius_graph(torch.zeros(2, 3), cells, 4.0, natoms=[1, 1])
    >>> [g.num_edges for g in crystal.split(graph)]
    [6, 6]
    """
    if isinstance(batch, Crystals):
        sizes = batch.natoms.tolist()
        each = zip(
            batch.positions.split(sizes),
            batch.cell.split(1),
            batch.natoms.split(1),
            batch.numbers.split(sizes),
            batch.pbc.split(1),
            strict=True,
        )
        return cast("list[Parts]", [Crystals(*one) for one in each])
    if not isinstance(batch, PeriodicGraph):
        raise TypeError(f"batch must be Crystals or a PeriodicGraph, got {type(batch).__name__}")
    atoms, edges = batch.atom_ptr.tolist(), batch.edge_ptr.tolist()
    return [_part(batch, b, *atoms[b : b + 2], *edges[b : b + 2]) for b in range(batch.num_structures)]


def _part(graph: PeriodicGraph, b: int, atom: int, last_atom: int, edge: int, last_edge: int) -> PeriodicGraph:
    of = slice(edge, last_edge)
    reverse = graph.reverse[of]
    return PeriodicGraph(
        graph.edge_index[:, of] - atom,
        graph.shift[of],
        graph.distance[of],
        torch.where(reverse < 0, reverse, reverse - edge),
        graph.ptr[atom : last_atom + 1] - edge,
        graph.edge_ptr[b : b + 2] - edge,
        graph.atom_ptr[b : b + 2] - atom,
        graph.status[b : b + 1],
        None if graph.vector is None else graph.vector[of],
    )


def _alike(parts: Sequence[Any]) -> None:
    for name, first in zip(parts[0]._fields, parts[0], strict=True):
        for part in parts[1:]:
            other = getattr(part, name)
            if (first is None) != (other is None):
                raise ValueError(f"parts must all have a {name}, or none, got both")
            if first is not None and (first.dtype, first.device) != (other.dtype, other.device):
                kinds = [f"{x.dtype} on {x.device}" for x in (first, other)]
                raise TypeError(f"parts must have one dtype and device, got {name} of {' and of '.join(kinds)}")


def _join_crystals(parts: Sequence[Crystals], **_: Any) -> Crystals:
    _alike(parts)
    return Crystals(*map(torch.cat, zip(*parts, strict=True)))


def _join_graphs(parts: Sequence[PeriodicGraph], **_: Any) -> PeriodicGraph:
    _alike(parts)
    atoms, edges = [0], [0]
    for g in parts:
        if int(g.ptr[-1]) != g.num_edges:
            raise ValueError(f"parts must have no padding, got {int(g.ptr[-1])} edges with room for {g.num_edges}")
        atoms.append(atoms[-1] + g.num_atoms)
        edges.append(edges[-1] + g.num_edges)
    if max(atoms[-1], edges[-1]) > torch.iinfo(parts[0].ptr.dtype).max:
        raise ValueError(f"parts must have fewer than 2^31 edges with indices of 32 bits, got {edges[-1]}")

    def pointers(name: str, first: list[int]) -> Tensor:
        rows = [getattr(g, name)[1:] + f for g, f in zip(parts, first, strict=False)]
        return torch.cat([parts[0].ptr.new_zeros(1), *rows])

    return PeriodicGraph(
        torch.cat([g.edge_index + a for g, a in zip(parts, atoms, strict=False)], 1),
        torch.cat([g.shift for g in parts]),
        torch.cat([g.distance for g in parts]),
        torch.cat([torch.where(g.reverse < 0, g.reverse, g.reverse + e) for g, e in zip(parts, edges, strict=False)]),
        pointers("ptr", edges),
        pointers("edge_ptr", edges),
        pointers("atom_ptr", atoms),
        torch.cat([g.status for g in parts]),
        None if parts[0].vector is None else torch.cat([cast("Tensor", g.vector) for g in parts]),
    )


_JOIN: dict[Any, Any] = {**default_collate_fn_map, Crystals: _join_crystals, PeriodicGraph: _join_graphs}
