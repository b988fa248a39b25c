"""What lies between a call and its kernel: the short way, operators called by name, long sequences, the examples."""

import doctest

import pytest
import torch

from pyfast import linear_attention
from pyfast.linear_attention import _attention, _operators

attention = linear_attention.attention


def test_operators_called_by_name_read_nothing_that_is_not_there():
    q, flags = torch.randn(1, 50, 4, 8), (None, 1.0, 1.0, True, False, False, False, False)
    ops, state = torch.ops.pyfast, torch.zeros(1, 4, 8, 8)
    calls = [
        lambda: ops.linear_attention_attend(q, q[:, :1], q, None, None, *flags),
        lambda: ops.linear_attention_attend(q, q, q.to(torch.int8), None, None, *flags),
        lambda: ops.linear_attention_attend(q, q, q, None, state.bfloat16(), *flags),
        lambda: ops.linear_attention_attend(q, q, q, None, state[:, :, :1, :1], *flags),
        lambda: ops.linear_attention_attend(q, q, q, torch.zeros(1, 1, 4), None, *flags),
        lambda: ops.linear_attention_attend(q.expand(2, -1, -1, -1), q, q, None, None, *flags),
        lambda: ops.linear_attention_attend_into(q, q, q, None, None, *flags, torch.zeros(1, 1, 1, 1)),
        lambda: ops.linear_attention_attend_normalized(q, q, q, None, state, None, 1.0, 0.0, True, False),
        lambda: ops.linear_attention_solve(q, q[..., :1], q, None, None, None, True, False, False),
        lambda: ops.linear_attention_collect(q, q[:, :1], None, None),
        lambda: ops.linear_attention_read(q, state.expand(9, -1, -1, -1), None, 1.0),
        lambda: ops.linear_attention_read(q, state[:, :, :1], None, 1.0),
        lambda: ops.linear_attention_cumulate(q.bfloat16(), None, None, False, False),
        lambda: ops.linear_attention_cumulate(q, state[:, :1, 0], None, False, False),
        lambda: ops.linear_attention_cumulate(q, None, torch.tensor([0, 50], dtype=torch.int32), False, False),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="must"):
            call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("t", "key", "value"), [(0, 3, 4), (1, 1, 1), (4, 64, 64), (17, 5, 0), (200, 16, 33), (40, 0, 2)]
)
@pytest.mark.parametrize("scale", [None, -0.3])
def test_a_call_without_options_gives_the_bits_of_one_with_them(dtype, t, key, value, scale):
    g = torch.Generator().manual_seed(t)
    q, k, v = (torch.randn(2, 3, t, n, generator=g).to(dtype).transpose(1, 2) for n in (key, key, value))
    want, _ = attention(q, k, v, scale=scale, output_final_state=True)
    got = attention(q, k, v, scale=scale)
    assert got.is_contiguous()
    assert torch.equal(got, want)
    assert torch.equal(attention(q.requires_grad_(), k, v, scale=scale).detach(), want)
    fits = _operators.attend_plain(q.detach(), k, v, scale)
    assert fits is not None
    assert torch.equal(fits, want)
    for misfit in ((q, k, v), (q.detach(), k[:, 1:] if t else k[..., None], v), (q.detach(), k[:, :, :1], v)):
        assert _operators.attend_plain(*misfit, scale) is None  # a gradient, other lengths, fewer heads


def test_the_short_way_is_only_for_tensors_with_memory_of_their_own():
    class Named(torch.Tensor):
        pass

    x = torch.ones(1, 4, 2, 3)
    kept = []
    torch.func.vmap(lambda y: kept.append(y) or y)(x[None])
    others = [
        torch._neg_view(x),
        torch._efficientzerotensor(1, 4, 2, 3),
        torch._to_functional_tensor(x),
        x.to("meta"),
        x.to_sparse(),
        x.to_mkldnn(),
        x.as_subclass(Named),
        x.long(),
        kept[0],
        None,
    ]
    assert _operators.attend_plain(x, x, x, None) is not None
    for other in others:
        for place in range(3):
            args = [x, x, x]
            args[place] = other
            assert _operators.attend_plain(*args, None) is None
    torch.testing.assert_close(attention(torch._neg_view(x), x, x), attention(-x, x, x))


def test_a_million_tokens_keep_their_digits():
    """The error in float32 does not grow with the sequence: sums are kept in float64."""
    g = torch.Generator().manual_seed(0)
    t = 1_000_000
    q, k, v = (torch.randn(1, t, 1, 16, generator=g) for _ in range(3))
    out = attention(q, k, v, scale=1.0)
    truth = torch.empty(t, 16, dtype=torch.float64)
    state = torch.zeros(16, 16, dtype=torch.float64)
    for a in range(0, t, 100):
        x, y, z = (w[0, a : a + 100, 0].double() for w in (q, k, v))
        truth[a : a + 100] = x @ state + (x @ y.T).tril() @ z
        state += y.T @ z
    assert (out[0, :, 0] - truth).norm() / truth.norm() <= 5e-7


def test_docstring_examples():
    found = doctest.testmod(_attention)
    assert found.attempted
    assert not found.failed
