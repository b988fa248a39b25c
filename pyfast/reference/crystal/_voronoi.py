"""Voronoi cells by brute force: a corner is where three planes meet and none cuts it off. And CrystalNN's choice."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from pyfast.reference.crystal._neighbors import images, squared


def faces(positions: Tensor, cell: Tensor) -> list[dict[tuple[int, ...], tuple[float, float]]]:
    """For each atom of a crystal, {(j, *shift): (solid angle, area)} of the faces of its Voronoi cell."""
    x, h = positions.double(), cell.double()
    n = len(x)
    reach = 2 * float(torch.linalg.det(h).abs() / n) ** (1 / 3)
    while True:
        i, j, shift, v = images(x, h, torch.tensor(reach), torch.ones(3, dtype=torch.bool))
        near = squared(v) <= reach**2
        cells = [_cell(v[near & (i == a)], reach) for a in range(n)]
        if all(radius <= reach / 2 for _, radius in cells):
            break
        reach *= 1.5
    found = []
    for a, (sizes, _) in enumerate(cells):
        keys = torch.cat([j[:, None], shift], 1)[near & (i == a)]
        found.append({tuple(keys[k].tolist()): size for k, size in sizes.items() if size[0] >= 1e-10})
    return found


def _cell(v: Tensor, reach: float) -> tuple[dict[int, tuple[float, float]], float]:
    """{k: (solid angle, area)} of the planes half way to v[k], and the radius of what they enclose."""
    box = 2 * reach * torch.cat([torch.eye(3), -torch.eye(3)]).double()
    order = squared(v).argsort()
    mine: list[int] = []  # a plane that does not touch a cell does not touch what later planes leave of it
    corners = torch.full((1, 3), math.inf, dtype=torch.float64)
    for chunk in order.split(16):
        if squared(v[chunk[0]]) > 4 * squared(corners).max():
            break
        mine += chunk.tolist()
        planes = torch.cat([v[mine], box])
        corners = _corners(planes)
        mine = [k for k, p in zip(mine, planes, strict=False) if len(_on(corners, p)) >= 3]
    return {k: _size(_on(corners, v[k]), v[k]) for k in mine}, float(squared(corners).max().sqrt())


def _corners(planes: Tensor) -> Tensor:
    """(m, 3) the points p . x = p . p / 2 of three planes that no plane cuts off."""
    a = planes[torch.combinations(torch.arange(len(planes)), 3)]
    half = squared(planes) / 2
    a = a[torch.linalg.det(a).abs() > 1e-9 * squared(a).sqrt().prod(1)]
    x = torch.linalg.solve(a, squared(a) / 2)
    return x[(x @ planes.T - half <= 1e-10 * squared(planes).sqrt() * squared(x).sqrt()[:, None]).all(1)]


def _on(corners: Tensor, plane: Tensor) -> Tensor:
    return corners[(corners @ plane - plane @ plane / 2).abs() <= 1e-9 * plane.norm() * corners.norm(dim=1).max()]


def _size(corners: Tensor, plane: Tensor) -> tuple[float, float]:
    """Solid angle and area of the polygon with these corners, as a fan of triangles."""
    u = torch.linalg.svd(plane[None]).Vh[1:]
    around = (corners - corners.mean(0)) @ u.T
    a, b, c = (corners[torch.atan2(around[:, 1], around[:, 0]).argsort()].roll(-k, 0) for k in range(3))
    a = a[:1].expand_as(b)
    triple = (a * torch.linalg.cross(b, c)).sum(1).abs()
    ra, rb, rc = (y.norm(dim=1) for y in (a, b, c))
    along = ra * rb * rc + (a * b).sum(1) * rc + (a * c).sum(1) * rb + (b * c).sum(1) * ra
    angle = (2 * torch.atan2(triple, along)).sum()
    return float(angle), float((triple / plane.norm()).sum())


def choose(weights: dict[tuple[int, ...], float]) -> set[tuple[int, ...]]:
    """Of the neighbours with these weights, those of the most probable coordination number, the lowest of equals."""
    rounded = {k: round(w, 3) for k, w in weights.items() if round(w, 3) > 0}
    steps = [*sorted(set(rounded.values()), reverse=True), 0.0]
    probability = {high: (_quarter(high) - _quarter(low)) / _quarter(1.0) for high, low in pairwise(steps)}
    probability[math.inf] = 1 - sum(probability.values())  # of no neighbour at all
    least = max(probability, key=lambda w: probability[w])
    return {k for k, w in rounded.items() if w >= least}


def _quarter(x: float) -> float:
    return (x * math.sqrt(1 - x * x) + math.asin(x)) / 2


def crystal_nn(positions: Tensor, cell: Tensor) -> list[set[tuple[int, ...]]]:
    """For each atom of a crystal, {(j, *shift)} of its neighbours, with CDVAE's arguments of pymatgen's CrystalNN."""
    chosen = []
    for sizes in faces(positions, cell):
        most = max(angle for angle, _ in sizes.values())
        chosen.append(choose({k: angle / most for k, (angle, _) in sizes.items()}))
    return chosen
