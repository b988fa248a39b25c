"""Triplets as arrays, and what is summed over them."""

import torch
from torch import Tensor

from pyfast.crystal._graph import PeriodicGraph


def indices(graph: PeriodicGraph, through: bool = False) -> list[tuple[int, int]]:
    """Pairs of edges, one by one: c -> a and b -> a, or j -> i and k -> j; not an edge with itself or its reverse."""
    used, found = int(graph.ptr[-1]), []
    for e in range(used):
        for f in range(used):
            meet = graph.target[f] == (graph.source[e] if through else graph.target[e])
            if meet and f != (graph.reverse[e] if through else e):
                found.append((e, f))
    return found


def quadruplets(graph: PeriodicGraph) -> set[tuple[int, int, int]]:
    ends = indices(graph), indices(graph, through=True)
    return {(ca, ba, db) for ca, ba in ends[0] for other, db in ends[1] if other == ba}


def pair_sum(weights: Tensor, x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Sum over pairs of weights (T, L) times x (E, C) of the second edge, for each first edge."""
    each = weights[:, :, None] * x[column][:, None]
    return x.new_zeros(len(x), *each.shape[1:]).index_add(0, row, each)


def angular_sum(x: Tensor, unit: Tensor, radial: Tensor, row: Tensor, column: Tensor, through: bool = False) -> Tensor:
    """Sums weighted by Legendre series of the angle, with every triplet written out; polynomials by closed forms."""
    c = (unit[row] * unit[column]).sum(1) * (-1 if through else 1)
    forms = [c**0, c, (3 * c**2 - 1) / 2, (5 * c**3 - 3 * c) / 2, (35 * c**4 - 30 * c**2 + 3) / 8]
    values = torch.stack(forms[: radial.shape[2]], 1)
    weights = (radial[column if through else row] * values[:, None]).sum(2)
    return pair_sum(weights, x, row, column)


def gemnet_triplets(x: Tensor, unit: Tensor, radial: Tensor, weight: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The triplet interaction: sums by angle, mixed by a bilinear layer."""
    return torch.einsum("eic,ico->eo", angular_sum(x, unit, radial, row, column), weight)
