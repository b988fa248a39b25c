"""Energy models of crystals, one set of weights run by our operators or by PyTorch's own: SchNet and DimeNet++.

Sources: Schütt et al., 2017, https://arxiv.org/abs/1706.08566; Gasteiger et al., 2020,
https://arxiv.org/abs/2011.14115.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyfast import crystal


class Batch(NamedTuple):
    """What a model is given: a graph, atomic numbers, the structure of each atom, distances, and unit vectors."""

    graph: crystal.PeriodicGraph
    numbers: Tensor
    structure: Tensor
    distance: Tensor
    unit: Tensor


def batched(crystals, dtype, k, cutoff):
    """All neighbours within the cutoff, or the k nearest of them, with ties."""
    given = crystals.positions, crystals.cell
    if k is None:
        graph = crystal.radius_graph(*given, cutoff, natoms=crystals.natoms, vectors=True)
    else:
        graph = crystal.knn_graph(*given, k, cutoff=cutoff, natoms=crystals.natoms, ties="include", vectors=True)
    unit = graph.vector / graph.distance[:, None]
    structure = torch.repeat_interleave(crystals.natoms)
    return Batch(graph, crystals.numbers, structure, graph.distance.to(dtype), unit.to(dtype))


def softplus(x):
    return F.softplus(x) - math.log(2)


class Gaussians(nn.Module):
    """SchNet's filter network: 50 Gaussians of the distance, two layers, and an end at the cutoff."""

    def __init__(self, channels, cutoff):
        super().__init__()
        self.cutoff, self.width = cutoff, cutoff / 49
        self.register_buffer("centers", torch.linspace(0, cutoff, 50))
        self.first, self.second = nn.Linear(50, channels), nn.Linear(channels, channels)

    def forward(self, r):
        """(E, channels) of (E,)."""
        spread = torch.exp(-0.5 * ((r[:, None] - self.centers) / self.width) ** 2)
        smooth = 0.5 * (torch.cos(math.pi * r / self.cutoff) + 1)
        return self.second(softplus(self.first(spread))) * smooth[:, None]


class SchNet(nn.Module):
    """128 channels and six interactions within 5 Å; an energy per atom."""

    CUTOFF, K = 5.0, None

    def __init__(self, how, channels=128, interactions=6):
        super().__init__()
        self.how = how
        self.embedding = nn.Embedding(100, channels)
        make = lambda bias=True: nn.ModuleList(nn.Linear(channels, channels, bias) for _ in range(interactions))  # noqa: E731
        self.into, self.out, self.last = make(False), make(), make()
        self.filters = nn.ModuleList(Gaussians(channels, self.CUTOFF) for _ in range(interactions))
        if how == "pyfast":
            self.tables = [crystal.RadialTable(f, self.CUTOFF, knots=512) for f in self.filters]
        self.readout = nn.ModuleList([nn.Linear(channels, channels // 2), nn.Linear(channels // 2, 1)])

    def message(self, i, x, batch):
        """Of the i-th interaction, (atoms, channels)."""
        graph = batch.graph
        if self.how == "pyfast":
            return crystal.conv(x, self.tables[i], graph, batch.distance)
        return torch.zeros_like(x).index_add(0, graph.target, x[graph.source] * self.filters[i](batch.distance))

    def forward(self, batch):
        """(structures,) of a batch."""
        h = self.embedding(batch.numbers)
        for i, (into, out, last) in enumerate(zip(self.into, self.out, self.last, strict=True)):
            h = h + last(softplus(out(self.message(i, into(h), batch))))
        return mean(self.how, self.readout[1](softplus(self.readout[0](h)))[:, 0], batch)


def mean(how, x, batch):
    """Of the atoms of each structure."""
    if how == "pyfast":
        return crystal.segment_mean(x, batch.graph.atom_ptr)
    sizes = batch.graph.atom_ptr.diff()
    return x.new_zeros(len(sizes)).index_add(0, batch.structure, x) / sizes


def bessel(degrees, count):
    """The first zeros (degrees, count) of spherical Bessel functions, and what normalises each to 1 within them."""
    from scipy.optimize import brentq
    from scipy.special import spherical_jn

    zeros = np.arange(1, count + degrees) * math.pi  # of degree 0; those of the next degree lie between
    found = [zeros[:count]]
    for n in range(1, degrees):
        zeros = np.array([brentq(lambda x, n=n: spherical_jn(n, x), a, b) for a, b in itertools.pairwise(zeros)])
        found.append(zeros[:count])
    z = np.stack(found)
    scale = np.sqrt(2) / np.abs(spherical_jn(np.arange(1, degrees + 1)[:, None], z))
    scale *= np.sqrt((2 * np.arange(degrees)[:, None] + 1) / (4 * math.pi))  # of the spherical harmonics
    return torch.from_numpy(z), torch.from_numpy(scale)


def envelope(x, p=6):
    """1 / x, but 0 with two derivatives at x = 1."""
    return 1 / x - (p + 1) * (p + 2) / 2 * x ** (p - 1) + p * (p + 2) * x**p - p * (p + 1) / 2 * x ** (p + 1)


class Spherical(nn.Module):
    """DimeNet's radial functions of every edge (E, degrees, count), by degree of the angle's; in double precision."""

    def __init__(self, cutoff, degrees=7, count=6):
        super().__init__()
        self.cutoff, (self.zeros, self.scale) = cutoff, bessel(degrees, count)

    def forward(self, r):
        """(E, degrees, count) of (E,)."""
        x = r.double() / self.cutoff
        z = x[:, None, None] * self.zeros
        sine, cosine = z.sin(), z.cos()
        js = [(sine / z)[:, 0], (sine / z**2 - cosine / z)[:, 1]]
        below, here = sine / z, sine / z**2 - cosine / z
        for n in range(1, len(self.zeros) - 1):
            below, here = here, (2 * n + 1) / z * here - below
            js.append(here[:, n + 1])
        return (torch.stack(js, 1) * self.scale * envelope(x)[:, None, None]).to(r.dtype)


def residual(n):
    return nn.ModuleList(nn.Linear(n, n) for _ in range(2))


def add(layers, x):
    first, second = layers
    return x + F.silu(second(F.silu(first(x))))


class Interaction(nn.Module):
    """One of DimeNet++'s blocks: messages of edges, from those that lead to where they start."""

    def __init__(self, n=128, small=64, basis=8, radial=6, degrees=7):
        super().__init__()
        self.rbf1, self.rbf2 = nn.Linear(radial, basis, False), nn.Linear(basis, n, False)
        self.sbf1, self.sbf2 = nn.Linear(degrees * radial, basis, False), nn.Linear(basis, small, False)
        self.kj, self.ji, self.last = nn.Linear(n, n), nn.Linear(n, n), nn.Linear(n, n)
        self.down, self.up = nn.Linear(n, small, False), nn.Linear(small, n, False)
        self.before, self.after = residual(n), nn.ModuleList(residual(n) for _ in range(2))

    def forward(self, x, rbf, angular):
        """(E, n) of what edges carry, of their radial functions, and of what sums over triplets."""
        kj = F.silu(self.down(F.silu(self.kj(x)) * self.rbf2(self.rbf1(rbf))))
        h = F.silu(self.ji(x)) + F.silu(self.up(angular(kj, self.sbf1.weight, self.sbf2.weight)))
        x = F.silu(self.last(add(self.before, h))) + x
        for layers in self.after:
            x = add(layers, x)
        return x


class Output(nn.Module):
    """One of DimeNet++'s: edges summed at their targets, and four layers."""

    def __init__(self, n=128, wide=256, radial=6):
        super().__init__()
        self.rbf, self.up = nn.Linear(radial, n, False), nn.Linear(n, wide, False)
        self.layers, self.last = nn.ModuleList(nn.Linear(wide, wide) for _ in range(3)), nn.Linear(wide, 1, False)
        nn.init.zeros_(self.last.weight)

    def forward(self, x, rbf, total):
        """(atoms,) of what edges carry, of their radial functions, and of what sums over the edges of atoms."""
        h = self.up(total(self.rbf(rbf) * x))
        for layer in self.layers:
            h = F.silu(layer(h))
        return self.last(h)[:, 0]


class DimeNet(nn.Module):
    """DimeNet++ as CDVAE's encoder has it, along the 12 nearest within 7 Å, as CGCNN has them; an energy per atom."""

    CUTOFF, K = 7.0, 12

    def __init__(self, how, n=128, blocks=4, radial=6):
        super().__init__()
        self.how = how
        self.frequencies = nn.Parameter(math.pi * torch.arange(1.0, radial + 1))
        self.spherical = Spherical(self.CUTOFF)
        self.embedding, self.rbf, self.first = nn.Embedding(100, n), nn.Linear(radial, n), nn.Linear(3 * n, n)
        self.blocks = nn.ModuleList(Interaction(n) for _ in range(blocks))
        self.outputs = nn.ModuleList(Output(n) for _ in range(blocks + 1))

    def angular(self, batch):
        """What sums messages over triplets, given the two layers of their basis."""
        graph, sbf = batch.graph, self.spherical(batch.distance)
        if self.how == "pyfast":
            tiles = crystal.triplet_tiles(graph, through=True)

            def sums(x, first, second):
                radial = torch.einsum("eln,bln->ebl", sbf, first.unflatten(1, sbf.shape[1:]))
                return (crystal.angular_sum(x, batch.unit, radial, tiles, True) * second.T).sum(1)

            return sums
        ji, kj = crystal.triplet_indices(graph, through=True)
        cosine = -(batch.unit[ji] * batch.unit[kj]).sum(1)
        basis = (sbf[kj] * crystal.legendre(cosine, 7)[:, :, None]).flatten(1)

        def written(x, first, second):
            each = x[kj] * F.linear(F.linear(basis, first), second)
            return torch.zeros_like(x).index_add(0, ji, each)

        return written

    def forward(self, batch):
        """(structures,) of a batch."""
        graph = batch.graph
        x = (batch.distance / self.CUTOFF)[:, None]
        rbf = envelope(x) * torch.sin(self.frequencies * x)
        z = self.embedding(batch.numbers)
        m = F.silu(self.first(torch.cat([z[graph.target], z[graph.source], F.silu(self.rbf(rbf))], 1)))
        angular = self.angular(batch)
        if self.how == "pyfast":
            total = lambda y: crystal.segment_sum(y, graph.ptr)  # noqa: E731
        else:
            total = lambda y: y.new_zeros(len(z), y.shape[1]).index_add(0, graph.target, y)  # noqa: E731
        atoms = self.outputs[0](m, rbf, total)
        for block, output in zip(self.blocks, self.outputs[1:], strict=True):
            m = block(m, rbf, angular)
            atoms = atoms + output(m, rbf, total)
        return mean(self.how, atoms, batch)
