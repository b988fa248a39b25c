"""The layer and its feature maps."""

import copy
import itertools

import pytest
import torch
from torch.nn import functional

from pyfast import linear_attention
from pyfast.linear_attention import LinearAttention
from pyfast.reference import linear_attention as reference

CAUSAL = (
    {},
    {"feature_map": "relu", "normalize": False, "decay": "head", "num_kv_heads": 2},
    {"feature_map": "identity", "normalize": False, "bias": True, "head_dim": 5},
    {"decay": "token", "num_kv_heads": 1},
    {"decay": "vector", "num_kv_heads": 2},
    {"delta": True, "feature_map": functional.silu, "num_kv_heads": 2},
    {"delta": True, "feature_map": functional.silu, "decay": "token"},
)


def layer(seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    return LinearAttention(8, 4, dtype=dtype, **options)


def tokens(*shape, dtype=torch.float64):
    return torch.randn(*shape, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)


def definition(layer, x, context=None):
    """The layer in plain PyTorch, around the reference."""
    source, groups = x if context is None else context, layer.num_kv_heads
    parts = (layer.q_proj, x, 4), (layer.k_proj, source, groups), (layer.v_proj, source, groups)
    q, k, v = (functional.linear(y, p.weight, p.bias).view(*y.shape[:2], heads, -1) for p, y, heads in parts)
    q = layer.feature_map(q)
    k, decay, beta = layer.feature_map(k), None, None
    if layer.decay == "head":
        decay = -layer.log_rate.exp()
    if layer.decay == "token":
        decay = (x @ layer.decay_proj.weight.T + layer.decay_proj.bias).sigmoid().log() / 16
    if layer.decay == "vector":
        first, second = layer.decay_proj
        decay = (x @ first.weight.T @ second.weight.T + second.bias).sigmoid().log().view(k.shape) / 16
    if layer.delta:
        q, k = (y / y.norm(dim=-1, keepdim=True) for y in (q, k))
        beta = (x @ layer.beta_proj.weight.T).sigmoid()
    out, _ = reference.attention(q, k, v, causal=layer.causal, decay=decay, beta=beta, normalize=layer.normalize)
    return layer.out_proj(out.flatten(2))


@pytest.mark.parametrize("options", [*CAUSAL, {"causal": False, "num_kv_heads": 2}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_is_projections_around_attention(check, options, dtype):
    fast = layer(dtype=dtype, **options)
    slow = {torch.float64: copy.deepcopy(fast).double(), dtype: fast}
    check(fast, lambda x: definition(slow[x.dtype], x), tokens(2, 9, dtype=dtype))


def test_looks_at_another_sequence(check):
    fast = layer(causal=False, num_kv_heads=2)
    check(fast, lambda x, y: definition(fast, x, y), tokens(2, 5), tokens(2, 7).cos())


@pytest.mark.parametrize("options", CAUSAL)
def test_piece_by_piece_is_as_the_whole(options):
    model = layer(**options)
    x = tokens(2, 11)
    whole, end = model(x, output_final_state=True)
    assert model(x).equal(whole)
    outs, state = [], None
    for piece in x.split([4, 1, 1, 0, 5], 1):
        out, state = model(piece, initial_state=state, output_final_state=True)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole)
    torch.testing.assert_close(state, end)


def test_sequences_end_to_end():
    model, across = layer(decay="vector"), layer(causal=False)
    x, y = tokens(1, 9), tokens(1, 6).cos()
    ends, ends_y = torch.tensor([0, 4, 4, 9]), torch.tensor([0, 1, 3, 6])
    out, state = model(x, cu_seqlens=ends, output_final_state=True)
    torch.testing.assert_close(out, torch.cat([model(x[:, :4]), model(x[:, 4:])], 1))
    assert state.shape == (3, 4, 2, 3)
    out = across(x, y, cu_seqlens=ends, cu_seqlens_k=ends_y)
    torch.testing.assert_close(out, torch.cat([across(x[:, :4], y[:, :1]), across(x[:, 4:], y[:, 3:])], 1))


@pytest.mark.parametrize("options", CAUSAL)
def test_gradients(options):
    model = layer(**options)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    x = tokens(1, 3).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("options", [CAUSAL[1], CAUSAL[4], CAUSAL[5], {"causal": False}])
def test_compiles_whole(options):
    model = layer(**options)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = tokens(2, 6)
    for call in (model, compiled):
        out, state = call(x, output_final_state=True)
        out.square().sum().backward()
        found = out, state, [p.grad for p in model.parameters()]
        model.zero_grad()
        if call is model:
            want = found
    torch.testing.assert_close(found, want)


def test_state_dict_goes_round():
    for options in CAUSAL:
        model, other = layer(**options), layer(seed=1, **options)
        x = tokens(1, 5)
        assert not torch.equal(model(x), other(x))
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(x), other(x))


def test_a_feature_map_may_have_weights_and_another_size():
    model = layer(feature_map=torch.nn.Sequential(torch.nn.Linear(2, 6).double(), torch.nn.Softplus()))
    assert "feature_map.0.weight" in model.state_dict()
    out, state = model(tokens(1, 5), output_final_state=True)
    assert state.shape == (1, 4, 6, 3)
    torch.testing.assert_close(out, definition(model, tokens(1, 5)))


def test_decays_per_head_begin_as_in_retnet():
    model = LinearAttention(64, 8, decay="head")
    torch.testing.assert_close(model._decays(None).exp(), 1 - 2.0 ** (-5 - torch.arange(8)))


def test_reset_parameters():
    model = layer(decay="head")
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(0)
    model.reset_parameters()
    after = model.state_dict()
    assert torch.equal(after["log_rate"], before["log_rate"])
    assert all(x.isfinite().all() for x in after.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype):
    for options in CAUSAL:
        model = layer(dtype=dtype, **options)
        out, state = model(tokens(2, 9, dtype=dtype), output_final_state=True)
        assert out.dtype == dtype
        assert state.dtype == torch.float32
        want = copy.deepcopy(model).double()(tokens(2, 9, dtype=dtype).double())
        plain = definition(model, tokens(2, 9, dtype=dtype))
        error, allowed = (out - want).abs().max(), 2 * (plain - want).abs().max()
        assert error <= allowed + 4 * torch.finfo(dtype).eps * want.abs().max()


def test_a_key_of_length_zero_in_sixteen_bits():
    model = layer(dtype=torch.float16, delta=True, feature_map="relu")
    with torch.no_grad():
        model.k_proj.weight.zero_()
    assert not model(tokens(1, 3, dtype=torch.float16)).any()


def test_repr_shows_options():
    assert "8, 4, num_kv_heads=2, head_dim=2, causal=True, normalize=False, decay='token', delta=True" in repr(
        layer(num_kv_heads=2, decay="token", delta=True)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads, 4, got 3"),
        ({"num_kv_heads": 0}, "num_kv_heads must divide num_heads, 4, got 0"),
        ({"feature_map": "tanh"}, "feature_map must be one of elu_plus_one, relu, identity or a function, got 'tanh'"),
        ({"decay": "heads"}, "decay must be None, 'head', 'token' or 'vector', got 'heads'"),
        ({"decay": "head", "causal": False}, "decay must be None if causal is False, got"),
        ({"delta": True, "causal": False}, "delta must be False if causal is False, got True"),
        ({"delta": True, "normalize": True}, "normalize must be False with delta, got True"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        layer(**options)


def test_refuses_inputs():
    with pytest.raises(ValueError, match="num_heads must divide embed_dim, 9, unless head_dim is given, got 4"):
        LinearAttention(9, 4)
    x = tokens(2, 3)
    with pytest.raises(ValueError, match=r"x must have shape \(B, T, 8\), got \(3, 8\)"):
        layer()(x[0])
    with pytest.raises(ValueError, match="context must be None unless causal is False, got a tensor"):
        layer()(x, x)
    with pytest.raises(ValueError, match=r"context must have shape \(2, S, 8\) to match x, got \(1, 3, 8\)"):
        layer(causal=False)(x, x[:1])


def test_feature_maps():
    x = torch.tensor([-60.0, -20.0, -1.0, -0.0, 0.0, 1e-8, 3.0, torch.inf, -torch.inf, torch.nan], dtype=torch.float64)
    found = linear_attention.elu_plus_one(x)
    torch.testing.assert_close(found, torch.where(x > 0, x + 1, x.exp()), rtol=1e-15, atol=0, equal_nan=True)
    torch.testing.assert_close(linear_attention.relu(x), x.clamp(min=0), rtol=0, atol=0, equal_nan=True)
    assert linear_attention.identity(x) is x
    assert linear_attention.elu_plus_one(x.float())[0] > 0


@pytest.mark.parametrize("name", ["elu_plus_one", "relu", "identity"])
def test_feature_maps_are_differentiable(name):
    f = getattr(linear_attention, name)
    x = torch.tensor([-300.0, -2.0, -0.5, 0.3, 4.0, 800.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f, x)
    assert torch.autograd.gradgradcheck(f, x)
    with pytest.raises(TypeError, match=r"x must be floating, got torch\.int64"):
        f(torch.arange(3))


def test_elu_plus_one_is_smooth_at_zero():
    x = torch.zeros(1, requires_grad=True)
    linear_attention.elu_plus_one(x).backward()
    assert x.grad.item() == 1
    for x in (1e-30, -1e-30):
        slope = torch.autograd.functional.jacobian(linear_attention.elu_plus_one, torch.tensor(x))
        assert slope.item() == 1


def test_options_combine():
    for decay, delta, groups in itertools.product((None, "head", "token", "vector"), (False, True), (1, 2, 4)):
        model = layer(decay=decay, delta=delta, num_kv_heads=groups)
        torch.testing.assert_close(model(tokens(1, 4)), definition(model, tokens(1, 4)))


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((-32, 2), {}, "embed_dim must be at least 1, got -32"),
        ((32, 0), {}, "num_heads must be at least 1, got 0"),
        ((32, 2), {"head_dim": -1}, "head_dim must be at least 1, got -1"),
        ((32, 2), {"feature_map": ["relu"]}, r"feature_map must be one of .* or a function, got \['relu'\]"),
        ((32, 2), {"feature_map": None}, "feature_map must be one of .* or a function, got None"),
    ],
)
def test_refuses_sizes_and_feature_maps_at_once(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        linear_attention.LinearAttention(*sizes, **options)


def test_autocast_finds_one_dtype_for_mixed_tokens():
    q, k, v = (tokens(2, 9, 2, dtype=torch.float32) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = linear_attention.attention(q, k, v.bfloat16())
        same = linear_attention.attention(q, k, v)
        with pytest.raises(TypeError, match=r"k and v must have the dtype of q, torch.bfloat16, got .*float64"):
            linear_attention.attention(q, k, v.double())
    assert torch.equal(mixed, linear_attention.attention(q.bfloat16(), k.bfloat16(), v.bfloat16()))
    assert same.dtype == torch.float32  # not rounded where nothing asks for it
    with pytest.raises(TypeError, match=r"k and v must have the dtype of q, torch\.float32, got"):
        linear_attention.attention(q, k, v.bfloat16())
