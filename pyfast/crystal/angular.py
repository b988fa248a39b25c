"""Sums over triplets weighted by series of the angle, and GemNet's layer on top, without an array of triplets."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyfast import _ops
from pyfast.crystal import _operators as ops
from pyfast.crystal._arguments import check_tensor
from pyfast.crystal.triplets import (
    Tiles,
    _pair_back,
    _pair_dot,
    _pair_sum,
    check_tiles,
    cosines,
    legendre,
    outwards,
)


def angular_sum(x: Tensor, unit: Tensor, radial: Tensor, tiles: Tiles, through: bool = False) -> Tensor:
    """Sum the features of each row's columns, once for each of I weights that are Legendre series of the angle.

    out[r, i, :] = sum over c of (sum over l of radial[e, i, l] P_l(cos angle(r, c))) x[c, :], where e is the row r, as
    for GemNet, or, through, the column c, as for DimeNet. Weights are made where they are used, tile by tile, and again
    for the gradient: only what goes in and comes out is ever stored.

    Args:
        x: (E, C) features of every edge, float32 or float64.
        unit: (E, 3) edge vectors over their lengths, of the same dtype, as for ``cosines``.
        radial: (E, I, L) coefficients of P_0 to P_(L - 1); constants of spherical harmonics belong in here.
        tiles: of ``triplet_tiles(graph, through)``.
        through: as it was there.

    Returns:
        (E, I, C); 0 for edges that are no rows. Differentiable in the first three, to any order and in both modes; the
        gradient is a kernel of its own, what is derived again goes through ``pair_sum`` and its derivatives. What is
        not finite reaches all rows of its tile, those of pairs that are dropped too.

    Raises:
        ValueError: if a shape does not match.
        TypeError: if a dtype or device does not match.
        IndexError: if the tiles name what is not there (on the CPU).

    Source: Gasteiger et al., 2021, https://arxiv.org/abs/2106.08903, efficient bilinear layer.

    Example:
        >>> import torch
        >>> import pyfast.reference.crystal as reference
        >>> from pyfast import crystal
        >>> x, cell = torch.zeros(1, 3), 2 * torch.eye(3)
        >>> graph = reference.neighbors(x, cell, 2.5)
        >>> unit = crystal.edge_vectors(x, cell, graph) / 2
        >>> series = torch.tensor([0.0, 1.0]).expand(6, 1, 2)  # the cosine itself
        >>> crystal.angular_sum(torch.ones(6, 1), unit, series, crystal.triplet_tiles(graph))[:, 0, 0]
        tensor([-1., -1., -1., -1., -1., -1.])
    """
    _check(x, unit, radial, tiles, through)
    return _angular(x.contiguous(), unit.contiguous(), radial.contiguous(), *tiles, through)


def gemnet_triplets(x: Tensor, unit: Tensor, radial: Tensor, weight: Tensor, tiles: Tiles) -> Tensor:
    """GemNet's triplet interaction: features of the edges to an atom, summed by angle, radius and a bilinear layer.

    out[ca, o] = sum over i, c of (sum over l of radial[ca, i, l] y[ca, l, c]) weight[i, c, o], where
    y[ca, l, :] = sum over b of P_l(cos angle(c, a, b)) x[ba, :]. Atoms go through in blocks, for the gradient again,
    so that neither triplets nor what the bilinear layer multiplies is ever held whole.

    Args:
        x: (E, C) features of every edge, float32 or float64.
        unit: (E, 3) edge vectors over their lengths, as for ``cosines``; others give wrong angles, and no error.
        radial: (E, I, L) radial weights of every edge; constants of spherical harmonics belong in here.
        weight: (I, C, O).
        tiles: of ``triplet_tiles(graph)``, of a whole graph, not of a half list.

    Returns:
        (E, O); 0 for edges that are no rows. Differentiable in the first four, to any order and in both modes, with a
        kernel of its own for the gradient; what is derived again holds (E, I, C). What is not finite reaches all rows
        of its tile.

    Raises:
        ValueError: if a shape does not match.
        TypeError: if a dtype or device does not match.
        IndexError: if the tiles name what is not there (on the CPU).

    Source: Gasteiger et al., 2021, https://arxiv.org/abs/2106.08903, appendix on the efficient bilinear layer.

    Example:
        >>> import torch
        >>> import pyfast.reference.crystal as reference
        >>> from pyfast import crystal
        >>> x, cell = torch.zeros(1, 3), 2 * torch.eye(3)
        >>> graph = reference.neighbors(x, cell, 2.5)
        >>> unit = crystal.edge_vectors(x, cell, graph) / 2
        >>> one = torch.ones(6, 1, 1)
        >>> crystal.gemnet_triplets(one[:, 0], unit, one, one[:1], crystal.triplet_tiles(graph))[:, 0]
        tensor([5., 5., 5., 5., 5., 5.])
    """
    _check(x, unit, radial, tiles, False)
    check_tensor("weight", weight, (radial.shape[1], x.shape[1], "O"), x)
    given = x.contiguous(), unit.contiguous(), radial.contiguous(), weight.contiguous()
    return _gemnet(*given, tiles.ptr, tiles.tile_ptr, tiles.keep)


def _check(x: Tensor, unit: Tensor, radial: Tensor, tiles: Tiles, through: bool) -> None:
    check_tensor("x", x, ("E", "C"))
    check_tensor("unit", unit, (x.shape[0], 3), x)
    check_tensor("radial", radial, (x.shape[0], "I", "L"), x)
    if not radial.shape[2]:
        raise ValueError(f"radial must have coefficients of at least one polynomial, got {tuple(radial.shape)}")
    check_tiles(tiles, x, "x", through)


def _weighted(weights: Tensor, x: Tensor, radial: Tensor, tiles: Tiles, through: bool) -> Tensor:
    """``angular_sum``, of values (T, L) of the polynomials, by operators whose derivatives are operators."""
    if not through:
        return radial @ _pair_sum(weights, x, *tiles[:4])
    series = (radial[tiles.pairs[1]] * weights[:, None, :]).sum(-1)
    return _pair_sum(series, x, *tiles[:4])


def _polynomials(unit: Tensor, degrees: int, tiles: Tiles, through: bool) -> tuple[Tensor, Tensor]:
    """Values and slopes (T, L) of the Legendre polynomials, 0 where there is no triplet."""
    c, keep = cosines(unit, tiles, through), tiles.keep[:, None]
    values = legendre(c, degrees)
    slopes = [torch.zeros_like(c), torch.ones_like(c)]
    for n in range(1, degrees - 1):
        slopes.append(slopes[n - 1] + (2 * n + 1) * values[:, n])
    return torch.where(keep, values, 0), torch.where(keep, torch.stack(slopes[:degrees], 1), 0)


def _gradients(
    grad: Tensor, x: Tensor, unit: Tensor, radial: Tensor, tiles: Tiles, through: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``angular_back`` finds, by operators whose derivatives are operators."""
    fields, pairs = tiles[:4], tiles.keep.shape[0]
    values, slopes = _polynomials(unit, radial.shape[2], tiles, through)
    if through:
        column = tiles.pairs[1]
        series = (radial[column] * values[:, None, :]).sum(-1)
        dx = _pair_back(series, grad, *fields)
        each = _pair_dot(grad, x, *fields, pairs)[:, :, None]
        dradial = torch.zeros_like(radial).index_add(0, column, each * values[:, None, :])
        dvalues = (each * radial[column]).sum(1)
    else:
        turned = (radial.mT @ grad).contiguous()
        dx = _pair_back(values, turned, *fields)
        dradial = grad @ _pair_sum(values, x, *fields).mT
        dvalues = _pair_dot(turned, x, *fields, pairs)
    dcosine = (dvalues * slopes).sum(1, keepdim=True)
    drows = _pair_sum(dcosine, unit, *fields)[:, 0]
    return dx, _pair_back(dcosine, outwards(unit, through), *fields) + (-drows if through else drows), dradial


def _derive(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, unit, radial, *fields = ctx.saved_tensors
    (through,) = ctx.rest
    if torch.is_grad_enabled():  # this will be derived again
        return *_gradients(grad.contiguous(), x, unit, radial, Tiles(*fields), through), *6 * (None,)
    dx, rows, columns, dradial = _angular_back(grad.contiguous(), x, unit, radial, *fields, through)
    return dx, rows + columns, dradial, *6 * (None,)


def _push(inputs: Any, tangents: Any, outputs: Any) -> Tensor:
    x, unit, radial, *fields, through = inputs
    terms = ops.moved(_angular, inputs, tangents, (0, 2))
    if tangents[1] is not None:
        tiles, turning = Tiles(*fields), tangents[1]
        _, slopes = _polynomials(unit, radial.shape[2], tiles, through)
        turns = (outwards(turning, through), unit), (outwards(unit, through), turning.contiguous())
        dcosine = sum(_pair_dot(*ends, *fields[:4], len(slopes)) for ends in turns)
        terms.append(_weighted(slopes * dcosine, x, radial, tiles, through))
    return ops.total(terms)


def _square(ptr: Tensor, tile_ptr: Tensor, keep: Tensor) -> Tiles:
    """Tiles whose rows are their columns."""
    return Tiles(ptr[:0], ptr, ptr, tile_ptr, keep)


def _derive_gemnet(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, unit, radial, weight, *fields = ctx.saved_tensors
    grad = grad.contiguous()
    if not torch.is_grad_enabled():
        return *_gemnet_back(grad, x, unit, radial, weight, *fields), *3 * (None,)
    tiles = _square(*fields)  # this will be derived again
    wide = torch.tensordot(grad, weight, ([1], [2])).contiguous()
    dweight = torch.tensordot(_angular(x, unit, radial, *tiles, False), grad, ([0], [0]))
    return *_gradients(wide, x, unit, radial, tiles, False), dweight, *3 * (None,)


def _push_gemnet(inputs: Any, tangents: Any, outputs: Any) -> Tensor:
    x, unit, radial, weight, *fields = inputs
    terms = ops.moved(_gemnet, inputs, tangents, (0, 2, 3))
    if tangents[1] is not None:
        given = x, unit, radial, *_square(*fields), False
        terms.append(torch.tensordot(_push(given, (None, tangents[1], None), None), weight, 2))
    return ops.total(terms)


def _allocate(x: Tensor, unit: Tensor, radial: Tensor, *_: Any) -> Tensor:
    return x.new_empty((x.shape[0], radial.shape[1], x.shape[1]))


_PLACES = ", ".join(f"Tensor {name}" for name in Tiles._fields)

_angular: Callable[..., Any] = _ops.define(
    "crystal",
    f"angular(Tensor x, Tensor unit, Tensor radial, {_PLACES}, bool through) -> Tensor",
    _allocate,
    ops.save,
    _derive,
    jvp=_push,
)
_angular_back: Callable[..., Any] = _ops.define(
    "crystal",
    f"angular_back(Tensor grad, Tensor x, Tensor unit, Tensor radial, {_PLACES}, bool through)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    lambda grad, x, unit, radial, *_: tuple(torch.empty_like(a) for a in (x, unit, unit, radial)),
)
_gemnet: Callable[..., Any] = _ops.define(
    "crystal",
    "gemnet(Tensor x, Tensor unit, Tensor radial, Tensor weight, Tensor ptr, Tensor tile_ptr, Tensor keep) -> Tensor",
    lambda x, unit, radial, weight, *_: x.new_empty((x.shape[0], weight.shape[2])),
    ops.save,
    _derive_gemnet,
    jvp=_push_gemnet,
)
_gemnet_back: Callable[..., Any] = _ops.define(
    "crystal",
    "gemnet_back(Tensor grad, Tensor x, Tensor unit, Tensor radial, Tensor weight, Tensor ptr, Tensor tile_ptr,"
    " Tensor keep) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda grad, *inputs: tuple(torch.empty_like(a) for a in inputs[:4]),
)
