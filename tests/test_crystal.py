"""Neighbour lists: brute force on random cells, symmetries of space, the same bits always, and bad input by name."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyfast import crystal
from pyfast.crystal import Status, _search
from pyfast.crystal._arguments import batch_of
from pyfast.reference import crystal as reference


def random_structure(seed, most=8000):
    """Triclinic cells of both hands, flat, long and sheared; atoms up to ten cells outside or on symmetric places."""
    rng = np.random.default_rng(seed)
    large = seed % 10 == 9
    n = int(rng.integers(97, 300) if large else rng.integers(0, 41))
    scale = (rng.uniform(8, 20) if large else rng.uniform(1, 8)) * np.ones(3)
    if rng.random() < 0.3:
        scale *= np.exp(rng.uniform(-math.log(50) / 2, math.log(50) / 2, 3))
    shear = np.eye(3)
    if rng.random() < 0.3:
        shear[1, 0], shear[2, 0], shear[2, 1] = rng.uniform(-5, 5, 3)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    cell = np.diag(scale) @ shear @ turn
    pbc = rng.integers(0, 2, 3).astype(bool) if rng.random() < 0.6 else np.ones(3, bool)
    f = rng.random((n, 3))
    if rng.random() < 0.4:
        f += rng.integers(-10, 11, (n, 3))
    if rng.random() < 0.2:
        f = np.round(2 * f) / 2
    cutoff = math.exp(rng.uniform(math.log(0.01), math.log(15)))
    while n * n * 4.2 * cutoff**3 / abs(np.linalg.det(cell)) > most:
        cutoff *= 0.8
    dtype = torch.float32 if rng.random() < 0.5 else torch.float64
    return torch.tensor(f @ cell).reshape(-1, 3).to(dtype), torch.tensor(cell).to(dtype), cutoff, torch.tensor(pbc)


def same(a, b):
    """Bit by bit; a graph without vectors is compared without."""
    for name, x, y in zip(a._fields, a, b, strict=True):
        if x is None or y is None:
            assert name == "vector"
        else:
            torch.testing.assert_close(x, y, rtol=0, atol=0, msg=lambda m, name=name: f"{name}: {m}")


def copper(dtype=torch.float64):
    return 3.61 * torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]], dtype=dtype)


def batch(seeds, dtype=torch.float64):
    parts = [random_structure(s, 2000) for s in seeds]
    return (
        torch.cat([x for x, *_ in parts]).to(dtype),
        torch.stack([c.to(dtype) for _, c, *_ in parts]),
        torch.tensor([r for _, _, r, _ in parts], dtype=torch.float64),
        torch.tensor([len(x) for x, *_ in parts]),
        torch.stack([p for *_, p in parts]),
    )


def pytest_generate_tests(metafunc):
    if "chunk" in metafunc.fixturenames:
        cells = metafunc.config.getoption("cells")
        metafunc.parametrize("chunk", range(0, cells, 50))


def test_matches_brute_force(chunk):
    for seed in range(chunk, chunk + 50):
        x, cell, cutoff, pbc = random_structure(seed)
        options = {"inclusive": seed % 3 == 0, "half": seed % 5 == 0}
        got = crystal.neighbors(x, cell, cutoff, pbc, vectors=True, **options)
        same(got, reference.neighbors(x, cell, cutoff, pbc, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_batch_is_its_structures_side_by_side(dtype, index_dtype):
    x, cell, cutoff, natoms, pbc = batch(range(24), dtype)
    got = crystal.radius_graph(x, cell, cutoff, natoms=natoms, pbc=pbc, index_dtype=index_dtype, vectors=True)
    assert got.edge_index.dtype == got.ptr.dtype == got.reverse.dtype == index_dtype
    first, edges = 0, 0
    for b, n in enumerate(natoms.tolist()):
        one = crystal.neighbors(x[first : first + n], cell[b], cutoff[b], pbc[b], index_dtype=index_dtype, vectors=True)
        rows = slice(edges, edges + one.num_edges)
        torch.testing.assert_close(got.edge_index[:, rows], one.edge_index + first, rtol=0, atol=0)
        back = torch.where(one.reverse < 0, one.reverse, one.reverse + edges)
        for a, c in [(got.shift, one.shift), (got.distance, one.distance), (got.vector, one.vector)]:
            torch.testing.assert_close(a[rows], c, rtol=0, atol=0)
        torch.testing.assert_close(got.reverse[rows], back, rtol=0, atol=0)
        assert got.edge_ptr[b] == edges
        assert got.atom_ptr[b] == first
        first, edges = first + n, edges + one.num_edges
    assert got.num_edges == edges
    of_each = torch.repeat_interleave(natoms)
    again = crystal.radius_graph(x, cell, cutoff, batch=of_each, pbc=pbc, index_dtype=index_dtype, vectors=True)
    same(got, again)


def test_reverse_edges():
    x, cell, cutoff, natoms, pbc = batch(range(30))
    graph = crystal.radius_graph(x, cell, cutoff, natoms=natoms, pbc=pbc, vectors=True)
    back = graph.reverse
    torch.testing.assert_close(back[back], torch.arange(graph.num_edges))
    assert (graph.source[back] == graph.target).all()
    assert (graph.shift[back] == -graph.shift).all()
    assert (graph.vector[back] == -graph.vector).all()


@pytest.mark.parametrize("half", [False, True])
def test_species_pairs(half):
    radii = torch.tensor([[2.0, 3.5, 0.0], [3.5, 1.0, 2.5], [0.0, 2.5, 4.0]], dtype=torch.float64)
    for seed in (1, 4, 9, 19, 29):
        x, cell, _, pbc = random_structure(seed)
        species = torch.arange(len(x)) % 3
        got = crystal.neighbors(x, cell, radii, pbc, species=species, half=half, vectors=True)
        same(got, reference.neighbors(x, cell, radii, pbc, species=species, half=half))


def test_half_list_keeps_one_of_each_two():
    x, cell, cutoff, pbc = random_structure(7)
    whole = crystal.neighbors(x, cell, cutoff, pbc)
    half = crystal.neighbors(x, cell, cutoff, pbc, half=True)
    assert 2 * half.num_edges == whole.num_edges
    assert (half.reverse == -1).all()


def test_inclusive_means_exactly_at_the_cutoff():
    cubic = 3 * torch.eye(3, dtype=torch.float64)
    x = torch.zeros(1, 3, dtype=torch.float64)
    assert crystal.neighbors(x, cubic, 3.0).num_edges == 0
    assert crystal.neighbors(x, cubic, 3.0, inclusive=True).num_edges == 6
    assert crystal.neighbors(x, cubic, math.nextafter(3.0, 4)).num_edges == 6


@pytest.mark.parametrize("n", [40, 200])
def test_symmetries_of_space(n):
    rng = np.random.default_rng(n)
    side = (n / 0.05) ** (1 / 3)
    cell = torch.tensor(side * (np.eye(3) + 0.2 * rng.normal(size=(3, 3))))
    x = torch.tensor(rng.random((n, 3))) @ cell
    plain = crystal.neighbors(x, cell, 5.0)

    def edges(graph, name=None, shift=None):
        i, j, s = graph.target, graph.source, graph.shift.long()
        if shift is not None:
            s = s + shift[i] - shift[j]
        i, j = (i, j) if name is None else (name[i], name[j])
        return sorted(map(tuple, torch.cat([i[:, None], j[:, None], s], 1).tolist()))

    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    for q in (torch.tensor(turn), -torch.tensor(turn)):  # rotation, reflection
        assert edges(crystal.neighbors(x @ q, cell @ q, 5.0)) == edges(plain)
    assert edges(crystal.neighbors(x + torch.tensor([0.3, -7.1, 2.9]).double(), cell, 5.0)) == edges(plain)
    moved = torch.tensor(rng.integers(-3, 4, (n, 3)))
    out = crystal.neighbors(x + moved.double() @ cell, cell, 5.0)
    assert edges(out, shift=-moved) == edges(plain)
    order = torch.tensor(rng.permutation(n))
    assert edges(crystal.neighbors(x[order], cell, 5.0), name=order) == edges(plain)
    change = torch.tensor([[1, 1, 0], [0, 1, 0], [2, 0, 1]])  # another cell of the same lattice
    other = crystal.neighbors(x, change.double() @ cell, 5.0)
    assert edges(other._replace(shift=other.shift.long() @ change)) == edges(plain)


def test_supercell_sees_what_the_cell_sees():
    x, cell = torch.tensor([[0.0, 0, 0], [1.1, 0.7, 0.4]]).double(), copper()
    steps = torch.cartesian_prod(torch.arange(2), torch.arange(1), torch.arange(3)).double()
    big = (x[None] + (steps @ cell)[:, None]).reshape(-1, 3)
    small = crystal.neighbors(x, cell, 6.0, vectors=True)
    large = crystal.neighbors(big, cell * torch.tensor([2.0, 1, 3])[:, None].double(), 6.0, vectors=True)
    for i in range(len(big)):
        a, b = small.ptr[i % 2 : i % 2 + 2], large.ptr[i : i + 2]
        seen = [
            sorted(
                [
                    (int(j) % 2, *(round(c, 6) + 0.0 for c in v))
                    for j, v in zip(g.source[s], g.vector[s].tolist(), strict=True)
                ]
            )
            for g, s in [(small, slice(*a)), (large, slice(*b))]
        ]
        assert seen[0] == seen[1]


def test_threads_and_runs_agree(threads):
    x, cell, cutoff, natoms, pbc = batch([*range(40), 9, 19, 29])
    threads(lambda: crystal.radius_graph(x, cell, cutoff, natoms=natoms, pbc=pbc, vectors=True))


def test_sides_of_the_switch_agree():
    """A structure of many atoms, alone and as 97 of the atoms that pairs are sought among, by its own lists."""
    x, cell, cutoff, pbc = random_structure(9)
    whole = crystal.neighbors(x, cell, cutoff, pbc)
    chosen = whole.target.lt(90) & whole.source.lt(90)
    part = crystal.neighbors(x[:90], cell, cutoff, pbc)
    torch.testing.assert_close(whole.edge_index[:, chosen], part.edge_index)
    torch.testing.assert_close(whole.distance[chosen], part.distance, rtol=0, atol=0)


@given(st.data())
def test_any_strides(strided, data):
    x, cell, _, _ = random_structure(3)
    want = crystal.neighbors(x, cell, 3.0)
    x, cell = (data.draw(strided(t, expand=False)) for t in (x, cell))
    same(crystal.neighbors(x, cell, 3.0), want)


def test_gradients_are_not_asked_for_in_vain():
    x = torch.zeros(1, 3, requires_grad=True)
    graph = crystal.neighbors(x, copper(torch.float32), 3.0, vectors=True)
    assert graph.num_edges == 12
    assert not graph.vector.requires_grad


def test_capacity():
    x, cell, cutoff, natoms, pbc = batch([1, 2, 3, 5, 7])
    full = crystal.radius_graph(x, cell, cutoff, natoms=natoms, pbc=pbc, vectors=True)
    n = full.num_edges
    padded = crystal.radius_graph(x, cell, cutoff, natoms=natoms, pbc=pbc, capacity=n + 9, vectors=True)
    assert padded.mask.sum() == n
    for a, b in [(padded.shift, full.shift), (padded.distance, full.distance), (padded.reverse, full.reverse)]:
        torch.testing.assert_close(a[:n], b, rtol=0, atol=0)
    assert (padded.edge_index[:, n:] == 0).all()
    assert (padded.reverse[n:] == -1).all()
    torch.testing.assert_close(padded.ptr, full.ptr)
    room = int(full.edge_ptr[3]) + 1
    cut = crystal.radius_graph(x, cell, cutoff, natoms=natoms, pbc=pbc, capacity=room)
    kept = (full.edge_ptr[1:] <= room).long()
    assert ((cut.status & Status.OVERFLOW) > 0).tolist() == [not k for k in kept.tolist()]
    assert cut.ptr[-1] == full.edge_ptr[int(kept.sum())]
    torch.testing.assert_close(cut.distance[: int(cut.ptr[-1])], full.distance[: int(cut.ptr[-1])])


@pytest.mark.filterwarnings("ignore")
def test_compiles_whole_with_a_capacity():
    def f(x, cell):
        graph = crystal.radius_graph(x, cell, 4.0, natoms=natoms, capacity=400, on_error="mask")
        return graph, graph.distance.sum()

    natoms = torch.tensor([2, 1])
    x, cell = torch.tensor([[0.0, 0, 0], [1.1, 0.7, 0.4], [0, 0, 0]]), torch.stack([copper(torch.float32)] * 2)
    got, _ = torch.compile(f, fullgraph=True)(x, cell)
    same(got, f(x, cell)[0])


def test_contract():
    x, cell, _, natoms, pbc = batch([1, 2, 9])
    cutoff = torch.full((3,), 4.0, dtype=torch.float64)
    asked = batch_of(x, cell, cutoff, natoms, None, pbc, None, True)
    counts, _ = _search.count(*asked, False, False, 2e9)
    ptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    torch.library.opcheck(torch.ops.pyfast.crystal_count.default, (*asked, False, False, 2e9))
    torch.library.opcheck(torch.ops.pyfast.crystal_fill.default, (*asked, False, False, ptr, int(ptr[-1])))
    with pytest.raises(ValueError, match="ptr must come from a count"):
        _search.fill(*asked._replace(cutoff=cutoff / 2), False, False, ptr, int(ptr[-1]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_works_in_workers(method):
    structures = [random_structure(seed, 2000)[0].double() for seed in range(8)]
    graph = functools.partial(crystal.neighbors, cell=copper(), cutoff=4.0)
    loader = torch.utils.data.DataLoader(
        structures, batch_size=None, num_workers=2, multiprocessing_context=method, collate_fn=graph
    )
    for got, x in zip(loader, structures, strict=True):
        same(got, graph(x))


def test_rows_of_many_edges():
    """Hundreds to a row, and many images of one source, where bins are used."""
    for seed in (9, 29):
        x, cell, _, pbc = random_structure(seed)
        cutoff = 4.0 * (abs(torch.linalg.det(cell)) / len(x)).item() ** (1 / 3)
        got = crystal.neighbors(x, cell, cutoff, pbc, vectors=True)
        assert got.ptr.diff().max() > 100
        same(got, reference.neighbors(x, cell, cutoff, pbc))


def test_graph_is_a_pytree():
    graph = crystal.neighbors(torch.zeros(1, 3), copper(torch.float32), 3.0)
    moved = torch.utils._pytree.tree_map(lambda t: t, graph)
    assert isinstance(moved, crystal.PeriodicGraph)
    assert graph.to("meta").distance.device.type == "meta"
    assert (graph.num_atoms, graph.num_edges, graph.num_structures) == (1, 12, 1)


def test_graph_has_no_one_dtype():
    graph = crystal.neighbors(torch.zeros(1, 3), torch.eye(3), 1.1)
    assert graph.to("cpu", non_blocking=True).shift.dtype == torch.int32
    for wrong in (torch.float64, torch.zeros(1)):
        with pytest.raises(TypeError, match="args must be of a device"):
            graph.to(wrong)


def test_nothing_is_a_structure_too():
    for dtype in (torch.float32, torch.float64):
        none = crystal.radius_graph(torch.zeros(0, 3, dtype=dtype), torch.zeros(0, 3, 3, dtype=dtype), 5.0, natoms=[])
        assert none.edge_index.shape == (2, 0)
        assert none.distance.dtype == dtype
        assert none.edge_ptr.tolist() == [0]
    empty = crystal.radius_graph(torch.zeros(1, 3), torch.eye(3).expand(3, 3, 3), 1.1, natoms=[0, 1, 0])
    assert empty.edge_ptr.tolist() == [0, 0, 6, 6]
    alone = crystal.neighbors(torch.zeros(1, 3), None, 5.0, pbc=False)
    assert alone.num_edges == 0
    assert crystal.neighbors(torch.zeros(0, 3), torch.eye(3), 5.0, capacity=4, vectors=True).vector.shape == (4, 3)


def test_atoms_in_one_place_are_neighbours():
    graph = crystal.neighbors(torch.zeros(2, 3), 9 * torch.eye(3), 3.0)
    assert graph.distance.tolist() == [0, 0]
    assert graph.status.tolist() == [Status.COINCIDENT]


def test_atoms_in_one_place_need_not_be_neighbours():
    cutoff, species = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
    for far in (0.0, 1e6 + 2.5):  # images laid out once, and pair by pair
        positions = torch.tensor([[0.0, 0, 0], [0, 0, 0], [far, 0, 0]])[: 3 if far else 2]
        kinds = torch.cat([species, species[:1]])[: len(positions)]
        graph = crystal.neighbors(positions, 5 * torch.eye(3), cutoff, species=kinds)
        assert graph.num_edges == 0
        assert graph.status.tolist() == [0]


@pytest.mark.parametrize("cutoff", [1e-4, 3e-7, 1e-8, 1e-11])
def test_cutoffs_far_below_what_float32_resolves(cutoff):
    """Pairs across the borders of a skewed cell, 0.8 of the cutoff apart: every one is found, from both ends."""
    rng = torch.Generator().manual_seed(1)
    cell = 10 * torch.eye(3).double() + 6 * torch.rand(3, 3, generator=rng, dtype=torch.float64) - 3
    fraction = torch.rand(300, 3, generator=rng, dtype=torch.float64)
    fraction[torch.arange(300), torch.randint(3, (300,), generator=rng)] = 0
    apart = torch.randn(300, 3, generator=rng, dtype=torch.float64)
    apart *= 0.4 * cutoff / apart.norm(dim=1, keepdim=True)
    images = torch.randint(-1, 2, (300, 3), generator=rng).double() @ cell
    positions = torch.cat([fraction @ cell - apart, fraction @ cell + apart + images])
    graph = crystal.neighbors(positions, cell, cutoff)
    same(graph, reference.neighbors(positions, cell, cutoff))
    assert graph.num_edges == 600


@pytest.mark.parametrize("far", [3e8 + 17, 2.4e9 + 129])
def test_a_far_atom_hides_no_edges(far):
    """Others lie so far from the middle that float32 sees them in few places, 16 or 128 Å apart."""
    rng = torch.Generator().manual_seed(2)
    positions = torch.rand(120, 3, generator=rng, dtype=torch.float64)
    positions[-1] = far
    graph = crystal.neighbors(positions, None, 0.5, pbc=False)
    near = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist") < 0.5
    assert graph.num_edges == int(near.sum()) - len(positions)


def test_axes_that_do_not_repeat_need_no_vector():
    x = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    slab = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 0, 0]])
    assert crystal.neighbors(x, slab, 1.5, [True, True, False]).num_edges == 2
    assert crystal.neighbors(x, slab * 0, 1.5, False).num_edges == 2
    assert crystal.neighbors(x, torch.full((3, 3), torch.nan), 1.5, False).num_edges == 2


@pytest.mark.parametrize("pbc", [(False, False, False), (False, False, True), (True, False, False)])
def test_many_atoms_far_apart_are_few_edges(pbc):
    n = 70_000  # squared, more than there are edges in any list
    x = torch.zeros(n, 3)
    x[:, 1] = 2 * torch.arange(n)
    cell = torch.tensor([[3.0, 0, 0], [0, 3, 0], [1, 0, 3]])
    assert crystal.neighbors(x, cell, 2.5, pbc).num_edges == 2 * (n - 1)
    assert crystal.neighbors(x[:3000], cell, 2.5, pbc, max_edges=6000).num_edges == 5998
    with pytest.raises(MemoryError, match="got far more"):
        crystal.neighbors(0 * x, cell, 2.5, pbc)


def test_lists_that_memory_does_not_hold_are_refused(monkeypatch):
    x, cell = torch.zeros(1, 3), 3 * torch.eye(3)
    monkeypatch.setattr("pyfast.crystal._neighbors.memory", lambda: 2**30)
    with pytest.raises(MemoryError, match=r"cutoff must give edges that memory holds, got \d{8} with 600"):
        crystal.neighbors(x, cell, 600.0)


def test_numbers_of_numpy_are_numbers():
    for cutoff in (np.float32(1.25), np.float64(1.25), np.int64(1)):
        same = crystal.neighbors(ONE, EYE, float(cutoff), inclusive=True).num_edges
        assert crystal.neighbors(ONE, EYE, cutoff, inclusive=True).num_edges == same > 0
    assert crystal.knn_graph(ONE, EYE, np.int64(3)).num_edges == 3
    assert crystal.neighbors(ONE, EYE, 1.1, np.array([True, False, True]), capacity=np.int64(9)).num_edges == 9


def test_zero_cutoff_warns():
    for call in (
        lambda x: crystal.neighbors(x, EYE, 0.0, inclusive=True),
        lambda x: crystal.radius_graph(x, EYE, 0.0),
        lambda x: crystal.NeighborList(0.0, skin=0.0)(x, EYE),
    ):
        with pytest.warns(UserWarning, match="cutoff of zero") as seen:
            assert call(torch.zeros(2, 3)).num_edges == 0
        assert [w.filename for w in seen] == [__file__]


def test_a_cell_of_one_structure_needs_no_batch():
    x, cell = torch.rand(4, 3), 4 * torch.eye(3)
    want = crystal.neighbors(x, cell, 2.5)
    structure = torch.zeros(4, dtype=torch.int64)
    for one in ({"natoms": [4]}, {"natoms": torch.tensor([4])}, {"batch": structure}):
        for a, b in zip(crystal.radius_graph(x, cell, 2.5, **one), want, strict=True):
            assert a is b is None or torch.equal(a, b)
    for many in ({"natoms": [2, 2]}, {"natoms": torch.tensor([2, 2])}):
        with pytest.raises(ValueError, match=r"cell must have shape \(B, 3, 3\), rows its vectors, got \(3, 3\)"):
            crystal.radius_graph(x, cell, 2.5, **many)
    with pytest.raises(ValueError, match=r"batch must lie in \[0, 1\) to match cell, got 1 to 1"):
        crystal.radius_graph(x, cell, 2.5, batch=structure + 1)


def test_status_says_names():
    assert f"{Status(5)} {Status(0)} {Status.OVERFLOW} {Status(5):03d}" == "NOT_FINITE|TOO_FAR 0 OVERFLOW 005"
    assert str(Status(5)) == "NOT_FINITE|TOO_FAR"


def test_padding_is_printed():
    graph = crystal.neighbors(ONE, EYE, 1.1, capacity=9)
    assert repr(graph) == "PeriodicGraph(1 structures, 1 atoms, 6 of 9 edges)"
    assert repr(graph.to("meta")) == "PeriodicGraph(1 structures, 1 atoms, 9 edges)"
    shapes = crystal.neighbors(ONE.to("meta"), EYE.to("meta"), 1.1, capacity=9, on_error="mask")
    assert [None if x is None else x.shape for x in shapes] == [None if x is None else x.shape for x in graph]


def test_graphs_and_crystals_are_saved(tmp_path):
    crystals = crystal.Crystals(ONE, EYE[None], torch.tensor([1]), torch.tensor([29]), torch.ones(1, 3) > 0)
    for what in (crystals, crystal.neighbors(ONE, EYE, 1.1)):
        torch.save(what, tmp_path / "saved.pt")
        with torch.serialization.safe_globals([type(what)]):
            listed = torch.load(tmp_path / "saved.pt")
        for again in (listed, torch.load(tmp_path / "saved.pt", weights_only=False)):
            assert type(again) is type(what)
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(again, what, strict=True))


EYE, ONE = torch.eye(3), torch.zeros(1, 3)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("error", "message", "arguments", "options"),
    [
        (ValueError, r"positions must be finite, got nan at atom 1, axis y",
         (torch.tensor([[0, 0, 0], [0, NAN, 0]]), EYE, 1.0), {}),
        (ValueError, r"positions must be finite, got inf at atom 0, axis x",
         (torch.tensor([[INF, 0, 0]]), EYE, 1.0), {}),
        (ValueError, r"cell must be finite, got .* as vector b",
         (ONE, torch.tensor([[1, 0, 0], [0, NAN, 0], [0, 0, 1]]), 1.0), {}),
        (ValueError, r"cell must be finite, got .* as vector c",
         (ONE, torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, INF]]), 1.0), {}),
        (ValueError, r"cutoff must be finite and not negative, got nan", (ONE, EYE, NAN), {}),
        (ValueError, r"cutoff must be finite and not negative, got inf", (ONE, EYE, INF), {}),
        (ValueError, r"cutoff must be finite and not negative, got -1", (ONE, EYE, -1.0), {}),
        (ValueError, r"cutoff must be finite and not negative, got -1", (ONE, EYE, torch.tensor(-1.0)), {}),
        (ValueError, r"cutoff must be one number or of shape \(1,\)", (ONE, EYE, torch.ones(2)), {}),
        (ValueError, r"cell must have independent vectors along abc", (ONE, torch.ones(3, 3), 1.0), {}),
        (ValueError, r"cell must have independent vectors along abc", (ONE, torch.zeros(3, 3), 1.0), {}),
        (ValueError, r"cell must have independent vectors along ab,",
         (ONE, torch.ones(3, 3), 1.0), {"pbc": [True, True, False]}),
        (ValueError, r"cell must have shape \(3, 3\)", (ONE, torch.ones(2, 3), 1.0), {}),
        (ValueError, r"cell must be given for periodic structures", (ONE, None, 1.0), {}),
        (ValueError, r"positions must lie within 2\*\*30 cells of the origin",
         (torch.full((1, 3), 1e30), EYE, 1.0), {}),
        (ValueError, r"positions must lie within 2\*\*30 cells",
         (torch.full((1, 3), 1e300, dtype=torch.float64), EYE.double(), 1.0), {}),
        (ValueError, r"cutoff must reach less than 2\*\*30 cells, got 1e\+300", (ONE, EYE, 1e300), {}),
        (ValueError, r"positions must have shape \(N, 3\), got \(3,\)", (torch.zeros(3), EYE, 1.0), {}),
        (ValueError, r"species must have shape \(1,\)",
         (ONE, EYE, torch.ones(1, 1)), {"species": torch.zeros(2).long()}),
        (ValueError, r"species must lie in \[0, 1\)", (ONE, EYE, torch.ones(1, 1)), {"species": torch.ones(1).long()}),
        (ValueError, r"cutoff must have shape \(K, K\)", (ONE, EYE, 1.0), {"species": torch.zeros(1).long()}),
        (ValueError, r"cutoff must be symmetric",
         (ONE, EYE, torch.tensor([[1.0, 2], [1, 2]])), {"species": torch.zeros(1).long()}),
        (ValueError, r"capacity must lie in", (ONE, EYE, 1.0), {"capacity": -1}),
        (ValueError, r"on_error must be 'raise' or 'mask', got 'ignore'", (ONE, EYE, 1.0), {"on_error": "ignore"}),
        (ValueError, r"pbc must be one bool", (ONE, EYE, 1.0), {"pbc": [True, False]}),
        (TypeError, r"pbc must be bool", (ONE, EYE, 1.0), {"pbc": [1, 0, 1]}),
        (ValueError, r"cutoff must be given, got None", (ONE, EYE), {}),
        (TypeError, r"positions must have values, .* got a meta tensor; capacity and on_error='mask' give",
         (ONE.to("meta"), EYE.to("meta"), 1.0), {}),
        (TypeError, r"positions must have values, .* got a meta tensor; capacity and on_error='mask' give",
         (ONE.to("meta"), EYE.to("meta"), 1.0), {"capacity": 5}),
        (TypeError, r"positions must be .* tensor, got ndarray; torch.from_numpy makes it a tensor$",
         (ONE.numpy(), EYE, 1.0), {}),
        (TypeError, r"cell must be a tensor of .*, got ndarray; torch.from_numpy makes it a tensor$",
         (ONE, EYE.numpy(), 1.0), {}),
        (TypeError, r"pbc must be bool, got 'TTF'", (ONE, EYE, 1.0), {"pbc": "TTF"}),
        (TypeError, r"cutoff must be of real numbers, got torch.bool", (ONE, EYE, torch.tensor(True)), {}),
        (TypeError, r"cutoff must be of real numbers, got torch.complex64", (ONE, EYE, torch.tensor(1j)), {}),
        (TypeError, r"capacity must be an integer or None, got float", (ONE, EYE, 1.0), {"capacity": 5.0}),
        (TypeError, r"species must be int64 or int32, got list", (ONE, EYE, torch.ones(1, 1)), {"species": [0]}),
        (TypeError, r"positions must be a float32 or float64 tensor, got torch.int64", (ONE.long(), EYE, 1.0), {}),
        (TypeError, r"cell must be a tensor of positions' dtype", (ONE, EYE.double(), 1.0), {}),
        (TypeError, r"cell must be on positions' device, cpu, got meta", (ONE, EYE.to("meta"), 1.0), {}),
        (TypeError, r"cutoff must be a number or a tensor, got str", (ONE, EYE, "1"), {}),
        (TypeError, r"species must be int64 or int32", (ONE, EYE, torch.ones(1, 1)), {"species": torch.zeros(1)}),
        (TypeError, r"index_dtype must be torch.int64 or torch.int32", (ONE, EYE, 1.0), {"index_dtype": torch.int16}),
        (MemoryError, r"cutoff must give at most max_edges = 2147483647 edges, got far more", (ONE, EYE, 1e6), {}),
        (MemoryError, r"cutoff must give at most max_edges = 3 edges, got 6", (ONE, EYE, 1.1), {"max_edges": 3}),
    ],
)  # fmt: skip
def test_bad_input_is_named(error, message, arguments, options):
    with pytest.raises(error, match=message):
        crystal.neighbors(*arguments, **options)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "natoms or batch must be given for 2 structures", {}),
        (ValueError, "natoms must be None where batch is given", {"natoms": [1, 1], "batch": torch.tensor([0, 1])}),
        (ValueError, r"natoms must have shape \(2,\)", {"natoms": [2]}),
        (ValueError, "natoms must add up to the 2 rows of positions, got 3", {"natoms": [1, 2]}),
        (ValueError, "natoms must not be negative, got -1", {"natoms": [3, -1]}),
        (ValueError, "batch must not fall", {"batch": torch.tensor([1, 0])}),
        (ValueError, r"batch must lie in \[0, 2\)", {"batch": torch.tensor([0, 2])}),
        (ValueError, r"batch must have shape \(2,\)", {"batch": torch.tensor([0])}),
        (TypeError, "batch must be int64 or int32", {"batch": torch.tensor([0.0, 1.0])}),
        (TypeError, "natoms must be int64 or int32", {"natoms": torch.tensor([1.0, 1.0])}),
        (TypeError, "natoms must be int64 or int32, got torch.float32", {"natoms": [1.5, 1]}),
        (TypeError, "batch must be int64 or int32, got list", {"batch": [0, 1]}),
    ],
)
def test_bad_batches_are_named(error, message, options):
    with pytest.raises(error, match=message):
        crystal.radius_graph(torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3), 1.0, **options)


def test_the_structure_is_named():
    cell = torch.stack([torch.eye(3), torch.ones(3, 3)])
    with pytest.raises(ValueError, match="in structure 1"):
        crystal.radius_graph(torch.zeros(2, 3), cell, 1.1, natoms=[1, 1])


def test_masked_structures_are_empty_and_say_why():
    x = torch.zeros(5, 3)
    x[2, 1] = NAN
    x[3] = 1e30
    cell = torch.stack([EYE, torch.ones(3, 3), EYE, EYE, EYE])
    cutoff = torch.tensor([1.1, 1.1, 1.1, 1.1, -1.0])
    graph = crystal.radius_graph(x, cell, cutoff, natoms=[1] * 5, on_error="mask")
    assert graph.edge_ptr.tolist() == [0, 6, 6, 6, 6, 6]
    assert graph.status.tolist() == [0, Status.SINGULAR_CELL, Status.NOT_FINITE, Status.TOO_FAR, Status.NOT_FINITE]


def test_random_bytes_never_crash():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = int(rng.integers(0, 6)) if rng.random() < 0.9 else 120
        x = torch.from_numpy(rng.integers(0, 256, (n, 24), dtype=np.uint8).view(np.float64).copy())
        cell = torch.from_numpy(rng.integers(0, 256, (3, 24), dtype=np.uint8).view(np.float64).copy())
        pbc = torch.tensor(rng.integers(0, 2, 3).astype(bool))
        graph = crystal.radius_graph(
            x, cell[None], float(rng.exponential()), natoms=[n], pbc=pbc, on_error="mask", capacity=64
        )
        assert graph.num_edges == 64
