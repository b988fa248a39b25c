"""Equal rows found once."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class UniqueRows(NamedTuple):
    """Different rows, in the order in which they first appear.

    Attributes:
        rows: (unique, variables), as they were given.
        multiplicity: (unique,), int64: how often each appears.
        inverse: (rows,), int64: ``rows[inverse]`` are the rows given.
    """

    rows: Tensor
    multiplicity: Tensor
    inverse: Tensor


def mean(x: Tensor, times: Tensor | None = None) -> float:
    """Of the numbers of all rows, each so many times: summed in one order, where torch lets threads share."""
    if len(x) == 0:
        raise ValueError("X must have at least one row, got none")
    if times is None:
        return float(x.numpy().mean())
    return float((x * times).numpy().sum() / times.numpy().sum())


def unique_rows(X: Tensor) -> UniqueRows:
    """Group equal rows; a missing value, NaN, equals a missing value, and -0 equals 0.

    Given its values, a row's latent choices do not depend on other rows, so a sampler needs one pass over each
    different row. Rows of zeros, ones and NaN are packed to one or two bits a value first.

    Args:
        X: (rows, variables), float32 or float64, on the CPU.

    Returns:
        The different rows, how often each appears, and which of them every row is.

    Raises:
        TypeError: if ``X`` is not a tensor of float32 or float64 on the CPU.
        ValueError: if it has not two dimensions.

    Source: exact grouping; no approximation. Hashes only propose what is then compared bit by bit.

    Example:
        >>> import torch, pyfast
        >>> nan = float("nan")
        >>> X = torch.tensor([[0.0, nan], [1.0, 1.0], [0.0, nan]])
        >>> found = pyfast.spn.unique_rows(X)
        >>> found.rows.tolist(), found.multiplicity.tolist(), found.inverse.tolist()
        ([[0.0, nan], [1.0, 1.0]], [2, 1], [0, 1, 0])
    """
    if not isinstance(X, Tensor) or X.dtype not in (torch.float32, torch.float64) or X.device.type != "cpu":
        got = f"{X.dtype} on {X.device}" if isinstance(X, Tensor) else type(X).__name__
        raise TypeError(f"X must be a float32 or float64 tensor on cpu, got {got}")
    if X.dim() != 2:
        raise ValueError(f"X must have two dimensions, got shape {tuple(X.shape)}")
    words = _words(X.detach().contiguous().numpy())
    n, attempt = len(words), 0
    while True:
        key = _hash(words, attempt)
        order = np.argsort(key)
        new = np.ones(n, bool)
        new[1:] = key[order[1:]] != key[order[:-1]]
        group = np.cumsum(new) - 1  # in order of keys
        at = np.minimum.reduceat(order, np.flatnonzero(new)) if n else order  # where each key appears first
        if (words[order] == words[at[group]]).all():
            break
        attempt += 1  # different rows had one hash: other random numbers
    first = np.argsort(at)  # groups in order of appearance
    rank = np.empty(len(first), np.int64)
    rank[first] = np.arange(len(first))
    inverse = np.empty(n, np.int64)
    inverse[order] = rank[group]
    multiplicity = np.bincount(inverse, minlength=len(first))
    return UniqueRows(X[torch.from_numpy(at[first])], torch.from_numpy(multiplicity), torch.from_numpy(inverse))


def _words(x: NDArray[np.floating]) -> NDArray[np.uint64]:
    """(n, d) values to (n, w) words that are equal where rows are."""
    missing = np.isnan(x)
    one = x == 1
    if (missing | one | (x == 0)).all():
        some = missing.any()
        bits = np.packbits(np.concatenate([one, missing], 1) if some else one, axis=1)
    else:
        x = np.where(missing, x.dtype.type(np.nan), x + 0)  # one NaN of many, and 0 for -0
        bits = x.view(np.uint8)
    bits = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8)))
    return np.ascontiguousarray(bits).view(np.uint64)


def _hash(words: NDArray[np.uint64], attempt: int) -> NDArray[np.uint64]:
    if words.shape[1] == 1:
        return words[:, 0]
    random = np.random.default_rng(attempt).integers(0, 2**64, (2, words.shape[1]), np.uint64) | np.uint64(1)
    mixed = (words ^ words >> np.uint64(32)) * random[0]
    return ((mixed ^ mixed >> np.uint64(29)) * random[1]).sum(1, dtype=np.uint64)
