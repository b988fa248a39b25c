"""How many weights fall, and how many each layer keeps at least: every accepted form, made whole numbers."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fractions import Fraction

Amount = int | float
MinKeep = int | float | str | Mapping[str, int | float | str]
MaxSparsity = float | Mapping[str, float]


def number(amount: Amount, total: int, argument: str = "amount") -> int:
    """A count as it is, a fraction times ``total``, rounded as torch.nn.utils.prune does."""
    if isinstance(amount, (bool, np.bool_)) or not isinstance(amount, Real):
        raise TypeError(f"{argument} must be an int (weights) or a float (fraction), got {type(amount).__name__}")
    if isinstance(amount, Integral):
        if not 0 <= amount <= total:
            raise ValueError(f"{argument} must be between 0 and the {total} weights of the targets, got {amount}")
        return int(amount)
    if not 0 <= amount <= 1:
        raise ValueError(f"{argument} must be between 0 and 1 as a float, got {amount}")
    return round(float(amount) * total)


def minima(
    min_keep: MinKeep,
    max_sparsity: MaxSparsity | None,
    names: tuple[str, ...],
    sizes: list[int],
    tied: Mapping[str, str],
) -> tuple[list[int], list[int]]:
    """Least numbers to keep, per layer: by both arguments together, and by ``max_sparsity`` alone."""
    total = sum(sizes)
    if type(min_keep) is int and min_keep >= 0 and max_sparsity is None:  # the usual case, with many layers, in no time
        return [min(min_keep, n) for n in sizes], [0] * len(sizes)
    wanted = _per_layer(min_keep, 0, "min_keep", names, tied)
    caps = [0] * len(sizes)
    if max_sparsity is not None:
        limits = _per_layer(max_sparsity, 1.0, "max_sparsity", names, tied)
        caps = [math.ceil((1 - _share(s, "max_sparsity")) * n) for s, n in zip(limits, sizes, strict=True)]
    floors = [max(_least(m, n, total), c) for m, n, c in zip(wanted, sizes, caps, strict=True)]
    return floors, caps


def check_feasible(prune: int, floors: list[int], caps: list[int], sizes: list[int]) -> None:
    """Raise, with the largest feasible values, when the minima leave fewer than ``prune`` weights to take."""
    total = sum(sizes)
    keep = total - prune
    if sum(floors) <= keep:
        return
    got = f"got minima that keep {sum(floors)} of {total} weights where {prune} are to be pruned"
    most = f"the largest feasible amount is {total - sum(floors)}"
    if sum(caps) > keep:
        raise ValueError(f"max_sparsity must leave enough weights to prune, {got}; {most}")
    low, high = 0, max(sizes)
    while low < high:
        middle = (low + high + 1) // 2
        fits = sum(max(min(middle, n), c) for n, c in zip(sizes, caps, strict=True)) <= keep
        low, high = (middle, high) if fits else (low, middle - 1)
    raise ValueError(
        f"min_keep must leave enough weights to prune, {got}; {most}, "
        f"the largest feasible min_keep for every layer {low}"
    )


def _per_layer(given: Any, default: Any, argument: str, names: tuple[str, ...], tied: Mapping[str, str]) -> list[Any]:
    if not isinstance(given, Mapping):
        return [given] * len(names)
    for name in given:
        if name in tied:
            raise ValueError(
                f"{argument} must name layers that count, got {name!r}, which is counted as {tied[name]!r}"
            )
        if name not in names:
            raise ValueError(f"{argument} must name layers in the targets ({_some(names)}), got {name!r}")
    return [given.get(name, default) for name in names]


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")


def _share(value: object, argument: str, most: int = 1) -> "Fraction":
    """The decimal that was written, not the binary float nearest to it: 0.9 of 10 leaves one, not two."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a number, got {type(value).__name__}")
    if not 0 <= float(value) <= most:
        raise ValueError(f"{argument} must be between 0 and {most}, got {value}")
    from fractions import Fraction  # here, for it is a fifth of what importing this package takes

    return Fraction(str(value))


def _least(value: object, size: int, total: int) -> int:
    if isinstance(value, str):
        try:
            percent = float(value.removesuffix("%")) if value.endswith("%") else math.nan
        except ValueError:
            percent = math.nan
        if not 0 <= percent <= 100:
            raise ValueError(f"min_keep must be a percentage such as '0.2%' when it is a string, got {value!r}")
        return min(int(total * _share(percent, "min_keep", 100) / 100), size)
    if isinstance(value, Integral) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"min_keep must not be negative, got {value}")
        return min(int(value), size)
    return math.ceil(_share(value, "min_keep") * size)
