"""Orders drawn at random that are the same on every machine and with every version of numpy."""

import torch

from pyfast.reference.random import bits
from pyfast.spn._validity import Integers

_STREAM = 0x53 << 56  # Philox's "what": splits of scopes


def keys(seed: int, start: int, count: int) -> Integers:
    """(count,) random 63-bit keys, those of the indices start, start + 1, ..."""
    words = bits(int(seed), _STREAM, torch.arange(start, start + count))
    return (words[:, 0] << 31 | words[:, 1] >> 1).numpy()
