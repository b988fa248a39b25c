"""Triton's launchers and C++ share signatures: here they share inputs, and the operator's schema names them."""

import inspect
import itertools

import pytest
import torch
from pyfast.kernels import linear_attention

from pyfast import _C
from pyfast.reference import linear_attention as reference

LAUNCHERS = [
    n
    for n, f in vars(linear_attention).items()
    if inspect.isfunction(f) and f.__module__ == linear_attention.__name__ and not n.startswith("_")
]
ATTEND = ["attend", "attend_normalized", "solve"]
WIDE = [torch.float32, torch.float64]
NARROW = [torch.bfloat16, torch.float16]
KINDS = [None, "scalar", "rows", "columns"]
PACKED = [0, 0, 7, 7, 24, 33, 33]
MIXED = torch.bfloat16, torch.bfloat16, torch.float32  # q, k, v in the delta rule and in gradients
# What Triton selects away, or what is meant not to be finite, NumPy computes first.
pytestmark = [pytest.mark.filterwarnings(f"ignore:{x}:RuntimeWarning") for x in ("overflow", "invalid value")]


def test_there_is_one_for_every_operator():
    short_cuts = {"attend_plain", "step_plain"}  # for plain tensors on the CPU, past the operators
    assert set(LAUNCHERS) == {n for n in dir(_C.linear_attention) if not n.startswith("_")} - short_cuts


def operator(name):
    return getattr(torch.ops.pyfast, f"linear_attention_{name}").default


def decays(kind, strength, size, g):
    """Logarithms: weak as gates are, strong, or some that forget all."""
    x = -torch.rand(size, generator=g, dtype=torch.float64)
    if strength == "strong":
        return 50 * x
    return x.masked_fill(x < -0.8, float("-inf")) if strength == "forget" else x


def example(
    name, dtype, T=33, K=5, V=6, kind=None, strength="weak", heads=(1, 2, 2, 1), B=1, ends=None, start=True,
    state_dtype=None, **flags
):  # fmt: skip
    """The operator's inputs in order. Keys have length 1, so that the delta rule is stable."""
    g = torch.Generator().manual_seed(T + K + V)
    dtypes = dtype if isinstance(dtype, tuple) else 3 * (dtype,)
    wide = torch.float64 if torch.float64 in dtypes else torch.float32
    Hq, Hk, Hv, Hd = heads
    H, N = max(heads), B if ends is None else len(ends) - 1

    def randn(*size):
        return torch.randn(size, generator=g, dtype=torch.float64)

    k = randn(B, T, Hk, K)
    k = k / k.norm(dim=-1, keepdim=True).clamp(min=1e-3)
    q = randn(B, T, Hq, K)
    if name == "attend_normalized":
        q, k = q.abs(), k.abs()
    sums = V + (name == "attend_normalized")
    state = randn(N, H, K, sums)
    if name == "attend_normalized":
        state[..., -1] = state[..., -1].abs()
    per = {"rows": (K,), "columns": (V,)}.get(kind, ())
    values = {
        "q": q.to(dtypes[0]),
        "p": (k[:, :, :1] if Hq < Hk else k.repeat_interleave(Hq // Hk, 2)).to(dtypes[0]),
        "k": k.to(dtypes[1]),
        "v": randn(B, T, Hv, V).to(dtypes[2]),
        "decay": None if kind is None else decays(kind, strength, (B, T, Hd, *per), g).to(wide),
        "state": state.to(state_dtype or wide) if start else None,
        "cu_seqlens": None if ends is None else torch.tensor(ends),
        "x": randn(B, T, Hk, K).to(wide),
        "start": randn(N, Hk, K).to(wide) if start else None,
    }
    values |= {"read": 0.5, "write": 1.0, "eps": 1e-3, "scale": 0.5, "last": True, "columns": kind == "columns"} | flags
    names = [a.name for a in operator(name)._schema.arguments]
    return [values.get(n, False) for n in names if n != "out"]


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def double(inputs):
    return [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs]


def launch(name, inputs, like):
    outputs = [torch.empty_like(x) for x in like]
    getattr(linear_attention, name)(*inputs, *outputs)
    return outputs


def check(name, inputs, got, plain, truth, where=...):
    """Against C++ in float64, Triton errs at most twice as much as C++ does in the same dtype, plus 4 roundings.

    These are to 16 bits, of states too, where all tokens have 16: tensor cores multiply what has been rounded. In
    float64 itself C++ is no truth, so both may round every term of a sum.
    """
    dtypes = [x.dtype for x in inputs[: 3 if name in ATTEND else 1]]
    roundings = 4 + (inputs[0].shape[1] if torch.float64 in dtypes else 0)
    allowed = (
        2 * (plain - truth)[where].abs().max() + roundings * torch.finfo(dtypes[-1]).eps * truth[where].abs().max()
    )
    assert (got - truth)[where].abs().max() <= allowed


def agree(name, inputs):
    truth, plain = as_tuple(operator(name)(*double(inputs))), as_tuple(operator(name)(*inputs))
    for t, p, got in zip(truth, plain, launch(name, inputs, plain), strict=True):
        if got.numel():
            check(name, inputs, got, p, t)


@pytest.mark.parametrize("dtype", [*WIDE, *NARROW, MIXED, MIXED[::-1]], ids=str)
@pytest.mark.parametrize(("name", "kind"), [(n, k) for n in ATTEND for k in KINDS if n == "attend" or k != "columns"])
def test_agrees_with_cpp(name, kind, dtype):
    tokens = 20 if kind in KINDS[2:] else 70 if dtype == torch.bfloat16 else 40  # two chunks or more
    agree(name, example(name, dtype, T=tokens, kind=kind))


@pytest.mark.parametrize("strength", ["strong", "forget"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "kind"), [*(("attend", k) for k in KINDS[1:]), ("solve", "scalar")])
def test_decays_that_forget(name, kind, dtype, strength):
    agree(name, example(name, dtype, kind=kind, strength=strength, T=20, heads=(1, 1, 1, 1)))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("kind", KINDS[:3])
def test_delta_rule_of_16_bits(kind, dtype):
    """Tokens of 16 bits and a solution of 32, as on a GPU: nearer to the truth than a recurrence in 16."""
    q, k, v, decay, *_ = example("attend", dtype, T=70, K=16, V=16, kind=kind, heads=(1, 1, 1, 1), start=False)
    beta = torch.rand(1, 70, 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight, x = beta.float().unsqueeze(-1), torch.empty(v.shape)
    linear_attention.solve((weight * k).to(dtype), k, weight * v, decay, None, None, False, False, False, x, None)
    out = torch.empty_like(x)
    flags = 0.25, 1.0, False, False, False, False, False
    linear_attention.attend(q, k, x, decay, None, None, *flags, out, None)
    given = [q, k, v], {"decay": decay, "beta": beta, "scale": 0.25}
    truth, _ = reference.attention(*double(given[0]), **dict(zip(given[1], double(given[1].values()), strict=True)))
    plain, _ = reference.attention(*given[0], **given[1])
    assert (out - truth).abs().max() <= (plain - truth).abs().max()


@pytest.mark.parametrize(
    ("T", "K", "V"), [(0, 5, 3), (1, 1, 1), (70, 16, 5), (70, 1, 64), (33, 64, 16), (5, 130, 2), (4, 0, 3)]
)
@pytest.mark.parametrize("name", ATTEND)
def test_sizes(name, T, K, V):
    dtype = torch.bfloat16 if T == 70 else torch.float32
    agree(name, example(name, dtype, T, K, V, kind="scalar"))


@pytest.mark.parametrize(("reverse", "late", "strict"), list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("kind", KINDS)
def test_flags(kind, reverse, late, strict):
    flags = {"reverse": reverse, "late": late, "strict": strict, "last": late, "start": reverse != strict}
    heads = (1, 1, 1, 1) if kind in KINDS[2:] else (2, 1, 1, 2)
    agree("attend", example("attend", torch.float32, T=18, kind=kind, write=-0.3, heads=heads, **flags))
    if not strict and kind != "columns":
        agree("solve", example("solve", torch.float32, T=18, kind=kind, heads=heads, **flags))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("attend", "rows"), *((n, k) for n in ATTEND for k in KINDS[:2])])
def test_packed_sequences(name, kind, reverse):
    heads = (1, 1, 1, 1) if kind == "rows" else (2, 1, 2, 1)
    agree(name, example(name, torch.float32, 33, kind=kind, ends=PACKED, reverse=reverse, late=reverse, heads=heads))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ends", [None, [0, 3, 3, 33]])
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("name", ["collect", "read"])
def test_without_causality(name, start, ends, dtype):
    heads = (2, 1, 2, 1) if name == "collect" else (1, 1, 1, 2)
    agree(name, example(name, dtype, ends=ends, start=start or name == "read", heads=heads, B=2 if ends is None else 1))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("ends", [None, [0, 3, 3, 133]])
@pytest.mark.parametrize("dtype", WIDE, ids=str)  # of decays, which are never narrower
def test_sums(dtype, ends, strict, reverse):
    inputs = example("cumulate", dtype, T=133, ends=ends, start=strict, reverse=reverse, strict=strict)
    agree("cumulate", inputs)
    if ends is None:
        agree("cumulate", [inputs[0][..., 0], inputs[1] if inputs[1] is None else inputs[1][..., 0], *inputs[2:]])


def odd(x):
    """The same numbers in memory of the opposite order, with gaps."""
    if not torch.is_tensor(x) or not x.dim():
        return x
    room = x.new_zeros([2 * n + 1 for n in reversed(x.shape)])
    view = room[(slice(1, None, 2),) * x.dim()].permute(*reversed(range(x.dim())))
    return view.copy_(x)


@pytest.mark.parametrize(("name", "kind"), [("attend", "rows"), *((n, "scalar") for n in LAUNCHERS)])
def test_any_strides(name, kind):
    base = name.removesuffix("_into")
    inputs = example(base, torch.float32, T=9, kind=kind, B=2)
    plain = launch(base, inputs, as_tuple(operator(base)(*inputs)))
    outputs = [odd(torch.full_like(x, torch.nan)) for x in plain]
    getattr(linear_attention, name)(*map(odd, inputs), *outputs)
    for p, got in zip(plain, outputs, strict=True):
        torch.testing.assert_close(got, p, rtol=0, atol=0)


def test_strides_that_need_64_bits():
    inputs = example("attend", torch.float32, T=9, K=1, kind="scalar", heads=(1, 1, 1, 1))
    plain = launch("attend", inputs, operator("attend")(*inputs))
    inputs[0] = inputs[0].as_strided(inputs[0].shape, (1 << 40, 1, 1 << 33, 1 << 31))
    for p, got in zip(plain, launch("attend", inputs, plain), strict=True):
        torch.testing.assert_close(got, p, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ATTEND)
def test_float64_state(name, dtype):
    """Is carried in float64: what does not change from token to token keeps all its digits."""
    inputs = example(name, dtype, T=5, state_dtype=torch.float64)
    agree(name, inputs)
    inputs[2] = torch.zeros_like(inputs[2])
    if name == "attend":
        state = inputs[4]
        _, last = launch(name, inputs, operator(name)(*inputs))
        torch.testing.assert_close(last, state, rtol=0, atol=0)


def test_nothing_is_written_with_a_scale_of_zero():
    inputs = example("attend", torch.float32, kind="scalar", write=0.0)
    agree("attend", inputs)


def test_float16_sums_leave_its_range():
    """The state and the scores do, the means do not."""
    inputs = example("attend_normalized", torch.float16, T=40, K=16)
    inputs[1], inputs[2], inputs[4] = 50 * inputs[1], 1000 * inputs[2], 1000 * inputs[4]
    agree("attend_normalized", inputs)


@pytest.mark.parametrize(
    ("name", "kind", "dtype", "which"),
    [
        *(("attend", "scalar", torch.bfloat16, x) for x in ("q", "k", "v", "decay")),
        *(("solve", "scalar", torch.float32, x) for x in ("q", "k", "v", "decay")),
        *(("attend", "rows", torch.float32, x) for x in ("k", "decay")),
        *(("attend", "columns", torch.float32, x) for x in ("v", "decay")),
    ],
)
def test_what_is_not_finite_stays_where_it_may_be_seen(name, kind, dtype, which):
    """A token's NaN reaches the results that it reaches in C++, and leaves the bits of other heads alone."""
    clean = example(name, dtype, T=18, kind=kind, heads=(2, 2, 2, 2), reverse=True)
    dirty = [x.clone() if torch.is_tensor(x) else x for x in clean]
    dirty[["q", "k", "v", "decay"].index(which)].view(1, 18, 2, -1)[0, 7, 1, 0] = torch.nan
    truth, plain = operator(name)(*double(dirty)), operator(name)(*dirty)
    was, got = launch(name, clean, plain), launch(name, dirty, plain)
    for t, p, w, x in zip(truth, plain, was, got, strict=True):
        assert torch.equal(x.isfinite(), p.isfinite())
        check(name, dirty, x, p, t, p.isfinite())
        others = (slice(None), 0) if x is got[1] else (slice(None), slice(None), 0)
        assert torch.equal(x[others], w[others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_infinite_values(dtype):
    """Are added up as in C++, with the signs of the scores."""
    inputs = example("attend", dtype, T=20, kind="scalar", heads=(1, 1, 1, 1), V=4)
    inputs[2][0, 18, 0, 0], inputs[2][0, 17, 0, 1] = torch.inf, -torch.inf
    plain = operator("attend")(*inputs)
    for p, got in zip(plain, launch("attend", inputs, plain), strict=True):
        assert torch.equal(got.isinf(), p.isinf())
        assert torch.equal(got[got.isinf()].sign(), p[p.isinf()].sign())


@pytest.mark.parametrize(
    ("name", "dtype", "kind", "late", "ends", "expected"),
    [
        ("attend", torch.float32, None, False, None, 3),
        ("attend", torch.float32, "scalar", True, None, 3),
        ("attend", torch.float32, "scalar", False, [0, 400], 3),
        ("attend", torch.bfloat16, "scalar", True, [0, 1100], 2),
        ("attend", torch.float32, "scalar", True, [0, 0, 390, 400], 1),
        ("attend", torch.float32, "rows", True, None, 3),
        ("attend", torch.float32, "columns", True, None, 3),
        ("attend_normalized", torch.float32, None, False, None, 3),
        ("attend_normalized", torch.float32, "rows", False, [0, 400], 3),
        ("solve", torch.float32, "scalar", True, None, 1),
    ],
)
def test_parts_of_long_sequences(monkeypatch, name, dtype, kind, late, ends, expected):
    """Few heads on a large GPU: the sequence is cut, and the parts are joined."""
    monkeypatch.setattr(linear_attention, "processors", lambda device: 2)
    parts, choose = [], linear_attention._parts
    monkeypatch.setattr(linear_attention, "_parts", lambda *a: parts.append(choose(*a)) or parts[-1])
    flags = {"late": late, "reverse": late, "heads": (1, 1, 1, 1), "ends": ends, "start": late}
    flags["T"] = 400 if ends is None else ends[-1]
    agree(name, example(name, dtype, kind=kind, **flags))
    assert parts == [expected]
    if name == "attend" and kind is None:
        agree("collect", example("collect", dtype, **flags))
        agree("read", example("read", dtype, **flags | {"start": True}))
        assert parts == 3 * [expected]
