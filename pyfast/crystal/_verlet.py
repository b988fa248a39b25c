"""Neighbour lists that last for many steps of a simulation."""

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from pyfast.crystal._arguments import Batch, Crystals, batch_of, check_values, type_of
from pyfast.crystal._graph import PeriodicGraph, Status
from pyfast.crystal._nearest import kept_edges
from pyfast.crystal._neighbors import exact_vectors, radius_graph


class NeighborList:
    """Neighbours of atoms that move a little at a time: sought within cutoff and skin, and again when that is used up.

    A call gives the edges that ``radius_graph`` would give for the same arguments: the list within cutoff and skin
    holds every one that there can be until an atom has moved by half of the skin, and each call decides which of them
    are near. A change of cell, periodicity or number of atoms has the list made anew.

    Args:
        cutoff: Å.
        skin: Å, more than the cutoff that is sought; 0 seeks anew whenever an atom has moved.
        inclusive: as in ``radius_graph``.
        vectors: as in ``radius_graph``.

    Raises:
        ValueError: if cutoff or skin is negative or not finite.
        TypeError: if one is no number.

    >>> import torch
    >>> from pyfast import crystal
    >>> near = crystal.NeighborList(3.0, skin=1.0)
    >>> x, cell = torch.zeros(1, 3), 2.5 * torch.eye(3)
    >>> near(x, cell).num_edges, near(x + 0.1, cell).num_edges, near.rebuilds
    (6, 6, 1)
    """

    def __init__(self, cutoff: float, skin: float = 1.0, *, inclusive: bool = False, vectors: bool = False) -> None:
        for name, value in (("cutoff", cutoff), ("skin", skin)):
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {type_of(value)}")
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        self.cutoff, self.skin, self.inclusive, self.vectors = cutoff, skin, inclusive, vectors
        self.rebuilds = 0
        self._made: tuple[tuple[Tensor, ...], PeriodicGraph] | None = None

    def __repr__(self) -> str:
        return f"NeighborList(cutoff={self.cutoff}, skin={self.skin}, rebuilds={self.rebuilds})"

    def __call__(
        self,
        positions: Tensor | Crystals,
        cell: Tensor | None = None,
        *,
        natoms: Tensor | Sequence[int] | None = None,
        pbc: bool | Sequence[bool] | Tensor | None = None,
    ) -> PeriodicGraph:
        """The graph; arguments are those of ``radius_graph``."""
        asked = batch_of(positions, cell, self.cutoff, natoms, None, pbc, None, True)
        check_values("positions", asked.positions)
        if not self._holds(asked):
            wide = radius_graph(positions, cell, self.cutoff + self.skin, natoms=natoms, pbc=pbc, inclusive=True)
            self._made = tuple(x.clone() for x in asked[:4]), wide
            self.rebuilds += 1
        assert self._made is not None
        wide = self._made[1]
        vector = exact_vectors(asked, wide)
        x, y, z = vector.unbind(1)
        squared, limit = (x * x + y * y) + z * z, self.cutoff * self.cutoff
        near = squared <= limit if self.inclusive and limit > 0 else squared < limit
        touching = torch.nn.functional.pad((near & (squared == 0)).cumsum(0), (1, 0))[wide.edge_ptr].diff() > 0
        return kept_edges(wide._replace(distance=squared.sqrt()), near, torch.int64, asked.positions.dtype)._replace(
            vector=vector[near].to(asked.positions.dtype) if self.vectors else None,
            status=touching.to(torch.int32) * int(Status.COINCIDENT),
        )

    def holds(
        self,
        positions: Tensor | Crystals,
        cell: Tensor | None = None,
        natoms: Tensor | Sequence[int] | None = None,
        pbc: bool | Sequence[bool] | Tensor | None = None,
    ) -> bool:
        """Whether the list that was made last still holds every edge that these atoms can have.

        Args:
            positions: as in ``radius_graph``.
            cell: as in ``radius_graph``.
            natoms: as in ``radius_graph``.
            pbc: as in ``radius_graph``.

        Returns:
            False where the list has to be made anew: an atom has moved by half of the skin, or anything else changed.
        """
        return self._holds(batch_of(positions, cell, self.cutoff, natoms, None, pbc, None, True))

    def _holds(self, asked: Batch) -> bool:
        if self._made is None:
            return False
        x, *rest = self._made[0]
        given = asked.positions
        if x.shape != given.shape or x.dtype != given.dtype or x.device != given.device:
            return False
        if not all(torch.equal(a, b) for a, b in zip(rest, asked[1:4], strict=True)):
            return False
        moved = (given.double() - x.double()).square().sum(1)
        return bool((moved <= (0.5 * self.skin * (1 - 1e-9)) ** 2).all())
