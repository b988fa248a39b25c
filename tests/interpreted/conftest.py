"""These tests run the GPU kernels in Triton's interpreter; `pytest tests/interpreted --device cuda`, on a GPU.

tests/test_triton_interpreter.py starts each file in a process of its own: Triton reads TRITON_INTERPRET when it is
imported, and torch.compile may have imported it without.
"""

import functools
import os

import pytest
import torch
from torch.utils._pytree import tree_map

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_addoption(parser):
    parser.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="where the kernels run")


def pytest_configure(config):
    config.addinivalue_line(
        "filterwarnings", "ignore:Conversion of an array with ndim:DeprecationWarning"
    )  # Triton 3.6


def pytest_ignore_collect(config):
    return (config.getoption("--device", "cpu") == "cpu") != INTERPRETED or None


@pytest.fixture
def device(request):
    return request.config.getoption("--device")


@pytest.fixture(autouse=True)
def launched_there(request, device, monkeypatch):
    """The launchers that a test calls with tensors of the CPU find twins of them on the device, down to every gap."""
    for module in list(vars(request.module).values()):
        package, _, family = getattr(module, "__name__", "").rpartition(".")
        if package == "pyfast.kernels":
            from pyfast import _C

            for name in set(dir(getattr(_C, family))) & set(vars(module)):
                if not name.startswith("_"):
                    monkeypatch.setattr(module, name, moved(getattr(module, name), device))


def moved(launch, device):
    def bytes_of(storage):
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

    def run(*args):
        storages = {}

        def twin(x):
            if not isinstance(x, torch.Tensor):
                return x
            s = x.untyped_storage()
            if s._cdata not in storages:
                storages[s._cdata] = s, bytes_of(s).to(device, copy=True)
            there = storages[s._cdata][1].untyped_storage()
            return torch.empty(0, dtype=x.dtype, device=device).set_(there, x.storage_offset(), x.shape, x.stride())

        result = launch(*tree_map(twin, args))
        for s, there in storages.values():
            bytes_of(s).copy_(there)
        return result

    return functools.wraps(launch)(run)
