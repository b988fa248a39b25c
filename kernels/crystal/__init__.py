"""Periodic crystals on the GPU."""

from pyfast.kernels.crystal._angular import PULLING, angular, angular_back, angular_blocks, gemnet, gemnet_back
from pyfast.kernels.crystal._geometry import nearest_shift, vectors, vectors_adjoint
from pyfast.kernels.crystal._messages import blocks, conv, product, transpose
from pyfast.kernels.crystal._nearest import NEAREST, choose, keep
from pyfast.kernels.crystal._neighbors import NEIGHBORS, count, fill
from pyfast.kernels.crystal._segments import segment_max, segment_softmax, segment_spread, segment_sum
from pyfast.kernels.crystal._table import table_blocks, table_conv, table_dot, table_sums
from pyfast.kernels.crystal._triplets import pair_back, pair_blocks, pair_dot, pair_sum

__all__ = [
    "NEAREST",
    "NEIGHBORS",
    "PULLING",
    "angular",
    "angular_back",
    "angular_blocks",
    "blocks",
    "choose",
    "conv",
    "count",
    "fill",
    "gemnet",
    "gemnet_back",
    "keep",
    "nearest_shift",
    "pair_back",
    "pair_blocks",
    "pair_dot",
    "pair_sum",
    "product",
    "segment_max",
    "segment_softmax",
    "segment_spread",
    "segment_sum",
    "table_blocks",
    "table_conv",
    "table_dot",
    "table_sums",
    "transpose",
    "vectors",
    "vectors_adjoint",
]
