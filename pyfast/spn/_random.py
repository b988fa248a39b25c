"""Orders drawn at random that are the same on every machine and with every version of numpy."""

import numpy as np
import torch

from pyfast.reference.random import bits
from pyfast.spn._validity import Integers

_STREAM = 0x53 << 56  # Philox's "what": splits of scopes


def keys(seed: int, start: int, count: int) -> Integers:
    """(count,) random 63-bit keys, those of the indices start, start + 1, ..."""
    words = bits(int(seed), _STREAM, torch.arange(start, start + count))
    return (words[:, 0] << 31 | words[:, 1] >> 1).numpy()


def check_seed(seed: int) -> None:
    """A seed has 64 bits."""
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2^64), got {seed}")


def check_count(name: str, value: int, least: int) -> None:
    """A count is an int that is large enough."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
