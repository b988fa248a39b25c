"""What a neighbour list is to everything after it: edges in one order, with pointers both ways."""

from enum import IntFlag
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Status(IntFlag):
    """What happened to one structure of a batch; the bits of ``PeriodicGraph.status``.

    The first four are bad input, and such a structure has no edges. So has one that overflowed its capacity. Atoms
    that coincide are edges of length zero, which are kept.
    """

    NOT_FINITE = 1
    SINGULAR_CELL = 2
    TOO_FAR = 4
    TOO_MANY = 8
    OVERFLOW = 16
    COINCIDENT = 32

    def __str__(self) -> str:
        return self.name or f"{int(self)}"

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else str(self)


class PeriodicGraph(NamedTuple):
    """Edges of a batch of periodic structures, from a source j, in the image that a shift names, to a target i.

    An edge is a vector ``positions[j] + shift @ cell - positions[i]`` with positions as they were given, inside the
    cell or not. Edges are sorted by (i, j, shift), lexicographically, on every device: those of target i are
    ``ptr[i]`` to ``ptr[i + 1]``, and those of structure b ``edge_ptr[b]`` to ``edge_ptr[b + 1]``.

    A graph made with a capacity has that many edges, the last of which are padding: index 0, shift and distance 0,
    reverse -1. Pointers end where padding begins, and ``mask`` tells.

    The tuple is a pytree, as torch.compile, torch.vmap and DataLoader workers want it. A DataLoader that makes batches
    of graphs, or of Crystals, needs ``collate_fn=crystal.join``. ``torch.load`` wants ``weights_only=False`` for what
    was saved of either, or ``torch.serialization.safe_globals([crystal.PeriodicGraph, crystal.Crystals])`` around it.

    Attributes:
        edge_index: (2, E), int64 or int32: row 0 the source j, row 1 the target i.
        shift: (E, 3) int32, cells between j and its image, one for each cell vector.
        distance: (E,) Å, in the dtype of the positions, without a derivative.
        reverse: (E,) the edge from i to j with the shift reversed, or -1 where the graph has none.
        ptr: (N + 1,) where the edges of each target begin.
        edge_ptr: (B + 1,) where the edges of each structure begin.
        atom_ptr: (B + 1,) where the atoms of each structure begin.
        status: (B,) int32, bits of ``Status``.
        vector: (E, 3) Å, or None unless asked for, without a derivative.
    """

    edge_index: Tensor
    shift: Tensor
    distance: Tensor
    reverse: Tensor
    ptr: Tensor
    edge_ptr: Tensor
    atom_ptr: Tensor
    status: Tensor
    vector: Tensor | None = None

    def __repr__(self) -> str:
        atoms, edges = len(self.ptr) - 1, self.edge_index.shape[-1]
        try:
            used = int(self.ptr[-1])
        except (RuntimeError, ValueError):  # of tensors without values, or of a batch of graphs
            used = edges
        count = f"{edges:,}" if used == edges else f"{used:,} of {edges:,}"
        return f"PeriodicGraph({len(self.edge_ptr) - 1:,} structures, {atoms:,} atoms, {count} edges)"

    @property
    def source(self) -> Tensor:
        """(E,) the atom that an edge comes from, j."""
        return self.edge_index[0]

    @property
    def target(self) -> Tensor:
        """(E,) the atom that an edge leads to, i."""
        return self.edge_index[1]

    @property
    def num_atoms(self) -> int:
        """Atoms of the batch, N."""
        return self.ptr.shape[0] - 1

    @property
    def num_edges(self) -> int:
        """Edges of the batch, E, padding included."""
        return self.edge_index.shape[1]

    @property
    def num_structures(self) -> int:
        """Structures of the batch, B."""
        return self.edge_ptr.shape[0] - 1

    @property
    def mask(self) -> Tensor:
        """(E,) bool: False for padding."""
        return torch.arange(self.num_edges, device=self.ptr.device) < self.ptr[-1]

    def to(self, *args: Any, **kwargs: Any) -> "PeriodicGraph":
        """The graph on another device; arguments are those of ``torch.Tensor.to``, a dtype apart.

        Args:
            args: a device, as ``torch.Tensor.to`` takes it.
            kwargs: ``device``, ``non_blocking``, ``copy``.

        Returns:
            A graph whose tensors are on that device.

        Raises:
            TypeError: if a dtype is given, as a graph has several.
        """
        if any(isinstance(a, (torch.dtype, Tensor)) for a in (*args, *kwargs.values())):
            raise TypeError("args must be of a device, as a graph has several dtypes, got a dtype or a tensor")
        return tree_map(lambda x: None if x is None else x.to(*args, **kwargs), self)
