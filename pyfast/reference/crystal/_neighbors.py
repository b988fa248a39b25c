"""Neighbours by brute force. The order of operations is part of the definition: all devices decide alike.

An edge from j to i with shift S has the vector v = (x_j - x_i) + ((S_a a + S_b b) + S_c c) and the squared length
(v_x v_x + v_y v_y) + v_z v_z, rounded after each operation, in float64. Reversed, it is exactly -v.
"""

import numpy as np
import torch
from torch import Tensor

from pyfast.crystal._graph import PeriodicGraph, Status


def neighbors(
    positions: Tensor,
    cell: Tensor,
    cutoff: float | Tensor,
    pbc: bool | Tensor = True,
    *,
    species: Tensor | None = None,
    inclusive: bool = False,
    half: bool = False,
) -> PeriodicGraph:
    natoms = torch.tensor([len(positions)])
    return radius_graph(
        positions, cell[None], cutoff, natoms=natoms, pbc=pbc, species=species, inclusive=inclusive, half=half
    )


def radius_graph(
    positions: Tensor,
    cell: Tensor,
    cutoff: float | Tensor,
    *,
    natoms: Tensor,
    pbc: bool | Tensor = True,
    species: Tensor | None = None,
    inclusive: bool = False,
    half: bool = False,
) -> PeriodicGraph:
    b = len(natoms)
    atom_ptr = torch.cat([natoms.new_zeros(1), natoms.cumsum(0)])
    periodic = torch.as_tensor(pbc).expand(b, 3)
    radius = torch.as_tensor(cutoff, dtype=torch.float64)
    kind = torch.zeros(len(positions), dtype=torch.int64) if species is None else species
    edges, vectors, status = [], [], []
    for c, (x, k) in enumerate(
        zip(positions.double().split(natoms.tolist()), kind.split(natoms.tolist()), strict=True)
    ):
        limit = radius if radius.dim() == 0 else radius[k[:, None], k]
        i, j, shift, v = images(x, cell[c].double(), radius.max(), periodic[c])
        length = squared(v)
        bound = (limit * limit).expand(len(x), len(x))[i, j]
        keep = (length <= bound) & (bound > 0) if inclusive else length < bound
        if half:
            keep &= (i < j) | ((i == j) & (sign(shift) > 0))
        edges.append(torch.cat([j[:, None], i[:, None], shift], 1)[keep] + atom_ptr[c] * torch.tensor([1, 1, 0, 0, 0]))
        vectors.append(v[keep])
        status.append(Status.COINCIDENT if (length[keep] == 0).any() else 0)
    edge = torch.cat([torch.zeros(0, 5, dtype=torch.int64), *edges])
    vector = torch.cat([torch.zeros(0, 3, dtype=torch.float64), *vectors])
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(edge[:, 1], minlength=len(positions)).cumsum(0)])
    where = {key: e for e, key in enumerate(map(tuple, edge.tolist()))}
    reverse = [where.get((i, j, -a, -b, -c), -1) for j, i, a, b, c in edge.tolist()]
    return PeriodicGraph(
        edge[:, :2].T.contiguous(),
        edge[:, 2:].int(),
        torch.from_numpy(np.sqrt(squared(vector).numpy())).to(positions.dtype),  # torch's may be off by a bit
        torch.tensor(reverse, dtype=torch.int64),
        ptr,
        ptr[atom_ptr],
        atom_ptr,
        torch.tensor(status, dtype=torch.int32),
        vector.to(positions.dtype),
    )


def images(x: Tensor, cell: Tensor, reach: Tensor, periodic: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(i, j, shift, vector) of all pairs, in order, but an atom with itself, whose images can be within reach."""
    n = len(x)
    i, j = (t.reshape(-1) for t in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"))
    d = x[j] - x[i]
    whole = complete(cell, periodic)
    inverse = torch.linalg.inv(whole)
    steps = reach * inverse.norm(dim=0) * (1 + 1e-9) + 1e-6  # cells within reach, along each vector
    f = d @ inverse
    low = (-f - steps).ceil().where(periodic, 0.0).long()
    spans = (steps - f).floor().where(periodic, 0.0).long() - low + 1  # each pair has its own box
    pair = torch.arange(n * n).repeat_interleave(spans.prod(1))
    box = spans[pair]
    step = torch.arange(len(pair)) - (spans.prod(1).cumsum(0) - spans.prod(1))[pair]
    shift = low[pair] + torch.stack(
        [step // (box[:, 1] * box[:, 2]), step // box[:, 2] % box[:, 1], step % box[:, 2]], 1
    )
    other = (i != j)[pair] | (shift != 0).any(1)
    pair, shift = pair[other], shift[other]
    s = shift.double()
    a, b, c = torch.where(periodic[:, None], cell, 0.0)
    offset = (s[:, :1] * a + s[:, 1:2] * b) + s[:, 2:] * c
    return i[pair], j[pair], shift, d[pair] + offset


def complete(cell: Tensor, periodic: Tensor) -> Tensor:
    """The cell, its vectors along axes that do not repeat replaced by unit vectors at right angles to the others."""
    rows = list(torch.where(periodic[:, None], cell, 0.0))
    for axis in range(3):
        if not periodic[axis]:
            rank = sum(bool(r.any()) for r in rows)
            rows[axis] = torch.linalg.svd(torch.stack(rows)).Vh[rank]
    return torch.stack(rows)


def squared(v: Tensor) -> Tensor:
    x, y, z = v.unbind(-1)
    return (x * x + y * y) + z * z


def sign(shift: Tensor) -> Tensor:
    """Of the first component that is not zero."""
    a, b, c = shift.sign().unbind(-1)
    return a + (a == 0) * (b + (b == 0) * c)
