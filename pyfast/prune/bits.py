"""Bool tensors as rows of 64-bit words, each tensor starting a new word."""

import math

import torch
from torch import Tensor, nn

Shapes = tuple[tuple[int, ...], ...]


def pack(masks: list[Tensor]) -> Tensor:
    """Bool tensors to one row of words."""
    power = 1 << torch.arange(8, dtype=torch.uint8, device=masks[0].device)
    rows = []
    for mask in masks:
        padded = nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 64))
        rows.append((padded.view(-1, 8) * power).sum(1, dtype=torch.uint8).view(torch.int64))
    return torch.cat(rows)


def unpack(bits: Tensor, shapes: Shapes) -> list[Tensor]:
    """One row of words to bool tensors."""
    place = torch.arange(8, dtype=torch.uint8, device=bits.device)
    masks = []
    for row, shape in zip(bits.split([words(shape) for shape in shapes]), shapes, strict=True):
        every = (row.view(torch.uint8)[:, None] >> place) & 1
        masks.append(every.flatten()[: math.prod(shape)].view(shape).bool())
    return masks


def words(shape: tuple[int, ...]) -> int:
    """Words that a tensor's mask takes."""
    return (math.prod(shape) + 63) // 64


def popcount(words: Tensor) -> Tensor:
    """Ones in each word, by sums of 2, 4 and 8 bits; the product adds up the bytes in the highest one."""
    pairs = words - ((words >> 1) & 0x5555555555555555)
    fours = (pairs & 0x3333333333333333) + ((pairs >> 2) & 0x3333333333333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((eights * 0x0101010101010101) >> 56) & 0xFF


def has_stray(bits: Tensor, shapes: Shapes) -> bool:
    """Whether a bit is set behind a tensor's last weight."""
    tails = [math.prod(shape) % 64 for shape in shapes]
    rows = bits.split([words(shape) for shape in shapes])
    return any(tail and int(row[-1]) >> tail & ((1 << (64 - tail)) - 1) for row, tail in zip(rows, tails, strict=True))
