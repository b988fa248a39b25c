"""Sums over triplets by angle, on the GPU's kernels, against those of the CPU."""

import pytest
import torch
from pyfast.kernels import crystal as kernels

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


def agree(features, unit, radial, grad, tiles, through, **close):
    for name, inputs in {
        "angular": (features, unit, radial, *tiles, through),
        "angular_back": (grad, features, unit, radial, *tiles, through),
    }.items():
        want = getattr(angular, f"_{name}")(*inputs)
        want = want if isinstance(want, tuple) else (want,)
        got = tuple(torch.full_like(w, torch.nan) for w in want)
        getattr(kernels, name)(*inputs, *got)
        torch.testing.assert_close(got, want, equal_nan=True, **close)


@pytest.mark.parametrize(("dtype", "inner", "columns"), [(torch.float64, 3, 5), (torch.float32, 9, 17)], ids=str)
@pytest.mark.parametrize("through", [False, True])
def test_agrees_with_cpp(through, dtype, inner, columns):
    rtol, atol = (1e-4, 1e-3) if dtype == torch.float32 else (1e-10, 1e-10)
    agree(*example(through, dtype, inner, columns), through, rtol=rtol, atol=atol)


@pytest.mark.parametrize("through", [False, True])
def test_what_is_not_a_number_stays_so(through):
    features, unit, radial, grad, tiles = example(through, torch.float64, 2, 3)
    unit[0] = torch.nan  # an edge to the first atom, all of whose triplets have an angle with it
    agree(features, unit, radial, grad, tiles, through, rtol=1e-10, atol=1e-10)
