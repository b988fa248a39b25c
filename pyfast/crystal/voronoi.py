"""Voronoi cells of crystals, and CrystalNN: the neighbours that a chemist would draw."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pyfast import _C
from pyfast.crystal import _search
from pyfast.crystal._arguments import MOST_EDGES, Batch, Crystals, batch_of, refuse
from pyfast.crystal._graph import PeriodicGraph, Status
from pyfast.crystal._neighbors import vectors_of


class VoronoiGraph(NamedTuple):
    """Atoms whose Voronoi cells share a face: an edge for each side of it.

    Attributes:
        graph: from the atom beyond the face to the atom whose cell it belongs to. Every edge has its reverse.
        solid_angle: (E,) float64, of the face as seen from either atom, in steradians; those of a target sum to 4 pi.
        area: (E,) float64, of the face, in Å². The volume of a cell is the sum of ``area * distance / 6``.
    """

    graph: PeriodicGraph
    solid_angle: Tensor
    area: Tensor

    def __repr__(self) -> str:
        return f"VoronoiGraph({self.graph!r})"


def voronoi_graph(
    positions: Tensor | Crystals,
    cell: Tensor | None = None,
    *,
    natoms: Tensor | Sequence[int] | None = None,
    batch: Tensor | None = None,
    pbc: bool | Sequence[bool] | Tensor | None = None,
    on_error: Literal["raise", "mask"] = "raise",
) -> VoronoiGraph:
    """The faces of the Voronoi cells of all atoms of a batch of crystals, exact however far their neighbours are.

    A cell is cut out by its neighbours, nearest first, until no farther one can touch it. Faces that only rounding
    opens (solid angle below 1e-10, as where many cells of a cubic crystal meet in a point) are left out. Computed in
    float64, with the same bits for any number of threads.

    Args:
        positions: (N, 3) Å, float32 or float64, on the CPU, as in ``radius_graph``.
        cell: (B, 3, 3) Å, as in ``radius_graph``.
        natoms: (B,) the number of atoms of each crystal.
        batch: (N,) instead of natoms, the crystal of each atom, sorted.
        pbc: None, or true along all axes: the cell of an atom is bounded only if the crystal repeats.
        on_error: ``"raise"``, or ``"mask"``: crystals that are wrong have no edges, and a status that says why.

    Returns:
        A ``VoronoiGraph``.

    Raises:
        ValueError: if a shape does not match, a crystal is not finite, a cell has no volume, atoms are within 1e-6 Å
            of each other, or a cell is so thin that millions of images are within reach.
        TypeError: if a dtype or device does not match.

    Example:
        >>> import pyfast, torch
        >>> cell = 3 * torch.eye(3)  # one atom in a cube has six neighbours
        >>> pyfast.crystal.voronoi_graph(torch.zeros(1, 3), cell).area
        tensor([9.0000, 9.0000, 9.0000, 9.0000, 9.0000, 9.0000], dtype=torch.float64)

    Source: Rycroft, 2009, https://doi.org/10.1063/1.3215722, for cells cut out one by one; O'Keeffe, 1979,
        https://doi.org/10.1107/S0567739479001765, for solid angles as weights of neighbours.
    """
    return _voronoi_graph(batch_of(positions, cell, 0.0, natoms, batch, pbc, None, True), on_error)


def _voronoi_graph(asked: Batch, on_error: str) -> VoronoiGraph:
    if on_error not in ("raise", "mask"):
        raise ValueError(f"on_error must be 'raise' or 'mask', got {on_error!r}")
    _check_bounded(asked)
    _, status = _search.count(*asked, False, False, float(MOST_EDGES))  # within nothing, but it looks at all numbers
    if on_error == "raise":
        refuse(asked, status, MOST_EDGES)
    source, shift, solid_angle, area, ptr, trouble = _faces(asked, status == 0)
    structure = torch.repeat_interleave(asked.atom_ptr.diff())
    for atom in trouble.nonzero().flatten().tolist():
        flag, rule = _TROUBLES[trouble[atom]]
        k = int(structure[atom])
        if on_error == "raise":
            raise ValueError(f"{rule} at atom {atom - int(asked.atom_ptr[k])} of structure {k}")
        status[k] |= int(flag)
    reverse = torch.empty_like(source)
    _C.crystal.reverse(ptr, source, shift, reverse)
    target = torch.repeat_interleave(ptr.diff())
    keep = (reverse >= 0) & (status == 0)[structure[target]]  # rounding may open a face on one side alone
    ends = torch.stack([source, target])
    graph = PeriodicGraph(ends, shift, area, reverse, ptr, ptr[asked.atom_ptr], asked.atom_ptr, status)
    graph = _subgraph(graph, keep)
    x, y, z = vectors_of(asked._replace(positions=asked.positions.double()), graph).unbind(1)
    distance = ((x * x + y * y) + z * z).sqrt().to(asked.positions.dtype)
    return VoronoiGraph(graph._replace(distance=distance), solid_angle[keep], area[keep])


def crystal_nn_graph(
    positions: Tensor | Crystals,
    cell: Tensor | None = None,
    *,
    natoms: Tensor | Sequence[int] | None = None,
    batch: Tensor | None = None,
    pbc: bool | Sequence[bool] | Tensor | None = None,
    electronegativity: Tensor | None = None,
    x_diff_weight: float = 0.0,
    radius: Tensor | None = None,
    distance_cutoffs: tuple[float, float] | None = None,
    porous_adjustment: bool = False,
    symmetrize: Literal["union", "mutual"] | None = "union",
    half: bool = False,
    on_error: Literal["raise", "mask"] = "raise",
) -> PeriodicGraph:
    """CrystalNN's bonds: of an atom's Voronoi neighbours, as many as its most probable coordination number.

    A neighbour weighs as much as the solid angle of its face, times what the options make of it, over the heaviest
    neighbour's, rounded to three decimals. Neighbours down to the k-th distinct weight w_k coordinate the atom with
    probability A(w_k) - A(w_k+1), where A(w) is the share of a quarter of the unit circle between 0 and w.

    The defaults are those of CDVAE, ``CrystalNN(distance_cutoffs=None, x_diff_weight=-1, porous_adjustment=False)``.
    Those of pymatgen are x_diff_weight=3, distance_cutoffs=(0.5, 1), porous_adjustment=True. Graphs equal pymatgen's
    but where a weight lies on the edge between two roundings, or where the images within 7 Å that pymatgen looks at do
    not bound an atom's cell rightly.

    Args:
        positions: (N, 3) Å, float32 or float64, on the CPU, as in ``radius_graph``.
        cell: (B, 3, 3) Å, as in ``radius_graph``.
        natoms: (B,) the number of atoms of each crystal.
        batch: (N,) instead of natoms, the crystal of each atom, sorted.
        pbc: None, or true along all axes: the cell of an atom is bounded only if the crystal repeats.
        electronegativity: (N,) float64, Pauling's, NaN where there is none; needed if ``x_diff_weight`` is positive.
        x_diff_weight: how much a difference in electronegativity, dX, adds: weights are multiplied by
            1 + x_diff_weight sqrt(dX / 3.3). Nothing if zero or negative.
        radius: (N,) Å, float64, positive; needed with ``distance_cutoffs``. With (N, 2), the second column serves
            where the first of either atom is not positive, as pymatgen falls back from ionic to covalent radii.
        distance_cutoffs: (low, high) Å: beyond the sum of radii plus low, a weight falls as a cosine, to nothing at
            the sum plus high. None leaves weights alone.
        porous_adjustment: multiply weights by solid angle over area, which favours near neighbours in open crystals.
        symmetrize: ``"union"``: an edge both ways if either atom chose the other; ``"mutual"``: if both did; None: an
            edge to each atom from those that it chose.
        half: keep one of the two edges of each bond, that which ``radius_graph`` keeps. Edges then have no ``reverse``.
        on_error: ``"raise"``, or ``"mask"``: crystals that are wrong have no edges, and a status that says why.

    Returns:
        A ``PeriodicGraph``. Unless ``half`` is true, a bond between i and j is two edges, from i to j and from j to i.

    Raises:
        ValueError: as ``voronoi_graph``, or if an option is not in its range or lacks what it needs.
        TypeError: if a dtype or device does not match.

    Example:
        >>> import pyfast, torch
        >>> fcc = torch.tensor([[0.0, 2.0, 2.0], [2.0, 0.0, 2.0], [2.0, 2.0, 0.0]])
        >>> pyfast.crystal.crystal_nn_graph(torch.zeros(1, 3), fcc).num_edges
        12

    Source: Pan et al., 2021, https://doi.org/10.1021/acs.inorgchem.0c02996.
    """
    asked = batch_of(positions, cell, 0.0, natoms, batch, pbc, None, True)
    _check_choice(len(asked.positions), electronegativity, x_diff_weight, radius, distance_cutoffs, symmetrize)
    if half and symmetrize is None:
        raise ValueError("symmetrize must be 'union' or 'mutual' with half, got None")
    graph, solid_angle, area = _voronoi_graph(asked, on_error)
    weight = solid_angle * (solid_angle / area) if porous_adjustment else solid_angle
    if x_diff_weight > 0 and electronegativity is not None:
        difference = (electronegativity[graph.source] - electronegativity[graph.target]).abs()
        weight = weight * (1 + x_diff_weight * (difference / 3.3).sqrt()).nan_to_num(nan=1.0)
    heaviest = weight.new_zeros(graph.num_atoms).scatter_reduce(0, graph.target, weight, "amax")
    weight = weight / heaviest[graph.target]
    if distance_cutoffs is not None and radius is not None:
        weight = weight * _near(graph, radius, distance_cutoffs)
    keep = torch.empty(len(weight), dtype=torch.bool)
    _C.crystal.choose(graph.ptr, (1000 * weight).round().int(), keep)
    if symmetrize == "union":
        keep = keep | keep[graph.reverse]
    elif symmetrize == "mutual":
        keep = keep & keep[graph.reverse]
    if half:
        keep = keep & _first_half(graph)
    return _subgraph(graph, keep)


# What csrc/crystal/voronoi.cpp finds wrong with an atom, by its number there.
_TROUBLES = (
    (Status(0), ""),
    (Status.SINGULAR_CELL, "cell must have a volume, got one that has none"),
    (Status.COINCIDENT, "positions must be more than 1e-6 Å apart, for a face to lie between, got nearer ones"),
    (Status.TOO_MANY, "cell must not be so thin that millions of images are within reach, got one that is"),
    (Status.TOO_FAR, "positions must lie within 2**30 cells of the origin, got farther ones"),
)


def _check_bounded(asked: Batch) -> None:
    if asked.positions.device.type != "cpu":
        raise TypeError(f"positions must be on the CPU, where Voronoi cells are cut, got {asked.positions.device}")
    if not asked.pbc.all():
        k, axis = (~asked.pbc).nonzero()[0].tolist()
        raise ValueError(f"pbc must be True, for cells to be bounded, got False along {'abc'[axis]} in structure {k}")


def _check_choice(
    n: int,
    electronegativity: Tensor | None,
    x_diff_weight: float,
    radius: Tensor | None,
    distance_cutoffs: tuple[float, float] | None,
    symmetrize: str | None,
) -> None:
    for name, given in (("electronegativity", electronegativity), ("radius", radius)):
        if not isinstance(given, (Tensor, type(None))):
            raise TypeError(f"{name} must be a tensor, got {type(given).__name__}")
    if symmetrize not in ("union", "mutual", None):
        raise ValueError(f"symmetrize must be 'union', 'mutual' or None, got {symmetrize!r}")
    if not -math.inf < x_diff_weight < math.inf:
        raise ValueError(f"x_diff_weight must be finite, got {x_diff_weight}")
    if x_diff_weight > 0:
        if electronegativity is None:
            raise ValueError(f"electronegativity must be given with x_diff_weight {x_diff_weight}, got None")
        if electronegativity.shape != (n,):
            raise ValueError(f"electronegativity must have shape ({n},), got {tuple(electronegativity.shape)}")
        _check_float64("electronegativity", electronegativity)
        if electronegativity.isinf().any():
            raise ValueError("electronegativity must be finite or NaN, got infinity")
    if distance_cutoffs is not None:
        low, high = distance_cutoffs
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"distance_cutoffs must be finite and increase, got {distance_cutoffs}")
        if radius is None:
            raise ValueError(f"radius must be given with distance_cutoffs {distance_cutoffs}, got None")
        if radius.shape not in ((n,), (n, 2)):
            raise ValueError(f"radius must have shape ({n},) or ({n}, 2), got {tuple(radius.shape)}")
        _check_float64("radius", radius)
        last = radius.reshape(n, -1)[:, -1]
        if not (radius.isfinite().all() and (last > 0).all()):
            raise ValueError(f"radius must be positive and finite, got {radius.min().item()}")


def _check_float64(name: str, x: Tensor) -> None:
    if x.dtype != torch.float64 or x.device.type != "cpu":
        raise TypeError(f"{name} must be float64 on the CPU, got {x.dtype} on {x.device}")


def _faces(asked: Batch, usable: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Source, shift, solid angle and area of all faces, where each atom's begin, and what is wrong with each atom."""
    x, n, slots = asked.positions.double(), len(asked.positions), 32
    torch.get_num_threads()  # a thread's first call hands OpenMP the count that torch was told
    while True:
        source, shift = torch.empty(n, slots, dtype=torch.int64), torch.empty(n, slots, 3, dtype=torch.int32)
        solid_angle, area = (torch.empty(n, slots, dtype=torch.float64) for _ in range(2))
        count, trouble = torch.empty(n, dtype=torch.int64), torch.empty(n, dtype=torch.int32)
        outputs = source, shift, solid_angle, area, count, trouble
        _C.crystal.voronoi(x, asked.cell, asked.atom_ptr, usable, *outputs)
        most = int(count.max()) if n else 0
        if most <= slots:
            break
        slots = most
    there = torch.arange(slots) < count[:, None]
    ptr = torch.nn.functional.pad(count.cumsum(0), (1, 0))
    return source[there], shift[there], solid_angle[there], area[there], ptr, trouble


def _subgraph(graph: PeriodicGraph, keep: Tensor) -> PeriodicGraph:
    """The graph of some of the edges."""
    before = torch.nn.functional.pad(keep.cumsum(0), (1, 0))
    reverse = graph.reverse[keep]
    back = torch.where((reverse >= 0) & keep[reverse], before[reverse], -1)
    return graph._replace(
        edge_index=graph.edge_index[:, keep],
        shift=graph.shift[keep],
        distance=graph.distance[keep],
        reverse=back,
        ptr=before[graph.ptr],
        edge_ptr=before[graph.edge_ptr],
    )


def _first_half(graph: PeriodicGraph) -> Tensor:
    """(E,) bool, of each edge and its reverse the one that half lists keep."""
    a, b, c = graph.shift.unbind(1)
    first = torch.where(a != 0, a, torch.where(b != 0, b, c))
    return (graph.target < graph.source) | ((graph.target == graph.source) & (first > 0))


def _near(graph: PeriodicGraph, radius: Tensor, cutoffs: tuple[float, float]) -> Tensor:
    """One for a bond as long as its radii say, zero for a much longer one."""
    radius = radius.reshape(len(radius), -1)
    r, s = radius[graph.source], radius[graph.target]
    missing = (r[:, 0] <= 0) | (s[:, 0] <= 0)
    diameter = torch.where(missing, r[:, -1] + s[:, -1], r[:, 0] + s[:, 0])
    low, high = cutoffs
    beyond = (graph.distance.double() - diameter - low) / (high - low)
    return 0.5 * (1 + (math.pi * beyond.clamp(0, 1)).cos())
