"""Transforms on transforms, of calls in which one tensor has several roles."""

import pytest
import torch

from pyfast import linear_attention
from pyfast.linear_attention import attention

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # PyTorch's own
jacfwd, jacrev = torch.func.jacfwd, torch.func.jacrev


def roles(form):
    """A function of one tensor that is every tensor of the call."""

    def f(z):
        beta = z[..., 0].sigmoid()
        forms = {
            "plain": lambda: attention(z, z, z),
            "normalize": lambda: attention(z.exp(), z.exp(), z, normalize=True),
            "decay": lambda: attention(z, z, z, decay=-beta),
            "vector": lambda: attention(z, z, z, decay=-z.exp()),
            "delta": lambda: attention(z, z, z, beta=beta, decay=-beta),
            "cross": lambda: attention(z, z, z, causal=False),
            "step": lambda: linear_attention.step(z[:, 0], z[:, 1], z[:, 2], z[:, 0, :, :, None] * z[:, 1, :, None])[0],
        }
        return forms[form]().sin().sum()

    return f


FORMS = "plain", "normalize", "decay", "vector", "delta", "cross", "step"


@pytest.mark.parametrize("form", FORMS)
def test_every_order_of_modes_gives_one_hessian(form):
    f = roles(form)
    z = torch.randn(1, 3, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = jacrev(jacrev(f))(z)
    assert expected.abs().max() > 1e-3
    for outer, inner in ((jacfwd, jacfwd), (jacfwd, jacrev), (jacrev, jacfwd)):
        torch.testing.assert_close(outer(inner(f))(z), expected)


def test_third_derivative_in_forward_mode_alone():
    f = roles("plain")
    z = torch.randn(1, 3, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(jacfwd(jacfwd(jacfwd(f)))(z), jacrev(jacrev(jacrev(f)))(z))


@pytest.mark.parametrize("form", FORMS)
def test_batched_gradients(form):
    f = roles(form)
    z = torch.randn(1, 3, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = torch.autograd.functional.jacobian(f, z)
    torch.testing.assert_close(torch.autograd.functional.jacobian(f, z, vectorize=True), expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # shapes are looked at, and stay what they were
def test_torch_jit_trace_sees_the_call():
    def call(q, k, v):
        return attention(q, k, v), attention(q, k, v, causal=False, scale=2.0)

    q, k, v = torch.randn(3, 1, 6, 2, 4)
    traced = torch.jit.trace(call, (q, k, v))
    q, k, v = torch.randn(3, 1, 6, 2, 4)
    torch.testing.assert_close(traced(q, k, v), call(q, k, v), rtol=0, atol=0)


def test_vmap_over_nothing():
    q, ends = torch.zeros(0, 1, 5, 2, 3), torch.tensor([0, 5])
    assert torch.func.vmap(attention)(q, q, q).shape == q.shape
    assert torch.func.vmap(lambda q: attention(q, q, q, cu_seqlens=ends))(q).shape == q.shape
