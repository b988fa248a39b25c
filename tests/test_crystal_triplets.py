"""Triplets as tiles against triplets one by one: which there are, sums over them, every derivative, bad input."""

import math

import pytest
import torch

import pyfast.reference.crystal as reference_graphs
from pyfast import crystal
from pyfast.crystal import triplets
from pyfast.reference.crystal import triplets as reference


def example(counts=(2, 1, 3), cutoff=2.0, seed=0, dtype=torch.float64):
    """Cubes of about the cutoff, atoms anywhere in them: edges to own images, and atoms with more edges than one."""
    g = torch.Generator().manual_seed(seed)
    natoms = torch.tensor(counts)
    cell = (torch.eye(3) * 1.9 + 0.2 * torch.randn(len(counts), 3, 3, generator=g)).to(dtype)
    positions = (1.9 * torch.rand(int(natoms.sum()), 3, generator=g)).to(dtype)
    graph = reference_graphs.radius_graph(positions, cell, cutoff, natoms=natoms)
    vectors = crystal.edge_vectors(positions, cell, graph)
    return graph, vectors / crystal.lengths(vectors)[:, None]


def elsewhere(tiles):
    return crystal.Tiles(*(t.to("meta") for t in tiles))


@pytest.mark.parametrize("through", [False, True])
def test_which_triplets_there_are(through):
    graph, unit = example()
    rows, columns = crystal.triplet_indices(graph, through)
    want = reference.indices(graph, through)
    assert len(want) > 100
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == sorted(want)
    tiles = crystal.triplet_tiles(graph, through)
    cosine = crystal.cosines(unit, tiles, through)
    sign = -1 if through else 1
    torch.testing.assert_close(cosine[tiles.keep], sign * (unit[rows] * unit[columns]).sum(1))
    assert (cosine[~tiles.keep] == 0).all()


@pytest.mark.parametrize("through", [False, True])
def test_angles_of_triplets_are_those_of_the_atoms(through):
    """Places of all three atoms, each in its image, with the target of the first edge in its own cell."""
    g = torch.Generator().manual_seed(3)
    cell = 2.2 * torch.eye(3).double() + 0.2 * torch.randn(3, 3, generator=g).double()
    x = 2.2 * torch.rand(2, 3, generator=g).double()
    graph = crystal.neighbors(x, cell, 2.5)
    v = crystal.edge_vectors(x, cell, graph)
    first, second = crystal.triplet_indices(graph, through)
    angle = crystal.angles(-v[first] if through else v[first], v[second])
    for e, f, found in zip(first.tolist(), second.tolist(), angle.tolist(), strict=True):
        target, source = (int(a[e]) for a in (graph.target, graph.source))
        end, near = x[target], x[source] + graph.shift[e].double() @ cell
        middle, other_end = (near, end) if through else (end, near)
        base = graph.shift[e] if through else torch.zeros(3)  # the image that the second edge's target is in
        far = x[int(graph.source[f])] + (base + graph.shift[f]).double() @ cell
        p, q = other_end - middle, far - middle
        assert found == pytest.approx(math.acos(max(-1.0, min(1.0, float(p @ q / (p.norm() * q.norm()))))), abs=1e-6)


def test_which_quadruplets_there_are():
    graph, _ = example((1, 2), 1.95)
    found = list(zip(*(x.tolist() for x in crystal.quadruplet_indices(graph)), strict=True))
    assert len(found) == len(set(found)) > 0
    assert set(found) == reference.quadruplets(graph)


def test_triplets_of_a_graph_that_is_not_symmetric():
    graph, _ = example((3,))
    kept = torch.arange(graph.num_edges) % 3 > 0
    index = graph.edge_index[:, kept]
    renumber = torch.where(kept, kept.cumsum(0) - 1, -1)
    reverse = renumber[graph.reverse[kept]]
    ptr = torch.searchsorted(index[1].contiguous(), torch.arange(graph.num_atoms + 1))
    part = graph._replace(
        edge_index=index, shift=graph.shift[kept], distance=graph.distance[kept], reverse=reverse, ptr=ptr
    )
    for through in (False, True):
        rows, columns = crystal.triplet_indices(part, through)
        assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == sorted(reference.indices(part, through))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("degrees", "columns"), [(1, 1), (3, 64), (7, 13)])
@pytest.mark.parametrize("through", [False, True])
def test_sums_match_reference(through, degrees, columns, dtype):
    graph, _ = example(dtype=dtype)
    tiles = crystal.triplet_tiles(graph, through)
    g = torch.Generator().manual_seed(1)
    m = torch.randn(len(tiles.keep), degrees, generator=g, dtype=dtype)
    x = torch.randn(graph.num_edges, columns, generator=g, dtype=dtype)
    pairs = tiles.pairs
    found = []
    for f in (lambda m, x: crystal.pair_sum(m, x, tiles), lambda m, x: reference.pair_sum(m, x, *pairs)):
        a, b = m.clone().requires_grad_(), x.clone().requires_grad_()
        out = f(a, b)
        found.append([out, *torch.autograd.grad(out.square().sum(), (a, b))])
    torch.testing.assert_close(*found, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # forward mode's own
def test_every_order_of_derivative():
    graph, _ = example((2,), 1.95)
    for through in (False, True):
        tiles = crystal.triplet_tiles(graph, through)
        m = torch.randn(len(tiles.keep), 2, dtype=torch.float64, requires_grad=True)
        x = torch.randn(graph.num_edges, 2, dtype=torch.float64, requires_grad=True)
        y = torch.randn(graph.num_edges, 2, 2, dtype=torch.float64, requires_grad=True)
        calls = {
            "sum": (lambda m, x, t=tiles: triplets._pair_sum(m, x, *t[:4]), (m, x)),
            "back": (lambda m, y, t=tiles: triplets._pair_back(m, y, *t[:4]), (m, y)),
            "dot": (lambda y, x, t=tiles: triplets._pair_dot(y, x, *t[:4], len(t.keep)), (y, x)),
        }
        for f, args in calls.values():
            assert torch.autograd.gradcheck(f, args, check_forward_ad=not through, fast_mode=True)
            assert torch.autograd.gradgradcheck(f, args, fast_mode=True)


def test_operator_contract():
    graph, _ = example((2,), 1.95)
    tiles = crystal.triplet_tiles(graph, through=True)
    pairs = len(tiles.keep)
    m, x = torch.randn(pairs, 2, requires_grad=True), torch.randn(graph.num_edges, 3, requires_grad=True)
    y = torch.randn(graph.num_edges, 2, 3)
    torch.library.opcheck(torch.ops.pyfast.crystal_pair_sum.default, (m, x, *tiles[:4]))
    torch.library.opcheck(torch.ops.pyfast.crystal_pair_back.default, (m, y, *tiles[:4]))
    torch.library.opcheck(torch.ops.pyfast.crystal_pair_dot.default, (y, x, *tiles[:4], pairs))


def test_permuting_atoms_permutes_and_nothing_else():
    g = torch.Generator().manual_seed(3)
    cell, x = 2.1 * torch.eye(3, dtype=torch.float64), 2 * torch.rand(3, 3, generator=g, dtype=torch.float64)
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        moved = x[order]
        graph = reference_graphs.neighbors(moved, cell, 2.2)
        v = crystal.edge_vectors(moved, cell, graph)
        r = crystal.lengths(v)
        tiles = crystal.triplet_tiles(graph, through=True)
        weights = torch.where(tiles.keep[:, None], crystal.legendre(crystal.cosines(v / r[:, None], tiles, True), 3), 0)
        y = crystal.pair_sum(weights, torch.exp(-r)[:, None], tiles).square().flatten(1)
        atoms = crystal.segment_sum(y, graph.ptr)
        found.append(torch.stack([atoms[order.index(i)] for i in range(3)]))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_legendre_polynomials():
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)
    t = x.acos()
    found = crystal.legendre(x, 5)
    torch.testing.assert_close(found[:, 3], (5 * (3 * t).cos() + 3 * t.cos()) / 8)
    torch.testing.assert_close(found[-1], torch.ones(5, dtype=torch.float64))
    assert crystal.legendre(x, 1).shape == (41, 1)


def test_same_bits_on_any_number_of_threads(threads):
    graph, unit = example((9, 5), 2.5, dtype=torch.float32)
    tiles = crystal.triplet_tiles(graph, through=True)
    x = torch.randn(graph.num_edges, 33)

    def run():
        a = x.clone().requires_grad_()
        u = unit.clone().requires_grad_()
        out = crystal.pair_sum(crystal.legendre(crystal.cosines(u, tiles, True), 4), a, tiles)
        return out, torch.autograd.grad(out.square().sum(), (a, u))

    threads(run)


def test_no_edges():
    graph = reference_graphs.neighbors(torch.zeros(1, 3), 9 * torch.eye(3), 2.0)
    tiles = crystal.triplet_tiles(graph)
    assert crystal.pair_sum(torch.zeros(0, 3), torch.zeros(0, 5), tiles).shape == (0, 3, 5)
    assert [len(x) for x in crystal.quadruplet_indices(graph)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g, u, t: crystal.cosines(u[:, :2], t), ValueError, r"unit must have shape \(E, 3\), got"),
        (lambda g, u, t: crystal.cosines(u.long(), t), TypeError, "unit must be float32 or float64, got torch.int64"),
        (lambda g, u, t: crystal.triplet_tiles(t), TypeError, "graph must be a PeriodicGraph, got Tiles"),
        (lambda g, u, t: crystal.triplet_indices(u), TypeError, "graph must be a PeriodicGraph, got Tensor"),
        (lambda g, u, t: crystal.quadruplet_indices(None), TypeError, "graph must be a PeriodicGraph, got NoneType"),
        (lambda g, u, t: crystal.triplet_tiles(g.to("meta")), TypeError, "graph must have values, .* a meta tensor"),
        (lambda g, u, t: crystal.cosines([1], t), TypeError, "unit must be a tensor, got list"),
        (lambda g, u, t: crystal.cosines(u[:3], t), IndexError, r"ptr\[\d+\] must be at most 3, got"),
        (lambda g, u, t: crystal.legendre(u[:, 0], 0), ValueError, "degrees must be at least 1, got 0"),
        (lambda g, u, t: crystal.pair_sum(u, u, t), ValueError, r"weights must have shape \(\d+, L\), got"),
        (
            lambda g, u, t: crystal.pair_sum(t.keep[:, None].float(), u, t),
            TypeError,
            "weights must have the dtype of x, torch.float64, got torch.float32",
        ),
        (
            lambda g, u, t: crystal.pair_sum(t.keep[:, None].double().to("meta"), u, t),
            TypeError,
            "weights must be on the device of x, cpu, got meta",
        ),
        (
            lambda g, u, t: crystal.pair_sum(t.keep[:, None].double(), u, elsewhere(t)),
            TypeError,
            "tiles must be on the device of x, cpu, got meta",
        ),
        (
            lambda g, u, t: crystal.cosines(u, elsewhere(t)),
            TypeError,
            "tiles must be on the device of unit, cpu, got meta",
        ),
        (lambda g, u, t: crystal.cosines(u, tuple(t)), TypeError, "tiles must be those of triplet_tiles, got tuple"),
        (
            lambda g, u, t: crystal.cosines(u, t._replace(ptr=t.ptr.int())),
            TypeError,
            "tiles.ptr must be torch.int64, got torch.int32",
        ),
        (
            lambda g, u, t: crystal.cosines(u, t._replace(keep=t.keep.byte())),
            TypeError,
            "tiles.keep must be torch.bool, got torch.uint8",
        ),
        (
            lambda g, u, t: crystal.cosines(u, t._replace(keep=t.keep.repeat(2)[::2])),
            ValueError,
            r"tiles.keep must be contiguous, of one dimension, got \(\d+,\), \(2,\)",
        ),
        (
            lambda g, u, t: crystal.cosines(u, t, through=True),
            ValueError,
            r"tiles must be those of triplet_tiles\(graph, True\), got those of False",
        ),
    ],
)
def test_refuses_bad_input_by_name(call, error, message):
    graph, unit = example()
    with pytest.raises(error, match=message):
        call(graph, unit, crystal.triplet_tiles(graph))
