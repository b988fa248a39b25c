"""Pairs of edges on the GPU's kernels, against those of the CPU."""

import pytest
import torch
from pyfast.kernels import crystal as kernels

import pyfast.reference.crystal as reference
from pyfast import crystal
from pyfast.crystal import triplets


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("through", [False, True])
def test_agrees_with_cpp(through, dtype):
    graph = reference.neighbors(torch.tensor([[0.0, 0, 0], [0.9, 0.8, 1.0]]), 1.9 * torch.eye(3), 1.8)
    tiles = crystal.triplet_tiles(graph, through)
    pairs = len(tiles.keep)
    g = torch.Generator().manual_seed(0)
    m = torch.randn(pairs, 2, generator=g, dtype=dtype)
    x = torch.randn(graph.num_edges, 70, generator=g, dtype=dtype)
    y = torch.randn(graph.num_edges, 2, 70, generator=g, dtype=dtype)
    for name, inputs in {
        "pair_sum": (m, x, *tiles[:4]),
        "pair_back": (m, y, *tiles[:4]),
        "pair_dot": (y, x, *tiles[:4], pairs),
    }.items():
        want = getattr(triplets, f"_{name}")(*inputs)
        got = torch.full_like(want, torch.nan)
        getattr(kernels, name)(*inputs, got)
        torch.testing.assert_close(got, want, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-5)
