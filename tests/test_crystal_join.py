"""Batches are joined and split to the bit, in DataLoaders too."""

import pytest
import torch
from torch.utils.data import DataLoader

from pyfast import crystal

GRAPHS = {
    "radius": lambda c: crystal.radius_graph(c, cutoff=3.5, vectors=True),
    "half": lambda c: crystal.radius_graph(c, cutoff=3.5, half=True, index_dtype=torch.int32),
    "nearest": lambda c: crystal.knn_graph(c, k=5),
    "none": lambda c: crystal.radius_graph(c, cutoff=1e-9),
}


def crystals(dtype=torch.float64):
    """Five structures, one of them without atoms, one that does not repeat along an axis."""
    rng = torch.Generator().manual_seed(0)
    natoms = torch.tensor([3, 0, 1, 6, 2])
    cell = 4 * torch.eye(3).double() + torch.rand(5, 3, 3, generator=rng, dtype=torch.float64)
    pbc = torch.ones(5, 3, dtype=torch.bool)
    pbc[3, 1] = False
    positions = 5 * torch.rand(12, 3, generator=rng, dtype=torch.float64)
    return crystal.Crystals(positions.to(dtype), cell.to(dtype), natoms, torch.arange(1, 13), pbc)


def same(a, b):
    assert type(a) is type(b)
    for x, y in zip(a, b, strict=True):
        assert (x is None and y is None) or (x.dtype == y.dtype and torch.equal(x, y))
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_crystals_are_split_and_joined(dtype):
    many = crystals(dtype)
    each = crystal.split(many)
    assert [len(one.positions) for one in each] == many.natoms.tolist()
    assert same(crystal.join(each), many)
    assert same(crystal.join(iter([many])), many)
    assert torch.equal(crystal.join([many, many]).natoms, torch.cat([many.natoms] * 2))


@pytest.mark.parametrize("make", GRAPHS.values(), ids=GRAPHS)
def test_a_joined_graph_is_that_of_the_batch(make):
    many = crystals()
    whole, each = make(many), [make(one) for one in crystal.split(many)]
    assert same(crystal.join(each), whole)
    for one, part in zip(each, crystal.split(whole), strict=True):
        assert same(one, part)
    twice = crystal.join([whole, whole])
    assert same(twice, make(crystal.join([many, many])))


def test_padding_is_split_off_and_not_joined():
    many = crystals()
    padded = crystal.radius_graph(many, cutoff=3.5, capacity=2000)
    assert same(crystal.join(crystal.split(padded)), crystal.radius_graph(many, cutoff=3.5))
    with pytest.raises(ValueError, match=r"parts must have no padding, got \d+ edges with room for 2000"):
        crystal.join([padded, padded])


class Energies(torch.utils.data.Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        one = crystal.split(crystals())[index]
        return {
            "crystals": one,
            "graph": GRAPHS["radius"](one),
            "energy": torch.tensor(float(index)),
            "name": "abcde"[index],
        }


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loaders_join(workers):
    loader = DataLoader(Energies(), batch_size=5, collate_fn=crystal.join, num_workers=workers)
    batch = next(iter(loader))
    assert same(batch["crystals"], crystals())
    assert same(batch["graph"], GRAPHS["radius"](crystals()))
    assert batch["energy"].tolist() == [0, 1, 2, 3, 4]
    assert batch["name"] == [*"abcde"]


def test_tuples_are_joined_one_by_one():
    many = crystals()
    pair = (many, GRAPHS["nearest"](many))
    both, graph = crystal.join([pair, pair])
    assert same(GRAPHS["nearest"](both), graph)


def test_what_does_not_go_together_is_named():
    many = crystals()
    with pytest.raises(ValueError, match="parts must hold at least one, got none"):
        crystal.join([])
    with pytest.raises(TypeError, match=r"positions of torch.float64 on cpu and of torch.float32 on cpu"):
        crystal.join([many, crystals(torch.float32)])
    with pytest.raises(ValueError, match="parts must all have a vector, or none, got both"):
        crystal.join([crystal.radius_graph(many, cutoff=3.5, vectors=v) for v in (True, False)])
    with pytest.raises(TypeError, match="batch must be Crystals or a PeriodicGraph, got Tensor"):
        crystal.split(torch.zeros(3))


def test_crystals_move():
    many = crystals()
    assert same(many.to("cpu"), many)
    assert same(many.to(torch.float32), crystals(torch.float32))
    assert many.to(device="meta", dtype=torch.float32).pbc.is_meta
    assert many.to("cpu", copy=True).numbers.data_ptr() != many.numbers.data_ptr()
    with pytest.raises(TypeError, match=r"dtype must be float32 or float64, got torch.float16"):
        many.to(torch.float16)
