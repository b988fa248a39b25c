"""Neighbour lists with the names and orders of arguments of other packages, to stand in for theirs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyfast.crystal import convert
from pyfast.crystal._arguments import type_of
from pyfast.crystal._neighbors import neighbors, radius_graph


def neighbor_list(
    quantities: str, a: Any, cutoff: Any, self_interaction: bool = False, max_nbins: float = 1e6
) -> np.ndarray | tuple[np.ndarray, ...]:
    """ASE's and matscipy's ``neighbor_list``, for one structure.

    Args:
        quantities: what to return, a letter each: ``i`` and ``j`` the atoms of a pair, ``d`` their distance, ``D`` the
            vector from i to j, ``S`` the shift, in cells, of the image of j.
        a: ``ase.Atoms``.
        cutoff: Å. A number for all pairs; a dictionary ``{("H", "O"): 1.2}`` of pairs of elements by symbol or number,
            whose other pairs are never near; or a radius of each atom, for pairs nearer than the sum of theirs.
        self_interaction: whether an atom is its own neighbour, at distance zero.
        max_nbins: does nothing; it is there as it is in ASE.

    Returns:
        An array for each letter, or the array itself for one letter. Pairs are sorted by i, j and S; ASE sorts by i.

    Raises:
        ValueError: if a letter is unknown, or an element of the cutoffs, or as ``radius_graph``.
        TypeError: if ``a`` is not one ``ase.Atoms``.

    Example:
        >>> from ase.build import bulk
        >>> from pyfast.crystal import neighbor_list
        >>> i, d = neighbor_list("id", bulk("Cu", a=3.6), 3.0)
        >>> len(i), round(float(d[0]), 3)
        (12, 2.546)

    Source: https://ase-lib.org/ase/neighborlist.html.
    """
    if not quantities or set(quantities) - set("ijdDS"):
        raise ValueError(f"quantities must be letters of 'ijdDS', got {quantities!r}")
    from ase import Atoms

    if not isinstance(a, Atoms):
        ours = type(a).__module__.partition(".")[0] in ("pyfast", "pymatgen")
        hint = "; crystal.convert.to_ase makes Atoms of Crystals" if ours else ""
        raise TypeError(f"a must be one Atoms, got {type_of(a)}{hint}")
    crystals = convert.from_ase(a)
    given, species, limit = _cutoff(cutoff, crystals.numbers)
    reach = torch.as_tensor(given) if limit is None else limit
    own = torch.arange(len(crystals.numbers))
    own = own[
        (reach if species is None else reach.diagonal()[species]).expand(len(own)) > 0
    ]  # not if never near itself
    graph = neighbors(crystals.positions, crystals.cell[0], given, pbc=crystals.pbc[0], species=species, vectors=True)
    vector = graph.vector
    assert vector is not None  # asked for
    i, j, d, shift = graph.target, graph.source, graph.distance, graph.shift.long()
    if limit is not None:
        near = d < limit[i] + limit[j]
        i, j, d, shift, vector = i[near], j[near], d[near], shift[near], vector[near]
    if self_interaction:
        i, j = torch.cat([i, own]), torch.cat([j, own])
        d, shift, vector = (torch.cat([x, x.new_zeros(len(own), *x.shape[1:])]) for x in (d, shift, vector))
        order = torch.arange(len(i))
        for key in (shift[:, 2], shift[:, 1], shift[:, 0], j, i):
            order = order[key[order].argsort(stable=True)]
        i, j, d, shift, vector = (x[order] for x in (i, j, d, shift, vector))
    found = {"i": i, "j": j, "d": d, "D": vector, "S": shift}
    arrays = tuple(found[q].numpy() for q in quantities)
    return arrays if len(arrays) > 1 else arrays[0]


def _cutoff(cutoff: Any, numbers: Tensor) -> tuple[float | Tensor, Tensor | None, Tensor | None]:
    """The cutoff and species of ``neighbors``, and radii whose sums limit pairs further."""
    if isinstance(cutoff, Mapping):
        from ase.data import atomic_numbers

        elements, species = numbers.unique(return_inverse=True)
        limit = torch.zeros(max(len(elements), 1), max(len(elements), 1), dtype=torch.float64)
        for pair, value in cutoff.items():
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ValueError(f"cutoff must have pairs of elements for keys, got {pair!r}")
            for e in pair:
                if e not in atomic_numbers and e not in atomic_numbers.values():
                    raise ValueError(f"cutoff must be of elements that there are, got {e!r}")
            if not len(elements):
                continue
            p, q = (atomic_numbers[e] if isinstance(e, str) else e for e in pair)
            both = (elements[:, None] == p) & (elements == q)
            limit = torch.where(both | both.T, float(value), limit)
        return limit, species, None
    if isinstance(cutoff, (Sequence, np.ndarray, Tensor)) and np.ndim(cutoff):
        radii = torch.as_tensor(np.asarray(cutoff, dtype=np.float64)).clone()
        if radii.shape != numbers.shape:
            raise ValueError(f"cutoff must be a number, a mapping, or a radius of each atom, got {tuple(radii.shape)}")
        return 2 * float(radii.max()) if len(radii) else 0.0, None, radii
    return float(cutoff), None, None


def torch_sim_neighbors(
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor | bool,
    cutoff: Tensor | float,
    system_idx: Tensor,
    self_interaction: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """A neighbour list function as TorchSim's models take it, for a batch on any device.

    Args:
        positions: (N, 3) Å, inside the cell or not.
        cell: (B, 3, 3) Å, rows are the vectors.
        pbc: one bool, (3,), or (B, 3).
        cutoff: Å, a number or a tensor of one.
        system_idx: (N,) the structure of each atom, sorted.
        self_interaction: whether an atom is its own neighbour.

    Returns:
        mapping (2, E), row 0 the centre i and row 1 its neighbour j; system_mapping (E,), the structure of each pair;
        shifts_idx (E, 3), in the dtype of ``positions``, so that positions[j] - positions[i] + shifts_idx @ cell is
        the vector from i to j.

    Raises:
        ValueError: as ``radius_graph``.

    Example:
        >>> import torch
        >>> from pyfast.crystal import torch_sim_neighbors
        >>> mapping, _, _ = torch_sim_neighbors(
        ...     torch.zeros(1, 3), torch.eye(3)[None], torch.tensor(True), torch.tensor(1.1), torch.tensor([0])
        ... )
        >>> mapping.shape
        torch.Size([2, 6])

    Source: https://github.com/TorchSim/torch-sim, torch_sim/neighbors.
    """
    graph = radius_graph(positions, cell, float(cutoff), batch=system_idx, pbc=pbc)
    mapping, shift = graph.edge_index.flip(0), graph.shift.to(positions.dtype)
    if self_interaction:
        own = torch.arange(len(positions), device=positions.device)
        mapping = torch.cat([mapping, own.expand(2, -1)], 1)
        shift = torch.cat([shift, shift.new_zeros(len(own), 3)])
        order = mapping[0].argsort(stable=True)
        mapping, shift = mapping[:, order], shift[order]
    return mapping, system_idx[mapping[0]], shift
