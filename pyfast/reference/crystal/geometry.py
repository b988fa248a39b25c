"""Edge vectors from positions, cells and shifts, and the shortest of many images."""

import torch
from torch import Tensor

from pyfast.crystal._graph import PeriodicGraph


def edge_vectors(positions: Tensor, cell: Tensor, graph: PeriodicGraph) -> Tensor:
    """x_j + S @ cell - x_i; 0 for padding."""
    structure = torch.searchsorted(graph.edge_ptr, torch.arange(graph.num_edges), right=True) - 1
    image = graph.shift.to(cell.dtype)[:, None] @ cell[structure.clamp(max=len(cell) - 1)]
    v = positions[graph.source] + image[:, 0] - positions[graph.target]
    return torch.where(graph.mask[:, None], v, 0)


def shortest_image(
    vectors: Tensor, cell: Tensor, reach: int, pbc: tuple[bool, bool, bool] = (True, True, True)
) -> Tensor:
    """Lengths of the shortest of the images up to `reach` cells away along each periodic axis of one cell."""
    steps = [torch.arange(-reach, reach + 1) if p else torch.zeros(1, dtype=torch.int64) for p in pbc]
    images = torch.cartesian_prod(*steps).to(cell.dtype) @ cell
    return (vectors[:, None] + images).norm(dim=2).amin(1)
