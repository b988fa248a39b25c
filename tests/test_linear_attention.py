import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast import linear_attention
from pyfast.linear_attention import _shapes
from pyfast.reference import linear_attention as reference

attention = linear_attention.attention
DECAYS = [None, "head", "token", "vector"]
# name: (options of the call, which extra tensors it takes)
FORMS = {
    "plain": {},
    "reverse": {"reverse": True},
    "scaled": {"scale": -2.0},
    "normalized": {"normalize": True},
    "normalized reverse": {"normalize": True, "reverse": True},
    "not causal": {"causal": False},
    "not causal normalized": {"causal": False, "normalize": True},
    "head decay": {"decay": "head"},
    "token decay": {"decay": "token"},
    "vector decay": {"decay": "vector"},
    "vector decay reverse": {"decay": "vector", "reverse": True},
    "normalized vector decay": {"normalize": True, "decay": "vector"},
    "normalized token decay": {"normalize": True, "decay": "token"},
    "delta": {"delta": True},
    "delta reverse": {"delta": True, "reverse": True},
    "gated delta": {"delta": True, "decay": "token"},
    "vector gated delta": {"delta": True, "decay": "vector"},
}


def example(
    b=2, t=9, h=2, key=3, value=4, dtype=torch.float32, *, form="plain", state=True, ends=None, groups=(1, 1, 1), seed=0
):
    """The tensors of one call, as a dict, and its options."""
    g = torch.Generator().manual_seed(seed)
    options = dict(FORMS[form])
    decay, delta = options.pop("decay", None), options.pop("delta", False)
    positive = torch.abs if options.get("normalize") else torch.positive

    def draw(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {
        "q": positive(draw(b, t, h // groups[0], key)).to(dtype),
        "k": positive(draw(b, t, h // groups[1], key) / max(key, 1) ** 0.5).to(dtype),
        "v": draw(b, t, h // groups[2], value).to(dtype),
    }
    if decay:
        shape = {"head": (h,), "token": (b, t, h), "vector": (b, t, h, key)}[decay]
        tensors["decay"] = (-draw(*shape).abs() / 2).to(wide)
    if delta:
        tensors["beta"] = torch.rand(b, t, h, generator=g, dtype=torch.float64).to(dtype)
    if state:
        n = b if ends is None else len(ends) - 1
        heads = h if options.get("causal", True) else h // min(groups[1:])
        tensors["initial_state"] = positive(draw(n, heads, key, value + bool(options.get("normalize")))).to(wide)
    if ends is not None:
        options["cu_seqlens"] = torch.tensor(ends)
    return tensors, options


def fast(tensors, options):
    """pyfast's call as a function of its tensors, in order; returns the result and the last state."""
    names = list(tensors)
    return lambda *values: attention(**dict(zip(names, values, strict=True)), **options, output_final_state=True)


def slow(tensors, options):
    """The reference as that, every number in the dtype of q: what plain PyTorch does in it, or in float64 the truth."""
    names = list(tensors)

    def call(*values):
        arguments = {name: x.to(values[0].dtype) for name, x in zip(names, values, strict=True)}
        out, last = reference.attention(**arguments, **options)
        return out, last.to(values[-1].dtype if names[-1] == "initial_state" else _shapes.wide(out))

    return call


def total(results):
    """A sum of everything returned, no two numbers of which weigh the same."""
    sums = 0
    for i, y in enumerate(results):
        weights = torch.cos(torch.arange(y.numel(), dtype=torch.float64) + i).view(y.shape)
        sums = sums + (y * weights.to(y.dtype)).sum()
    return sums


def gradient(call, of):
    """The gradient of the total of a call in those of its arguments."""

    def gradients(*values):
        values = [x.detach().requires_grad_() for x in values]
        return torch.autograd.grad(total(call(*values)), [values[i] for i in of], materialize_grads=True)

    return gradients


SHAPES = [(1, 1, 1), (2, 16, 5), (33, 5, 16), (70, 64, 33)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_matches_reference(check, form, dtype):
    for t, key, value in SHAPES:
        for state in (True, False):
            tensors, options = example(3, t, 3, key, value, dtype, form=form, state=state)
            check(fast(tensors, options), slow(tensors, options), *tensors.values())


@pytest.mark.parametrize("form", FORMS)
def test_float64_matches_to_rounding(form):
    """Where the reference is no truth, both may round every term of a sum."""
    for t, key, value in SHAPES:
        tensors, options = example(2, t, 3, key, value, torch.float64, form=form)
        for got, want in zip(*(f(tensors, options)(*tensors.values()) for f in (fast, slow)), strict=True):
            bound = 4 * torch.finfo(torch.float64).eps * (t + key) * want.abs().max()
            assert (got - want).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_gradient_matches_reference(check, form, dtype):
    for t, key, value in SHAPES[:3]:
        tensors, options = example(8, t, 2, key, value, dtype, form=form)
        # A normalized result hardly depends on a q of one dimension: its gradient is the rounding of what cancels.
        hardly = ["decay", "q"] if options.get("normalize") and key == 1 else ["decay"]
        of = [i for i, name in enumerate(tensors) if name not in hardly]
        calls = fast(tensors, options), slow(tensors, options)
        check(*(gradient(call, of) for call in calls), *tensors.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [form for form in FORMS if "decay" in FORMS[form] and "delta" not in FORMS[form]])
def test_gradient_of_decay_matches_reference(form, dtype):
    """It is a sum over later tokens of q dq - k dk: the terms are as exact as plain PyTorch's, and so is their sum."""
    for t, key, value in SHAPES:
        tensors, options = example(2, t, 2, key, value, dtype, form=form)
        values, doubles = list(tensors.values()), [x.double() for x in tensors.values()]
        names = list(tensors)
        of = [names.index("decay"), names.index("q"), names.index("k")]
        truth, dq, dk = gradient(slow(tensors, options), of)(*doubles)
        terms = (doubles[0] * dq).abs() + (doubles[1] * dk).abs()
        if options.get("normalize"):  # dq is a difference of two such terms
            terms = 4 * terms.amax() + terms
        slack = 8 * torch.finfo(torch.float32).eps * terms.sum()
        (plain,) = gradient(slow(tensors, options), of[:1])(*values)
        (got,) = gradient(fast(tensors, options), of[:1])(*values)
        assert got.dtype == plain.dtype == tensors["decay"].dtype
        assert (got - truth).abs().max() <= 2 * (plain - truth).abs().max() + slack


JIT = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of PyTorch's own forward mode


@JIT
@pytest.mark.parametrize("form", FORMS)
def test_derivatives_in_float64(form):
    """Of first and second order, in reverse and forward mode, in every tensor, the final state included."""
    tensors, options = example(1, 3, 2, 2, 2, torch.float64, form=form)
    call = fast(tensors, options)
    values = [x.requires_grad_() for x in tensors.values()]
    assert torch.autograd.gradcheck(call, values, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, values, check_fwd_over_rev=True, fast_mode=True)


@JIT
@pytest.mark.parametrize("form", ["token decay", "vector decay reverse", "vector gated delta", "normalized"])
def test_derivatives_across_chunks_and_sequences(form):
    tensors, options = example(1, 40, 2, 2, 1, torch.float64, form=form, ends=[0, 3, 3, 40], groups=(1, 2, 1))
    values = [x.requires_grad_() for x in tensors.values()]
    assert torch.autograd.gradcheck(fast(tensors, options), values, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(fast(tensors, options), values, fast_mode=True)


def test_third_derivative():
    tensors, options = example(1, 4, 1, 2, 2, torch.float64, form="vector gated delta")
    grad = torch.func.grad

    def third(f):
        def loss(k):
            return (f(tensors, options)(*(tensors | {"k": k}).values())[0] ** 2).sum()

        return grad(lambda k: (grad(lambda k: (grad(loss)(k) ** 2).sum())(k) ** 2).sum())(tensors["k"])

    torch.testing.assert_close(third(fast), third(slow))


TRANSFORMS = {
    "grad": lambda f, *x: torch.func.grad(lambda *x: total(f(*x)), tuple(range(len(x))))(*(y[0] for y in x)),
    "vmap": lambda f, *x: torch.vmap(f)(*x),
    "vmap of q": lambda f, *x: torch.vmap(f, (0, *(None,) * (len(x) - 1)))(x[0], *(y[0] for y in x[1:])),
    "vmap of last": lambda f, *x: torch.vmap(f, (4, *(0,) * (len(x) - 1)))(x[0].movedim(0, 4), *x[1:]),
    "vmap of vmap": lambda f, *x: torch.vmap(lambda *y: torch.vmap(lambda q: f(q, *y[1:]))(y[0][None]))(*x),
    "vmap of grad": lambda f, *x: torch.vmap(torch.func.grad(lambda *x: total(f(*x)), tuple(range(len(x)))))(*x),
    "jvp": lambda f, *x: torch.func.jvp(f, tuple(y[0] for y in x), tuple(y[1] for y in x))[1],
    "vmap of jvp": lambda f, *x: torch.vmap(lambda *y: torch.func.jvp(f, y, tuple(z.cos() for z in y))[1])(*x),
    "jacfwd": lambda f, *x: torch.func.jacfwd(lambda q: f(q, *(y[0] for y in x[1:])))(x[0][0]),
    "hessian": lambda f, *x: torch.func.hessian(lambda k: total(f(x[0][0], k, *(y[0] for y in x[2:]))))(x[1][0]),
}


@JIT
@pytest.mark.parametrize("form", ["normalized", "vector gated delta", "not causal", "token decay"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_function_transforms(transform, form):
    examples = [example(2, 3, 2, 2, 2, torch.float64, form=form, seed=i) for i in range(3)]
    options = examples[0][1]
    stacked = [torch.stack(xs) for xs in zip(*(tensors.values() for tensors, _ in examples), strict=True)]
    got, want = (TRANSFORMS[transform](f(examples[0][0], options), *stacked) for f in (fast, slow))
    torch.testing.assert_close(got, want)


def test_vmap_of_packed_sequences():
    q, k, v = (torch.randn(3, 1, 7, 2, 4) for _ in range(3))
    ends = torch.tensor([0, 3, 7])
    got = torch.vmap(lambda q, k, v: attention(q, k, v, cu_seqlens=ends))(q, k, v)
    assert torch.equal(got, torch.stack([attention(*x, cu_seqlens=ends) for x in zip(q, k, v, strict=True)]))


def operators():
    """Every operator with arguments of its own."""
    q, k, v, g = (torch.randn(2, 5, 2, 3, requires_grad=True) for _ in range(4))
    state, ends = torch.randn(2, 2, 3, 3, requires_grad=True), torch.tensor([0, 3, 5])
    packed = [x.detach()[:1].requires_grad_() for x in (q, k, v, g)]
    flags = 0.5, 2.0, True, False, True, True, False
    out = torch.empty(2, 5, 2, 3)
    with_sum = torch.randn(2, 2, 3, 4)
    return {
        "attend": (q, k, v, g, state, None, *flags),
        "attend packed": (*packed, state, ends, *flags),
        "attend_into": (*(x.detach() for x in (q, k, v, g, state)), None, *flags, out),
        "attend_normalized": (q, k, v, g, with_sum, None, 0.5, 0.1, True, False),
        "attend_normalized_into": (*(x.detach() for x in (q, k, v, g)), with_sum, None, 0.5, 0.1, True, False, out),
        "solve": (q, k, v, g, state, None, True, False, False),
        "cumulate": (q, state[..., 0].detach().requires_grad_(), None, False, True),
        "collect": (k, v, state, None),
        "read": (q, state, None, 0.5),
    }


@pytest.mark.parametrize("name", operators())
def test_operator_contract(name):
    operator = getattr(torch.ops.pyfast, "linear_attention_" + name.split()[0]).default
    torch.library.opcheck(operator, operators()[name])


@pytest.mark.parametrize("form", ["normalized token decay", "vector gated delta", "not causal normalized", "reverse"])
def test_compiles_whole(check, form):
    torch._dynamo.reset()  # it counts the compilations of a line of code, whatever the form
    tensors, options = example(2, 5, form=form)
    compiled = torch.compile(fast(tensors, options), fullgraph=True, backend="aot_eager")
    for t in (5, 8, 13):
        tensors, _ = example(2, t, form=form)
        check(compiled, slow(tensors, options), *tensors.values())
    of = range(3)
    check(gradient(compiled, of), gradient(slow(tensors, options), of), *tensors.values())


def test_exports():
    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return attention(q, k, v, normalize=True, output_final_state=True)

    args, _ = example(2, 5, state=False)
    t = torch.export.Dim("t")
    program = torch.export.export(Model(), tuple(args.values()), dynamic_shapes=({1: t}, {1: t}, {1: t}))
    targets = [node.target for node in program.graph.nodes]
    assert torch.ops.pyfast.linear_attention_attend_normalized.default in targets
    args, _ = example(2, 9, state=False)
    for got, want in zip(program.module()(*args.values()), Model()(*args.values()), strict=True):
        assert torch.equal(got, want)


@given(st.data(), st.sampled_from(list(FORMS)), st.integers(0, 40), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(deadline=None, max_examples=60)
def test_any_strides_give_the_same_bits(strided, data, form, t, dtype):
    tensors, options = example(2, t, 2, 3, 5, dtype, form=form)
    views = [data.draw(strided(x)) for x in tensors.values()]
    copies = [x.clone(memory_format=torch.contiguous_format) for x in views]
    call = fast(tensors, options)
    for got, want in zip(call(*views), call(*copies), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", ["heads first", "sliced", "transposed"])
@pytest.mark.parametrize("form", ["plain", "normalized"])
def test_writes_where_it_is_told(form, layout):
    tensors, options = example(2, 40, 3, 4, 5, form=form)
    out = {
        "heads first": torch.empty(2, 3, 40, 5).transpose(1, 2),
        "sliced": torch.empty(2, 80, 3, 5)[:, ::2],
        "transposed": torch.empty(5, 3, 40, 2).permute(3, 2, 1, 0),
    }[layout]
    version = out._version
    assert attention(**tensors, **options, out=out) is out
    assert out._version > version
    assert torch.equal(out, attention(**tensors, **options))
    _, last = attention(**tensors, **options, out=out, output_final_state=True)
    assert torch.equal(last, attention(**tensors, **options, output_final_state=True)[1])


@pytest.mark.parametrize("form", ["delta", "not causal normalized"])
def test_writes_where_it_is_told_in_every_form(form):
    tensors, options = example(2, 7, form=form)
    out = torch.empty(2, 7, 2, 4)
    assert attention(**tensors, **options, out=out) is out
    assert torch.equal(out, attention(**tensors, **options))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("b", "t", "h"), [(1, 2000, 1), (2, 700, 3), (1, 400, 8)])
def test_same_bits_on_any_number_of_threads(threads, form, b, t, h):
    tensors, options = example(b, t, h, 24, 24, form=form)
    threads(lambda: fast(tensors, options)(*tensors.values()))


@pytest.mark.parametrize("form", [f for f in FORMS if FORMS[f].get("causal", True)])
def test_same_bits_where_time_is_cut_for_the_threads(threads, form):
    """Few heads and long sequences: segments are worked on side by side, or by one thread one after the other."""
    tensors, options = example(1, 17_000, 1, 3, 2, form=form, ends=[0, 4096, 4096, 8200, 17_000])
    got = threads(lambda: fast(tensors, options)(*tensors.values()))
    truth = slow(tensors, options)(*(x.double() for x in tensors.values()))
    for y, want in zip(got, truth, strict=True):
        assert (y - want).abs().max() <= 16 * torch.finfo(torch.float32).eps * want.abs().max()


@pytest.mark.parametrize("groups", [(1, 2, 2), (1, 4, 4), (2, 2, 1), (4, 1, 2), (1, 1, 4)])
@pytest.mark.parametrize("form", ["token decay", "vector gated delta", "normalized"])
def test_grouped_heads(check, form, groups):
    tensors, options = example(4, 9, 4, 3, 2, form=form, groups=groups)
    check(fast(tensors, options), slow(tensors, options), *tensors.values())
    of = [i for i, name in enumerate(tensors) if name != "decay"]
    check(gradient(fast(tensors, options), of), gradient(slow(tensors, options), of), *tensors.values())


def test_grouped_heads_without_causality(check):
    """The state has the heads of k and v, the result those of q too."""
    for groups in [(1, 2, 2), (1, 4, 4), (2, 2, 1), (4, 1, 2)]:
        tensors, options = example(2, 9, 4, 3, 2, torch.float64, form="not causal", groups=groups)
        assert tensors["initial_state"].shape[1] == 4 // min(groups[1:])
        state = tensors.pop("initial_state")
        wide = {**tensors, "initial_state": state.repeat_interleave(min(groups[1:]), 1)}
        truth = slow(wide, options)(*wide.values())[0]
        torch.testing.assert_close(attention(**tensors, initial_state=state, **options), truth)


@pytest.mark.parametrize("form", FORMS)
def test_packed_sequences(check, form):
    tensors, options = example(1, 80, 6, 3, 4, form=form, ends=[0, 0, 1, 34, 34, 80, 80])
    check(fast(tensors, options), slow(tensors, options), *tensors.values())
    of = [i for i, name in enumerate(tensors) if name != "decay"]
    check(gradient(fast(tensors, options), of), gradient(slow(tensors, options), of), *tensors.values())


def test_packed_cross_attention():
    q, k, v = torch.randn(1, 5, 2, 3), torch.randn(1, 9, 2, 3), torch.randn(1, 9, 2, 4)
    ends, ends_k = torch.tensor([0, 4, 4, 5]), torch.tensor([0, 2, 7, 9])
    got = attention(q, k, v, causal=False, cu_seqlens=ends, cu_seqlens_k=ends_k)
    parts = [attention(q[:, a:b], k[:, c:d], v[:, c:d], causal=False) for a, b, c, d in [(0, 4, 0, 2), (4, 5, 7, 9)]]
    torch.testing.assert_close(got, torch.cat(parts, 1))


def test_cross_attention_reads_another_length(check):
    q, k, v = torch.randn(2, 5, 2, 3), torch.randn(2, 40, 2, 3), torch.randn(2, 40, 2, 4)
    check(
        lambda q, k, v: attention(q, k, v, causal=False),
        lambda q, k, v: reference.attention(q, k, v, causal=False)[0],
        q,
        k,
        v,
    )


@pytest.mark.parametrize("form", [f for f in FORMS if FORMS[f].get("causal", True)])
def test_parts_give_the_whole(form):
    """Streaming: the state carries all there is, whatever the parts."""
    tensors, options = example(2, 90, 2, 5, 4, torch.float64, form=form)
    tokens = {n: x for n, x in tensors.items() if n != "initial_state" and x.dim() > 1}
    fixed = {n: x for n, x in tensors.items() if n not in tokens and n != "initial_state"}
    whole, end = attention(**tensors, **options, output_final_state=True)
    state, outs, edges = tensors["initial_state"], [], [0, 1, 2, 40, 40, 90]
    for a, b in itertools.pairwise(edges[::-1] if options.get("reverse") else edges):
        part = {n: x[:, min(a, b) : max(a, b)] for n, x in tokens.items()}
        out, state = attention(**part, **fixed, initial_state=state, **options, output_final_state=True)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs[::-1] if options.get("reverse") else outs, 1), whole)
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize("form", ["plain", "normalized", "head decay", "token decay", "vector gated delta"])
def test_steps_give_the_whole(form):
    tensors, options = example(2, 40, 2, 5, 4, torch.float64, form=form)
    tokens = {n: x for n, x in tensors.items() if n != "initial_state" and x.dim() > 1}
    fixed = {n: x for n, x in tensors.items() if n not in tokens and n != "initial_state"}
    state, outs = tensors["initial_state"], []
    for t in range(40):
        step = {n: x[:, t] for n, x in tokens.items()}
        out, state = linear_attention.step(**step, **fixed, state=state, **options)
        outs.append(out)
    torch.testing.assert_close(torch.stack(outs, 1), attention(**tensors, **options))


def test_heads_of_keys_and_values_that_do_not_divide_each_other(check):
    for form in ("plain", "delta", "not causal"):
        tensors, options = example(2, 9, 6, 3, 2, torch.float64, form=form, groups=(1, 3, 2), state=False)
        if form == "delta":
            tensors["beta"] = tensors["beta"][:, :, ::2]
        truth = slow(tensors, options)(*tensors.values())[0]
        torch.testing.assert_close(attention(**tensors, **options), truth)


def test_a_tiny_divisor_divides():
    q = torch.full((1, 4, 1, 1), 1e-20)
    v = torch.randn(1, 4, 1, 2)
    means = v.cumsum(1) / torch.arange(1, 5).view(1, 4, 1, 1)
    # 1e-40 is 16 bits above the smallest number there is, and every score is rounded to that.
    bound = 4 * 2**-16 * v.abs().max()
    assert (attention(q, q, v, normalize=True, eps=0.0) - means).abs().max() <= bound


def test_gradients_of_a_batch_of_directions():
    q, k, v = (torch.randn(1, 10, 2, 4) for _ in range(3))
    x = q.clone().requires_grad_()
    y = attention(x, k, v)
    directions = torch.randn(3, *y.shape)
    got = torch.autograd.grad(y, x, directions, is_grads_batched=True, retain_graph=True)[0]
    want = torch.stack([torch.autograd.grad(y, x, d, retain_graph=True)[0] for d in directions])
    torch.testing.assert_close(got, want)


@JIT
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["token decay", "vector decay", "gated delta", "normalized token decay"])
def test_forward_mode_in_a_decay_over_a_long_time(form, dtype):
    """Large sums of decays cancel: they must not be rounded with the tokens."""
    tensors, options = example(1, 3000, 1, 4, 4, dtype, form=form, state=False)
    tensors["decay"] = tensors["decay"].clamp(max=-0.05)
    others = {n: x for n, x in tensors.items() if n != "decay"}

    def change(others, decay):
        return torch.func.jvp(lambda d: attention(**others, decay=d, **options), (decay,), (torch.ones_like(decay),))

    out, got = change(others, tensors["decay"])
    truth, want = change({n: x.double() for n, x in others.items()}, tensors["decay"].double())
    relative = (out - truth).norm() / truth.norm()
    assert (got - want).norm() / want.norm() <= 8 * relative + 8 * torch.finfo(dtype).eps


def test_strong_decays_stay_finite(check):
    """Factors from exp(-1e4) over exp(-50) and 1 to 0 itself, within one chunk."""
    g = torch.Generator().manual_seed(0)
    for form in ("token decay", "vector decay", "vector decay reverse", "gated delta", "vector gated delta"):
        tensors, options = example(1, 70, 2, 3, 4, form=form)
        size = tensors["decay"].shape
        choice = torch.tensor([0.0, -1e-3, -1.0, -9.0, -50.0, -1e4, -1e16, -math.inf])
        tensors["decay"] = choice[torch.randint(8, size, generator=g)]
        check(fast(tensors, options), slow(tensors, options), *tensors.values())
        tensors["decay"] = torch.full(size, -50.0)
        check(fast(tensors, options), slow(tensors, options), *tensors.values())
        tensors["decay"] = torch.full(size, -1e4)
        check(fast(tensors, options), slow(tensors, options), *tensors.values())


def test_growth_is_a_decay_too(check):
    for form in ("head decay", "token decay", "vector decay"):
        tensors, options = example(1, 40, 2, 3, 4, form=form)
        tensors["decay"] = -tensors["decay"] / 4
        check(fast(tensors, options), slow(tensors, options), *tensors.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("form", ["plain", "reverse", "normalized", "token decay", "vector decay", "gated delta"])
def test_what_is_not_finite_stays_where_it_may_be_seen(form, name, bad):
    tensors, options = example(2, 70, 3, 4, 5, form=form, state=False)
    clean = attention(**tensors, **options)
    tensors[name][0, 37, 1, 2] = bad
    got = attention(**tensors, **options)
    seen = torch.zeros(2, 70, 3, dtype=torch.bool)
    seen[0, slice(0, 38) if options.get("reverse") else slice(37, 70), 1] = True
    if name == "q":
        seen[:] = False
        seen[0, 37, 1] = True
    assert torch.equal(got[~seen], clean[~seen])
    if math.isnan(bad):
        assert got[seen].isnan().any(-1).all()
    else:
        assert not got[0, 37, 1].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 2, 4, 5), (2, 0, 2, 4, 5), (2, 3, 2, 0, 5), (2, 3, 2, 4, 0), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("form", FORMS)
def test_nothing_at_all(form, shape):
    tensors, options = example(*shape, form=form)
    out, last = attention(**tensors, **options, output_final_state=True)
    b, t, h, key, value = shape
    assert out.shape == (b, t, h, value)
    assert last.shape == (b, h, key, value + bool(options.get("normalize")))
    assert out.isfinite().all()
    if t == 0:
        assert torch.equal(last, tensors["initial_state"])
    total((attention(**tensors, **options).requires_grad_(),)).backward()
