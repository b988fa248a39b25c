"""The k nearest: brute force, ties, both ways to make them mutual, and lists that last while atoms move."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast import crystal
from pyfast.crystal import _nearest, _search
from pyfast.crystal._arguments import batch_of
from pyfast.reference import crystal as reference


def structure(seed):
    """Cells of any shape, half of them with atoms on symmetric places, so that neighbours are equally far."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12)) if seed % 7 else 110
    cell = 2.5 * np.cbrt(n) * (np.eye(3) + 0.3 * rng.normal(size=(3, 3)) * (seed % 2))
    f = rng.random((n, 3)) if seed % 2 else rng.integers(0, 4, (n, 3)) / 4
    dtype = torch.float32 if seed % 3 else torch.float64
    return torch.tensor(f @ cell).to(dtype), torch.tensor(cell).to(dtype)


@pytest.mark.parametrize("ties", ["canonical", "include", "cdvae"])
@pytest.mark.parametrize("symmetrize", [None, "union", "mutual"])
def test_matches_brute_force(ties, symmetrize):
    options = {"ties": ties, "symmetrize": symmetrize}
    for seed in range(16):
        x, cell = structure(seed)
        k, natoms = 1 + seed * 3 % 13, torch.tensor([len(x)])
        want = reference.knn_graph(x, cell[None], k, cutoff=6.0, natoms=natoms, **options)
        got = crystal.knn_graph(x, cell, k, cutoff=6.0, vectors=True, **options)
        for name, a, b in zip(got._fields, got, want, strict=True):
            if name != "status":
                torch.testing.assert_close(a, b, rtol=0, atol=0, msg=lambda m, name=name: f"{name}: {m}")


def same(a, b):
    for name, x, y in zip(a._fields, a, b, strict=True):
        assert (x is None) == (y is None), name
        if x is not None:
            torch.testing.assert_close(x, y, rtol=0, atol=0, msg=lambda m, name=name: f"{name}: {m}")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_sought_and_chosen_at_once_or_one_after_the_other(data):
    """What a CPU does structure by structure is what a GPU does with the whole graph, in its operators."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    natoms = data.draw(st.lists(st.sampled_from([0, 1, 2, 5, 9, 20, 97, 130]), min_size=1, max_size=4))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    x, cells = [], []
    for n in natoms:
        shape = np.eye(3) + rng.integers(0, 2) * 0.4 * rng.normal(size=(3, 3))
        cells.append(2.4 * np.cbrt(max(n, 1)) * rng.choice([1, -1, 0.5, 2]) * shape)
        f = rng.random((n, 3)) if rng.integers(2) else rng.integers(-4, 8, (n, 3)) / 4  # also in one place
        x.append(f @ cells[-1])
    k, ties = data.draw(st.sampled_from([1, 2, 5, 20, 70, 200])), data.draw(st.sampled_from(_nearest.TIES))
    cutoff = data.draw(st.sampled_from([0.5, 3.0, 6.0] if ties == "cdvae" else [None, 0.5, 3.0, 7.2]))
    pbc = torch.tensor(rng.random((len(natoms), 3)) < rng.choice([0, 0.5, 1]))
    given = torch.tensor(np.concatenate(x)).to(dtype), torch.tensor(np.stack(cells)).to(dtype)
    asked = batch_of(*given, cutoff or 0.0, natoms, None, pbc, None, True)
    options = (
        k, cutoff is not None, ties == "cdvae" or data.draw(st.booleans()), ties,
        data.draw(st.sampled_from([0.0, 1e-4, 0.5])), data.draw(st.sampled_from(_nearest.SYMMETRIZE)),
        data.draw(st.sampled_from([torch.int32, torch.int64])), True, 2**31 - 1,
    )  # fmt: skip
    same(_nearest.nearest_of(asked, *options), _nearest.chosen_of(asked, *options))


def test_more_ties_than_there_is_room_for():
    """All atoms in one place but one, which is as far from all of them."""
    x = torch.zeros(90, 3)
    x[0, 0] = 2.0
    for k, of_each in ((1, 88), (89, 89)):
        graph = crystal.knn_graph(x, None, k, pbc=False, ties="include")
        assert graph.ptr.diff().tolist() == [89] + [of_each] * 89
        assert graph.status.item() == crystal.Status.COINCIDENT
    far = crystal.knn_graph(x[:2].double(), 4 * torch.eye(3).double(), 200, ties="include", symmetrize="union")
    assert far.num_edges >= 400
    assert (far.reverse >= 0).all()


@pytest.mark.parametrize("pbc", [True, [True, False, True], False])
def test_without_a_cutoff_there_is_always_a_kth(pbc):
    for seed in (1, 3, 7):
        x, cell = structure(seed)
        graph = crystal.knn_graph(x, cell, 9, pbc=pbc)
        n = len(x) if pbc is False else 10
        assert (graph.ptr.diff() == min(9, n - 1)).all()
        far = crystal.neighbors(x, cell, float(graph.distance.max()) * 1.01 + 0.1, pbc) if graph.num_edges else graph
        for i in range(0, len(x), 10):
            rows, all_rows = (g.distance[g.ptr[i] : g.ptr[i + 1]].sort().values for g in (graph, far))
            torch.testing.assert_close(rows, all_rows[: len(rows)], rtol=0, atol=0)


@pytest.mark.parametrize("ties", ["canonical", "include"])
@pytest.mark.parametrize("symmetrize", [None, "union", "mutual"])
def test_never_depends_on_the_order_of_atoms(ties, symmetrize):
    for seed in range(0, 12, 2):
        x, cell = structure(seed)
        x = torch.unique(x, dim=0)  # atoms in one place cannot be told apart
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        plain, mixed = (
            crystal.knn_graph(y, cell, 5, ties=ties, symmetrize=symmetrize, cutoff=7.0) for y in (x, x[order])
        )
        sets = [
            sorted(map(tuple, torch.cat([name[g.edge_index].T, g.shift.long()], 1).tolist()))
            for g, name in ((plain, torch.arange(len(x))), (mixed, order))
        ]
        assert sets[0] == sets[1]


def test_ties_are_included_however_the_crystal_lies():
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    fcc = torch.tensor(3.6 * np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]))
    for cell in (fcc, fcc @ torch.tensor(turn), torch.tensor([[1.0, 1, 0], [0, 1, 0], [2, 0, 1]]).double() @ fcc):
        for k, shell in [(1, 12), (12, 12), (13, 18), (20, 42)]:
            graph = crystal.knn_graph(torch.zeros(1, 3).double(), cell, k, ties="include")
            assert graph.num_edges == shell


def test_batch_threads_and_contract(threads):
    parts = [structure(s) for s in (0, 1, 4, 7, 9)]
    x, cell = torch.cat([x.double() for x, _ in parts]), torch.stack([c.double() for _, c in parts])
    natoms = torch.tensor([len(x) for x, _ in parts])
    whole = crystal.knn_graph(x, cell, 12, natoms=natoms)
    threads(lambda: crystal.knn_graph(x, cell, 12, natoms=natoms, vectors=True))
    alone = [crystal.knn_graph(a.double(), c.double(), 12).distance for a, c in parts]
    torch.testing.assert_close(whole.distance, torch.cat(alone), rtol=0, atol=0)
    packed = batch_of(x, cell, 4.0, natoms, None, True, None, True)
    start = 40 * packed.atom_ptr
    sought = (*packed, False, True, 12, 0, 0.0, 0, 1e9, 2**20, start, int(start[-1]))
    counts = _search.nearest(*sought)[0]
    ptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    start = ptr[packed.atom_ptr]
    sought = (*sought[:-2], start, int(ptr[-1]))
    found = _search.nearest(*sought)[3:]
    moved = (x, *found, start, packed.atom_ptr, ptr, int(ptr[-1]))
    for n, bad, message in (
        (5, start.flip(0), "start must"),
        (5, start + 1, "start must lie in"),
        (5, start * 0, "start must leave room"),
        (6, packed.atom_ptr + 1, "atom_ptr must go"),
        (7, ptr + 1, "ptr must go"),
        (7, torch.cat([ptr[:1], ptr[1:-1].flip(0), ptr[-1:]]), "ptr must not fall"),
    ):
        with pytest.raises(ValueError, match=message):
            _search.pack(*moved[:n], bad, *moved[n + 1 :])
    with pytest.raises(ValueError, match="start must not fall"):
        _search.nearest(*sought[:-2], torch.tensor([0, 2, 1, 2, 2, 2]), 2)
    near = crystal.radius_graph(x, cell, 4.0, natoms=natoms)
    asked = batch_of(x, cell, 4.0, natoms, None, True, None, True)
    given = (near.edge_index, near.shift, near.distance, near.ptr, *asked[:4], 3, 0, 0.0, -1.0)
    torch.library.opcheck(torch.ops.pyfast.crystal_choose.default, given)
    with pytest.raises(IndexError, match="edge_index must lie in"):
        _search.choose(near.edge_index + len(x), *given[1:])
    chosen = _search.choose(*given)
    edges = (*near[:5], chosen, int(chosen.sum()))
    torch.library.opcheck(torch.ops.pyfast.crystal_keep.default, edges)
    with pytest.raises(ValueError, match="count must be how many edges are chosen"):
        _search.keep(*edges[:-1], 3)
    with pytest.raises(IndexError, match="reverse must lie in"):
        _search.keep(*near[:3], near.reverse + near.num_edges, near.ptr, *edges[5:])


@pytest.mark.parametrize(
    ("message", "k", "options"),
    [
        ("k must be an integer of at least 1, got 0", 0, {}),
        ("k must be an integer of at least 1, got 1.5", 1.5, {}),
        ("k must be given, got None", None, {}),
        ("ties must be one of", 1, {"ties": "first"}),
        ("symmetrize must be None, 'union' or 'mutual', got 'both'", 1, {"symmetrize": "both"}),
        ("tolerance must be finite and not negative, got -1", 1, {"tolerance": -1}),
        ("cutoff must be given with ties='cdvae'", 1, {"ties": "cdvae"}),
        ("cutoff must be finite and not negative, got nan", 1, {"cutoff": float("nan")}),
        ("positions must be finite, got nan", 1, {"positions": torch.full((1, 3), torch.nan)}),
        ("cell must have independent vectors", 1, {"cell": torch.ones(3, 3)}),
    ],
)
def test_bad_input_is_named(message, k, options):
    given = {"positions": torch.zeros(1, 3), "cell": torch.eye(3)} | options
    with pytest.raises(ValueError, match=message):
        crystal.knn_graph(given.pop("positions"), given.pop("cell"), k, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("3",), "cutoff must be a number, got str"),
        ((True,), "cutoff must be a number, got bool"),
        ((3.0, None), "skin must be a number, got NoneType"),
    ],
)
def test_lists_want_numbers(given, message):
    with pytest.raises(TypeError, match=message):
        crystal.NeighborList(*given)


def test_tensors_without_values_have_no_nearest():
    x, cell = torch.zeros(1, 3, device="meta"), torch.eye(3, device="meta")
    for find in (lambda: crystal.knn_graph(x, cell, 3, on_error="mask"), lambda: crystal.NeighborList(3.0)(x, cell)):
        with pytest.raises(TypeError, match=r"positions must have values, .* got a meta tensor"):
            find()


def test_nothing_has_no_neighbours():
    assert crystal.knn_graph(torch.zeros(0, 3), torch.eye(3), 3).num_edges == 0
    assert crystal.knn_graph(torch.zeros(1, 3), None, 3, pbc=False).num_edges == 0


def test_far_too_many_are_refused():
    with pytest.raises(MemoryError, match="cutoff must give at most max_edges"):
        crystal.knn_graph(torch.zeros(1, 3), torch.eye(3), 2**62)
    with pytest.raises(MemoryError, match="cutoff must give at most max_edges = 3 edges, got 4"):
        crystal.knn_graph(torch.zeros(1, 3), torch.eye(3), 4, max_edges=3)
    assert crystal.knn_graph(torch.zeros(1, 3), torch.eye(3), 2**62, cutoff=1.1).num_edges == 6
    assert crystal.knn_graph(torch.zeros(1, 3), torch.eye(3), 4, cutoff=0.0).num_edges == 0


def test_structures_with_bad_numbers_are_masked():
    x, cell = torch.rand(6, 3), 3 * torch.eye(3).repeat(3, 1, 1)
    x[3, 1], cell[2, 0] = torch.nan, 0.0
    graph = crystal.knn_graph(x, cell, 7, natoms=[2, 2, 2], on_error="mask")
    assert graph.edge_ptr.tolist() == [0, 14, 14, 14]
    assert graph.status.tolist() == [0, crystal.Status.NOT_FINITE, crystal.Status.SINGULAR_CELL]


@pytest.mark.parametrize("inclusive", [False, True])
def test_lists_last_while_atoms_move_little(inclusive):
    x, cell = structure(7)
    near = crystal.NeighborList(4.0, skin=1.0, inclusive=inclusive, vectors=True)
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        x = x + 0.05 * torch.randn(x.shape, generator=g, dtype=x.dtype)
        got, want = near(x, cell), crystal.neighbors(x, cell, 4.0, inclusive=inclusive, vectors=True)
        for name, a, b in zip(got._fields, got, want, strict=True):
            torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")
    assert 1 < near.rebuilds < 20
    before = near.rebuilds
    near(x, cell * 1.001)
    near(x, cell * 1.001)
    assert near.rebuilds == before + 1
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="skin must be finite"):
            crystal.NeighborList(1.0, skin=bad)


def test_lists_see_arguments_that_change_in_place():
    x, cell = 5 * torch.rand(4, 3), 5 * torch.eye(3)
    near, pbc, natoms, cells = crystal.NeighborList(3.0), np.array([True, True, True]), [2, 2], cell.repeat(2, 1, 1)
    for change in (lambda: None, lambda: pbc.__setitem__(2, False)):
        change()
        for a, b in zip(near(x, cell, pbc=pbc), crystal.neighbors(x, cell, 3.0, pbc), strict=True):
            assert a is b is None or torch.equal(a, b)
    assert near.rebuilds == 2
    for change in (lambda: None, lambda: natoms.__setitem__(slice(None), [1, 3]), lambda: cells.mul_(1.1)):
        change()
        graph = near(x, cells, natoms=natoms)
        assert torch.equal(graph.edge_index, crystal.radius_graph(x, cells, 3.0, natoms=natoms).edge_index)
    assert near.rebuilds == 5
