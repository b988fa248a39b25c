"""How one column is encoded."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyfast.spn._density import Density
from pyfast.spn._table import Column, Table

TABLE, GAUSSIAN, POISSON, EXPONENTIAL = 0, 1, 2, 3
OWN = 7  # a Density
NAME = {GAUSSIAN: "gaussian", POISSON: "poisson", EXPONENTIAL: "exponential"}
_KINDS = ("auto", "bernoulli", "categorical", *NAME.values())
_MOST_CATEGORIES = 4096  # that are taken from data without being declared
_FEW = 16  # whole numbers that are taken for categories
_NAMED = 8  # categories in a message
MOST_POISSON = 2**24  # float32 has all integers below
_FITTED = 2.0**28  # |value * quantum| of the data fitted: two bits less than leaves can count


@dataclass(frozen=True)
class Categorical:
    """A column of the codes 0, 1, ..., ``categories`` - 1, whether or not the data have them all.

    Args:
        categories: how many there are, at least 1.

    Raises:
        TypeError: if it is not an int.
        ValueError: if it is less than 1.

    Example:
        >>> import pyfast
        >>> pyfast.spn.Categorical(3)
        Categorical(categories=3)
    """

    categories: int

    def __post_init__(self) -> None:
        if type(self.categories) is not int:
            raise TypeError(f"categories must be an int, got {type(self.categories).__name__}")
        if not 1 <= self.categories < 2**24:
            raise ValueError(f"categories must be in [1, 2^24), got {self.categories}")


Kind = str | Categorical | Density


class Fit(NamedTuple):
    """One column of what :class:`Columns` holds."""

    family: int
    summary: list[float]
    categories: tuple[float | str, ...] | None = None
    shift: float = 0.0
    scale: float = 1.0
    quantum: float = 1.0
    density: Density | None = None
    quanta: tuple[float, ...] = ()


def fit(table: Table, column: int, kind: Kind) -> Fit:
    """Encode a column as asked, or as its values suggest."""
    if not isinstance(kind, Kind):
        raise TypeError(f"kinds must be of strings, Categorical or Density, got {type(kind).__name__}")
    if isinstance(kind, str) and kind not in _KINDS:
        raise ValueError(f"kinds must be among {', '.join(_KINDS)}, got {kind!r}")
    x = table.column(column)
    if isinstance(kind, Density):
        return _own(x, table, column, kind)
    declared = table.categories(column)
    if kind == "auto":
        kind = "categorical" if declared is not None else _guess(x, table.dtypes[column])
    if isinstance(kind, Categorical):
        categories: Sequence[Any] = range(kind.categories)
    elif kind == "bernoulli":
        categories = (0, 1)
    elif kind == "categorical":
        categories = _found(x, table, column) if declared is None else declared
    else:
        return _numeric(x, table, column, kind)
    values = tuple(c if isinstance(c, str) else float(c) for c in categories)
    if set(values) <= {0.0, 1.0} and table.has_truths(column):
        values = tuple(map(bool, values))
    code = codes(x, values, table, column)
    known = code[~np.isnan(code)].astype(np.int64)
    if len(known) == len(values) > _FEW and x.dtype == object and declared is None:
        warnings.warn(
            f"column {table.names[column]!r} has another text in each row: nothing can be learned from it",
            stacklevel=4,
        )
    count = np.bincount(known, minlength=len(values))
    return Fit(TABLE, count.astype(np.float64).tolist(), values)


def fit_bits(table: Table, kinds: Sequence[Kind]) -> list[Fit]:
    """All columns at once, if they are zeros and ones and may be Bernoulli; else nothing."""
    x = table.matrix
    if x is None or any(kind not in ("auto", "bernoulli") for kind in kinds):
        return []
    ones = x == 1
    zeros = x == 0
    missing = ~(ones | zeros)
    if missing.any() and (x.dtype.kind != "f" or not np.isnan(x[missing]).all()):
        return []
    one, zero = ones.sum(0).astype(np.float64), zeros.sum(0).astype(np.float64)
    sure = (one + zero > 0) | (x.dtype.kind == "b") | (np.array([str(kind) for kind in kinds]) == "bernoulli")
    return [Fit(TABLE, [a, b], (0.0, 1.0)) for a, b in zip(zero, one, strict=True)] if sure.all() else []


def _guess(x: Column, dtype: str) -> str:
    if dtype in ("bool", "boolean"):
        return "bernoulli"
    if x.dtype == object:
        return "categorical"
    x = x[~np.isnan(x)]
    if len(x) == 0 or (x != np.round(x)).any():
        return "gaussian"
    if ((x == 0) | (x == 1)).all():
        return "bernoulli"
    if len(np.unique(x)) <= _FEW:
        return "categorical"
    return "poisson" if x.min() >= 0 and x.mean() < 100 and x.max() < MOST_POISSON else "gaussian"


def _found(x: Column, table: Table, column: int) -> Sequence[Any]:
    if x.dtype == object:
        found: list[Any] = sorted({v for v in x.tolist() if v is not None})
    else:
        found = np.unique(x[~np.isnan(x)]).tolist()
    if len(found) > _MOST_CATEGORIES:
        raise ValueError(
            f"X must have at most {_MOST_CATEGORIES} categories, got {len(found)} in column {table.names[column]!r}"
        )
    return found or [0]  # a column without values has one category


def _numeric(x: Column, table: Table, column: int, kind: str) -> Fit:
    check_numbers(x, table, column, kind)
    x = x[~np.isnan(x)]
    family = next(f for f, name in NAME.items() if name == kind)
    if family == POISSON:
        return Fit(POISSON, _moments(x))
    largest = float(np.abs(x).max(initial=0.0))
    with np.errstate(under="ignore"):
        part = x / largest if largest > 0 else x  # so that no sum overflows
    shift = float(part.mean()) * largest if family == GAUSSIAN and len(x) else 0.0
    if family == GAUSSIAN:
        scale = float(standard(x, shift, largest).std()) * largest if len(x) and largest > 0 else 0.0
        scale = scale if scale > 1e-12 * largest else 0.0  # rounding is no spread
    else:
        scale = float(part.mean()) * largest if len(x) else 0.0
    scale = scale if scale > np.finfo(np.float64).tiny else 1.0
    encoded = standard(x, shift, scale)
    reach = max(float(np.abs(encoded).max(initial=0.0)), 1.0)
    return Fit(family, _moments(encoded), None, shift, scale, 2.0 ** math.floor(math.log2(_FITTED / reach)))


def _own(x: Column, table: Table, column: int, density: Density) -> Fit:
    check_numbers(x, table, column, "Density")
    check_own(x, density, table, column)
    shares = np.zeros(density.width)
    shares[: len(density.log_prior)] = np.exp(density.log_prior)
    quanta = density.fit(x[~np.isnan(x)])
    return Fit(OWN, shares.tolist(), density=density, quanta=tuple(quanta.tolist()))


def check_own(x: Column, density: Density, table: Table, column: int) -> None:
    """All values must have a density under every candidate."""
    there = np.flatnonzero(~np.isnan(x))
    bad = np.zeros(len(x), bool)
    with np.errstate(over="ignore"):
        seen = x[there].astype(np.float32).astype(np.float64)  # as the kernels read them
    bad[there] = ~(np.isfinite(density.statistics(seen)).all(1) & np.isfinite(density.log_density(seen)).all(1))
    refuse(bad, x, table, column, "values whose log density is finite in this column")


def _moments(x: Column) -> list[float]:
    if len(x) == 0:
        return [0.0, 0.0, 0.0, 0.0]
    return [float(len(x)), float(x.mean()), float(x.var()), float(np.abs(x).max())]


def standard(x: Column, shift: float, scale: float) -> Column:
    """(x - shift) / scale; halves do not overflow where differences would."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray((0.5 * x - 0.5 * shift) / (0.5 * scale))


def codes(x: Column, categories: tuple[float | str, ...], table: Table, column: int) -> Column:
    """(N,) float64 places of values among categories, NaN where missing."""
    if x.dtype == object:
        place = {c: float(i) for i, c in enumerate(categories)}
        code = np.array([math.nan if v is None else place.get(v, -1.0) for v in x.tolist()], dtype=np.float64)
    else:
        numbers = np.array([math.nan if isinstance(c, str) else c for c in categories])
        missing = np.isnan(x)
        if categories == tuple(range(len(categories))):
            good = (x >= 0) & (x < len(categories)) & (x == np.round(x))
            code = np.where(good | missing, x, -1.0)
        else:
            order = np.argsort(numbers, kind="stable")
            at = order[np.minimum(np.searchsorted(numbers[order], x), len(numbers) - 1)]
            code = np.where(missing, math.nan, np.where(numbers[at] == x, at, -1.0))
    some = ", ".join(map(repr, categories[:_NAMED])) + ", ..." * (len(categories) > _NAMED)
    what = "0 or 1" if categories == (0.0, 1.0) else f"one of {len(categories)} categories, {some},"
    refuse(code < 0, x, table, column, f"{what} in this column")
    return code


def check_numbers(x: Column, table: Table, column: int, kind: str) -> None:
    """What is asked of the values of a family without categories."""
    if x.dtype == object:
        row = next(i for i, v in enumerate(x.tolist()) if v is not None)
        raise TypeError(f"X must hold numbers in a {kind} column, got {x[row]!r} {table.place(row, column)}")
    if kind == "poisson":
        bad = (x < 0) | (x != np.round(x)) | (x >= MOST_POISSON)
        refuse(bad & ~np.isnan(x), x, table, column, "integers in [0, 2^24) in a poisson column")
    elif kind == "exponential":
        refuse(x < 0, x, table, column, "values from 0 on in an exponential column")


def refuse(bad: "NDArray[np.bool_]", x: Column, table: Table, column: int, rule: str) -> None:
    """Name the first bad value."""
    if bad.any():
        row = int(np.argmax(bad))
        value = x[row] if isinstance(x[row], str) else float(x[row])
        raise ValueError(f"X must hold {rule}, got {value!r} {table.place(row, column)}")
