"""These tests run the GPU kernels on CPU tensors; tests/test_triton_interpreter.py starts them, in their own process.

Triton reads TRITON_INTERPRET when it is imported, and torch.compile may have imported it without.
"""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]


def pytest_configure(config):
    config.addinivalue_line(
        "filterwarnings", "ignore:Conversion of an array with ndim:DeprecationWarning"
    )  # Triton 3.6
