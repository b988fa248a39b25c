"""Neighbour lists of the GPU's kernels, bit by bit those of the CPU."""

import math

import pytest
import torch
from pyfast.kernels import crystal as kernels

from pyfast import crystal
from pyfast.crystal import Status, _search
from pyfast.crystal._arguments import batch_of


def structures(dtype):
    """Skewed, of either hand, open along some axes, empty, and bad."""
    g = torch.Generator().manual_seed(0)
    natoms = torch.tensor([3, 0, 5, 1, 2, 4, 2, 1, 1])
    cell = 4 * torch.eye(3, dtype=torch.float64) + torch.randn(len(natoms), 3, 3, generator=g, dtype=torch.float64)
    cell[2] *= -1
    cell[3] = 3 * torch.eye(3)
    cell[6] = 1.0  # singular
    x = 6 * torch.randn(int(natoms.sum()), 3, generator=g, dtype=torch.float64)
    x[1] = x[0]
    x[-2, 1] = math.nan
    x[-1] = 1e30
    pbc = torch.ones(len(natoms), 3, dtype=torch.bool)
    pbc[4], pbc[5] = torch.tensor([True, False, True]), torch.tensor([False, False, False])
    return x.to(dtype), cell.to(dtype), natoms, pbc


def launch(asked, inclusive, half, ptr=None, edges=0):
    if ptr is None:
        outputs = _search._allocate_count(*asked)
        kernels.count(*asked, inclusive, half, 2e9, *outputs)
    else:
        outputs = _search._allocate_fill(*asked, ptr, edges)
        kernels.fill(*asked, inclusive, half, ptr, edges, *outputs)
    return outputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(
    ("inclusive", "half", "species"), [(False, False, False), (True, True, False), (True, False, True)]
)
def test_agrees_with_cpp(dtype, index_dtype, inclusive, half, species):
    x, cell, natoms, pbc = structures(dtype)
    kinds = torch.arange(len(x)) % 2 if species else None
    cutoff = torch.tensor([[3.0, 2.0], [2.0, 0.0]]) if species else 3.0
    asked = batch_of(x, cell, cutoff, natoms, None, pbc, kinds, False)
    counts, status = _search.count(*asked, inclusive, half, 2e9)
    mine = launch(asked, inclusive, half)
    torch.testing.assert_close(mine, (counts, status))
    assert counts.sum() > 0
    ptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(index_dtype)
    for spare in (0, 5):
        edges = int(ptr[-1]) + spare
        want = _search.fill(*asked, inclusive, half, ptr, edges)
        torch.testing.assert_close(launch(asked, inclusive, half, ptr, edges), want, rtol=0, atol=0)


@pytest.mark.parametrize("pbc", [(False, False, False), (False, True, False), (True, False, True)])
def test_refuses_as_cpp_does(pbc):
    """Many atoms far apart are few edges, and in one place too many: here, more than 200 that are expected."""
    x, most = torch.zeros(60, 3), -499_900.0
    x[:, 1] = 2 * torch.arange(60)
    cell = torch.tensor([[3.0, 0, 0], [0, 3, 0], [1, 0, 3]])
    for positions in (x, 0 * x):
        asked = batch_of(positions, cell, 2.5, None, None, pbc, None, False)
        want = _search.count(*asked, False, False, most)
        mine = _search._allocate_count(*asked)
        kernels.count(*asked, False, False, most, *mine)
        torch.testing.assert_close(mine, want)
        assert (want[1].item() == Status.TOO_MANY) == (any(pbc) or positions is not x)


@pytest.mark.parametrize("ties", range(3))
@pytest.mark.parametrize("k", [3, 8])
def test_chooses_as_cpp_does(ties, k):
    cell = 3 * torch.eye(3, dtype=torch.float64)[None].repeat(2, 1, 1)
    x = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.float64)
    natoms = torch.tensor([1, 2])
    near = crystal.radius_graph(x, cell, 4.3, natoms=natoms, inclusive=True)
    given = batch_of(x, cell, 4.3, natoms, None, True, None, True)
    rest = given.positions, given.cell, given.pbc, given.atom_ptr, k, ties, 0.3, -1.0 if ties < 2 else 1e-2
    want = _search.choose(near.edge_index, near.shift, near.distance, near.ptr, *rest)
    mine = torch.empty_like(want)
    kernels.choose(near.edge_index, near.shift, near.distance, near.ptr, *rest, mine)
    torch.testing.assert_close(mine, want)
    given = (*near[:5], want, int(want.sum()))
    kept = _search.keep(*given)
    again = tuple(map(torch.empty_like, kept))
    kernels.keep(*given, *again)
    torch.testing.assert_close(again, kept)


def test_nothing_is_launched_for_nothing():
    asked = batch_of(torch.zeros(0, 3), torch.zeros(0, 3, 3), 1.0, [], None, True, None, False)
    assert launch(asked, False, False)[0].shape == (0,)
    assert launch(asked, False, False, torch.zeros(1, dtype=torch.int64), 3)[0].tolist() == [[0, 0, 0], [0, 0, 0]]
