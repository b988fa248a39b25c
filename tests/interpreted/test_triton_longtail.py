"""Triton's launchers and C++ share signatures: here they share inputs, and the operator's schema names them."""

import inspect

import pytest
import torch
from pyfast.kernels import longtail

from pyfast import _C

LAUNCHERS = [n for n, f in vars(longtail).items() if inspect.isfunction(f) and not n.startswith("_")]


def test_there_is_one_for_every_operator():
    assert sorted(LAUNCHERS) == sorted(n for n in dir(_C.longtail) if not n.startswith("_"))


def operator(name):
    return getattr(torch.ops.pyfast, f"longtail_{name}").default


def example(name, n, c, dtype):
    g = torch.Generator().manual_seed(0)
    values = {
        "logits": torch.randn(n, c, generator=g, dtype=torch.float64).to(dtype),
        "target": torch.randint(c, (n,), generator=g),
        "bias": torch.rand(c, generator=g).log().to(torch.float64 if dtype == torch.float64 else torch.float32),
        "grad": torch.randn(n, generator=g, dtype=torch.float64).to(dtype),
        "v": torch.randn(n, c, generator=g, dtype=torch.float64).to(dtype),
    }
    if name != "loss":
        values["norm"] = operator("loss")(values["logits"], values["target"], values["bias"])[1]
    return [values[a.name] for a in operator(name)._schema.arguments]


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "c"), [(0, 3), (1, 1), (7, 5), (3, 4097)])
@pytest.mark.parametrize("name", LAUNCHERS)
def test_agrees_with_cpp(name, n, c, dtype):
    """Against C++ in float64, Triton errs at most twice as much as C++ does in the same dtype.

    In float64 itself C++ is no truth, so both may round every term of a sum.
    """
    roundings = 4 + (c if dtype == torch.float64 else 0)
    inputs = example(name, n, c, dtype)
    truth = as_tuple(operator(name)(*(x.double() if x.is_floating_point() else x for x in inputs)))
    plain = as_tuple(operator(name)(*inputs))
    outputs = [torch.empty_like(p) for p in plain]
    getattr(longtail, name)(*inputs, *outputs)
    for t, p, got in zip(truth, plain, outputs, strict=True):
        if got.numel():
            allowed = 2 * (p - t).abs().max() + roundings * torch.finfo(got.dtype).eps * t.abs().max()
            assert (got - t).abs().max() <= allowed
