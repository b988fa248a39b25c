"""Periodic crystals on the GPU."""

from pyfast.kernels.crystal._messages import blocks, conv, product, transpose
from pyfast.kernels.crystal._nearest import NEAREST, choose
from pyfast.kernels.crystal._neighbors import NEIGHBORS, count, fill
from pyfast.kernels.crystal._table import table_blocks, table_conv, table_dot, table_sums

__all__ = [
    "NEAREST",
    "NEIGHBORS",
    "blocks",
    "choose",
    "conv",
    "count",
    "fill",
    "product",
    "table_blocks",
    "table_conv",
    "table_dot",
    "table_sums",
    "transpose",
]
