"""Geometry and segments on the GPU's kernels, against those of the CPU."""

import pytest
import torch
from pyfast.kernels import crystal as kernels

import pyfast.reference.crystal as reference
from pyfast import crystal
from pyfast.crystal import _operators as ops
from pyfast.crystal import geometry, segments

# What Triton selects away, NumPy computes first: no step along an axis without images, times infinity.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


def same(got, want):
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=1e-6 if want.dtype == torch.float32 else 1e-13, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_vectors_and_their_adjoint(dtype):
    g = torch.Generator().manual_seed(0)
    cell = (torch.eye(3) * 2 + 0.4 * torch.randn(2, 3, 3, generator=g)).to(dtype)
    x = torch.randn(3, 3, generator=g).to(dtype)
    graph = reference.radius_graph(x, cell, 2.2, natoms=torch.tensor([2, 1]))
    more = graph._replace(
        edge_index=torch.cat([graph.edge_index, torch.zeros(2, 2, dtype=torch.int64)], 1),
        shift=torch.cat([graph.shift, torch.ones(2, 3, dtype=torch.int32)]),
    )
    for padded in (graph, more):
        views = ops.rows(padded)
        for rows in (views, views.turned):
            places = padded.shift, *rows, padded.edge_ptr, padded.atom_ptr
            want = geometry._vectors(x, cell, *places)
            got = torch.full_like(want, torch.nan)
            kernels.vectors(x, cell, *places, got)
            same(got, want)
            pull = geometry._vectors_adjoint(want, *places)
            mine = [torch.full_like(p, torch.nan) for p in pull]
            kernels.vectors_adjoint(want, *places, *mine)
            for a, b in zip(mine, pull, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, False, True), (False, False, False)])
def test_nearest_images(pbc):
    g = torch.Generator().manual_seed(1)
    cell = torch.randn(2, 3, 3, generator=g, dtype=torch.float64) + 2 * torch.eye(3)
    cell[:, 1] += 3 * cell[:, 0]
    v = 9 * torch.randn(7, 3, generator=g, dtype=torch.float64)
    structure, periodic = torch.arange(7) % 2, torch.tensor([pbc] * 2)
    _, want = crystal.minimum_image(v, cell, structure, periodic)
    got = torch.full_like(want, -(2**31))
    kernels.nearest_shift(v, cell, structure, periodic, got)
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("counts", "columns"), [((), 2), ((3, 0, 40), 5), ((1, 2), 130)])
def test_segments(counts, columns, dtype):
    ptr = torch.tensor([0, *counts]).cumsum(0)
    x = torch.randn(int(ptr[-1]) + 2, columns, dtype=torch.float64).to(dtype)
    each = torch.randn(len(counts), columns, dtype=torch.float64).to(dtype)
    for name, inputs in {
        "segment_sum": (x, ptr),
        "segment_max": (x, ptr),
        "segment_softmax": (x, ptr),
        "segment_spread": (each, ptr, len(x)),
    }.items():
        want = getattr(segments, name.replace("segment", ""))(*inputs)
        want = want if isinstance(want, tuple) else (want,)
        got = [torch.zeros_like(w) for w in want]
        getattr(kernels, name)(*inputs, *got)
        for a, b in zip(got, want, strict=True):
            same(a, b) if b.is_floating_point() else torch.testing.assert_close(a, b)
