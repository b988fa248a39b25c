"""Triplets of crystals against arrays of triplets: GemNet's bilinear layer and DimeNet++'s interaction.

Real structure types, the 20 nearest neighbours within 7 Å made symmetric, sizes of CDVAE's decoder and encoder.
"""

import functools
import math

import pytest
import torch
from torch.nn import functional as F

from pyfast import crystal
from pyfast.demo.crystal import prototypes

DEGREES, CHANNELS = 7, 64


@functools.cache
def edges(atoms):
    """The graph of the first structure types with so many atoms together, and the unit vectors of its edges."""
    _, c = prototypes()
    count = int((c.natoms.cumsum(0) <= atoms).sum())
    n = int(c.natoms[:count].sum())
    given = c.positions[:n], c.cell[:count]
    graph = crystal.knn_graph(*given, 20, cutoff=7.0, natoms=c.natoms[:count], symmetrize="union", vectors=True)
    return graph, (graph.vector / graph.distance[:, None]).float()


def both_ways(layer, args):
    """What is timed: the layer alone, or with the gradients of all it is given."""

    def forward(*args):
        with torch.no_grad():
            return (layer(*args),)

    def forward_backward(*args):
        leaves = [a.detach().requires_grad_() for a in args]
        out = layer(*leaves)
        return out.detach(), *torch.autograd.grad(out.square().sum(), leaves)

    return {"forward": forward, "forward_backward": forward_backward}


class Arrays:
    """Triplets as arrays of two edges, as models hold them, and the place of each among those of its first edge."""

    def __init__(self, graph, through):
        self.first, self.second = crystal.triplet_indices(graph, through)
        order = self.first.argsort(stable=True)
        self.first, self.second = self.first[order], self.second[order]
        counts = torch.bincount(self.first, minlength=graph.num_edges)
        self.place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[self.first]
        self.most, self.sign = int(counts.max()), -1 if through else 1

    def angular(self, unit):
        """(T, 7) Legendre polynomials."""
        return crystal.legendre(self.sign * (unit[self.first] * unit[self.second]).sum(1), DEGREES)


def padded(arrays, x, unit):
    """Sums by angle (E, 7, 64), of arrays padded to the most triplets of any edge, as GemNet's code has them."""
    e = len(x)
    angular = x.new_zeros(e, arrays.most, DEGREES).index_put((arrays.first, arrays.place), arrays.angular(unit))
    features = x.new_zeros(e, arrays.most, x.shape[1]).index_put((arrays.first, arrays.place), x[arrays.second])
    return angular.mT @ features


def gemnet_arrays(arrays, x, unit, radial, weight):
    z = radial @ padded(arrays, x, unit)  # (E, 16, 64), then a product for each channel, and their sum
    return (z.permute(2, 0, 1) @ weight.permute(1, 0, 2)).sum(0)


def gemnet_one_product(arrays, x, unit, radial, weight):
    return (radial @ padded(arrays, x, unit)).flatten(1) @ weight.flatten(0, 1)


@pytest.mark.parametrize("peer", ["pyfast", "torch arrays", "torch arrays, one product"])
@pytest.mark.parametrize("how", ["forward", "forward_backward"])
def bench_gemnet_triplets(race, device, quick, how, peer):
    if device == "cuda":
        pytest.skip("arrays are made on the CPU")
    graph, unit = edges(60 if quick else 720)
    g = torch.Generator().manual_seed(0)
    make = lambda *size: torch.randn(*size, generator=g)  # noqa: E731
    args = make(graph.num_edges, CHANNELS), unit, make(graph.num_edges, 16, DEGREES), make(16, CHANNELS, CHANNELS) / 32
    tiles, arrays = crystal.triplet_tiles(graph), Arrays(graph, False)
    layers = {
        "pyfast": lambda *a: crystal.gemnet_triplets(*a, tiles),
        "torch arrays": functools.partial(gemnet_arrays, arrays),
        "torch arrays, one product": functools.partial(gemnet_one_product, arrays),
    }
    run = {name: both_ways(layer, args)[how] for name, layer in layers.items()}
    work = 2 * graph.num_edges * 16 * CHANNELS * CHANNELS * (1 if how == "forward" else 3)
    race(run[peer], *args, like=run["torch arrays"], flops=work)


def dimenet_arrays(arrays, x, unit, radial, second):
    """DimeNet++'s: a basis of the triplet, (T, 8), widened, times the message, summed."""
    basis = (radial[arrays.second] * arrays.angular(unit)[:, None]).sum(-1)
    return torch.zeros_like(x).index_add(0, arrays.first, x[arrays.second] * F.linear(basis, second))


def dimenet_tiles(tiles, x, unit, radial, second):
    return (crystal.angular_sum(x, unit, radial, tiles, True) * second.T).sum(1)


@pytest.mark.parametrize("peer", ["pyfast", "torch arrays"])
@pytest.mark.parametrize("how", ["forward", "forward_backward"])
def bench_dimenet_triplets(race, device, quick, how, peer):
    if device == "cuda":
        pytest.skip("arrays are made on the CPU")
    graph, unit = edges(60 if quick else 720)
    g = torch.Generator().manual_seed(0)
    make = lambda *size: torch.randn(*size, generator=g)  # noqa: E731
    e = graph.num_edges
    args = make(e, CHANNELS), unit, make(e, 8, DEGREES) / math.sqrt(8), make(CHANNELS, 8)
    layers = {
        "pyfast": functools.partial(dimenet_tiles, crystal.triplet_tiles(graph, through=True)),
        "torch arrays": functools.partial(dimenet_arrays, Arrays(graph, True)),
    }
    run = {name: both_ways(layer, args)[how] for name, layer in layers.items()}
    race(run[peer], *args, like=run["torch arrays"])
