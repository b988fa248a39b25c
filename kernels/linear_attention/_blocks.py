"""What is chosen by shape and GPU, from a table: no tuning at run time."""

import functools

import torch
import triton
from pyfast.kernels.linear_attention._chunks import SCALAR


@functools.cache
def processors(device):
    """How many programs of some size run at once; 1 under the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def capability(device):
    return torch.cuda.get_device_capability(device)[0] * 10 if device.type == "cuda" else 90


def blocks(capability, dtype, K, V, kind=0, solve=False, normalize=False, double=False):
    """Sizes of blocks, warps and stages, such that no register is spilled: tests/test_triton_aot.py."""
    BK = max(16, triton.next_power_of_2(K))
    half = dtype.itemsize == 2
    BT, BV, warps = 32, 32, 4
    if not half:  # no tensor cores
        BT, warps = 16, 8
        BV = 32 if BK <= 64 else 16
    elif kind > SCALAR.value or solve or BK > 256:
        BT, warps = 16, 8 if BK > 128 else 4
    elif normalize:
        warps = 4 if BK <= 64 else 8
        BT, BV = (16, 16) if BK > 128 else (32, 32)
    elif capability < 90 or dtype == torch.float16:
        BV, warps = (16, 8) if BK > 128 else (32, 4)
    else:  # 64 tokens are what Hopper's instructions multiply at once
        BT = 64
        BV = 64 if BK <= 64 else 32 if BK <= 128 or not kind else 16
        warps = 8 if BK > 128 and not kind else 4
    if double or dtype == torch.float64 or BK > 256:
        BV = 16
    return {
        "BT": BT,
        "BK": BK,
        "BV": min(BV, max(16, triton.next_power_of_2(V))),
        "num_warps": warps,
        "num_stages": 2 if half else 1,
    }
