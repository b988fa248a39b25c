"""The compiled kernels: one source, built once per x86-64 level. This picks the highest that the processor runs."""

import importlib
import os
import platform
from typing import Any

_NEEDS = {
    "v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "v3": {"avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe"},
    "v2": {"cx16", "popcnt", "sse4_1", "sse4_2", "ssse3"},
}


def levels() -> list[str]:
    """The builds that this processor can run, best first."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["native"]
    with open("/proc/cpuinfo") as f:
        flags = set(next((line for line in f if line.startswith("flags")), "").split())
    return [level for level, needs in _NEEDS.items() if needs <= flags]


def _choose() -> str:
    can = levels()
    forced = os.environ.get("PYFAST_CPU")
    if forced and forced not in can:
        raise ImportError(f"PYFAST_CPU must be one of {', '.join(can)} on this processor, got {forced!r}")
    if not can:
        raise ImportError("pyfast needs an x86-64-v2 processor (SSE4.2), which every x86-64 machine since 2009 is")
    return forced or can[0]


level = _choose()
_kernels: Any = importlib.import_module(f"pyfast._C.{level}")


def __getattr__(family: str) -> Any:
    return getattr(_kernels, family)
