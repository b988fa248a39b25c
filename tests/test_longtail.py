import pytest
import torch
from hypothesis import given, settings, strategies as st

from pyfast import longtail
from pyfast.reference import longtail as reference


def example(n, c, dtype=torch.float32, device="cpu", seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, generator=g, dtype=dtype)
    target = torch.randint(c, (n,), generator=g)
    prior = torch.rand(c, generator=g, dtype=dtype) + 0.01
    return logits.to(device), target.to(device), prior.to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "c"), [(0, 3), (1, 1), (7, 5), (64, 1000), (3, 4097)])
def test_matches_reference(check, n, c, dtype):
    args = example(n, c, dtype)
    check(longtail.loss, reference.loss, *args)


def test_gradient():
    logits, target, prior = example(5, 7, torch.float64)
    torch.autograd.gradcheck(longtail.loss, (logits.requires_grad_(), target, prior.requires_grad_()))


def test_second_derivative_is_refused():
    logits, target, prior = example(5, 7)
    (grad,) = torch.autograd.grad(longtail.loss(logits.requires_grad_(), target, prior).sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="longtail_loss_backward has no derivative"):
        grad.sum().backward()


def test_bad_index_names_the_element():
    logits, target, prior = example(5, 7)
    target[3] = 7
    with pytest.raises(IndexError, match=r"target\[3\] is 7, outside \[0, 7\)"):
        longtail.loss(logits, target, prior)


def test_operator_contract():
    logits, target, prior = example(5, 7)
    torch.library.opcheck(torch.ops.pyfast.longtail_loss.default, (logits.requires_grad_(), target, prior.log()))


def test_compiles_whole():
    logits, target, prior = example(5, 7)
    fast = torch.compile(longtail.loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fast(logits, target, prior), reference.loss(logits, target, prior))


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_strides(n, c, seed):
    logits, target, prior = example(c, n, seed=seed)[0].T, *example(n, c, seed=seed)[1:]
    torch.testing.assert_close(longtail.loss(logits, target, prior), reference.loss(logits, target, prior))


def test_bad_shape_names_the_argument():
    logits, target, prior = example(5, 7)
    with pytest.raises(ValueError, match=r"prior must have shape \(7,\)"):
        longtail.loss(logits, target, prior[1:])
