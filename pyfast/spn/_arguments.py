"""Numbers that are asked for: TypeError for another type, ValueError for a value out of range."""

import math
from typing import Any

import numpy as np


def check_seed(seed: Any) -> None:
    """A seed has 64 bits."""
    _check_int("seed", seed)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2^64), got {seed}")


def check_count(name: str, value: Any, least: int) -> None:
    """A count is an int that is large enough."""
    _check_int(name, value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_positive(name: str, value: Any, or_zero: bool = False) -> None:
    """A finite number above zero, or from zero on."""
    _check_real(name, value)
    if not 0 <= value < math.inf or (value == 0 and not or_zero):
        rule = "finite and not negative" if or_zero else "positive and finite"
        raise ValueError(f"{name} must be {rule}, got {value}")


def check_burn(burn: Any) -> None:
    """A share of the sweeps, but not all."""
    _check_real("burn", burn)
    if not 0 <= burn < 1:
        raise ValueError(f"burn must be in [0, 1), got {burn}")


def check_candidates(candidates: Any) -> None:
    """Proposals of i-SIR, one of which is where the chain is: one alone would never move."""
    check_count("candidates", candidates, 0)
    if candidates == 1 or candidates >= 2**31:
        raise ValueError(f"candidates must be 0 or in [2, 2^31), got {candidates}")


def check_size(names: str, parameters: int) -> None:
    """What the arguments of these names would make must not be too large, before any of it is made."""
    if parameters >= 2**31:
        raise ValueError(f"{names} must make fewer than 2^31 weights and leaves, got {parameters}")


def _check_int(name: str, value: Any) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")


def _check_real(name: str, value: Any) -> None:
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
