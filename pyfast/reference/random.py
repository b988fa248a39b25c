"""Philox-4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011."""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def philox(key: tuple[int, int], counter: Tensor) -> Tensor:
    """(..., 4) words of 32 bits, held in int64, to as many random ones. Products wrap modulo 2^64, losing nothing."""
    k0, k1 = key
    c0, c1, c2, c3 = counter.unbind(-1)
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32 & _WORD) ^ c1 ^ k0, b & _WORD, (a >> 32 & _WORD) ^ c3 ^ k1, a & _WORD
        k0, k1 = k0 + 0x9E3779B9 & _WORD, k1 + 0xBB67AE85 & _WORD
    return torch.stack((c0, c1, c2, c3), -1)


def bits(seed: int, what: int, index: Tensor) -> Tensor:
    """(...) int64 to (..., 4) int64 in [0, 2^32)."""
    w = torch.full_like(index, what & _WORD), torch.full_like(index, what >> 32 & _WORD)
    return philox((seed & _WORD, seed >> 32 & _WORD), torch.stack((index & _WORD, index >> 32 & _WORD, *w), -1))


def uniform(seed: int, what: int, index: Tensor) -> Tensor:
    """(...) int64 to (...) float32 in [0, 1)."""
    word = bits(seed, what, index)[..., 0]
    return torch.where(word >> 31 == 1, _WORD - word, word).float() * 4.6566127342e-10
