"""A neighbour list is two operators: one counts the edges of every atom, one writes so many of them.

How many there are depends on the numbers, so between the two a plain call reads one of them; a call with a capacity
reads none.
"""

from typing import Any

import torch
from torch import Tensor

from pyfast import _ops

_SHARED = "Tensor positions, Tensor cell, Tensor pbc, Tensor atom_ptr, Tensor cutoff, Tensor kinds"


def _allocate_count(positions: Tensor, cell: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return (
        positions.new_empty(positions.shape[0], dtype=torch.int64),
        positions.new_empty(cell.shape[0], dtype=torch.int32),
    )


def _allocate_fill(positions: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ptr, edges = rest[-2:]
    return (
        _ops.empty(ptr, 2, edges),
        _ops.empty(ptr, edges, 3, dtype=torch.int32),
        _ops.empty(positions, edges),
        _ops.empty(ptr, edges),
    )


count = _ops.define(
    "crystal",
    f"count({_SHARED}, bool inclusive, bool half, float max_edges) -> (Tensor, Tensor)",
    _allocate_count,
)
fill = _ops.define(
    "crystal",
    f"fill({_SHARED}, bool inclusive, bool half, Tensor ptr, SymInt edges) -> (Tensor, Tensor, Tensor, Tensor)",
    _allocate_fill,
)
choose = _ops.define(
    "crystal",
    "choose(Tensor edge_index, Tensor shift, Tensor distance, Tensor ptr, Tensor positions, Tensor cell, Tensor pbc,"
    " Tensor atom_ptr, int k, int ties, float tolerance, float minimum) -> Tensor",
    lambda edge_index, shift, distance, *_: torch.empty_like(distance, dtype=torch.bool),
)


def _allocate_keep(
    edge_index: Tensor, shift: Tensor, distance: Tensor, reverse: Tensor, ptr: Tensor, *rest: Any
) -> Any:
    count = rest[-1]
    return (
        _ops.empty(edge_index, 2, count),
        _ops.empty(shift, count, 3),
        _ops.empty(distance, count),
        _ops.empty(reverse, count),
        torch.empty_like(ptr),
    )


keep = _ops.define(
    "crystal",
    "keep(Tensor edge_index, Tensor shift, Tensor distance, Tensor reverse, Tensor ptr, Tensor chosen, SymInt count)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _allocate_keep,
)
