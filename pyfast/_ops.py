"""The one place where an operator meets its devices.

An operator is three functions: ``pyfast._C.family.name`` (C++) and ``pyfast.kernels.family.name`` (Triton), which share
one signature, inputs first and outputs last; and ``allocate``, which makes the outputs and so doubles as the shape rule
that ``torch.compile`` traces with.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch

from pyfast import _C

_library = torch.library.Library("pyfast", "DEF")


def define(
    family: str,
    schema: str,
    allocate: Callable[..., Any],
    save: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register ``pyfast::family_schema`` for CPU, CUDA and tracing, and return the function that runs it."""
    name = schema.partition("(")[0]
    operator = f"{family}_{name}"
    cpp = getattr(getattr(_C, family), name)

    def cpu(*inputs):
        outputs = allocate(*inputs)
        cpp(*inputs, *_as_tuple(outputs))
        return outputs if outputs != () else None

    def cuda(*inputs):
        outputs = allocate(*inputs)
        kernels = importlib.import_module(f"pyfast.kernels.{family}")
        first = inputs[0][0] if isinstance(inputs[0], (list, tuple)) else inputs[0]
        with torch.cuda.device(first.device):
            getattr(kernels, name)(*inputs, *_as_tuple(outputs))
        return outputs if outputs != () else None

    def no_derivative(ctx, *grads):
        raise NotImplementedError(f"pyfast::{operator} has no derivative; differentiate pyfast.reference.{family} instead")

    _library.define(f"{family}_{schema}")
    _library.impl(operator, cpu, "CPU")
    _library.impl(operator, cuda, "CUDA")
    _library.impl(operator, allocate, "Meta")
    if "!" not in schema:
        torch.library.register_autograd(f"pyfast::{operator}", backward or no_derivative, setup_context=save, lib=_library)
    return getattr(torch.ops.pyfast, operator).default


def _as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)
