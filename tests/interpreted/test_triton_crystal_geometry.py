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
    """Both sum in float64, in orders of their own, and round once: some roundings of 64 terms, and 1 ulp."""
    assert got.dtype == want.dtype
    scale = float(want.abs().max()) if want.numel() else 0.0
    allowed = 64 * torch.finfo(torch.float64).eps * scale + torch.finfo(want.dtype).eps * want.abs()
    assert got.shape == want.shape
    assert bool(((got - want).abs() <= allowed).all())


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
                same(a, b)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, False, True), (False, False, False)])
def test_nearest_images(pbc):
    g = torch.Generator().manual_seed(1)
    cell = torch.randn(2, 3, 3, generator=g, dtype=torch.float64) + 2 * torch.eye(3)
    cell[0, 1] += 3 * cell[0, 0]
    cell[1, 1] += 1000 * cell[1, 0]
    cell[1, 2] -= 50 * cell[1, 1]
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
        truth = getattr(segments, name.replace("segment", ""))(inputs[0].double(), *inputs[1:])
        for a, b, t in zip(got, want, truth if isinstance(truth, tuple) else (truth,), strict=True):
            finite = t.isfinite()  # not the greatest of none
            assert torch.equal(a[~finite], b[~finite])
            a, b, t = a[finite], b[finite], t[finite]
            if b.is_floating_point() and b.numel():  # errs at most twice as much as the CPU, and 4 eps of scale
                roundings = 64 if dtype == torch.float64 else 4  # in float64 itself the CPU is no truth
                slack = roundings * torch.finfo(dtype).eps * t.abs().max()
                assert (a - t).abs().max() <= 2 * (b - t).abs().max() + slack
            else:
                assert torch.equal(a, b)
