import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast import _C, longtail
from pyfast.reference import longtail as reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [(0, 3), (1, 1), (7, 5), (64, 1000), (3, 4097), (2, 200_003)]


def example(n, c, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, generator=g).to(dtype)
    target = torch.randint(c, (n,), generator=g)
    prior = (torch.rand(c, generator=g) + 0.01).to(dtype)
    return logits, target, prior


def gradient(loss):
    """The gradient of a loss in logits and prior, weighted so that no two rows are the same."""

    def of(logits, target, prior, tau=1.0):
        logits, prior = logits.detach().requires_grad_(), prior.detach().requires_grad_()
        weights = torch.linspace(1, 2, len(logits), dtype=logits.dtype)
        return torch.autograd.grad(loss(logits, target, prior, tau), (logits, prior), weights)

    return of


def hessian_vector(loss):
    """The derivative of (gradient . logits + gradient . prior) in logits and prior."""

    def of(logits, target, prior):
        leaves = logits.detach().requires_grad_(), prior.detach().requires_grad_()
        total = (loss(leaves[0], target, leaves[1]) ** 2).sum()
        first = torch.autograd.grad(total, leaves, create_graph=True)
        return torch.autograd.grad(sum((g * x.detach()).sum() for g, x in zip(first, leaves, strict=True)), leaves)

    return of


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "c"), SIZES)
def test_matches_reference(check, n, c, dtype):
    args = example(n, c, dtype)
    check(longtail.loss, reference.loss, *args)
    check(gradient(longtail.loss), gradient(reference.loss), *args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "c"), SIZES)
def test_second_derivative_matches_reference(check, n, c, dtype):
    check(hessian_vector(longtail.loss), hessian_vector(reference.loss), *example(n, c, dtype))


@pytest.mark.parametrize("tau", [0, -0.5, 3.0])
def test_tau(check, tau):
    check(longtail.loss, reference.loss, *example(7, 5), tau)


@pytest.mark.parametrize("shift", [1e4, -1e4, 1e30])
def test_large_logits_lose_nothing(check, shift):
    logits, target, prior = example(7, 5, torch.float64)
    args = (torch.floor(logits * 8) + shift).float(), target, prior.float()
    check(longtail.loss, reference.loss, *args)
    check(gradient(longtail.loss), gradient(reference.loss), *args)


def test_a_million_equal_logits_sum_exactly():
    c = 1_000_003
    out = longtail.loss(torch.full((1, c), 3.0), torch.tensor([c - 1]), torch.ones(c))
    assert out.item() == pytest.approx(math.log(c), rel=torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [-math.inf, math.inf, math.nan])
@pytest.mark.parametrize("where", ["target", "other", "row"])
def test_values_that_are_not_finite(check, dtype, bad, where):
    logits, target, prior = example(4, 3000, dtype)
    if where == "row":
        logits[1] = bad
    else:
        logits[1, target[1] if where == "target" else (target[1] + 1) % 3000] = bad
    check(longtail.loss, reference.loss, logits, target, prior)
    check(gradient(longtail.loss), gradient(reference.loss), logits, target, prior)


def test_derivatives_in_float64():
    logits, target, prior = example(5, 7, torch.float64)
    args = logits.requires_grad_(), target, prior.requires_grad_()
    assert torch.autograd.gradcheck(longtail.loss, args)
    assert torch.autograd.gradgradcheck(longtail.loss, args)


def test_third_derivative_is_refused():
    logits, target, prior = example(5, 7)
    x = logits.requires_grad_()
    (first,) = torch.autograd.grad(longtail.loss(x, target, prior).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="longtail_curvature has no derivative"):
        second.sum().backward()


TRANSFORMS = {
    "grad": lambda f, x, p: torch.func.grad(lambda x, p: f(x, p).sum(), (0, 1))(x[0], p[0]),
    "grad of grad": lambda f, x, p: torch.func.grad(
        lambda p: (torch.func.grad(lambda x: (f(x, p) ** 2).sum())(x[0]) ** 2).sum()
    )(p[0]),
    "jacrev": lambda f, x, p: torch.func.jacrev(f, (0, 1))(x[0], p[0]),
    "jacrev of jacrev": lambda f, x, p: torch.func.jacrev(torch.func.jacrev(f, (0, 1)), (0, 1))(x[0], p[0]),
    "vmap": lambda f, x, p: torch.vmap(f)(x, p),
    "vmap of logits": lambda f, x, p: torch.vmap(f, (0, None))(x, p[0]),
    "vmap of prior": lambda f, x, p: torch.vmap(f, (None, 0))(x[0], p),
    "vmap of last": lambda f, x, p: torch.vmap(f, (2, 1))(x.movedim(0, 2), p.T),
    "vmap of vmap": lambda f, x, p: torch.vmap(torch.vmap(f, (None, 0)), (0, None))(x, p),
    "vmap of grad": lambda f, x, p: torch.vmap(torch.func.grad(lambda x, p: (f(x, p) ** 2).sum(), (0, 1)))(x, p),
    "vmap of jacrev": lambda f, x, p: torch.vmap(torch.func.jacrev(torch.func.jacrev(f)), (0, None))(x, p[0]),
    "vjp": lambda f, x, p: torch.func.vjp(f, x[0], p[0])[1](torch.ones(4, dtype=x.dtype)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_function_transforms(transform):
    logits, target, _ = example(4, 5, torch.float64)
    x, p = torch.stack([logits, 2 * logits, -logits]), torch.rand(3, 5, dtype=torch.float64) + 0.1
    got, want = (
        TRANSFORMS[transform](lambda x, p, f=f: f(x, target, p), x, p) for f in (longtail.loss, reference.loss)
    )
    torch.testing.assert_close(got, want)


def test_gradient_through_a_vjp_that_outlives_its_transform():
    logits, target, prior = example(4, 5, torch.float64)
    results = []
    for f in (longtail.loss, reference.loss):
        x, p = logits.clone().requires_grad_(), prior.clone().requires_grad_()
        _, pull = torch.func.vjp(lambda x, p, f=f: f(x, target, p), x, p)
        dx, dp = pull(torch.ones(4, dtype=torch.float64))
        results.append(torch.autograd.grad((dx**2).sum() + (dp**3).sum(), (x, p)))
    torch.testing.assert_close(*results)


def test_operator_contract():
    logits, target, prior = example(5, 7)
    bias = prior.log().requires_grad_()
    x = logits.requires_grad_()
    torch.library.opcheck(torch.ops.pyfast.longtail_loss.default, (x, target, bias))
    _, norm = torch.ops.pyfast.longtail_loss(x, target, bias)
    grad, v = torch.randn(5, requires_grad=True), torch.randn(5, 7)
    torch.library.opcheck(torch.ops.pyfast.longtail_loss_backward.default, (grad, x, target, bias, norm))
    args = [a.detach() for a in (v, grad, x, target, bias, norm)]
    torch.library.opcheck(torch.ops.pyfast.longtail_curvature.default, args)


def test_compiles_whole(check):
    compiled = torch.compile(longtail.loss, fullgraph=True, backend="aot_eager")
    for n in (5, 8, 13):
        check(compiled, reference.loss, *example(n, 7))
        check(gradient(compiled), gradient(reference.loss), *example(n, 7))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # Inductor's own
def test_inductor_keeps_the_layout(check):
    compiled = torch.compile(lambda x, t, p: longtail.loss(x.T * 2, t, p), fullgraph=True)
    logits, target, prior = example(5, 7)
    check(compiled, lambda x, t, p: reference.loss(x.T * 2, t, p), logits.T.contiguous(), target, prior)


def test_exports():
    class Model(torch.nn.Module):
        def forward(self, logits, target, prior):
            return longtail.loss(logits, target, prior)

    n = torch.export.Dim("n")
    program = torch.export.export(Model(), example(5, 7), dynamic_shapes=({0: n}, {0: n}, None))
    assert torch.ops.pyfast.longtail_loss.default in [node.target for node in program.graph.nodes]
    args = example(9, 7)
    assert torch.equal(program.module()(*args), longtail.loss(*args))


@given(st.data(), st.integers(0, 9), st.integers(1, 9), st.sampled_from(DTYPES))
@settings(deadline=None, max_examples=60)
def test_any_strides_give_the_same_bits(strided, data, n, c, dtype):
    args = [data.draw(strided(x)) for x in example(n, c, dtype)]
    copies = [x.clone(memory_format=torch.contiguous_format) for x in args]
    assert torch.equal(longtail.loss(*args), longtail.loss(*copies))
    for got, want in zip(gradient(longtail.loss)(*args), gradient(longtail.loss)(*copies), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("n", "c"), [(40_000, 1), (9_000, 5), (300, 1000), (2, 300_001)])
def test_same_bits_on_any_number_of_threads(threads, n, c, dtype):
    args = example(n, c, dtype)
    threads(lambda: (longtail.loss(*args), gradient(longtail.loss)(*args), hessian_vector(longtail.loss)(*args)))


def test_exp_is_accurate():
    """With no bias and no norm, the backward kernel is exp alone."""
    x = torch.cat(
        [
            torch.linspace(-110, 90, 2_000_003),
            torch.tensor(
                [0.0, -0.0, 88.72283, 88.72284, 1e30, math.inf, -87.33655, -103.97208, -104.1, -1e30, -math.inf]
            ),
        ]
    )
    got = torch.empty(1, len(x))
    zero = torch.zeros(1, dtype=torch.int64)
    bias, norm = torch.zeros(len(x)), torch.tensor([[0.0, 1.0]])
    _C.longtail.loss_backward(torch.ones(1), x[None], zero, bias, norm, got)
    got, truth = got[0, 1:], x[1:].double().exp()  # element 0 is the target's, less one
    finite = truth < torch.finfo(torch.float32).max
    ulp = torch.exp2(torch.floor(torch.log2(truth)).clamp(-126, 127) - 23)
    error, plain = (((y.double() - truth) / ulp)[finite].abs().max() for y in (got, x[1:].exp()))
    assert error <= 2 * plain
    assert got[~finite].isinf().all()


REFUSED = [
    ({"logits": torch.zeros(5)}, ValueError, r"logits must have shape \(n, c\), got \(5,\)"),
    ({"logits": torch.zeros(5, 7, 1)}, ValueError, r"logits must have shape \(n, c\), got \(5, 7, 1\)"),
    (
        {"target": torch.zeros(4, dtype=torch.int64)},
        ValueError,
        r"target must have shape \(5,\) to match .* got \(4,\)",
    ),
    ({"prior": torch.ones(6)}, ValueError, r"prior must have shape \(7,\) to match logits \(5, 7\), got \(6,\)"),
    ({"logits": torch.zeros(5, 7, dtype=torch.int32)}, TypeError, "logits must be float16, .* got torch.int32"),
    ({"target": torch.zeros(5, dtype=torch.int32)}, TypeError, "target must be torch.int64, got torch.int32"),
    ({"target": torch.zeros(5)}, TypeError, "target must be torch.int64, got torch.float32"),
    ({"prior": torch.ones(7, dtype=torch.int64)}, TypeError, "prior must be float16, .* got torch.int64"),
    ({"target": torch.zeros(5, dtype=torch.int64, device="meta")}, TypeError, "target must be on .* cpu, got meta"),
    ({"prior": torch.ones(7, device="meta")}, TypeError, "prior must be on .* cpu, got meta"),
    ({"tau": math.nan}, ValueError, "tau must be finite, got nan"),
    ({"tau": math.inf}, ValueError, "tau must be finite, got inf"),
    ({"prior": torch.tensor([1, 1, 1, 0.0, 1, 1, 1])}, ValueError, r"prior\[3\] must be positive and finite"),
    ({"prior": torch.tensor([1, 1, 1, -1.0, 1, 1, 1])}, ValueError, r"prior\[3\] must be positive and finite"),
    ({"prior": torch.tensor([1, 1, 1, math.nan, 1, 1, 1])}, ValueError, r"prior\[3\] must be positive and finite"),
    ({"prior": torch.tensor([1, 1, 1, math.inf, 1, 1, 1])}, ValueError, r"prior\[3\] must be positive and finite"),
    ({"target": torch.tensor([0, 1, 2, 7, 9])}, IndexError, r"target\[3\] must be in \[0, 7\), got 7"),
    ({"target": torch.tensor([0, -1, 2, 3, 4])}, IndexError, r"target\[1\] must be in \[0, 7\), got -1"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED)
def test_refuses_bad_input_by_name(wrong, error, message):
    good = dict(zip(("logits", "target", "prior"), example(5, 7), strict=True))
    with pytest.raises(error, match=message):
        longtail.loss(**(good | wrong))


def test_no_classes_leave_no_valid_target():
    with pytest.raises(IndexError, match=r"target\[0\] must be in \[0, 0\), got 0"):
        longtail.loss(torch.zeros(1, 0), torch.tensor([0]), torch.ones(0))


def test_the_boundary_refuses_what_python_should_have_made_contiguous():
    logits, target, prior = example(5, 7)
    with pytest.raises(ValueError, match="contiguous"):
        _C.longtail.loss(logits.T.contiguous().T, target, prior.log(), torch.empty(5), torch.empty(5, 2))
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _C.longtail.loss("logits", target, prior.log(), torch.empty(5), torch.empty(5, 2))


def test_docstring_example():
    assert doctest.testmod(longtail).failed == 0
