"""Vectors, lengths, angles, nearest images, lattices, forces and stress: meaning, derivatives, bad input."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyfast.reference.crystal as reference_graphs
from pyfast import crystal
from pyfast.crystal import _operators as ops
from pyfast.crystal import geometry
from pyfast.reference.crystal import geometry as reference


def crystals(dtype=torch.float64, counts=(3, 1, 4), cutoff=2.5, seed=0):
    """Positions, some outside their cells, skewed cells, and a graph of all edges."""
    g = torch.Generator().manual_seed(seed)
    natoms = torch.tensor(counts)
    cell = torch.eye(3) * 2.2 + 0.5 * torch.randn(len(counts), 3, 3, generator=g)
    positions = 4 * torch.randn(int(natoms.sum()), 3, generator=g)
    cell, positions = cell.to(dtype), positions.to(dtype)
    graph = reference_graphs.radius_graph(positions, cell, cutoff, natoms=natoms)
    assert graph.num_edges > 8
    return positions, cell, graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_vectors_match_reference(check, dtype):
    positions, cell, graph = crystals(dtype)
    check(
        lambda x, c: crystal.edge_vectors(x, c, graph),
        lambda x, c: reference.edge_vectors(x, c, graph),
        positions,
        cell,
    )
    torch.testing.assert_close(crystal.lengths(crystal.edge_vectors(positions, cell, graph)), graph.distance)
    w = torch.randn(graph.num_edges, 3, dtype=dtype)
    grads = []
    for f in (crystal.edge_vectors, reference.edge_vectors):
        x, c = positions.clone().requires_grad_(), cell.clone().requires_grad_()
        grads.append(torch.autograd.grad((f(x, c, graph) * w).sum(), (x, c)))
    torch.testing.assert_close(*grads, atol=1e-3 if dtype == torch.float32 else 1e-12, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # forward mode's own
def test_derivatives():
    positions, cell, graph = crystals(counts=(2, 1), cutoff=2.0)
    args = positions.requires_grad_(), cell.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, c: crystal.edge_vectors(x, c, graph), args, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x, c: crystal.edge_vectors(x, c, graph), args)
    assert torch.autograd.gradgradcheck(lambda x, c: crystal.lengths(crystal.edge_vectors(x, c, graph)), args)
    a, b = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(crystal.angles, (a, b))
    assert torch.autograd.gradgradcheck(crystal.angles, (a, b))
    parameters = torch.tensor([[3.0, 4.0, 5.0]]).double(), torch.tensor([[70.0, 80.0, 110.0]]).double()
    parameters = tuple(p.requires_grad_() for p in parameters)
    assert torch.autograd.gradcheck(lambda *p: crystal.lattice_from_parameters(*p)[0], parameters)
    assert torch.autograd.gradgradcheck(lambda *p: crystal.lattice_from_parameters(*p)[0], parameters)
    v, c = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), cell[:1].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda v, c: crystal.minimum_image(v, c)[0], (v, c))


def test_operator_contract():
    positions, cell, graph = crystals(counts=(2, 1), cutoff=2.0)
    places = graph.shift, *ops.rows(graph), graph.edge_ptr, graph.atom_ptr
    x, c = positions.requires_grad_(), cell.requires_grad_()
    torch.library.opcheck(torch.ops.pyfast.crystal_vectors.default, (x, c, *places))
    v = torch.randn(graph.num_edges, 3, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.pyfast.crystal_vectors_adjoint.default, (v, *places))
    n = torch.zeros(graph.num_edges, dtype=torch.int64)
    periodic = torch.ones(2, 3, dtype=torch.bool)
    torch.library.opcheck(torch.ops.pyfast.crystal_nearest_shift.default, (v.detach(), cell.detach(), n, periodic))
    compiled = torch.compile(crystal.edge_vectors, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, c, graph), crystal.edge_vectors(x, c, graph))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_bits_on_any_number_of_threads(threads, dtype):
    positions, cell, graph = crystals(dtype, (40, 3), cutoff=5.0)

    def run():
        x, c = positions.clone().requires_grad_(), cell.clone().requires_grad_()
        v = crystal.edge_vectors(x, c, graph)
        return v, *torch.autograd.grad(v.square().sum(), (x, c)), crystal.minimum_image(positions, cell)

    threads(run)


def test_no_length_no_gradient():
    v = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(crystal.lengths(v).sum(), v, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), v, allow_unused=True, materialize_grads=True)
    assert torch.equal(g, torch.zeros(1, 3, dtype=torch.float64))
    assert torch.equal(h, g)
    a = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    for b, angle in ((2 * a.detach(), 0.0), (-a.detach(), math.pi), (torch.zeros(3), 0.0)):
        found = crystal.angles(a, b)
        assert found.item() == pytest.approx(angle, abs=1e-6)
        assert torch.autograd.grad(found, a)[0].isfinite().all()


def test_vectors_of_no_length_have_angle_zero_and_so_have_its_derivatives():
    a, b = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert crystal.angles(a, b) == 0
    assert torch.autograd.functional.jacobian(crystal.angles, (a, b))[0].abs().max() == 0
    second = torch.autograd.functional.hessian(crystal.angles, (a, b))
    assert all((h == 0).all() for row in second for h in row)


def test_small_angles_are_exact():
    t = torch.tensor([1e-7, 1e-4, 1.0, math.pi - 1e-6], dtype=torch.float64)
    a = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    b = torch.stack([t.cos(), t.sin(), 0 * t], 1)
    torch.testing.assert_close(crystal.angles(a, b), t, rtol=1e-9, atol=0)


@given(st.integers(0, 10**6), st.floats(0, 5), st.integers(0, 7))
@settings(deadline=None, max_examples=100)
def test_nearest_image_is_the_shortest(seed, shear, mask):
    g = torch.Generator().manual_seed(seed)
    off = torch.rand(3, 3, generator=g, dtype=torch.float64) / 2 - 0.25
    cell = torch.diag(1 + 2 * torch.rand(3, generator=g, dtype=torch.float64)) + off - off.diag().diag()
    pbc = tuple(bool(mask >> k & 1) for k in range(3))
    short = 2 * torch.rand(8, 3, generator=g, dtype=torch.float64) - 1
    truth = reference.shortest_image(short, cell, 8, pbc)  # the inverse cell is at most 2
    # The same lattice in a cell that is sheared, and vectors some cells away, along periodic axes alone.
    skew = torch.eye(3, dtype=torch.float64)
    if pbc[0] and pbc[1]:
        skew[1, 0] = round(shear)
    if pbc[1] and pbc[2]:
        skew[2, 1] = -round(shear)
    sheared = skew @ cell
    far = torch.randint(-9, 10, (8, 3), generator=g).double() * torch.tensor(pbc).double() @ sheared
    got, shift = crystal.minimum_image(short + far, sheared, pbc=torch.tensor(pbc))
    torch.testing.assert_close(got.norm(dim=1), truth, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got, short + far + shift.double() @ sheared)
    assert (shift[:, ~torch.tensor(pbc)] == 0).all()


def test_27_images_of_a_skewed_cell_are_not_enough():
    cell = torch.tensor([[1.0, 0, 0], [4.4, 1, 0], [0, 0, 9]], dtype=torch.float64)
    v = torch.tensor([[0.3, 0.5, 4.0]], dtype=torch.float64) + 3 * cell[0]
    wrapped = (v @ cell.inverse() % 1) @ cell
    got, _ = crystal.minimum_image(v, cell)
    assert got.norm() < reference.shortest_image(wrapped, cell, 1).min() - 0.1
    torch.testing.assert_close(got.norm(), reference.shortest_image(wrapped, cell, 9)[0])


@pytest.mark.parametrize(
    ("cell", "steps"),
    [
        ([[2, 0, 0], [0, 3, 0], [0, 0, 4]], [[1, 0, 0], [12345, 1, 0], [-77, 4321, 1]]),
        ([[2, 0, 0], [0.3, 3, 0], [0.2, 0.1, 4]], [[1, 300, 7], [0, 1, -900], [0, 0, 1]]),
        ([[0.01, 0, 0], [0, 0.01, 0], [0, 0, 1000]], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ([[1000, 0, 0], [0, 0.01, 0], [0, 0, 0.01]], [[1, 0, 0], [5, 1, 0], [0, 0, 1]]),
        ([[1, 1, -1.001], [1, -1.001, 1], [-1.001, 1, 1]], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    ],
)
@pytest.mark.parametrize("open_axis", [None, 0, 1, 2])
def test_cells_may_be_as_skewed_and_flat_as_they_like(cell, steps, open_axis):
    cell, steps = torch.tensor(cell, dtype=torch.float64), torch.tensor(steps, dtype=torch.float64)
    pbc = torch.ones(3, dtype=torch.bool)
    if open_axis is not None:
        pbc[open_axis] = False
        steps[open_axis], steps[:, open_axis] = 0, 0
        steps[open_axis, open_axis] = 1
    g = torch.Generator().manual_seed(0)
    v = (torch.rand(20, 3, generator=g, dtype=torch.float64) - 0.5) @ cell
    truth = reference.shortest_image(v, cell, 2, tuple(pbc.tolist()))
    far = torch.randint(-3, 4, (20, 3), generator=g).double() * pbc @ steps @ cell
    got, shift = crystal.minimum_image(v + far, steps @ cell, pbc=pbc)
    # Shifts go up to 1e6 steps of vectors up to 1e5 long, all in float64.
    slack = 16 * torch.finfo(torch.float64).eps * (shift.double().abs() @ (steps @ cell).abs()).norm(dim=1)
    assert ((got.norm(dim=1) - truth).abs() <= slack + 1e-12 * truth).all()


def test_lattice_has_its_parameters():
    g = torch.Generator().manual_seed(0)
    lengths = torch.rand(50, 3, generator=g, dtype=torch.float64) * 5 + 1
    angles = torch.rand(50, 3, generator=g, dtype=torch.float64) * 60 + 60
    cell, valid = crystal.lattice_from_parameters(lengths, angles)
    assert valid.double().mean() > 0.9
    cell, lengths, angles = cell[valid], lengths[valid], angles[valid]
    a, b, c = cell.unbind(1)
    torch.testing.assert_close(crystal.lengths(cell), lengths)
    found = torch.stack([crystal.angles(b, c), crystal.angles(a, c), crystal.angles(a, b)], 1)
    torch.testing.assert_close(found.rad2deg(), angles)
    assert torch.equal(c[:, :2], torch.zeros_like(c[:, :2]))  # c along z, a in the xz plane, right-handed
    assert torch.equal(a[:, 1], torch.zeros_like(a[:, 1]))
    assert (torch.linalg.det(cell) > 0).all()


@pytest.mark.parametrize(
    ("lengths", "angles"),
    [
        ((1, 1, -1), (90, 90, 90)),
        ((1, 0, 1), (90, 90, 90)),
        ((1, math.inf, 1), (90, 90, 90)),
        ((1, math.nan, 1), (90, 90, 90)),
        ((1, 1, 1), (90, 90, 180)),
        ((1, 1, 1), (30, 40, 80)),  # one is larger than the others together
        ((1, 1, 1), (120, 120, 120)),  # flat
        ((1, 1, 1), (130, 120, 125)),
        ((1, 1, 1), (90, math.nan, 90)),
        ((1, 1, 1), (-90, 90, 90)),
    ],
)
def test_parameters_of_no_cell_are_marked(lengths, angles):
    lengths = torch.tensor([lengths, (1.0, 2, 3)], requires_grad=True)
    angles = torch.tensor([angles, (80.0, 90, 100)], requires_grad=True)
    cell, valid = crystal.lattice_from_parameters(lengths, angles)
    assert valid.tolist() == [False, True]
    assert cell[0].isnan().all()
    assert cell[1].isfinite().all()
    for g in torch.autograd.grad(cell[1].sum(), (lengths, angles)):
        assert torch.equal(g[0], torch.zeros(3))
        assert g[1].isfinite().all()


def energy_of(vectors):
    d = crystal.lengths(vectors)
    return torch.exp(-d).sum() + (crystal.angles(vectors[:-1], vectors[1:]).cos() * torch.exp(-d[1:])).sum()


def test_forces_and_stress():
    positions, cell, graph = crystals(counts=(3, 2))

    def energy(x, c):
        return energy_of(crystal.edge_vectors(x, c, graph))

    v = crystal.edge_vectors(positions, cell, graph).requires_grad_()
    forces, stress = crystal.forces_and_stress(energy_of(v), v, cell, graph)
    h = 1e-5
    for i, k in itertools.product(range(5), range(3)):
        step = torch.zeros_like(positions)
        step[i, k] = h
        slope = (energy(positions + step, cell) - energy(positions - step, cell)) / (2 * h)
        assert forces[i, k].item() == pytest.approx(-slope.item(), abs=1e-7)
    for b, (j, k) in itertools.product(range(2), itertools.combinations_with_replacement(range(3), 2)):
        strain = torch.zeros(2, 3, 3, dtype=torch.float64)
        strain[b, j, k] += h / 2
        strain[b, k, j] += h / 2
        of_atom = torch.tensor([0, 0, 0, 1, 1])
        ends = []
        for s in (strain, -strain):
            grow = torch.eye(3, dtype=torch.float64) + s
            ends.append(energy((positions[:, None] @ grow[of_atom])[:, 0], cell @ grow))
        slope = (ends[0] - ends[1]) / (2 * h) / torch.linalg.det(cell[b]).abs()
        assert stress[b, j, k].item() == pytest.approx(slope.item(), abs=1e-7)
    assert forces[:3].sum(0).abs().max() < 1e-10
    assert forces[3:].sum(0).abs().max() < 1e-10
    assert torch.equal(stress, stress.mT)


def test_a_loss_of_forces_and_stress():
    """Its gradient in a parameter of the energy, against differences."""
    positions, cell, graph = crystals(counts=(3, 2))

    def loss(a):
        v = crystal.edge_vectors(positions, cell, graph).requires_grad_()
        energy = torch.exp(-a * crystal.lengths(v)).sum()
        forces, stress = crystal.forces_and_stress(energy, v, cell, graph, create_graph=True)
        return forces.square().sum() + stress.square().sum()

    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(a), a)
    assert slope.item() == pytest.approx((loss(a + 1e-5) - loss(a - 1e-5)).item() / 2e-5, rel=1e-7)


def test_padding_is_zero_and_pulls_nothing():
    positions, cell, graph = crystals()
    last = int(graph.ptr[-1])
    more = graph._replace(
        edge_index=torch.cat([graph.edge_index, torch.zeros(2, 3, dtype=torch.int64)], 1),
        shift=torch.cat([graph.shift, torch.ones(3, 3, dtype=torch.int32)]),
    )
    x = positions.requires_grad_()
    v = crystal.edge_vectors(x, cell, more)
    assert torch.equal(v[last:], torch.zeros(3, 3, dtype=torch.float64))
    assert torch.equal(v[:last], crystal.edge_vectors(x, cell, graph))
    assert torch.equal(torch.autograd.grad(v[last:].sum(), x)[0], torch.zeros_like(x))


def test_no_atoms_no_edges():
    graph = reference_graphs.radius_graph(
        torch.zeros(0, 3), torch.eye(3)[None], 2.0, natoms=torch.zeros(1, dtype=torch.int64)
    )
    x, c = torch.zeros(0, 3, requires_grad=True), torch.eye(3)[None].requires_grad_()
    v = crystal.edge_vectors(x, c, graph)
    assert v.shape == (0, 3)
    v.sum().backward()
    assert torch.equal(c.grad, torch.zeros(1, 3, 3))
    assert crystal.minimum_image(torch.zeros(0, 3), torch.eye(3))[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x, c, g: crystal.edge_vectors(x[:2], c, g),
            ValueError,
            r"positions must have shape \(8, 3\), got \(2, 3\)",
        ),
        (lambda x, c, g: crystal.edge_vectors(x, c[:1], g), ValueError, r"cell must have shape \(3, 3, 3\), got"),
        (lambda x, c, g: crystal.edge_vectors(x, c.float(), g), TypeError, "cell must have the dtype of positions"),
        (lambda x, c, g: crystal.edge_vectors(x.long(), c, g), TypeError, "positions must be float32 or float64, got"),
        (lambda x, c, g: crystal.edge_vectors([1], c, g), TypeError, "positions must be a tensor, got list"),
        (lambda x, c, g: crystal.edge_vectors(x, c.to("meta"), g), TypeError, "cell must be on the device of pos"),
        (
            lambda x, c, g: crystal.edge_vectors(x, c, g.to("meta")),
            TypeError,
            "graph must be on the device of positions",
        ),
        (
            lambda x, c, g: crystal.forces_and_stress(x.sum(), x.new_zeros(g.num_edges, 3), c, g.to("meta")),
            TypeError,
            "graph must be on the device of vectors, cpu, got meta",
        ),
        (
            lambda x, c, g: crystal.minimum_image(x, c, torch.zeros(8, dtype=torch.int64, device="meta")),
            TypeError,
            "structure must be on the device of vectors, cpu, got meta",
        ),
        (lambda x, c, g: crystal.angles(x, x.to("meta")), TypeError, "b must be on the device of a, cpu, got meta"),
        (lambda x, c, g: crystal.lengths(x[:, :2]), ValueError, r"vectors must have shape \(..., 3\), got \(8, 2\)"),
        (lambda x, c, g: crystal.angles(x, x.float()), TypeError, "b must have the dtype of a, torch.float64, got"),
        (lambda x, c, g: crystal.minimum_image(x, c * 0), ValueError, r"cell\[0\] must be finite and not singular"),
        (lambda x, c, g: crystal.minimum_image(x * math.nan, c), ValueError, r"vector\[0\] must be finite and within"),
        (lambda x, c, g: crystal.minimum_image(x * 1e30, c), ValueError, r"vector\[0\] must be finite and within"),
        (lambda x, c, g: crystal.minimum_image(x, c, pbc=3), TypeError, "pbc must be bool, got torch.int64"),
        (
            lambda x, c, g: crystal.minimum_image(x, c, pbc=torch.ones(2, 3) > 0),
            ValueError,
            r"pbc must be one bool, or have shape \(3, 3\), got \(2, 3\)",
        ),
        (
            lambda x, c, g: crystal.minimum_image(x, c, torch.full((8,), 3)),
            IndexError,
            r"structure\[0\] must be in \[0, 3\), got 3",
        ),
        (
            lambda x, c, g: crystal.edge_vectors(x, c, g._replace(shift=g.shift.long())),
            TypeError,
            r"graph\.shift must be torch\.int32, got torch\.int64",
        ),
        (lambda x, c, g: crystal.minimum_image(x, c, [0]), TypeError, "structure must be a tensor, got list"),
        (
            lambda x, c, g: crystal.minimum_image(x, c, torch.zeros(7)),
            ValueError,
            r"structure must have shape \(8,\), got \(7,\)",
        ),
        (
            lambda x, c, g: crystal.lattice_from_parameters(x, x[:1]),
            ValueError,
            r"angles must have shape \(8, 3\), got",
        ),
        (lambda x, c, g: crystal.edge_vectors(x, c, g.ptr), TypeError, "graph must be a PeriodicGraph, got Tensor"),
        (
            lambda x, c, g: crystal.edge_vectors(x, c, crystal.VoronoiGraph(g, x, x)),
            TypeError,
            "graph must be a PeriodicGraph, got VoronoiGraph; its field graph is one",
        ),
        (
            lambda x, c, g: crystal.forces_and_stress(x.sum(), x, c, None),
            TypeError,
            "graph must be a PeriodicGraph, got NoneType",
        ),
        (
            lambda x, c, g: crystal.forces_and_stress(1.5, crystal.edge_vectors(x, c, g), c, g),
            TypeError,
            "energy must be a tensor, got float",
        ),
        (
            lambda x, c, g: crystal.forces_and_stress(x.requires_grad_().sum(), x.new_zeros(g.num_edges, 3), c, g),
            ValueError,
            r"vectors must require a gradient, got .* that do not; call vectors.requires_grad_\(\) before",
        ),
        (
            lambda x, c, g: crystal.forces_and_stress(x.sum(), x.new_zeros(g.num_edges, 3).requires_grad_(), c, g),
            ValueError,
            r"energy must depend on vectors, got one without derivatives; call vectors.requires_grad_\(\) before",
        ),
        (
            lambda x, c, g: crystal.forces_and_stress(
                x.requires_grad_().sum(), x.new_zeros(g.num_edges, 3).requires_grad_(), c, g
            ),
            ValueError,
            r"energy must depend on vectors, got one that depends on other tensors alone; call vectors.requires_grad_",
        ),
        (
            lambda x, c, g: crystal.forces_and_stress(x.sum(), x, c, g),
            ValueError,
            r"vectors must have shape \(\d+, 3\), got \(8, 3\)",
        ),
    ],
)
def test_refuses_bad_input_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call(*crystals())


def test_nothing_public_is_missing():
    assert {n for n in vars(geometry) if not n.startswith("_") and callable(getattr(geometry, n))} >= {"lengths"}
