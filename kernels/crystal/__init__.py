"""Periodic crystals on the GPU."""

from pyfast.kernels.crystal._messages import blocks, conv, product, transpose
from pyfast.kernels.crystal._table import table_blocks, table_conv, table_dot, table_sums

__all__ = ["blocks", "conv", "product", "table_blocks", "table_conv", "table_dot", "table_sums", "transpose"]
