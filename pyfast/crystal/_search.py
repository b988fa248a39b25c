"""A neighbour list is two operators: one counts the edges of every atom, one writes so many of them.

How many there are depends on the numbers, so between the two a plain call reads one of them; a call with a capacity
reads none.
"""

from typing import Any

import torch
from torch import Tensor

from pyfast import _C, _ops

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


def nearest(positions: Tensor, cell: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """What C++ finds on a CPU; a GPU counts, fills, chooses and keeps."""
    N, B, room = positions.shape[0], cell.shape[0], rest[-1]
    found = (
        positions.new_empty(N, dtype=torch.int64),
        positions.new_empty(B, dtype=torch.int32),
        positions.new_empty(B, dtype=torch.float64),
        _ops.empty(positions, room, dtype=torch.int32),
        _ops.empty(positions, room, 3, dtype=torch.int32),
        _ops.empty(positions, room, dtype=torch.float64),
        _ops.empty(positions, room, dtype=torch.int32),
    )
    torch.get_num_threads()  # a thread's first call hands OpenMP the count that torch was told
    _C.crystal.nearest(positions, cell, *rest, *found)
    return found


def pack(positions: Tensor, *found: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``nearest`` found, moved together."""
    edges = _allocate_fill(positions, *found)
    torch.get_num_threads()  # as above
    _C.crystal.pack(positions, *found, *edges)
    return edges


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
