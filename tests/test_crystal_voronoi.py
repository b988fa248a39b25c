"""Voronoi cells and CrystalNN: brute force, closed forms, invariances, pymatgen's answers, every bad input."""

import math
import warnings
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast import _C, crystal
from pyfast.reference import crystal as reference

SC = torch.eye(3, dtype=torch.float64)
BCC = torch.tensor([[-1.0, 1, 1], [1, -1, 1], [1, 1, -1]], dtype=torch.float64) / 2
FCC = torch.tensor([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=torch.float64) / 2


def random_crystal(n, seed, skew=1.0):
    g = torch.Generator().manual_seed(seed)
    cell = 3 * torch.eye(3, dtype=torch.float64) + skew * torch.randn(3, 3, generator=g, dtype=torch.float64)
    return 6 * torch.randn(n, 3, generator=g, dtype=torch.float64), cell


def faces_of(found):
    """{(j, *shift): (solid angle, area)} of each atom, as the reference has it."""
    graph, angle, area = found
    faces = [{} for _ in range(graph.num_atoms)]
    for (j, i), s, a, b in zip(graph.edge_index.T.tolist(), graph.shift.tolist(), angle, area, strict=True):
        faces[i][(j, *s)] = float(a), float(b)
    return faces


def chosen(graph):
    """{(j, *shift)} of each atom."""
    sets = [set() for _ in range(graph.num_atoms)]
    for (j, i), s in zip(graph.edge_index.T.tolist(), graph.shift.tolist(), strict=True):
        sets[i].add((j, *s))
    return sets


def rotation(seed):
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))
    return q


@pytest.mark.parametrize(("n", "seed"), [(1, 0), (1, 1), (2, 2), (3, 3)])
def test_matches_brute_force(n, seed):
    """Faces are the reference's; they err no more than twice as much as it does between two orientations."""
    x, cell = random_crystal(n, seed)
    truth, turned = reference.faces(x, cell), reference.faces(x @ rotation(seed), cell @ rotation(seed))
    got = faces_of(crystal.voronoi_graph(x, cell))
    for a, b, c in zip(got, truth, turned, strict=True):
        assert a.keys() == b.keys() == c.keys()
        a, b, c = (torch.tensor([f[k] for k in sorted(f)], dtype=torch.float64) for f in (a, b, c))
        allowed = 2 * (b - c).abs().max() + 4 * torch.finfo(torch.float64).eps * b.abs().max()
        assert (a - b).abs().max() <= allowed
    assert chosen(crystal.crystal_nn_graph(x, cell, symmetrize=None)) == reference.crystal_nn(x, cell)


@pytest.mark.parametrize(
    ("cell", "angles", "bonds"),
    [
        (SC, {6: 4 * math.pi / 6}, 6),
        (FCC, {12: 4 * math.pi / 12}, 12),
        (BCC, {6: 4 * math.asin(1 / 9), 8: (4 * math.pi - 24 * math.asin(1 / 9)) / 8}, 8),
    ],
)
def test_closed_forms(cell, angles, bonds):
    """Cubes, rhombic dodecahedra and truncated octahedra; corners where more than three faces meet open no faces."""
    graph, angle, area = crystal.voronoi_graph(torch.zeros(1, 3, dtype=torch.float64), cell)
    assert graph.num_edges == sum(angles)
    found = Counter(angle.round(decimals=9).tolist())
    assert found == {round(a, 9): n for n, a in angles.items()}
    torch.testing.assert_close((area * graph.distance).sum() / 6, torch.linalg.det(cell).abs())
    assert crystal.crystal_nn_graph(torch.zeros(1, 3, dtype=torch.float64), cell).num_edges == bonds


def test_diamond_has_four_bonds():
    x = torch.tensor([[0.0, 0, 0], [0.25, 0.25, 0.25]], dtype=torch.float64)
    graph = crystal.crystal_nn_graph(x, FCC)
    assert graph.ptr.tolist() == [0, 4, 8]
    torch.testing.assert_close(graph.distance, torch.full((8,), math.sqrt(3) / 4, dtype=torch.float64))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 8),
    seed=st.integers(0, 10**6),
    stretch=st.tuples(*[st.sampled_from([0.3, 1.0, 4.0])] * 3),
    shear=st.tuples(*[st.integers(-5, 5)] * 3),
    mirror=st.booleans(),
)
def test_cells_fill_space(n, seed, stretch, shear, mirror):
    """Solid angles sum to a sphere and volumes to the cell, however skewed, flat or left-handed it is."""
    x, cell = random_crystal(n, seed, 0.5)
    cell = torch.tensor(stretch, dtype=torch.float64)[:, None] * cell
    cell[1] += shear[0] * cell[0]
    cell[2] += shear[1] * cell[0] + shear[2] * cell[1]
    if mirror:
        cell = cell.flip(0)
    if torch.linalg.det(cell).abs() < 1e-3 * cell.norm(dim=1).prod():
        return
    graph, angle, area = crystal.voronoi_graph(x, cell)
    sphere = torch.zeros(n, dtype=torch.float64).index_add(0, graph.target, angle)
    torch.testing.assert_close(sphere, torch.full_like(sphere, 4 * math.pi))
    torch.testing.assert_close((area * graph.distance).sum() / 6, torch.linalg.det(cell).abs())
    assert (graph.reverse[graph.reverse] == torch.arange(graph.num_edges)).all()
    torch.testing.assert_close(angle[graph.reverse], angle)
    torch.testing.assert_close(area[graph.reverse], area)


def relative(graph, x, cell):
    """For each atom, the vectors to its neighbours, rounded, as a multiset."""
    v = x[graph.source] - x[graph.target] + graph.shift.double() @ cell
    rows = [Counter() for _ in x]
    for i, row in zip(graph.target.tolist(), (v.round(decimals=6) + 0.0).tolist(), strict=True):
        rows[i][tuple(row)] += 1
    return rows


def test_invariances():
    """Permuted, moved, rewrapped, described by another cell or a supercell: the same neighbours of the same atoms."""
    x, cell = random_crystal(5, 11)
    plain = relative(crystal.crystal_nn_graph(x, cell), x, cell)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert relative(crystal.crystal_nn_graph(x[order], cell), x[order], cell) == [plain[k] for k in order]
    moved = x + torch.tensor([0.3, -7.0, 1.9], dtype=torch.float64)
    assert relative(crystal.crystal_nn_graph(moved, cell), moved, cell) == plain
    wrapped = x + torch.tensor([[0, 1, 0], [3, 0, 0], [0, 0, -2], [1, 1, 1], [0, 0, 0]], dtype=torch.float64) @ cell
    assert relative(crystal.crystal_nn_graph(wrapped, cell), wrapped, cell) == plain
    other = torch.tensor([[1.0, 2, 0], [0, 1, 0], [4, 9, 1]], dtype=torch.float64) @ cell  # determinant 1
    assert relative(crystal.crystal_nn_graph(x, other), x, other) == plain
    twice = torch.cat([x, x + cell[2]])
    double = cell * torch.tensor([[1.0], [1.0], [2.0]], dtype=torch.float64)
    assert relative(crystal.crystal_nn_graph(twice, double), twice, double) == plain + plain


def test_a_batch_is_its_crystals(threads):
    """Crystal by crystal, and for any number of threads, the same bits."""
    crystals = [random_crystal(n, n) for n in (4, 1, 0, 7, 40)]
    x, cell = torch.cat([x for x, _ in crystals]), torch.stack([h for _, h in crystals])
    natoms = [len(x) for x, _ in crystals]
    many, angle, area = crystal.voronoi_graph(x, cell, natoms=natoms)
    threads(lambda: tuple(t for t in crystal.voronoi_graph(x, cell, natoms=natoms).graph if t is not None))
    threads(lambda: crystal.voronoi_graph(x, cell, natoms=natoms)[1:])
    for k, (positions, h) in enumerate(crystals):
        one, a, b = crystal.voronoi_graph(positions, h)
        mine = slice(int(many.edge_ptr[k]), int(many.edge_ptr[k + 1]))
        assert torch.equal(many.edge_index[:, mine] - many.atom_ptr[k], one.edge_index)
        assert torch.equal(many.shift[mine], one.shift)
        assert torch.equal(angle[mine], a)
        assert torch.equal(area[mine], b)
        assert torch.equal(many.distance[mine], one.distance)
        assert torch.equal(many.reverse[mine] - many.edge_ptr[k], one.reverse)
    batch = torch.repeat_interleave(torch.tensor(natoms))
    for a, b in zip(crystal.voronoi_graph(x, cell, batch=batch).graph, many, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_distances_are_those_of_radius_graph():
    x, cell = random_crystal(6, 5)
    graph = crystal.crystal_nn_graph(x, cell)
    wide = crystal.neighbors(x, cell, float(graph.distance.max()), inclusive=True)
    edges = zip(wide.edge_index.T.tolist(), wide.shift.tolist(), wide.distance, strict=True)
    key = {(j, i, *s): d for (j, i), s, d in edges}
    for (j, i), s, d in zip(graph.edge_index.T.tolist(), graph.shift.tolist(), graph.distance, strict=True):
        assert key[(j, i, *s)] == d


def test_many_faces():
    """More faces than the kernel first makes room for: a small sphere of atoms around one."""
    k = torch.arange(60, dtype=torch.float64) + 0.5
    z, turn = 1 - k / 30, math.pi * (1 + math.sqrt(5)) * k  # points of a Fibonacci lattice
    flat = (1 - z * z).sqrt()
    x = torch.cat([torch.zeros(1, 3).double(), torch.stack([flat * turn.cos(), flat * turn.sin(), z], 1)])
    graph, angle, _ = crystal.voronoi_graph(x, 9 * SC)
    assert graph.ptr[1] == 60
    torch.testing.assert_close(angle[:60].sum(), torch.tensor(4 * math.pi, dtype=torch.float64))


def test_float32_and_strides(strided):
    x, cell = random_crystal(4, 9)
    x, cell = x.float(), cell.float()
    graph = crystal.crystal_nn_graph(x, cell)
    assert graph.distance.dtype == torch.float32
    wide = crystal.crystal_nn_graph(x.double(), cell.double())
    assert torch.equal(graph.edge_index, wide.edge_index)
    assert torch.equal(graph.shift, wide.shift)

    @settings(max_examples=10, deadline=None)
    @given(strided(x, expand=False), strided(cell, expand=False))
    def any_layout(x, cell):
        assert torch.equal(crystal.crystal_nn_graph(x, cell).shift, graph.shift)

    any_layout()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1000), max_size=12))
def test_choice_matches_reference(weights):
    keep = torch.empty(len(weights), dtype=torch.bool)
    _C.crystal.choose(torch.tensor([0, len(weights)]), torch.tensor(weights, dtype=torch.int32), keep)
    want = reference.choose({(k,): w / 1000 for k, w in enumerate(weights)})
    assert {(k,) for k in keep.nonzero().flatten().tolist()} == want


def test_symmetry_of_choice():
    x, cell = random_crystal(12, 21, 1.5)
    own = crystal.crystal_nn_graph(x, cell, symmetrize=None)
    edges = {(j, i, *s) for i, row in enumerate(chosen(own)) for j, *s in row}
    back = {(i, j, -a, -b, -c) for j, i, a, b, c in edges}
    assert edges != back
    for how, want in (("union", edges | back), ("mutual", edges & back)):
        graph = crystal.crystal_nn_graph(x, cell, symmetrize=how)
        assert {(j, i, *s) for i, row in enumerate(chosen(graph)) for j, *s in row} == want
        assert (graph.reverse >= 0).all()
        assert torch.equal(graph.reverse[graph.reverse], torch.arange(graph.num_edges))
    lone = {e for e in edges if e not in back}
    assert int((own.reverse < 0).sum()) == len(lone)


@pytest.mark.parametrize("symmetrize", ["union", "mutual"])
def test_half_of_every_bond(symmetrize):
    x, cell = random_crystal(5, 3)
    full, half = (crystal.crystal_nn_graph(x, cell, symmetrize=symmetrize, half=h) for h in (False, True))
    assert 2 * half.num_edges == full.num_edges
    assert (full.reverse >= 0).all()
    assert (half.reverse == -1).all()
    there = torch.cat([half.edge_index, half.shift.T]).T
    back = torch.cat([half.edge_index.flip(0), -half.shift.T]).T
    both = sorted(torch.cat([there, back]).tolist())
    assert both == sorted(torch.cat([full.edge_index, full.shift.T]).T.tolist())


def test_half_lists_keep_what_those_of_radii_keep():
    x, cell = 4 * torch.tensor([[0.0, 0, 0], [0.25, 0.25, 0.25]]), 4 * FCC.float()  # zincblende
    x, cell = torch.cat([x, x + cell[2]]), cell * torch.tensor([1, 1, 2])[:, None]
    bonds, near = crystal.crystal_nn_graph(x, cell, half=True), crystal.radius_graph(x, cell, 1.8, half=True)
    assert near.num_edges == 8
    for name in ("edge_index", "shift", "distance", "reverse", "ptr", "edge_ptr"):
        assert torch.equal(getattr(bonds, name), getattr(near, name)), name
    with pytest.raises(ValueError, match="symmetrize must be 'union' or 'mutual' with half, got None"):
        crystal.crystal_nn_graph(x, cell, half=True, symmetrize=None)
    cube = crystal.crystal_nn_graph(torch.zeros(1, 3), torch.eye(3), half=True)
    assert cube.shift.tolist() == crystal.radius_graph(torch.zeros(1, 3), torch.eye(3), 1.1, half=True).shift.tolist()


def test_nothing_to_do():
    none = crystal.crystal_nn_graph(torch.zeros(0, 3), torch.zeros(0, 3, 3), natoms=torch.zeros(0, dtype=torch.int64))
    assert none.edge_index.shape == (2, 0)
    assert none.edge_ptr.tolist() == [0]
    empty = crystal.crystal_nn_graph(torch.zeros(0, 3), torch.eye(3))
    assert empty.edge_ptr.tolist() == [0, 0]
    assert empty.shift.dtype == torch.int32


NAN, INF = math.nan, math.inf
X, H = torch.zeros(1, 3), torch.eye(3)


@pytest.mark.parametrize(
    ("positions", "cell", "options", "error", "message"),
    [
        (torch.full((1, 3), NAN), H, {}, ValueError, "positions must be finite, got nan"),
        (torch.full((1, 3), INF), H, {}, ValueError, "positions must be finite, got inf"),
        (X, H * NAN, {}, ValueError, "cell must be finite"),
        (X, H * torch.tensor([1.0, 1.0, 0.0]), {}, ValueError, "cell must have independent vectors"),
        (X, torch.ones(3, 3), {}, ValueError, "cell must have independent vectors"),
        (torch.full((1, 3), 1e30), H, {}, ValueError, "positions must lie within"),
        (torch.zeros(2, 3), H, {}, ValueError, "positions must be more than 1e-6 Å apart"),
        (torch.tensor([[0.0, 0, 0], [0, 0, 3]]), H, {}, ValueError, "positions must be more than 1e-6 Å apart"),
        (X, H * torch.tensor([1e-4, 1.0, 1e4])[:, None], {}, ValueError, "cell must not be so thin"),
        (
            X,
            H,
            {"pbc": False},
            ValueError,
            "pbc must be True, for cells to be bounded, got False along a in structure 0",
        ),
        (X, H, {"pbc": [True, True, False]}, ValueError, "got False along c"),
        (X, H[:2], {}, ValueError, "cell must have shape"),
        (X[:, :2], H, {}, ValueError, "positions must have shape"),
        (X.half(), H, {}, TypeError, "positions must be a float32 or float64 tensor, got torch.float16"),
        (X, H.double(), {}, TypeError, "cell must be"),
        (X, H[None], {"natoms": [2]}, ValueError, "natoms must add up"),
        (X, H, {"on_error": "hide"}, ValueError, "on_error must be 'raise' or 'mask', got 'hide'"),
    ],
)
def test_bad_input(positions, cell, options, error, message):
    for function in (crystal.voronoi_graph, crystal.crystal_nn_graph):
        with pytest.raises(error, match=message):
            function(positions, cell, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"symmetrize": "both"}, ValueError, "symmetrize must be 'union', 'mutual' or None, got 'both'"),
        ({"x_diff_weight": NAN}, ValueError, "x_diff_weight must be finite, got nan"),
        ({"x_diff_weight": 3.0}, ValueError, "electronegativity must be given"),
        ({"x_diff_weight": 3.0, "electronegativity": torch.ones(2)}, ValueError, "electronegativity must have shape"),
        ({"x_diff_weight": 3.0, "electronegativity": torch.ones(1)}, TypeError, "electronegativity must be float64"),
        (
            {"x_diff_weight": 3.0, "electronegativity": torch.full((1,), INF).double()},
            ValueError,
            "electronegativity must be finite or NaN",
        ),
        ({"distance_cutoffs": (1.0, 0.5)}, ValueError, "distance_cutoffs must be finite and increase"),
        ({"distance_cutoffs": (0.5, 1.0)}, ValueError, "radius must be given"),
        ({"distance_cutoffs": (0.5, 1.0), "radius": torch.ones(2)}, ValueError, "radius must have shape"),
        ({"distance_cutoffs": (0.5, 1.0), "radius": torch.ones(1)}, TypeError, "radius must be float64"),
        (
            {"distance_cutoffs": (0.5, 1.0), "radius": torch.zeros(1).double()},
            ValueError,
            "radius must be positive and finite, got 0.0",
        ),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        crystal.crystal_nn_graph(X, H, **options)


def test_bad_crystals_are_masked():
    x = torch.cat([torch.zeros(1, 3), torch.full((1, 3), NAN), torch.zeros(2, 3), torch.zeros(1, 3), torch.zeros(1, 3)])
    cell = torch.stack([H, H, H, torch.ones(3, 3), H])
    graph = crystal.crystal_nn_graph(x, cell, natoms=[1, 1, 2, 1, 1], on_error="mask")
    flags = crystal.Status
    assert graph.status.tolist() == [0, flags.NOT_FINITE, flags.COINCIDENT, flags.SINGULAR_CELL, 0]
    assert graph.edge_ptr.tolist() == [0, 6, 6, 6, 6, 12]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(width=64), min_size=9, max_size=9), st.lists(st.floats(width=64), min_size=6, max_size=6))
def test_any_floats(cell, positions):
    """Whatever the bits: edges, or one clear error."""
    x = torch.tensor(positions, dtype=torch.float64).reshape(2, 3)
    h = torch.tensor(cell, dtype=torch.float64).reshape(3, 3)
    try:
        graph = crystal.voronoi_graph(x, h).graph
    except ValueError as error:
        said = str(error)
    else:
        said = ""
        assert graph.status[0] == 0
    if said:
        assert " must " in said
        masked = crystal.voronoi_graph(x, h, on_error="mask").graph
        assert masked.status[0] != 0
        assert masked.num_edges == 0


def prototypes(most, skip):
    """Every so many-th of AFLOW's prototypes with few atoms, as pymatgen ships them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

        found = [entry["snl"].structure for entry in AFLOW_PROTOTYPE_LIBRARY]
    return [s for s in found if len(s) <= most][::skip]


def pymatgen_sets(structure, **options):
    """{(j, *shift)} of each atom by pymatgen; its images count from the positions as given, as ours do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pymatgen.analysis.local_env import CrystalNN

        finder = CrystalNN(**options)
        infos = [finder.get_nn_info(structure, i) for i in range(len(structure))]
    return [{(n["site_index"], *map(int, n["image"])) for n in info} for info in infos]


def test_pymatgen_with_the_arguments_of_cdvae():
    structures = prototypes(4, 12)
    c = crystal.convert.from_pymatgen(structures)
    graph = crystal.crystal_nn_graph(c.positions, c.cell, natoms=c.natoms, symmetrize=None)
    rows = chosen(graph)
    for structure, first in zip(structures, graph.atom_ptr.tolist(), strict=False):
        want = pymatgen_sets(structure, distance_cutoffs=None, x_diff_weight=-1, porous_adjustment=False)
        mine = [{(j - first, *s) for j, *s in row} for row in rows[first : first + len(structure)]]
        assert mine == want, structure.formula


@pytest.mark.parametrize("charged", [False, True])
def test_pymatgen_with_its_own_arguments(charged):
    structures = [s for s in prototypes(4, 24) if len(s.elements) > 1]
    if charged:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for s in structures:
                s.add_oxidation_state_by_guess(max_sites=-1)
    c = crystal.convert.from_pymatgen(structures)
    electronegativity, radius = crystal.convert.chemistry(structures)
    graph = crystal.crystal_nn_graph(
        c.positions,
        c.cell,
        natoms=c.natoms,
        symmetrize=None,
        electronegativity=electronegativity,
        x_diff_weight=3.0,
        radius=radius,
        distance_cutoffs=(0.5, 1.0),
        porous_adjustment=True,
    )
    rows = chosen(graph)
    for structure, first in zip(structures, graph.atom_ptr.tolist(), strict=False):
        mine = [{(j - first, *s) for j, *s in row} for row in rows[first : first + len(structure)]]
        assert mine == pymatgen_sets(structure), structure.formula
