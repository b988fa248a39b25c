"""pyfast: exact and fast kernels for methods that papers leave behind as slow Python, one module per family."""

import torch  # noqa: F401  (first: pyfast._C shares its OpenMP runtime)

from pyfast import linear_attention, longtail, prune

__all__ = ["linear_attention", "longtail", "prune"]
__version__ = "0.1.0"
