"""pyfast: exact and fast kernels for methods that papers leave behind as slow Python, one module per family."""

import importlib
from typing import TYPE_CHECKING, Any

import torch  # noqa: F401  (first: pyfast._C shares its OpenMP runtime)

from pyfast import linear_attention, longtail, prune

if TYPE_CHECKING:
    from pyfast import crystal, spn

__all__ = ["crystal", "linear_attention", "longtail", "prune", "spn"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Families of many modules are imported when they are first named, so that `import pyfast` stays quick."""
    if name in __all__:
        return importlib.import_module(f"pyfast.{name}")
    raise AttributeError(f"module 'pyfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
