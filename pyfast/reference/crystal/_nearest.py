"""The k nearest by sorting all that lie within a cutoff."""

import torch
from torch import Tensor

from pyfast.crystal._graph import PeriodicGraph
from pyfast.reference.crystal._neighbors import radius_graph


def knn_graph(
    positions: Tensor,
    cell: Tensor,
    k: int,
    *,
    cutoff: float,
    natoms: Tensor,
    pbc: bool | Tensor = True,
    inclusive: bool = False,
    ties: str = "canonical",
    tolerance: float = 1e-4,
    symmetrize: str | None = None,
) -> PeriodicGraph:
    near = radius_graph(
        positions.double(), cell, cutoff, natoms=natoms, pbc=pbc, inclusive=inclusive or ties == "cdvae"
    )
    assert near.vector is not None
    vector = near.vector
    chosen = torch.zeros(near.num_edges, dtype=torch.bool)
    for i in range(near.num_atoms):
        row = list(range(int(near.ptr[i]), int(near.ptr[i + 1])))
        if ties == "cdvae":
            row = [e for e in row if near.distance[e] > 1e-2]
        order = {
            "canonical": lambda e: (near.distance[e].item(), vector[e].tolist(), e),
            "include": lambda e: (near.distance[e].item(), e),
            "cdvae": lambda e: (near.distance[e].item(), e),
        }[ties]
        first = sorted(row, key=order)[:k]
        if ties == "include" and first:
            first = [e for e in row if near.distance[e] <= near.distance[first[-1]] + tolerance]
        chosen[first] = True
    if symmetrize == "union":
        chosen = chosen | chosen[near.reverse]
    if symmetrize == "mutual":
        chosen = chosen & chosen[near.reverse]
    kept = chosen.nonzero()[:, 0]
    place = {int(e): n for n, e in enumerate(kept)}
    before = torch.cat([torch.zeros(1, dtype=torch.int64), chosen.cumsum(0)])
    return PeriodicGraph(
        near.edge_index[:, kept],
        near.shift[kept],
        near.distance[kept].to(positions.dtype),
        torch.tensor([place.get(e, -1) for e in near.reverse[kept].tolist()], dtype=torch.int64),
        before[near.ptr],
        before[near.edge_ptr],
        near.atom_ptr,
        near.status,
        vector[kept].to(positions.dtype),
    )
