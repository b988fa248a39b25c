"""Neighbours within a cutoff, of one structure or of many."""

import sys
import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from pyfast.crystal import _search
from pyfast.crystal._arguments import MOST_EDGES, Batch, Crystals, batch_of, check_values, memory, refuse, too_many
from pyfast.crystal._graph import PeriodicGraph, Status


def neighbors(
    positions: Tensor | Crystals,
    cell: Tensor | None = None,
    cutoff: float | Tensor | None = None,
    pbc: bool | Sequence[bool] | Tensor | None = None,
    *,
    species: Tensor | None = None,
    inclusive: bool = False,
    half: bool = False,
    vectors: bool = False,
    capacity: int | None = None,
    index_dtype: torch.dtype = torch.int64,
    on_error: Literal["raise", "mask"] = "raise",
    max_edges: int = MOST_EDGES,
) -> PeriodicGraph:
    """All pairs of atoms of one structure that are near, in every periodic image.

    Args:
        positions: (N, 3) Å, float32 or float64, inside the cell or not; or ``Crystals`` of one structure, as in
            ``radius_graph``.
        cell: (3, 3) Å, its rows the vectors, of either hand; vectors along axes that do not repeat do not matter.
            None for a structure that does not repeat at all.
        cutoff: as in ``radius_graph``.
        pbc: whether the structure repeats, or whether it does along each of the three vectors. None: along all, or as
            ``Crystals`` say.
        species: as in ``radius_graph``.
        inclusive: as in ``radius_graph``.
        half: as in ``radius_graph``.
        vectors: as in ``radius_graph``.
        capacity: as in ``radius_graph``.
        index_dtype: as in ``radius_graph``.
        on_error: as in ``radius_graph``.
        max_edges: as in ``radius_graph``.

    Returns:
        The graph, of a batch of one.

    Raises:
        ValueError: as ``radius_graph`` does.
        TypeError: as ``radius_graph`` does.
        MemoryError: as ``radius_graph`` does.

    Source: the conventions are those of ASE's ``neighbor_list``, https://ase-lib.org/ase/neighborlist.html.

    >>> import torch
    >>> from pyfast import crystal
    >>> copper = 3.61 * torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    >>> crystal.neighbors(torch.zeros(1, 3), copper, 3.0).num_edges  # nearest neighbours in copper
    12
    """
    natoms = positions.natoms if isinstance(positions, Crystals) else None
    if isinstance(natoms, Tensor) and natoms.dim() == 1 and len(natoms) != 1:
        raise ValueError(f"positions must be of one structure, got {positions!r}; radius_graph takes batches")
    if isinstance(cell, Tensor) and cell.shape != (3, 3):
        raise ValueError(
            f"cell must have shape (3, 3), rows its vectors, got {tuple(cell.shape)}; radius_graph takes batches"
        )
    return radius_graph(
        positions,
        cell,
        cutoff,
        pbc=pbc,
        species=species,
        inclusive=inclusive,
        half=half,
        vectors=vectors,
        capacity=capacity,
        index_dtype=index_dtype,
        on_error=on_error,
        max_edges=max_edges,
    )


def radius_graph(
    positions: Tensor | Crystals,
    cell: Tensor | None = None,
    cutoff: float | Tensor | None = None,
    *,
    natoms: Tensor | Sequence[int] | None = None,
    batch: Tensor | None = None,
    pbc: bool | Sequence[bool] | Tensor | None = None,
    species: Tensor | None = None,
    inclusive: bool = False,
    half: bool = False,
    vectors: bool = False,
    capacity: int | None = None,
    index_dtype: torch.dtype = torch.int64,
    on_error: Literal["raise", "mask"] = "raise",
    max_edges: int = MOST_EDGES,
) -> PeriodicGraph:
    """All pairs of atoms that are near, in every periodic image, of a batch of structures.

    Which pairs are near is decided in float64, in one order of operations, so that CPUs and GPUs, threads and runs
    agree to the bit; an edge is near exactly if its reverse is. An atom is a neighbour of its own images, but not of
    itself. For derivatives, take the edges' vectors from the graph and the positions.

    Args:
        positions: (N, 3) Å, float32 or float64, those of a structure side by side, inside its cell or not; or
            ``Crystals``, which have their own cell, natoms and pbc: ``radius_graph(crystals, cutoff=5.0)``.
        cell: (B, 3, 3) Å, as positions, rows the vectors of each cell, of either hand. Vectors along axes that do not
            repeat do not matter. A (3, 3) cell is that of one structure. None where nothing repeats.
        cutoff: Å, must be given; one for all, or (B,) one for each structure, or (K, K), symmetric, for each pair of
            ``species``. Zero makes no edges, and warns.
        natoms: (B,) the number of atoms of each structure; zero is a number.
        batch: (N,) instead of natoms, the structure of each atom, sorted.
        pbc: whether structures repeat: one bool, three for the vectors of all cells, or (B, 3). None: they all do, or
            as ``Crystals`` say.
        species: (N,) indices into a cutoff of shape (K, K).
        inclusive: whether atoms at exactly the cutoff are near: as in pymatgen, and in the graphs of CDVAE and OCP; not
            so by default, as in ASE, matscipy, vesin and nvalchemi-toolkit-ops.
        half: keep one of each edge and its reverse, the one whose target comes first or, between images of one atom,
            whose shift is positive in its first component that is not zero. Edges then have no ``reverse``.
        vectors: fill in ``PeriodicGraph.vector``.
        capacity: make a graph of so many edges, without reading how many there are: shapes are fixed, and on a GPU
            nothing waits. From the first structure on that does not fit, structures have no edges and
            ``Status.OVERFLOW``.
        index_dtype: int64 or int32, of the indices and pointers.
        on_error: "raise", or "mask": structures with bad numbers have no edges, and a status that tells; then nothing
            is read back from a GPU, and sizes and indices (natoms, batch, species) are taken on trust there.
        max_edges: the longest list that is made.

    Returns:
        The graph. Edges are sorted by target, source and shift.

    Raises:
        ValueError: if a shape or value is wrong: numbers that are not finite, cells without volume, positions so far
            out that shifts would not fit int32, a batch that is not sorted.
        TypeError: if a dtype or device is wrong.
        MemoryError: if there would be more than ``max_edges`` edges, or, on a CPU, more than its memory holds.

    Source: the conventions are those of ASE's ``neighbor_list``, https://ase-lib.org/ase/neighborlist.html.

    >>> import torch
    >>> from pyfast import crystal
    >>> cells = torch.eye(3).expand(2, 3, 3) * torch.tensor([3.0, 4.0])[:, None, None]
    >>> graph = crystal.radius_graph(torch.zeros(2, 3), cells, 3.5, natoms=[1, 1])
    >>> graph.edge_ptr  # six neighbours at 3 Å, none at 4 Å
    tensor([0, 6, 6])
    """
    check_options(index_dtype, on_error, capacity, max_edges)
    look = on_error == "raise"
    asked = batch_of(positions, cell, cutoff, natoms, batch, pbc, species, look)
    if look or capacity is None:
        check_values("positions", asked.positions, "; capacity and on_error='mask' give shapes alone")
    if not isinstance(cutoff, Tensor) and cutoff == 0:
        warnings.warn("a cutoff of zero makes no edges", stacklevel=_callers_level())
    graph = graph_of(asked, inclusive, half, capacity, index_dtype, look, max_edges)
    return graph._replace(vector=vectors_of(asked, graph)) if vectors else graph


def _callers_level() -> int:
    """The ``stacklevel`` of who called into this package, however deep this function's caller lies in it."""
    if torch.compiler.is_compiling():
        return 2
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("pyfast."):
        level, frame = level + 1, frame.f_back
    return level


def check_options(index_dtype: torch.dtype, on_error: str, capacity: int | None, max_edges: int) -> None:
    """Raises if one of these is none of those that there are."""
    if index_dtype not in (torch.int32, torch.int64):
        raise TypeError(f"index_dtype must be torch.int64 or torch.int32, got {index_dtype}")
    if on_error not in ("raise", "mask"):
        raise ValueError(f"on_error must be 'raise' or 'mask', got {on_error!r}")
    if isinstance(capacity, bool) or not isinstance(capacity, (Integral, torch.SymInt, type(None))):
        raise TypeError(f"capacity must be an integer or None, got {type(capacity).__name__}")
    most = 2**31 - 1 if index_dtype == torch.int32 else 2**62
    for name, n in (("capacity", capacity), ("max_edges", max_edges)):
        if n is not None and not 0 <= n <= most:
            raise ValueError(f"{name} must lie in [0, {most}], got {n}")


def graph_of(
    asked: Batch,
    inclusive: bool,
    half: bool,
    capacity: int | None,
    index_dtype: torch.dtype,
    look: bool,
    max_edges: int = MOST_EDGES,
    counted: Sequence[Tensor] | None = None,
) -> PeriodicGraph:
    """The graph of arguments that are checked; ``counted`` what a count of the same gave, if there was one."""
    counts, status = counted or _search.count(*asked, inclusive, half, float(max_edges))
    if look:
        refuse(asked, status, max_edges)
    ptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    edge_ptr = ptr[asked.atom_ptr]
    if capacity is None:
        edges = int(ptr[-1])
        if edges > max_edges:
            too_many(asked, max_edges, edges=edges)
        size = edges * (3 * index_dtype.itemsize + 12 + asked.positions.dtype.itemsize)
        if size > 2**30 and asked.positions.device.type == "cpu" and size > memory():  # Linux would grant it, then kill
            raise MemoryError(f"cutoff must give edges that memory holds, got {edges} with {asked.cutoff.max().item()}")
    else:
        edges = capacity
        over = edge_ptr[1:] > capacity
        room = torch.where(over, edge_ptr[:-1], capacity).amin() if len(over) else ptr[-1]
        ptr, edge_ptr = ptr.clamp(max=room), edge_ptr.clamp(max=room)
        status = status | over.to(torch.int32) * int(Status.OVERFLOW)
    ptr, edge_ptr = ptr.to(index_dtype), edge_ptr.to(index_dtype)
    edge_index, shift, distance, reverse = _search.fill(*asked, inclusive, half, ptr, edges)
    return PeriodicGraph(edge_index, shift, distance, reverse, ptr, edge_ptr, asked.atom_ptr.to(index_dtype), status)


def vectors_of(asked: Batch, graph: PeriodicGraph) -> Tensor:
    """(E, 3) of a graph, as it was decided, in the dtype of the positions."""
    return exact_vectors(asked, graph).to(asked.positions.dtype)


def exact_vectors(asked: Batch, graph: PeriodicGraph) -> Tensor:
    """(E, 3) float64, in the order of operations that decides which atoms are near."""
    if not graph.num_atoms:  # padding has no atom to point to
        return graph.distance.new_zeros(graph.num_edges, 3, dtype=torch.float64)
    edges = torch.arange(graph.num_edges, device=graph.ptr.device)
    structure = torch.searchsorted(graph.edge_ptr[1:], edges, right=True).clamp(max=graph.num_structures - 1)
    shift = graph.shift.double()
    a, b, c = torch.where(asked.pbc[..., None], asked.cell, 0.0)[structure].unbind(1)
    x = asked.positions.double()
    offset = (shift[:, :1] * a + shift[:, 1:2] * b) + shift[:, 2:] * c
    return (x[graph.source] - x[graph.target]) + offset
