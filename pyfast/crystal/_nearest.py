"""The k nearest neighbours, in every image."""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from pyfast.crystal import _search
from pyfast.crystal._arguments import BAD, MOST_EDGES, Batch, Crystals, batch_of, check_values, memory, refuse, too_many
from pyfast.crystal._graph import PeriodicGraph
from pyfast.crystal._neighbors import check_options, graph_of, vectors_of

TIES = ("canonical", "include", "cdvae")
SYMMETRIZE = (None, "union", "mutual")


def knn_graph(
    positions: Tensor | Crystals,
    cell: Tensor | None = None,
    k: int | None = None,
    *,
    cutoff: float | Tensor | None = None,
    natoms: Tensor | Sequence[int] | None = None,
    batch: Tensor | None = None,
    pbc: bool | Sequence[bool] | Tensor | None = None,
    inclusive: bool = False,
    ties: Literal["canonical", "include", "cdvae"] = "canonical",
    tolerance: float = 1e-4,
    symmetrize: Literal["union", "mutual"] | None = None,
    vectors: bool = False,
    index_dtype: torch.dtype = torch.int64,
    on_error: Literal["raise", "mask"] = "raise",
    max_edges: int = MOST_EDGES,
) -> PeriodicGraph:
    """The k nearest neighbours of every atom, images counted apart, exactly.

    Crystals are full of neighbours at one distance, and a cut through them has to be made somewhere. None of the cuts
    here depends on how atoms are numbered, but for "cdvae".

    Args:
        positions: as in ``radius_graph``.
        cell: as in ``radius_graph``.
        k: how many, at least 1; must be given. An atom has fewer where fewer are within the cutoff, or in a structure
            that ends.
        cutoff: Å, one or (B,): neighbours beyond are not taken. None: there is always a k-th, however far.
        natoms: as in ``radius_graph``.
        batch: as in ``radius_graph``.
        pbc: as in ``radius_graph``.
        inclusive: as in ``radius_graph``.
        ties: "canonical": k exactly; of what is equally far, to the bit, those whose vectors come first,
            lexicographically, so that the choice follows the atoms however they are numbered. "include": also all that
            are farther than the k-th by no more than the tolerance, which moving atoms by cell vectors or rotating the
            structure, both of which round, does not change either. "cdvae": as CDVAE and OCP choose, but in all images:
            k exactly, of equals those of the atom with the least index, atoms nearer than 0.01 Å left out, the cutoff
            inclusive.
        tolerance: Å, of "include".
        symmetrize: None leaves the graph directed. "union" keeps an edge if either end chose it, "mutual" if both did.
        vectors: as in ``radius_graph``.
        index_dtype: as in ``radius_graph``.
        on_error: as in ``radius_graph``; how far to look is found by reading counts, with "mask" too.
        max_edges: as in ``radius_graph``; on a GPU of the edges among which the nearest are chosen.

    Returns:
        The graph, edges in the order of ``radius_graph``, not of their lengths.

    Raises:
        ValueError: if k, ties, tolerance or symmetrize is none of these, or as ``radius_graph`` does.
        TypeError: as ``radius_graph`` does.
        MemoryError: as ``radius_graph`` does.

    Source: Xie et al., 2022, https://arxiv.org/abs/2110.06197, whose graphs are of the 20 nearest within 7 Å.

    >>> import torch
    >>> from pyfast import crystal
    >>> cubic = 3 * torch.eye(3)
    >>> crystal.knn_graph(torch.zeros(1, 3), cubic, 4).num_edges
    4
    >>> crystal.knn_graph(torch.zeros(1, 3), cubic, 4, ties="include").num_edges  # six are equally near
    6
    """
    check_options(index_dtype, on_error, None, max_edges)
    look = on_error == "raise"
    asked = batch_of(positions, cell, 0.0 if cutoff is None else cutoff, natoms, batch, pbc, None, look)
    if k is None:
        raise ValueError("k must be given, got None")
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k < 2**63:
        raise ValueError(f"k must be an integer of at least 1, got {k!r}")
    if ties not in TIES:
        raise ValueError(f"ties must be one of {TIES}, got {ties!r}")
    if symmetrize not in SYMMETRIZE:
        raise ValueError(f"symmetrize must be None, 'union' or 'mutual', got {symmetrize!r}")
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"tolerance must be finite and not negative, got {tolerance}")
    if ties == "cdvae" and cutoff is None:
        raise ValueError("cutoff must be given with ties='cdvae', got None")
    check_values("positions", asked.positions)
    inclusive = inclusive or ties == "cdvae"
    find = nearest_of if asked.positions.device.type == "cpu" else chosen_of
    graph = find(asked, k, cutoff is not None, inclusive, ties, tolerance, symmetrize, index_dtype, look, max_edges)
    return graph._replace(vector=vectors_of(asked, graph)) if vectors else graph


def nearest_of(
    asked: Batch,
    k: int,
    limited: bool,
    inclusive: bool,
    ties: str,
    tolerance: float,
    symmetrize: str | None,
    index_dtype: torch.dtype,
    look: bool,
    max_edges: int,
) -> PeriodicGraph:
    """The graph, sought and chosen structure by structure; what is found is moved together once it is counted."""
    each = min(k, 128)  # edges of an atom for which there is room, unless there are more
    each = (each + (each // 4 + 4 if ties == "include" else 0)) * (2 if symmetrize == "union" else 1)
    start, room = asked.atom_ptr * each, len(asked.positions) * each
    options = inclusive, limited, min(k, 2**31), TIES.index(ties), tolerance, SYMMETRIZE.index(symmetrize)
    while True:
        counts, status, reach, *found = _search.nearest(*asked, *options, float(max_edges), memory() // 64, start, room)
        if look:
            refuse(asked._replace(cutoff=reach), status, max_edges)
        ptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        edges, edge_ptr = int(ptr[-1]), ptr[asked.atom_ptr]
        if edges > max_edges:
            too_many(asked._replace(cutoff=reach), max_edges, edges=edges)
        if (edge_ptr.diff() <= start.diff()).all():
            break
        start, room = edge_ptr, edges
    ptr, edge_ptr = ptr.to(index_dtype), edge_ptr.to(index_dtype)
    edge_index, shift, distance, reverse = _search.pack(asked.positions, *found, start, asked.atom_ptr, ptr, edges)
    return PeriodicGraph(edge_index, shift, distance, reverse, ptr, edge_ptr, asked.atom_ptr.to(index_dtype), status)


def chosen_of(
    asked: Batch,
    k: int,
    limited: bool,
    inclusive: bool,
    ties: str,
    tolerance: float,
    symmetrize: str | None,
    index_dtype: torch.dtype,
    look: bool,
    max_edges: int,
) -> PeriodicGraph:
    """The same graph, chosen among the edges of one that reaches as far in every structure as any of its atoms must."""
    counted: list[Tensor] | None = None
    if ties == "cdvae":
        reach = asked.cutoff
    else:
        reach, *counted = _reach(asked, k, asked.cutoff if limited else None, inclusive, max_edges)
        if ties == "include":
            reach, counted = reach + 2 * tolerance, None
            reach = torch.minimum(reach, asked.cutoff) if limited else reach
    wide = asked._replace(positions=asked.positions.double(), cutoff=reach)
    near = graph_of(wide, inclusive, False, None, torch.int64, look, max_edges, counted)
    chosen = _search.choose(
        near.edge_index, near.shift, near.distance, near.ptr, wide.positions, wide.cell, wide.pbc, wide.atom_ptr,
        int(k), TIES.index(ties), tolerance, 1e-2 if ties == "cdvae" else -1.0,
    )  # fmt: skip
    if symmetrize is not None:
        back = chosen[near.reverse]
        chosen = chosen | back if symmetrize == "union" else chosen & back
    return kept_edges(near, chosen, index_dtype, asked.positions.dtype)


def _reach(
    asked: Batch, k: int, cutoff: Tensor | None, inclusive: bool, max_edges: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) how far every atom of a structure finds k neighbours, or all that there are; and the count of those."""
    atoms = asked.atom_ptr.diff()
    volume = torch.linalg.det(asked.cell).abs()
    most = torch.full_like(volume, torch.inf) if cutoff is None else cutoff
    if not asked.pbc.all():
        span = _span(asked.positions.double(), atoms)
        volume = torch.where(asked.pbc.all(1), volume, (span + 2.0).prod(1))
        ends = torch.where(asked.pbc.any(1), torch.inf, span.norm(dim=1) * (1 + 1e-9) + 1e-9)
        most = torch.minimum(most, ends)
    reach = 1.15 * (3 * k * volume / (4 * torch.pi * atoms.clamp(min=1))).pow(1 / 3)
    reach = torch.minimum(reach.nan_to_num(1.0, 1.0).clamp(1e-3, 1e3), most)
    counts, status = _search.count(*asked._replace(cutoff=reach), inclusive, False, float(max_edges))
    structure = torch.repeat_interleave(atoms, output_size=len(asked.positions))
    while True:
        short = torch.nn.functional.pad((counts < k).cumsum(0), (1, 0))[asked.atom_ptr].diff()
        few = (short > 0) & (reach < most) & (status & BAD == 0)
        if not few.any():
            return reach, counts, status
        reach = torch.where(few, torch.minimum(1.3 * reach, most), reach)
        again = asked._replace(cutoff=torch.where(few, reach, 0.0))  # the others are not sought again
        more, found = _search.count(*again, inclusive, False, float(max_edges))
        counts, status = torch.where(few[structure], more, counts), torch.where(few, found, status)


def _span(x: Tensor, atoms: Tensor) -> Tensor:
    """(B, 3) how far the atoms of each structure lie apart along x, y and z."""
    structure = torch.repeat_interleave(atoms, output_size=len(x))[:, None].expand(-1, 3)
    low, high = (
        x.new_zeros(len(atoms), 3).scatter_reduce(0, structure, x, how, include_self=False) for how in ("amin", "amax")
    )
    return (high - low).nan_to_num(0.0, 0.0, 0.0)


def kept_edges(graph: PeriodicGraph, chosen: Tensor, index_dtype: torch.dtype, dtype: torch.dtype) -> PeriodicGraph:
    """The graph of these edges alone."""
    edge_index, shift, distance, reverse, ptr = _search.keep(
        graph.edge_index, graph.shift, graph.distance, graph.reverse, graph.ptr, chosen, int(chosen.sum())
    )
    return PeriodicGraph(
        edge_index.to(index_dtype),
        shift,
        distance.to(dtype),
        reverse.to(index_dtype),
        ptr.to(index_dtype),
        ptr[graph.atom_ptr].to(index_dtype),
        graph.atom_ptr.to(index_dtype),
        graph.status,
    )
