"""Differentiable geometry: edge vectors, lengths and angles, nearest images, lattices, forces and stress."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyfast import _ops
from pyfast.crystal import _operators as ops
from pyfast.crystal._arguments import check_graph, check_is_graph, check_tensor, type_of
from pyfast.crystal._graph import PeriodicGraph
from pyfast.crystal.segments import segment_sum


def edge_vectors(positions: Tensor, cell: Tensor, graph: PeriodicGraph) -> Tensor:
    """The vector of every edge, from its target to its source's image: x_j + shift @ cell - x_i.

    Computed in float64 and rounded once. Linear, so every derivative is the same two kernels; gradients are summed by
    rows of edges in float64, in order: no atomics, and the same bits on every run.

    Args:
        positions: (N, 3) Å, float32 or float64.
        cell: (B, 3, 3) Å, rows the cell vectors, of the dtype of ``positions``; (3, 3) for one structure.
        graph: a ``PeriodicGraph`` of N atoms in B structures.

    Returns:
        (E, 3) Å; 0 for padding. Differentiable in ``positions`` and ``cell``, to any order and in both modes.

    Raises:
        ValueError: if a shape does not match.
        TypeError: if a dtype or device does not match.
        IndexError: if the graph names what is not there (on the CPU; undefined on CUDA).

    Source: a definition.

    Example:
        >>> import torch
        >>> import pyfast.reference.crystal as reference
        >>> from pyfast import crystal
        >>> x, cell = torch.zeros(1, 3), 2 * torch.eye(3)
        >>> crystal.edge_vectors(x, cell, reference.neighbors(x, cell, 2.5))[0]
        tensor([-2.,  0.,  0.])
    """
    check_is_graph(graph)
    if isinstance(cell, Tensor) and cell.dim() == 2:
        cell = cell[None]
    check_tensor("positions", positions, (graph.num_atoms, 3))
    check_tensor("cell", cell, (graph.num_structures, 3, 3), positions, "positions")
    check_graph(graph, positions, "positions")
    pointers = graph.edge_ptr.long().contiguous(), graph.atom_ptr.long().contiguous()
    return _vectors(positions.contiguous(), cell.contiguous(), graph.shift.contiguous(), *ops.rows(graph), *pointers)


def lengths(vectors: Tensor) -> Tensor:
    """The length of every vector; the gradient at length 0 is 0, where it has none, and so are those above.

    Args:
        vectors: (..., 3) float32 or float64.

    Returns:
        (...,) lengths, differentiable to any order.

    Raises:
        ValueError: if the last dimension is not 3.
        TypeError: if it is no tensor of float32 or float64.

    Source: a definition.

    Example:
        >>> import torch
        >>> from pyfast import crystal
        >>> crystal.lengths(torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]]))
        tensor([5., 0.])
    """
    check_tensor("vectors", vectors, ("...", 3))
    square = (vectors * vectors).sum(-1)
    none = square == 0
    return torch.where(none, 0, torch.where(none, 1, square).sqrt())


def angles(a: Tensor, b: Tensor) -> Tensor:
    """The angle between two vectors, atan2(|a x b|, a . b): exact near 0 and pi, where acos is not.

    Args:
        a: (..., 3) float32 or float64.
        b: (..., 3), of the same dtype; shapes broadcast.

    Returns:
        (...,) radians in [0, pi]; 0 where a vector is 0. The gradient of parallel vectors is 0, where it has none, and
        so are all derivatives where a vector is 0.

    Raises:
        ValueError: if the last dimension is not 3.
        TypeError: if a dtype or device does not match.

    Source: a definition.

    Example:
        >>> import torch
        >>> from pyfast import crystal
        >>> crystal.angles(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 0.0]))
        tensor(1.5708)
    """
    check_tensor("a", a, ("...", 3))
    check_tensor("b", b, ("...", 3), a, "a")
    across, along = lengths(torch.linalg.cross(*torch.broadcast_tensors(a, b))), (a * b).sum(-1)
    return torch.atan2(across, torch.where((across == 0) & (along == 0), 1, along))


def minimum_image(
    vectors: Tensor, cell: Tensor, structure: Tensor | None = None, pbc: bool | Tensor = True
) -> tuple[Tensor, Tensor]:
    """The shortest of all periodic images of each vector, in cells of any shape.

    The images within the length found by going to the nearest plane, axis after axis of a short basis of the lattice,
    are listed one by one: exact where the 27 images around a cell that is not reduced are not, and quick however skewed
    or flat the cell.

    Args:
        vectors: (M, 3) Å, float32 or float64.
        cell: (B, 3, 3) Å, of the same dtype; (3, 3) for one.
        structure: (M,) int64 which cell each vector is in; by default the first.
        pbc: along which axes cells repeat, bool or (B, 3) bool.

    Returns:
        The vectors (M, 3), ``vectors + shift @ cell``, differentiable in both with the shift held; and the shift (M, 3)
        int32. Of equally short images one, the same on every run.

    Raises:
        ValueError: if a shape does not match, a vector is not finite or 2e9 cells long, or a cell is singular along its
            periodic axes (values on the CPU; on CUDA such shifts are undefined).
        TypeError: if a dtype or device does not match.
        IndexError: if ``structure`` names no cell (on the CPU).

    Source: enumeration of lattice points as in Fincke and Pohst, 1985, https://doi.org/10.1090/S0025-5718-1985-0777278-8.

    Example:
        >>> import torch
        >>> from pyfast import crystal
        >>> crystal.minimum_image(torch.tensor([[1.5, 0.0, 0.0]]), 2 * torch.eye(3))
        (tensor([[-0.5000,  0.0000,  0.0000]]), tensor([[-1,  0,  0]], dtype=torch.int32))
    """
    if isinstance(cell, Tensor) and cell.dim() == 2:
        cell = cell[None]
    check_tensor("vectors", vectors, ("M", 3))
    check_tensor("cell", cell, ("B", 3, 3), vectors, "vectors")
    if structure is None:
        structure = torch.zeros(vectors.shape[0], dtype=torch.int64, device=vectors.device)
    if not isinstance(structure, Tensor):
        raise TypeError(f"structure must be a tensor, got {type(structure).__name__}")
    if structure.shape != vectors.shape[:1]:
        raise ValueError(f"structure must have shape ({vectors.shape[0]},), got {tuple(structure.shape)}")
    if structure.dtype != torch.int64:
        raise TypeError(f"structure must be torch.int64, got {structure.dtype}")
    if structure.device != vectors.device:
        raise TypeError(f"structure must be on the device of vectors, {vectors.device}, got {structure.device}")
    periodic = torch.as_tensor(pbc, device=vectors.device)
    if periodic.dtype != torch.bool:
        raise TypeError(f"pbc must be bool, got {periodic.dtype}")
    if (
        periodic.dim() > 2
        or periodic.shape[-1:] not in ((), (3,))
        or (periodic.dim() == 2 and len(periodic) != len(cell))
    ):
        raise ValueError(f"pbc must be one bool, or have shape ({cell.shape[0]}, 3), got {tuple(periodic.shape)}")
    periodic = periodic.expand(cell.shape[0], 3).contiguous()
    still = vectors.detach().contiguous(), cell.detach().contiguous()
    shift = _nearest_shift(*still, structure.contiguous(), periodic)
    moved = (shift.to(vectors.dtype)[:, None, :] @ cell[structure])[:, 0]
    return vectors + moved, shift


def lattice_from_parameters(lengths: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Cell vectors from three lengths and three angles, c along z and a in the xz plane, and whether there are such.

    Three angles belong to no cell if one is as large as the other two together, or all three reach 360 degrees. Such
    cells are marked, rather than bent to something singular.

    Args:
        lengths: (B, 3) Å, float32 or float64: a, b, c.
        angles: (B, 3) degrees, of the same dtype: alpha (between b and c), beta (a and c), gamma (a and b).

    Returns:
        The cells (B, 3, 3), rows the cell vectors, NaN where there is none, with gradients of 0 there; and (B,) bool,
        whether the parameters are finite, positive and those of a cell.

    Raises:
        ValueError: if a shape does not match.
        TypeError: if a dtype or device does not match.

    Source: the convention is that of pymatgen and of Xie et al., 2021, https://arxiv.org/abs/2110.06197.

    Example:
        >>> import torch
        >>> from pyfast import crystal
        >>> cell, valid = crystal.lattice_from_parameters(torch.ones(1, 3), torch.tensor([[90.0, 90.0, 180.0]]))
        >>> valid
        tensor([False])
    """
    check_tensor("lengths", lengths, ("B", 3))
    check_tensor("angles", angles, (lengths.shape[0], 3), lengths, "lengths")
    wide = angles.detach().double()
    cosines = torch.deg2rad(wide).cos()
    volume = 1 - cosines.square().sum(1) + 2 * cosines.prod(1)  # squared, of the cell of unit lengths
    valid = ((lengths > 0) & lengths.isfinite() & (wide > 0) & (wide < 180)).all(1)
    valid = valid & (volume > 1e-10) & (wide.sum(1) < 360)
    a, b, c = torch.where(valid[:, None], lengths, 1).unbind(1)
    radians = torch.deg2rad(torch.where(valid[:, None], angles, 90))
    (ca, cb, cg), (sa, sb, _) = radians.cos().unbind(1), radians.sin().unbind(1)
    along = (ca * cb - cg) / (sa * sb)
    across = (1 - along * along).clamp(min=torch.finfo(along.dtype).tiny).sqrt()
    none = torch.zeros_like(a)
    rows = [a * sb, none, a * cb, -b * sa * along, b * sa * across, b * ca, none, none, c]
    cell = torch.stack(rows, 1).reshape(-1, 3, 3)
    return torch.where(valid[:, None, None], cell, math.nan), valid


def forces_and_stress(
    energy: Tensor, vectors: Tensor, cell: Tensor, graph: PeriodicGraph, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Forces and stress from an energy that depends on positions and cells through edge vectors alone.

    One derivative with respect to the vectors gives both: forces are its sums by rows of edges, and the stress is the
    sum of vector times derivative over the cell's volume.

    Args:
        energy: any number of energies, eV, whose sum is derived.
        vectors: (E, 3) Å, what ``edge_vectors`` gave and the energy was computed from; it must require a gradient, by
            ``vectors.requires_grad_()`` before that, unless positions or cells require one.
        cell: (B, 3, 3) Å; (3, 3) for one structure.
        graph: the ``PeriodicGraph`` of the vectors.
        create_graph: whether forces and stress will be derived in turn, as for a loss of them.

    Returns:
        Forces (N, 3), eV/Å, minus the derivative of the energy with respect to positions; and the stress (B, 3, 3),
        eV/Å^3, symmetric: the derivative of the energy with respect to strain over the volume, positive where the cell
        pulls inwards; not finite where a cell has no volume.

    Raises:
        ValueError: if a shape does not match, or the energy does not depend on ``vectors``.
        TypeError: if a dtype or device does not match.

    Source: Knuth et al., 2015, https://doi.org/10.1016/j.cpc.2015.01.003.

    Example:
        >>> import torch
        >>> import pyfast.reference.crystal as reference
        >>> from pyfast import crystal
        >>> x, cell = torch.zeros(1, 3), 2 * torch.eye(3)
        >>> graph = reference.neighbors(x, cell, 2.5)
        >>> v = crystal.edge_vectors(x, cell, graph).requires_grad_()
        >>> forces, stress = crystal.forces_and_stress(crystal.lengths(v).sum(), v, cell, graph)
        >>> stress[0].diagonal().detach()  # 6 edges of length 2, a volume of 8
        tensor([0.5000, 0.5000, 0.5000])
    """
    check_is_graph(graph)
    if isinstance(cell, Tensor) and cell.dim() == 2:
        cell = cell[None]
    check_tensor("vectors", vectors, (graph.num_edges, 3))
    check_tensor("cell", cell, (graph.num_structures, 3, 3), vectors, "vectors")
    check_graph(graph, vectors, "vectors")
    if not isinstance(energy, Tensor):
        raise TypeError(f"energy must be a tensor, got {type_of(energy)}")
    before = "call vectors.requires_grad_() before the energy is computed from them"
    if not vectors.requires_grad:
        raise ValueError(f"vectors must require a gradient, got vectors that do not; {before}")
    if not energy.requires_grad:
        raise ValueError(f"energy must depend on vectors, got one without derivatives; {before}")
    (g,) = torch.autograd.grad(energy.sum(), vectors, create_graph=create_graph, allow_unused=True)
    if g is None:
        raise ValueError(f"energy must depend on vectors, got one that depends on other tensors alone; {before}")
    pointers = graph.edge_ptr.long().contiguous(), graph.atom_ptr.long().contiguous()
    pull, _ = _vectors_adjoint(g.contiguous(), graph.shift.contiguous(), *ops.rows(graph), *pointers)
    virial = segment_sum(vectors[:, :, None] * g[:, None, :], graph.edge_ptr)
    volume = torch.linalg.det(cell).abs()[:, None, None]
    return -pull, (virial + virial.mT) / (2 * volume)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[-9:])


def _derive_vectors(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_vectors_adjoint(grad.contiguous(), *ctx.saved_tensors), *9 * (None,)


def _derive_adjoint(ctx: Any, dx: Tensor, dcell: Tensor) -> tuple[Tensor | None, ...]:
    return _vectors(dx.contiguous(), dcell.contiguous(), *ctx.saved_tensors), *9 * (None,)


def _push(inputs: Any, tangents: Any, outputs: Any) -> Tensor:
    x, cell = (torch.zeros_like(a) if t is None else t for a, t in zip(inputs[:2], tangents[:2], strict=True))
    return _vectors(x.contiguous(), cell.contiguous(), *inputs[2:])


_PLACES = ", ".join(f"Tensor {n}" for n in ("shift", *ops.Rows._fields, "edge_ptr", "atom_ptr"))

_vectors: Callable[..., Any] = _ops.define(
    "crystal",
    f"vectors(Tensor positions, Tensor cell, {_PLACES}) -> Tensor",
    lambda x, cell, shift, *_: x.new_empty(shift.shape),
    _save,
    _derive_vectors,
    jvp=_push,
)
_vectors_adjoint: Callable[..., Any] = _ops.define(
    "crystal",
    f"vectors_adjoint(Tensor g, {_PLACES}) -> (Tensor, Tensor)",
    lambda g, shift, other, edge, ptr, *rest: (
        g.new_empty((ptr.shape[0] - 1, 3)),
        g.new_empty((rest[3].shape[0] - 1, 3, 3)),
    ),
    _save,
    _derive_adjoint,
    jvp=lambda inputs, tangents, _: _vectors_adjoint(tangents[0].contiguous(), *inputs[1:]),
)
_nearest_shift: Callable[..., Any] = _ops.define(
    "crystal",
    "nearest_shift(Tensor vector, Tensor cell, Tensor structure, Tensor periodic) -> Tensor",
    lambda v, *_: v.new_empty(v.shape, dtype=torch.int32),
)
