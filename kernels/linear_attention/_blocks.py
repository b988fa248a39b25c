"""What is chosen by shape and GPU, from a table: no tuning at run time."""

import functools

import torch
import triton
import triton.language as tl
from pyfast.kernels.linear_attention._chunks import SCALAR


@functools.cache
def processors(device):
    """How many programs of some size run at once; 1 under the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def capability(device):
    return torch.cuda.get_device_capability(device)[0] * 10 if device.type == "cuda" else 90


def numbers(*dtypes):
    """What is computed in, and what is multiplied.

    Tensor cores take bfloat16 as it is. float16 has too little range for sums; tf32 has as many digits. 16 and 32 bits
    together, as in the delta rule and in gradients of decays, mean that the 8 digits of bfloat16 do not suffice.
    """
    half = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    same = len(set(dtypes)) == 1
    wide = tl.float64 if torch.float64 in dtypes else tl.float32
    if not any(d in half for d in dtypes) or wide == tl.float64:
        return {"WIDE": wide, "FACTORS": wide, "ADDED": wide, "PRECISION": "ieee"}
    if not same:
        return {"WIDE": wide, "FACTORS": wide, "ADDED": wide, "PRECISION": "tf32"}
    added = half[dtypes[0]]
    return {"WIDE": wide, "FACTORS": added if added == tl.bfloat16 else wide, "ADDED": added, "PRECISION": "tf32"}


def blocks(capability, numbers, K, V, kind=0, solve=False, normalize=False, double=False):
    """Sizes of blocks, warps and stages, such that no register is spilled: tests/test_triton_aot.py."""
    BK = max(16, triton.next_power_of_2(K))
    cores = numbers["PRECISION"] == "tf32"
    BT, BV, warps = 32, 32, 4
    if not cores:
        BT, BV, warps = 16, 16, 8
    elif kind > SCALAR.value or solve or BK > 256:
        rich = BK > 128 or (BK > 64 and kind > SCALAR.value and numbers["FACTORS"] == tl.float32)
        BT, warps = 16, 8 if rich else 4
    elif normalize:
        warps = 4 if BK <= 64 else 8
        BT, BV = (16, 16) if BK > 128 else (32, 32)
    elif capability < 90 or numbers["FACTORS"] == tl.float32:
        BV, warps = (16, 8) if BK > 128 else (32, 4)
        BT = 16 if BK > 128 and numbers["FACTORS"] == tl.float32 else 32
    else:  # 64 tokens are what Hopper's instructions multiply at once
        BT = 64
        BV = 64 if BK <= 64 else 32 if BK <= 128 or not kind else 16
        warps = 8 if BK > 128 and not kind else 4
    if double or numbers["WIDE"] == tl.float64 or BK > 256:
        BV = 16
    return {
        "BT": BT,
        "BK": BK,
        "BV": min(BV, max(16, triton.next_power_of_2(V))),
        "num_warps": warps,
        "num_stages": 2 if cores else 1,
    }
