"""Sizes of tiles, and warps, such that no register is spilled: tests/test_triton_aot.py."""

import triton

NODES = {"BM": 16, "BN": 64, "num_warps": 4}
NODE_DRAWS = {"BM": 8, "BN": 64, "num_warps": 4}
DRAWS = {"BJ": 16, "BN": 64, "num_warps": 4}
LEAVES = {"BL": 16, "BN": 64, "num_warps": 4}
GAMMAS = {"BN": 128, "num_warps": 4}
NORMALS = {"BM": 8, "BK": 32, "num_warps": 4}


def blocks(most, double):
    """Sizes of tiles of a dense network, and warps: outputs, inputs, rows. tests/test_triton_aot.py: no spills."""
    BK = max(16, triton.next_power_of_2(most))
    return {"BK": BK, "BJ": 16, "BN": max(16, min(32 if double else 64, 2048 // BK)), "num_warps": 8}


def slope_blocks(most, double):
    """Of the derivatives in weights."""
    how = blocks(most, double)
    return how | {"BN": min(how["BN"], 32)}


def leaf_blocks(predictive):
    """Of leaves, in the form that goes node by node."""
    return NODES | {"BM": 4} if predictive else NODES
