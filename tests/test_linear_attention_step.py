"""The kernel of one token against the recurrence, and against the call that it is a short way of."""

import itertools

import pytest
import torch

from pyfast import linear_attention
from pyfast.linear_attention import _operators, _shapes
from pyfast.reference import linear_attention as reference

FORMS = [
    (decay, rule) for decay in (None, "head", "token", "vector") for rule in ("sum", "normalize", "delta")
]  # what decays, and how a token is written
HEADS = [(1, 1, 1, 1), (4, 4, 4, 4), (4, 2, 1, 2), (1, 6, 3, 6)]  # of q, k, v, and of decay and beta
SHAPES = [(1, 1, 1), (2, 3, 5), (3, 16, 8), (1, 64, 33)]


def example(shape, heads, form, dtype, state_dtype, seed=0):
    """The tensors of one step and the options, or None in place of a tensor."""
    (b, key, value), (hq, hk, hv, hd), (decay, rule) = shape, heads, form
    g = torch.Generator().manual_seed(seed)

    def draw(*sizes):
        x = torch.randn(sizes, generator=g, dtype=torch.float64)
        return x.abs() if rule == "normalize" else x

    h = max(hq, hk, hv)
    sizes = {None: None, "head": (hd,), "token": (b, hd), "vector": (b, hd, key)}[decay]
    return {
        "q": draw(b, hq, key).to(dtype),
        "k": (draw(b, hk, key) / key**0.5).to(dtype),
        "v": draw(b, hv, value).to(dtype),
        "state": None if state_dtype is None else draw(b, h, key, value + (rule == "normalize")).to(state_dtype),
        "decay": None
        if sizes is None
        else -draw(*sizes).abs().to(torch.float64 if dtype == torch.float64 else torch.float32),
        "beta": torch.rand(b, hd, generator=g).to(dtype) if rule == "delta" else None,
    }, {"normalize": rule == "normalize"}


def slow(tensors, options):
    """The reference as a function of the tensors that there are, every number in the dtype of q."""
    names = [n for n, x in tensors.items() if x is not None]

    def call(*values):
        given = dict(zip(names, values, strict=True))
        kind = _shapes.wide(given["q"]) if tensors["state"] is None else given["state"].dtype
        given = {n: x.to(given["q"].dtype) for n, x in given.items()}
        state = given.pop("state", None)
        parts = {n: x if x.dim() == 1 else x.unsqueeze(1) for n, x in given.items()}
        out, last = reference.attention(**parts, **options, initial_state=state)
        return out[:, 0], last.to(kind)

    return call, [tensors[n] for n in names]


def refuses(*_):
    raise AssertionError("the kernel did not do it")


@pytest.fixture
def direct(monkeypatch):
    """No way but the kernel's."""
    monkeypatch.setattr("pyfast.linear_attention._attention.attention", refuses)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(
    "dtype, state_dtype",
    [
        (torch.float32, None),
        (torch.float32, torch.float32),
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float64),
    ],
)
def test_matches_reference(check, direct, dtype, state_dtype, form):
    for shape, heads in itertools.product(SHAPES, HEADS):
        tensors, options = example(shape, heads, form, dtype, state_dtype)
        reference, values = slow(tensors, options)
        names = [n for n, x in tensors.items() if x is not None]

        def fast(*values, names=names, options=options):
            return linear_attention.step(**dict(zip(names, values, strict=True)), **options)

        check(fast, reference, *values)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_equals_the_call_to_rounding(form):
    for heads in HEADS:
        tensors, options = example((3, 17, 9), heads, form, torch.float64, torch.float64)
        short = linear_attention.step(**tensors, **options, scale=-0.3)
        tensors["q"].requires_grad_()  # which the kernel leaves to the call
        for a, b in zip(short, linear_attention.step(**tensors, **options, scale=-0.3), strict=True):
            # sums of at most 17 + 1 products each way, twice where the delta rule corrects, and then once more
            bound = 4 * 3 * 18 * torch.finfo(torch.float64).eps * b.detach().abs().max().item()
            torch.testing.assert_close(a, b.detach(), rtol=0, atol=bound)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_what_is_empty_has_the_shapes_that_it_must(shape):
    tensors, options = example(shape, (2, 2, 2, 2), ("vector", "delta"), torch.float32, torch.float32)
    out, last = linear_attention.step(**tensors, **options)
    assert out.shape == (shape[0], 2, shape[2])
    assert torch.equal(out, torch.zeros_like(out))
    assert last.shape == tensors["state"].shape


def test_another_device_is_named():
    tensors, options = example((1, 3, 4), (2, 2, 2, 2), (None, "sum"), torch.float32, torch.float32)
    tensors["state"] = tensors["state"].to("meta")
    with pytest.raises(TypeError, match="state must be on the device of q, cpu, got meta"):
        linear_attention.step(**tensors, **options)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_any_strides_and_no_change_of_the_inputs(direct, form):
    tensors, options = example((3, 8, 6), (4, 2, 4, 4), form, torch.float32, torch.float32)
    plain = linear_attention.step(**tensors, **options)

    def spaced(x):
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan, dtype=x.dtype)
        wide[..., 1::2] = x
        return wide[..., 1::2]

    strided = {n: x if x is None or n == "state" else spaced(x) for n, x in tensors.items()}
    rows = torch.full((*tensors["state"].shape[:3], 40), torch.nan)
    rows[..., : tensors["state"].shape[3]] = tensors["state"]
    strided["state"] = rows[..., : tensors["state"].shape[3]]
    before = {n: None if x is None else x.clone() for n, x in strided.items()}
    for a, b in zip(linear_attention.step(**strided, **options), plain, strict=True):
        assert torch.equal(a, b)
    for n, x in strided.items():
        assert x is None or torch.equal(x, before[n])


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_same_bits_on_any_number_of_threads(threads, direct, form):
    tensors, options = example((2, 64, 65), (8, 8, 8, 8), form, torch.float32, torch.float32)
    threads(lambda: linear_attention.step(**tensors, **options))


@pytest.mark.parametrize("name", ["q", "k", "v", "state", "decay", "beta"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_head(direct, name, value):
    tensors, options = example((2, 5, 4), (3, 3, 3, 3), ("vector", "delta"), torch.float32, torch.float32)
    clean = linear_attention.step(**tensors, **options)
    tensors[name] = tensors[name].clone()
    tensors[name][1, 2] = value
    for a, b in zip(linear_attention.step(**tensors, **options), clean, strict=True):
        changed = torch.zeros(2, 3, dtype=torch.bool)
        changed[1, 2] = True
        assert torch.equal(a[~changed], b[~changed])
        if value != value and not (name == "q" and a.dim() == 4):
            assert a[1, 2].isnan().any()


def test_minus_infinity_forgets(direct):
    tensors, options = example((1, 4, 3), (2, 2, 2, 2), ("token", "sum"), torch.float32, torch.float32)
    tensors["decay"] = torch.full_like(tensors["decay"], -torch.inf)
    out, state = linear_attention.step(**tensors, **options)
    fresh, begun = linear_attention.step(**{**tensors, "state": None, "decay": None}, **options)
    assert torch.equal(out, fresh)
    assert torch.equal(state, begun)


def test_the_kernel_leaves_what_does_not_fit_it():
    """Called past all that Python checks, it reads nothing that is not there."""
    tensors, _ = example((2, 3, 4), (2, 2, 2, 2), ("vector", "delta"), torch.float32, torch.float32)
    out, last = torch.empty(2, 2, 4), torch.empty(2, 2, 3, 4)
    given = [tensors[n] for n in ("q", "k", "v", "decay", "beta", "state")] + [out, last]
    assert _operators._step_plain(*given, None, None) is True
    wrong = [torch.zeros(2, 2, 2), torch.zeros(3, 2), torch.zeros(3, 2, 3), torch.zeros(2, 5, 3, 4), torch.zeros(0)]
    wrong += [torch.zeros(2, 0, 3), torch.zeros(2, 2, 3, 4, dtype=torch.int32), torch.zeros(2, 2, 4, 3).mT, 3, "q"]
    for place, x in itertools.product(range(8), wrong):
        assert _operators._step_plain(*given[:place], x, *given[place + 1 :], None, None) is False, (place, x)
    for numbers in (("a", None), (None, "a")):
        with pytest.raises(TypeError):
            _operators._step_plain(*given, *numbers)
    with pytest.raises(TypeError, match="10 arguments"):
        _operators._step_plain(*given)
