"""Equality with flash-linear-attention's own plain-PyTorch definitions, which run on a CPU."""

import itertools
import warnings

import pytest
import torch

from pyfast.linear_attention import attention
from pyfast.reference import linear_attention as reference

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no GPU
    from fla.ops.delta_rule.naive import delta_rule_recurrence
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
    from fla.ops.retention.naive import naive_retention
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

B, T, H, K, V = 2, 70, 4, 16, 16


def draw(seed=0, state=True):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, T, H, n, generator=g) for n in (K, K, V))
    k = k / k.norm(dim=-1, keepdim=True)
    decay, gate = -torch.rand(B, T, H, generator=g), -torch.rand(B, T, H, K, generator=g)
    return q, k, v, decay, gate, torch.rand(B, T, H, generator=g), torch.randn(B, H, K, V, generator=g)


def heads_first(*tensors):
    return [x.transpose(1, 2) for x in tensors]


def plain(q, k, v, decay, gate, beta, state):
    return {}, naive_recurrent_linear_attn(q, k, v, initial_state=state, output_final_state=True)


def scalar_decay(q, k, v, decay, gate, beta, state):
    theirs = naive_recurrent_simple_gla(q, k, v, decay, initial_state=state, output_final_state=True)
    return {"decay": decay}, theirs


def vector_decay(q, k, v, decay, gate, beta, state):
    return {"decay": gate}, naive_recurrent_gla(q, k, v, gate, initial_state=state, output_final_state=True)


def delta(q, k, v, decay, gate, beta, state):
    out, last = delta_rule_recurrence(*heads_first(q, k, v), beta.transpose(1, 2), state)
    return {"beta": beta}, (out.transpose(1, 2), last)


def gated_delta(q, k, v, decay, gate, beta, state):
    theirs = naive_recurrent_gated_delta_rule(q, k, v, beta, decay, initial_state=state, output_final_state=True)
    return {"beta": beta, "decay": decay}, theirs


def gradients(function):
    """Those of a weighted sum of the result and the state."""

    def of(*tensors):
        tensors = [x.detach().requires_grad_() for x in tensors]
        loss = sum((x * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum() for x in function(*tensors))
        return torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)

    return of


FORMS = [plain, scalar_decay, vector_decay, delta, gated_delta]


@pytest.mark.parametrize("form", FORMS)
def test_result_and_state(form):
    tensors = draw()
    q, k, v, *_, state = tensors
    options, (out, last) = form(*tensors)
    got = attention(q, k, v, **options, initial_state=state, output_final_state=True)
    torch.testing.assert_close(got, (out, last))


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form, check):
    """Theirs and ours both err as little as the recurrence in float32 does."""
    options = {plain: {}, scalar_decay: {"decay": 3}, vector_decay: {"decay": 4}, delta: {"beta": 5}}
    options[gated_delta] = options[scalar_decay] | options[delta]
    places = options[form]

    def ours(*tensors):
        chosen = {name: tensors[i] for name, i in places.items()}
        return attention(*tensors[:3], **chosen, initial_state=tensors[6], output_final_state=True)

    def meant(*tensors):
        return reference.attention(
            *tensors[:3], **{name: tensors[i] for name, i in places.items()}, initial_state=tensors[6]
        )

    check(gradients(ours), gradients(meant), *draw())
    check(gradients(lambda *tensors: form(*tensors)[1]), gradients(meant), *draw())


@pytest.mark.parametrize("form", FORMS)
def test_packed_sequences(form):
    q, k, v, decay, gate, beta, state = draw()
    ends = [0, 5, 5, 38, T]
    start = torch.cat([state, state.flip(0)])
    parts = []
    for n, (a, b) in enumerate(itertools.pairwise(ends)):
        if a < b:
            _, (out, _) = form(*(x[:1, a:b] for x in (q, k, v, decay, gate, beta)), start[n : n + 1])
            parts.append(out)
    options, _ = form(*(x[:1] for x in (q, k, v, decay, gate, beta)), start[:1])
    got = attention(q[:1], k[:1], v[:1], **options, initial_state=start, cu_seqlens=torch.tensor(ends))
    torch.testing.assert_close(got, torch.cat(parts, 1))


def test_retention_is_a_decay_per_head():
    q, k, v, *_ = draw()
    decay = (1 - 2.0 ** (-5.0 - torch.arange(H))).log()
    got = attention(q, k, v, decay=decay)
    torch.testing.assert_close(got, naive_retention(*heads_first(q, k, v)).transpose(1, 2))


def test_normalizer():
    q, k, v, *_ = draw()
    q, k = q.abs(), k.abs()
    theirs, _ = naive_recurrent_linear_attn(q, k, v, normalize=True)
    torch.testing.assert_close(attention(q, k, v, normalize=True, eps=1e-10), theirs)
