"""Sums over triplets by angle, on the GPU's kernels, against those of the CPU."""

import pytest
import torch
from pyfast.kernels import crystal as kernels

import pyfast.reference.crystal as reference
from pyfast import crystal
from pyfast.crystal import angular


@pytest.mark.parametrize(("dtype", "inner", "columns"), [(torch.float64, 3, 5), (torch.float32, 9, 17)], ids=str)
@pytest.mark.parametrize("through", [False, True])
def test_agrees_with_cpp(through, dtype, inner, columns):
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
    rtol, atol = (1e-4, 1e-3) if dtype == torch.float32 else (1e-10, 1e-10)
    for name, inputs in {
        "angular": (features, unit, radial, *tiles, through),
        "angular_back": (grad, features, unit, radial, *tiles, through),
    }.items():
        want = getattr(angular, f"_{name}")(*inputs)
        want = want if isinstance(want, tuple) else (want,)
        got = tuple(torch.full_like(w, torch.nan) for w in want)
        getattr(kernels, name)(*inputs, *got)
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol)
