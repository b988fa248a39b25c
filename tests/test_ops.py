"""The operator table itself, on a toy family whose kernels are written in Python."""

from types import SimpleNamespace

import pytest
import torch

from pyfast import _C, _ops


def _scale(x, factor, out):
    out.copy_(x * factor)


def _energy(weights, out):
    out.copy_(sum((w.detach() ** 2).sum() for w in weights))


def _add_(x, y):
    x.add_(y)


def _double_(weights, factor):
    for w in weights:
        w.mul_(factor)


_C.toy = SimpleNamespace(scale=_scale, energy=_energy, opaque=lambda x, out: out.copy_(x), add_=_add_, double_=_double_)


def _save_factor(ctx, inputs, output):
    ctx.factor = inputs[1]


def _save_weights(ctx, inputs, output):
    assert isinstance(inputs[0], (list, tuple))
    ctx.save_for_backward(*inputs[0])


scale = _ops.define(
    "toy",
    "scale(Tensor x, float factor) -> Tensor",
    lambda x, factor: torch.empty_like(x),
    _save_factor,
    lambda ctx, grad: (scale(grad, ctx.factor), None),
    rows=(0,),
)
energy = _ops.define(
    "toy",
    "energy(Tensor[] weights) -> Tensor",
    lambda weights: weights[0].new_empty(()),
    _save_weights,
    lambda ctx, grad: [
        2 * grad * w if need else None for w, need in zip(ctx.saved_tensors, ctx.needs_input_grad[0], strict=True)
    ],
)
opaque = _ops.define("toy", "opaque(Tensor x) -> Tensor", lambda x: torch.empty_like(x))
add_ = _ops.define("toy", "add_(Tensor(a!) x, Tensor y) -> ()", lambda *_: ())
double_ = _ops.define("toy", "double_(Tensor(a!)[] weights, float factor) -> ()", lambda *_: ())
ops = torch.ops.pyfast


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_contract_of_every_kind():
    x = double(3, 2).requires_grad_()
    torch.library.opcheck(ops.toy_scale.default, (x, 2.0))
    torch.library.opcheck(ops.toy_energy.default, ([x, double(4).requires_grad_()],))
    torch.library.opcheck(ops.toy_opaque.default, (x.detach(),))
    torch.library.opcheck(ops.toy_add_.default, (double(3, 2), double(3, 2)))
    torch.library.opcheck(ops.toy_double_.default, ([double(3, 2), double(4)], 2.0))


def test_derivative_of_a_list():
    weights = [double(3, 2).requires_grad_(), double(4), double(()).requires_grad_()]
    assert torch.autograd.gradcheck(lambda *w: energy(list(w)), weights)
    assert torch.autograd.gradgradcheck(lambda *w: energy(list(w)), weights)
    grads = torch.func.grad(lambda w: energy(w))(weights)
    torch.testing.assert_close(grads, [2 * w for w in weights])
    batch = [torch.stack([w.detach(), 3 * w.detach()], -1) for w in weights]
    got = torch.vmap(torch.func.grad(lambda w: energy(w)), in_dims=([-1] * 3,), out_dims=-1)(batch)
    torch.testing.assert_close(got, [2 * w for w in batch])


def test_compiles_forward_and_backward():
    def total(x, w):
        return scale(x, 3.0).sum() + energy([x, w])

    x, w = double(3, 2).requires_grad_(), double(4).requires_grad_()
    got = torch.autograd.grad(torch.compile(total, fullgraph=True, backend="aot_eager")(x, w), (x, w))
    torch.testing.assert_close(got, (3 + 2 * x.detach(), 2 * w.detach()))


def test_vmap_folds_rows_into_one_call(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: calls.append(1))  # called once for each kernel
    x = double(2, 5, 3)
    torch.testing.assert_close(torch.vmap(lambda x: scale(x, 2.0), in_dims=1, out_dims=1)(x), 2 * x)
    assert len(calls) == 1
    torch.testing.assert_close(torch.vmap(torch.vmap(lambda x: scale(x, 2.0)))(double(2, 3, 0, 4)), double(2, 3, 0, 4))


def test_what_has_no_derivative_says_so():
    x = double(3).requires_grad_()
    with pytest.raises(NotImplementedError, match=r"pyfast::toy_opaque has no derivative; .* pyfast.reference.toy"):
        opaque(x).sum().backward()
    with pytest.raises(NotImplementedError, match="toy_opaque has no derivative"):
        ops.toy_opaque(x).sum().backward()
    with pytest.raises(NotImplementedError, match="toy_opaque has no derivative"):
        torch.func.grad(lambda x: opaque(x).sum())(x)
    with torch.no_grad():
        assert not opaque(x).requires_grad


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # PyTorch's own, on first use
@pytest.mark.parametrize("f", [lambda x: scale(x, 2.0), lambda x: energy([x]), opaque, lambda x: ops.toy_scale(x, 2.0)])
def test_forward_mode_says_so(f):
    x = double(3)
    for attempt in (
        lambda: torch.func.jvp(f, (x,), (x,)),
        lambda: torch.func.jvp(torch.func.grad(lambda x: f(x).sum()), (x,), (x,)),
        lambda: torch.func.grad(lambda x: torch.func.jvp(f, (x,), (x,))[1].sum())(x),
    ):
        with pytest.raises(NotImplementedError, match=r"has no (forward-mode )?derivative"):
            attempt()
    with torch.autograd.forward_ad.dual_level():
        f(x)
        with pytest.raises(NotImplementedError, match="has no forward-mode derivative; use reverse mode"):
            f(torch.autograd.forward_ad.make_dual(x, x))


@pytest.mark.parametrize("direct", [False, True])
def test_in_place_bumps_versions(direct):
    x, y, z = double(3), double(3), double(4)
    versions = [t._version for t in (x, y, z)]
    (ops.toy_add_ if direct else add_)(x, y)
    (ops.toy_double_ if direct else double_)([x, z], 2.0)
    assert [t._version for t in (x, y, z)] == [versions[0] + 2, versions[1], versions[2] + 1]
    w = double(3).requires_grad_()
    loss = (w * x).sum()  # keeps x
    add_(x, y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_place_in_inference_mode():
    x = double(3)
    with torch.inference_mode():
        inference = double(3)
        double_([x, inference], 2.0)
    torch.testing.assert_close(x, inference)


def test_in_place_on_a_result_of_autograd_is_refused():
    parameter = double(3).requires_grad_()
    double_([parameter], 2.0)
    torch.testing.assert_close(parameter.detach(), 2 * double(3))
    with pytest.raises(NotImplementedError, match="toy_double_ has no derivative"):
        double_([parameter * 1], 2.0)
    with torch.no_grad():
        double_([parameter * 1], 2.0)


def test_in_place_compiles_whole():
    def step(x, y):
        z = x * 2
        add_(z, y)
        double_([z, x], 3.0)
        return z

    x, y = double(3), double(3)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(x, y)
    torch.testing.assert_close((got, x), (9 * double(3), 3 * double(3)))


def test_in_place_under_vmap_says_so():
    with pytest.raises(NotImplementedError, match=r"toy_add_ changes its inputs in place"):
        torch.vmap(lambda x, y: add_(x, y))(double(2, 3), double(2, 3))


def test_profilers_and_modes_see_the_operator():
    x = double(3).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        scale(x, 2.0)
        scale(x.detach(), 2.0)
    (row,) = (e for e in profile.key_averages() if e.key == "pyfast::toy_scale")
    assert row.count == 2

    seen = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        scale(x, 2.0)
    assert ops.toy_scale.default in seen


def test_meta_tensors_need_no_kernel():
    out = scale(torch.empty(3, 2, device="meta"), 2.0)
    assert out.device.type == "meta"
    assert out.shape == (3, 2)
