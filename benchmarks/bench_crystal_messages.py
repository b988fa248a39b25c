"""Messages along the edges of crystals against plain PyTorch: filters per edge, radial networks, training on forces.

1,000 small crystals with as many edges as real ones have within 5 Å; sources are drawn inside each crystal.
"""

import copy
import functools
import math

import pytest
import torch

from pyfast import crystal
from pyfast.crystal import PeriodicGraph
from pyfast.reference.crystal import geometry as reference_geometry
from pyfast.reference.crystal import messages as reference

CUTOFF, CHANNELS, GAUSSIANS = 5.0, 64, 50


@functools.cache
def batch(crystals, device):
    """Positions, cells and edges: of crystals of 2 to 19 atoms, each with 37 neighbours, some in other images."""
    g = torch.Generator().manual_seed(0)
    natoms = torch.randint(2, 20, (crystals,), generator=g)
    atom_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), natoms.cumsum(0)])
    n, k = int(atom_ptr[-1]), 37
    home = torch.repeat_interleave(torch.arange(crystals), natoms)
    target = torch.repeat_interleave(torch.arange(n), k)
    source = (torch.rand(n * k, generator=g) * natoms[home[target]]).long() + atom_ptr[home[target]]
    source = source.reshape(n, k).sort(1).values.flatten()
    shift = torch.randint(-1, 2, (n * k, 3), generator=g, dtype=torch.int32)
    cell = torch.eye(3) * 2 + 0.1 * torch.randn(crystals, 3, 3, generator=g)
    positions = torch.rand(n, 3, generator=g) * 0.8
    ptr = torch.arange(n + 1) * k
    graph = PeriodicGraph(
        torch.stack([source, target]), shift, torch.zeros(n * k), torch.full((n * k,), -1), ptr, ptr[atom_ptr],
        atom_ptr, torch.zeros(crystals, dtype=torch.int32),
    )  # fmt: skip
    distance = reference_geometry.edge_vectors(positions, cell, graph).norm(dim=1)
    graph = graph._replace(distance=distance.clamp(max=CUTOFF))
    return positions.to(device), cell.to(device), graph.to(device)


class Filters(torch.nn.Module):
    """SchNet's filter network: 50 Gaussians, two layers, a smooth end."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centers", torch.linspace(0, CUTOFF, GAUSSIANS))
        sizes = (GAUSSIANS, CHANNELS)
        self.layers = torch.nn.Sequential(torch.nn.Linear(*sizes), torch.nn.SiLU(), torch.nn.Linear(CHANNELS, CHANNELS))

    def forward(self, r):
        """(E, 64) of (E,)."""
        spread = torch.exp(-50 * ((r[:, None] - self.centers) / CUTOFF) ** 2)
        return self.layers(spread) * (0.5 + 0.5 * torch.cos(math.pi * r / CUTOFF))[:, None]


def segment_reduce(x, filter, graph):
    return torch.segment_reduce(x[graph.source] * filter, "sum", lengths=graph.ptr.diff(), unsafe=True)


def index_add(x, filter, graph):
    return reference.conv(x, filter, graph.source, graph.target, graph.num_atoms)


@pytest.fixture
def example(device, quick):
    torch.manual_seed(0)
    positions, cell, graph = batch(20 if quick else 1000, device)
    x = torch.randn(graph.num_atoms, CHANNELS, device=device)
    return positions, cell, graph, x


GATHER = {"pyfast": crystal.conv, "torch index_add": index_add, "torch segment_reduce": segment_reduce}


@pytest.mark.parametrize("peer", GATHER)
def bench_gather_filter_scatter(race, example, peer):
    _, _, graph, x = example
    filter = torch.randn(graph.num_edges, CHANNELS, device=x.device)
    race(GATHER[peer], x, filter, graph, like=index_add, read=filter.nbytes)


def cfconv(network, peer):
    if peer == "pyfast":
        table = crystal.RadialTable(network, CUTOFF, knots=512)
        assert not table.exact
        return lambda x, r, graph: crystal.conv(x, table, graph, distance=r)
    return lambda x, r, graph: index_add(x, network(r), graph)


def meant(network, peer):
    """The same in plain PyTorch: of a table what it interpolates, which by itself is as exact as it was asked to be."""
    filters = network
    if peer == "pyfast":
        table = crystal.RadialTable(network, CUTOFF, knots=512)
        assert table.num_knots == 512
        filters = lambda r: reference.read(table.values(), r, 0.0, table.spacing)  # noqa: E731
    return lambda x, r, graph: index_add(x, filters(r), graph)


@pytest.mark.parametrize("peer", ["pyfast", "torch per edge"])
@pytest.mark.parametrize("how", ["forward", "forward_new_weights", "forward_backward"])
def bench_cfconv(race, example, how, peer):
    """SchNet's convolution; with new weights the table is made anew, as in every step of training."""
    _, _, graph, x = example
    network = Filters().to(x.device)

    def forward(of, network):
        def call(x, r):
            with torch.no_grad():
                if how == "forward_new_weights":
                    network.layers[0].weight.add_(0)
                return of(x, r, graph)

        return call

    def both(of, network):
        def call(x, r):
            x = x.clone().requires_grad_()
            out = of(x, r, graph)
            return torch.autograd.grad(out.square().sum(), [x, *network.parameters()])

        return call

    def plain(x, r):
        same = copy.deepcopy(network).to(x.dtype)
        return make(meant(same, peer), same)(x, r)

    make = both if how == "forward_backward" else forward
    race(make(cfconv(network, peer), network), x, graph.distance, like=plain)


@pytest.mark.parametrize("peer", ["pyfast", "torch per edge"])
def bench_force_training_step(race, example, peer):
    """Energies and forces of two convolutions, and the gradient of a loss of the forces."""
    positions, cell, graph, _ = example
    torch.manual_seed(0)
    model = torch.nn.ModuleList([Filters(), Filters(), torch.nn.Linear(CHANNELS, CHANNELS)]).to(positions.device)
    x = torch.randn(graph.num_atoms, CHANNELS, device=positions.device)

    def step(model, ours, of):
        first, second, mix = of(model[0], peer), of(model[1], peer), model[2]

        def call(positions):
            features, box = x.to(positions.dtype), cell.to(positions.dtype)
            if ours:
                v = crystal.edge_vectors(positions, box, graph).requires_grad_()
                r = crystal.lengths(v).clamp(max=CUTOFF)
            else:
                v = positions.clone().requires_grad_()
                r = reference_geometry.edge_vectors(v, box, graph).norm(dim=1).clamp(max=CUTOFF)
            h = features + torch.nn.functional.silu(mix(first(features, r, graph)))
            energy = second(h, r, graph).square().sum()
            if ours:
                forces, _ = crystal.forces_and_stress(energy, v, box, graph, create_graph=True)
            else:
                forces = -torch.autograd.grad(energy, v, create_graph=True)[0]
            return torch.autograd.grad(forces.square().sum(), [*model.parameters()])

        return call

    def plain(positions):
        return step(copy.deepcopy(model).to(positions.dtype), False, meant)(positions)

    race(step(model, peer == "pyfast", cfconv), positions, like=plain)
