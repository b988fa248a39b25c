"""Sums, means, maxima and softmaxes by pointers, against one segment after the other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast import crystal
from pyfast.reference.crystal import segments as reference

PAIRS = {
    "sum": (crystal.segment_sum, lambda x, p: reference.reduce(x, p, lambda part: part.sum(0))),
    "mean": (crystal.segment_mean, lambda x, p: reference.reduce(x, p, lambda part: part.mean(0))),
    "max": (crystal.segment_max, lambda x, p: reference.reduce(x, p, lambda part: part.amax(0), -math.inf)),
    "softmax": (crystal.segment_softmax, reference.softmax),
}


def example(counts, columns, extra=0, dtype=torch.float64):
    ptr = torch.tensor([0, *counts]).cumsum(0)
    g = torch.Generator().manual_seed(0)
    return torch.randn(int(ptr[-1]) + extra, *columns, generator=g, dtype=torch.float64).to(dtype), ptr


SHAPES = [
    ((), (3,), 0),
    ((0,), (2,), 0),
    ((3, 0, 1, 200), (65,), 2),
    ((5, 1), (), 0),
    ((2, 0), (3, 4), 1),
    ((4,), (0,), 0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("counts", "columns", "extra"), SHAPES)
@pytest.mark.parametrize("name", PAIRS)
def test_matches_reference(check, name, counts, columns, extra, dtype):
    x, ptr = example(counts, columns, extra, dtype)
    ours, plain = PAIRS[name]
    check(ours, plain, x, ptr)
    grads = []
    for f in (ours, plain):
        leaf = x.clone().requires_grad_()
        out = f(leaf, ptr)
        weights = torch.linspace(-1, 1, out.numel(), dtype=dtype).reshape(out.shape)
        finite = torch.where(out.isfinite(), out * weights, 0)
        grads.append(torch.autograd.grad(finite.sum() + 0 * leaf.sum(), leaf)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", PAIRS)
def test_derivatives(name):
    x, ptr = example((3, 1, 4), (2,), 1)
    f = PAIRS[name][0]
    assert torch.autograd.gradcheck(lambda x: f(x, ptr), x.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x: f(x, ptr), x)
    got = torch.vmap(torch.func.grad(lambda x: f(x, ptr).square().sum()))(torch.stack([x, 2 * x]).detach())
    want = [torch.func.grad(lambda x: PAIRS[name][1](x, ptr).square().sum())(y.detach()) for y in (x, 2 * x)]
    torch.testing.assert_close(got, torch.stack(want))
    compiled = torch.compile(lambda x: f(x, ptr), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), f(x, ptr))


def test_operator_contract():
    x, ptr = example((3, 0, 4), (2,))
    x = x.requires_grad_()
    for name in ("segment_sum", "segment_max", "segment_softmax"):
        torch.library.opcheck(getattr(torch.ops.pyfast, f"crystal_{name}").default, (x, ptr))
    torch.library.opcheck(torch.ops.pyfast.crystal_segment_spread.default, (x[:3].detach().requires_grad_(), ptr, 9))


@pytest.mark.parametrize("name", PAIRS)
def test_same_bits_on_any_number_of_threads(threads, name):
    x, ptr = example((9000, 1, 0, 500, 4), (7,), dtype=torch.float32)

    def run():
        leaf = x.clone().requires_grad_()
        out = PAIRS[name][0](leaf, ptr)
        return out, torch.autograd.grad(out[out.isfinite()].square().sum(), leaf)

    threads(run)


def test_a_million_rows_sum_exactly():
    x = torch.full((1_000_003, 1), 0.1)
    exact = torch.tensor([x[0].double().item() * len(x)]).float()
    assert torch.equal(crystal.segment_sum(x, torch.tensor([0, len(x)]))[0], exact)


def test_equal_maxima_send_the_gradient_to_the_first():
    x = torch.tensor([1.0, 3.0, 3.0, 2.0], requires_grad=True)
    crystal.segment_max(x, torch.tensor([0, 4])).sum().backward()
    assert x.grad.tolist() == [0, 1, 0, 0]


def test_values_that_are_not_finite():
    x = torch.tensor([math.nan, 1.0, math.inf, -math.inf, 2.0])
    ptr = torch.tensor([0, 2, 3, 5])
    assert str(crystal.segment_max(x, ptr).tolist()) == "[nan, inf, 2.0]"
    assert str(crystal.segment_sum(x, ptr).tolist()) == "[nan, inf, -inf]"
    assert str(crystal.segment_softmax(x, ptr).tolist()) == "[nan, nan, nan, 0.0, 1.0]"


@given(st.data(), st.lists(st.integers(0, 5), max_size=5), st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_any_strides_give_the_same_bits(strided, data, counts, columns):
    x, ptr = example(counts, (columns,), dtype=torch.float32)
    y = data.draw(strided(x))
    for f, _ in PAIRS.values():
        assert torch.equal(f(y, ptr.int()), f(y.contiguous(), ptr))


@pytest.mark.parametrize(
    ("x", "ptr", "error", "message"),
    [
        (torch.zeros(4), torch.tensor([0, 5]), IndexError, r"ptr\[1\] must be at most 4, got 5"),
        (torch.zeros(4), torch.tensor([1, 4]), IndexError, r"ptr\[0\] must be 0, got 1"),
        (torch.zeros(4), torch.tensor([0, 3, 2]), IndexError, r"ptr\[2\] must not be less than the one before, got 2"),
        (torch.zeros(4), torch.zeros(0).long(), ValueError, r"ptr must have shape \(segments \+ 1,\), got \(0,\)"),
        (torch.zeros(4), torch.zeros(2), TypeError, "ptr must be int32 or int64, got torch.float32"),
        (torch.zeros(4), [0, 4], TypeError, "ptr must be a tensor, got list"),
        (torch.zeros(4).long(), torch.tensor([0, 4]), TypeError, "x must be float32 or float64, got torch.int64"),
        (torch.tensor(1.0), torch.tensor([0]), ValueError, "x must have rows, got a tensor of no dimensions"),
        (
            torch.zeros(4),
            torch.zeros(2, device="meta").long(),
            TypeError,
            "ptr must be on the device of x, cpu, got meta",
        ),
    ],
)
def test_refuses_bad_input_by_name(x, ptr, error, message):
    for f, _ in PAIRS.values():
        with pytest.raises(error, match=message):
            f(x, ptr)
