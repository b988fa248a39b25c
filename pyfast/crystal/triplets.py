"""Triplets of atoms: one dense tile per atom for what sums over them, arrays for those who want them; quadruplets."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyfast import _ops
from pyfast.crystal import _operators as ops
from pyfast.crystal._arguments import check_is_graph, check_tensor, check_values
from pyfast.crystal._graph import PeriodicGraph


class Tiles(NamedTuple):
    """Pairs of edges that meet at an atom: its rows by its columns, one tile per atom, all T pairs in one line.

    Attributes:
        row: (R,) edges, the rows of one tile after the other; empty where positions are edges.
        row_ptr: (N + 1,) where each atom's rows begin.
        ptr: (N + 1,) where each atom's columns begin, its incoming edges.
        tile_ptr: (N + 1,) where each atom's pairs begin; a tile lies row by row.
        keep: (T,) bool, False where both edges lead to the same atom in the same image: no triplet.
    """

    row: Tensor
    row_ptr: Tensor
    ptr: Tensor
    tile_ptr: Tensor
    keep: Tensor

    def __repr__(self) -> str:
        return f"Tiles({len(self.ptr) - 1:,} atoms, {len(self.keep):,} pairs)"

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """The row's and the column's edge of all T pairs, kept or not."""
        heights, widths = self.row_ptr.diff(), self.ptr.diff()
        atom = torch.repeat_interleave(heights * widths, output_size=self.keep.shape[0])
        local = torch.arange(self.keep.shape[0], device=self.ptr.device) - self.tile_ptr[atom]
        row = self.row_ptr[atom] + local // widths[atom]
        column = self.ptr[atom] + local % widths[atom]
        return (self.row[row] if self.row.shape[0] else row), column


def triplet_tiles(graph: PeriodicGraph, through: bool = False) -> Tiles:
    """The triplets of a graph, as tiles.

    Args:
        graph: a ``PeriodicGraph``, whole: a half list, of one of each edge and its reverse, has few of the triplets.
        through: False pairs the edges c -> a and b -> a that lead to the same atom, as GemNet does; True pairs an edge
            j -> i with the edges k -> j that lead to where it starts, as DimeNet does.

    Returns:
        The tiles. An atom in another image is another atom: pairs are dropped by edge, never by the number of an atom.

    Raises:
        IndexError: if the graph names what is not there (on the CPU).

    Source: Gasteiger et al., 2021, https://arxiv.org/abs/2106.08903.

    Example:
        >>> import torch
        >>> import pyfast.reference.crystal as reference
        >>> from pyfast import crystal
        >>> graph = reference.neighbors(torch.zeros(1, 3), 2 * torch.eye(3), 2.5)
        >>> int(crystal.triplet_tiles(graph).keep.sum())  # each of six edges with the five others
        30
    """
    check_is_graph(graph)
    check_values("graph", graph.ptr)
    views = ops.rows(graph)
    ptr, width = views.ptr, views.ptr.diff()
    row, row_ptr = (views.edge_t, views.ptr_t) if through else (ptr[:0], ptr)
    used = int(row_ptr[-1])
    row = row[:used]
    sizes = row_ptr.diff() * width
    tile_ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    atom = torch.repeat_interleave(row_ptr.diff(), output_size=used)
    place = torch.arange(used, device=ptr.device)
    start = tile_ptr[atom] + (place - row_ptr[atom]) * width[atom]
    back = graph.reverse.long()[row] if through else place
    drop = (start + back - ptr[atom])[back >= 0]
    keep = torch.ones(int(tile_ptr[-1]), dtype=torch.bool, device=ptr.device)
    keep[drop] = False
    return Tiles(row, row_ptr, ptr, tile_ptr, keep)


def cosines(unit: Tensor, tiles: Tiles, through: bool = False) -> Tensor:
    """The cosine of the angle at the middle atom of every triplet.

    Args:
        unit: (E, 3) edge vectors over their lengths, float32 or float64: ``torch.nn.functional.normalize(vectors)``,
            which has the derivative of the lengths too, and leaves padding 0.
        tiles: of ``triplet_tiles``.
        through: as it was there.

    Returns:
        (T,) in [-1, 1], and 0 where there is no triplet; differentiable to any order.

    Raises:
        ValueError: if a shape does not match.
        TypeError: if a dtype does not match.

    Source: a definition.

    Example:
        >>> import torch
        >>> import pyfast.reference.crystal as reference
        >>> from pyfast import crystal
        >>> x, cell = torch.zeros(1, 3), 2 * torch.eye(3)
        >>> graph = reference.neighbors(x, cell, 2.5)
        >>> unit = crystal.edge_vectors(x, cell, graph) / 2
        >>> crystal.cosines(unit, crystal.triplet_tiles(graph))[:6].round().abs()  # of (-1, 0, 0) with all six
        tensor([0., 0., 0., 0., 0., 1.])
    """
    check_tensor("unit", unit, ("E", 3))
    check_tiles(tiles, unit, "unit", through)
    c = _pair_dot(outwards(unit, through), unit.contiguous(), *tiles[:4], tiles.keep.shape[0])[:, 0]
    c = c + (c.clamp(-1, 1) - c).detach()  # what rounding left beyond: the derivative must not end there
    return torch.where(tiles.keep, c, 0)


def outwards(unit: Tensor, through: bool) -> Tensor:
    """(E, 1, 3) unit vectors of rows, of which those that go through point at the middle atom: turned away from it."""
    return (-unit if through else unit)[:, None].contiguous()


def check_tiles(tiles: Tiles, like: Tensor, other: str, through: bool | None = None) -> None:
    """Refuse what is no tiles, or on another device than a tensor, or of the other kind, where the kind is known."""
    if not isinstance(tiles, Tiles):
        raise TypeError(f"tiles must be those of triplet_tiles, got {type(tiles).__name__}")
    for name, x in zip(Tiles._fields, tiles, strict=True):
        dtype = torch.bool if name == "keep" else torch.int64
        if x.dtype != dtype:
            raise TypeError(f"tiles.{name} must be {dtype}, got {x.dtype}")
        if x.device != like.device:
            raise TypeError(f"tiles must be on the device of {other}, {like.device}, got {x.device}")
        if x.dim() != 1 or not x.is_contiguous():
            raise ValueError(f"tiles.{name} must be contiguous, of one dimension, got {tuple(x.shape)}, {x.stride()}")
    if through is not None and tiles.keep.shape[0] and through != (tiles.row.shape[0] > 0):
        raise ValueError(f"tiles must be those of triplet_tiles(graph, {through}), got those of {not through}")


def legendre(cosine: Tensor, degrees: int) -> Tensor:
    """Legendre polynomials P_0 to P_(degrees - 1), by their recurrence.

    Args:
        cosine: (T,) in [-1, 1].
        degrees: how many, at least 1.

    Returns:
        (T, degrees), differentiable to any order.

    Raises:
        ValueError: if ``degrees`` is below 1.

    Source: textbook, (l + 1) P_(l+1) = (2 l + 1) x P_l - l P_(l-1).

    Example:
        >>> import torch
        >>> from pyfast import crystal
        >>> crystal.legendre(torch.tensor([0.5]), 3)
        tensor([[ 1.0000,  0.5000, -0.1250]])
    """
    if degrees < 1:
        raise ValueError(f"degrees must be at least 1, got {degrees}")
    found = [torch.ones_like(cosine), cosine]
    for n in range(1, degrees - 1):
        found.append(((2 * n + 1) * cosine * found[n] - n * found[n - 1]) / (n + 1))
    return torch.stack(found[:degrees], -1)


def pair_sum(weights: Tensor, x: Tensor, tiles: Tiles) -> Tensor:
    """Sum the features of each row's columns, once for each of L weights: no array of triplets' features is made.

    out[row, l, :] = sum over columns of weights[row, column, l] x[column, :].

    Args:
        weights: (T, L) of every pair, float32 or float64; 0 where ``tiles.keep`` is False, unless you mean otherwise.
        x: (E, C) of every edge, of the same dtype.
        tiles: of ``triplet_tiles``.

    Returns:
        (E, L, C); 0 for edges that are no rows. Differentiable in both, to any order and in both modes; gradients have
        a fixed order of sums too. What is not finite reaches all rows of its tile, those of pairs that are dropped too.

    Raises:
        ValueError: if a shape does not match.
        TypeError: if a dtype or device does not match.
        IndexError: if the tiles name what is not there (on the CPU).

    Source: Gasteiger et al., 2021, https://arxiv.org/abs/2106.08903, efficient bilinear layer.

    Example:
        >>> import torch
        >>> import pyfast.reference.crystal as reference
        >>> from pyfast import crystal
        >>> tiles = crystal.triplet_tiles(reference.neighbors(torch.zeros(1, 3), 2 * torch.eye(3), 2.5))
        >>> crystal.pair_sum(tiles.keep[:, None].float(), torch.ones(6, 1), tiles)[:, 0, 0]
        tensor([5., 5., 5., 5., 5., 5.])
    """
    check_tensor("x", x, ("E", "C"))
    check_tiles(tiles, x, "x")
    check_tensor("weights", weights, (tiles.keep.shape[0], "L"), x)
    return _pair_sum(weights.contiguous(), x.contiguous(), *tiles[:4])


def triplet_indices(graph: PeriodicGraph, through: bool = False) -> tuple[Tensor, Tensor]:
    """The triplets of a graph as arrays of two edges; also the edges of its line graph, from the second to the first.

    Args:
        graph: a ``PeriodicGraph``, whole: a half list, of one of each edge and its reverse, has few of the triplets.
        through: False for c -> a and b -> a, True for j -> i and k -> j, as for ``triplet_tiles``.

    Returns:
        Two (T,) int64: the edges c -> a and b -> a, or j -> i and k -> j, sorted by middle atom and first edge. Edge
        vectors v point at the source: the angle at the middle atom is ``angles(v[ca], v[ba])``, and of edges that go
        through, the first turned round, ``angles(-v[ji], v[kj])``.

    Raises:
        IndexError: if the graph names what is not there (on the CPU).

    Source: Gasteiger et al., 2020, https://arxiv.org/abs/2003.03123.

    Example:
        >>> import torch
        >>> import pyfast.reference.crystal as reference
        >>> from pyfast import crystal
        >>> graph = reference.neighbors(torch.zeros(1, 3), 2 * torch.eye(3), 2.5)
        >>> ji, kj = crystal.triplet_indices(graph, through=True)
        >>> len(ji)
        30
    """
    tiles = triplet_tiles(graph, through)
    row, column = tiles.pairs
    return row[tiles.keep], column[tiles.keep]


def quadruplet_indices(graph: PeriodicGraph) -> tuple[Tensor, Tensor, Tensor]:
    """Chains d -> b -> a <- c, where c and d are not the other end of the edge b -> a itself.

    Args:
        graph: a ``PeriodicGraph``, whole: a half list, of one of each edge and its reverse, has few of the chains.

    Returns:
        Three (Q,) int64 edges: c -> a, b -> a and d -> b.

    Raises:
        IndexError: if the graph names what is not there (on the CPU).

    Source: Gasteiger et al., 2021, https://arxiv.org/abs/2106.08903.

    Example:
        >>> import torch
        >>> import pyfast.reference.crystal as reference
        >>> from pyfast import crystal
        >>> graph = reference.neighbors(torch.zeros(1, 3), 2 * torch.eye(3), 2.5)
        >>> len(crystal.quadruplet_indices(graph)[0])  # six edges, five others at either end
        150
    """
    ca, ba = triplet_indices(graph)
    first, db = triplet_indices(graph, through=True)
    order = torch.argsort(first, stable=True)
    first, db = first[order], db[order]
    ptr = torch.searchsorted(first, torch.arange(graph.num_edges + 1, device=first.device))
    counts = ptr.diff()[ba]
    which = torch.repeat_interleave(counts)
    start = counts.cumsum(0) - counts
    local = torch.arange(which.shape[0], device=first.device) - start[which]
    return ca[which], ba[which], db[ptr[ba[which]] + local]


def _derive_sum(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    m, x, *tiles = ctx.saved_tensors
    grad, need = grad.contiguous(), ctx.needs_input_grad
    dm = _pair_dot(grad, x, *tiles, m.shape[0]) if need[0] else None
    return dm, _pair_back(m, grad, *tiles) if need[1] else None, *4 * (None,)


def _derive_back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    m, y, *tiles = ctx.saved_tensors
    grad, need = grad.contiguous(), ctx.needs_input_grad
    dm = _pair_dot(y, grad, *tiles, m.shape[0]) if need[0] else None
    return dm, _pair_sum(m, grad, *tiles) if need[1] else None, *4 * (None,)


def _derive_dot(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    y, x, *tiles = ctx.saved_tensors
    grad, need = grad.contiguous(), ctx.needs_input_grad
    dy = _pair_sum(grad, x, *tiles) if need[0] else None
    return dy, _pair_back(grad, y, *tiles) if need[1] else None, *5 * (None,)


_TILES = ", ".join(f"Tensor {name}" for name in Tiles._fields[:4])

_pair_sum: Callable[..., Any] = _ops.define(
    "crystal",
    f"pair_sum(Tensor m, Tensor x, {_TILES}) -> Tensor",
    lambda m, x, *_: x.new_empty((x.shape[0], m.shape[1], x.shape[1])),
    ops.save,
    _derive_sum,
    jvp=ops.bilinear(lambda: _pair_sum),
)
_pair_back: Callable[..., Any] = _ops.define(
    "crystal",
    f"pair_back(Tensor m, Tensor y, {_TILES}) -> Tensor",
    lambda m, y, *_: y.new_empty((y.shape[0], y.shape[2])),
    ops.save,
    _derive_back,
    jvp=ops.bilinear(lambda: _pair_back),
)
_pair_dot: Callable[..., Any] = _ops.define(
    "crystal",
    f"pair_dot(Tensor y, Tensor x, {_TILES}, SymInt pairs) -> Tensor",
    lambda y, x, row, row_ptr, ptr, tile_ptr, pairs: y.new_empty((pairs, y.shape[1])),
    ops.save,
    _derive_dot,
    jvp=ops.bilinear(lambda: _pair_dot),
)
