"""Sums over triplets by angle, on the GPU's kernels, against those of the CPU."""

import pytest
import torch
from pyfast.kernels import crystal as kernels
from pyfast.kernels.crystal import _angular

import pyfast.reference.crystal as reference
from pyfast import crystal
from pyfast.crystal import angular


def example(through, dtype, inner, columns):
    x, cell = torch.tensor([[0.0, 0, 0], [0.9, 0.8, 1.0]]).to(dtype), 1.9 * torch.eye(3).to(dtype)
    graph = reference.neighbors(x, cell, 1.92)
    unit = crystal.edge_vectors(x, cell, graph)
    unit = unit / crystal.lengths(unit)[:, None]
    tiles = crystal.triplet_tiles(graph, through)
    assert tiles.ptr.diff().max() > 8  # more than a block
    g = torch.Generator().manual_seed(0)
    features = torch.randn(graph.num_edges, columns, generator=g, dtype=dtype)
    radial = torch.randn(graph.num_edges, inner, 3, generator=g, dtype=dtype)
    grad = torch.randn(graph.num_edges, inner, columns, generator=g, dtype=dtype)
    return features, unit, radial, grad, tiles


def agree(features, unit, radial, grad, tiles, through):
    inputs = features, unit, radial, *tiles
    compare("angular", *inputs, through, like=tiles)
    compare("angular_back", grad, *inputs, through, like=tiles)


def compare(name, *inputs, like):
    """With C++ in float64, at most twice the error of C++; in float64 both may round every term of a sum."""
    real = [x for x in inputs if torch.is_tensor(x) and x.is_floating_point()]
    eps, wide = torch.finfo(real[0].dtype).eps, (lambda x: x.double() if any(x is y for y in real) else x)
    terms = int(like.ptr.diff().max()) * max(x[0].numel() for x in real) * real[0].shape[1]
    roundings = 4 + (terms if real[0].dtype == torch.float64 else 0)
    operator = getattr(angular, f"_{name}")
    plains, truths = operator(*inputs), operator(*map(wide, inputs))
    plains, truths = (x if isinstance(x, tuple) else (x,) for x in (plains, truths))
    gots = tuple(torch.full_like(w, -7.0) for w in plains)
    getattr(kernels, name)(*inputs, *gots)
    for got, plain, truth in zip(gots, plains, truths, strict=True):
        assert torch.equal(got.isnan(), plain.isnan())
        got, plain, truth = (x[~plain.isnan()] for x in (got, plain, truth))
        if got.numel():
            allowed = 2 * (plain - truth).abs().max() + roundings * eps * truth.abs().max()
            assert (got - truth).abs().max() <= allowed, name


@pytest.mark.parametrize(("dtype", "inner", "columns"), [(torch.float64, 3, 5), (torch.float32, 9, 17)], ids=str)
@pytest.mark.parametrize("through", [False, True])
def test_agrees_with_cpp(through, dtype, inner, columns):
    agree(*example(through, dtype, inner, columns), through)


@pytest.mark.parametrize("through", [False, True])
def test_what_is_not_a_number_stays_so(through):
    features, unit, radial, grad, tiles = example(through, torch.float64, 2, 3)
    unit[0] = torch.nan  # an edge to the first atom, all of whose triplets have an angle with it
    agree(features, unit, radial, grad, tiles, through)


@pytest.mark.parametrize(("block", "dtype"), [(1, torch.float64), (2048, torch.float32)], ids=str)
def test_gemnet_agrees_with_cpp(monkeypatch, block, dtype):
    monkeypatch.setattr(_angular, "BLOCK", block)
    features, unit, radial, _, tiles = example(False, dtype, 3, 5)
    g = torch.Generator().manual_seed(1)
    weight, grad = (torch.randn(*size, generator=g, dtype=dtype) for size in ((3, 5, 4), (len(unit), 4)))
    inputs = features, unit, radial, weight, tiles.ptr, tiles.tile_ptr, tiles.keep
    compare("gemnet", *inputs, like=tiles)
    compare("gemnet_back", grad, *inputs, like=tiles)
