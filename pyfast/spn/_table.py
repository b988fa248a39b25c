"""Tables of numpy, torch and pandas, column by column: numbers with NaN, or text with None, for what is missing."""

import sys
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Column = NDArray[Any]  # float64, or object with strings and None


class Table:
    """What was given, read without changing it."""

    def __init__(self, x: Any, names: Sequence[str] | None = None) -> None:
        pandas = sys.modules.get("pandas")  # a table of pandas has imported it
        self.matrix: NDArray[Any] | None = None  # numbers, where all of them have one dtype
        self._frame: Any = None
        self._objects: NDArray[Any] | None = None
        self.form = "numpy"
        if pandas is not None and isinstance(x, pandas.DataFrame):
            self.form, self._frame = "pandas", x
            self.shape: tuple[int, int] = x.shape
            self.dtypes = [str(dtype) for dtype in x.dtypes]
            self.names = [str(name) for name in x.columns]
        else:
            self._read(x)
            assert self._objects is not None
            self.shape = (self._objects.shape[0], self._objects.shape[1])
            self.dtypes = [self._dtype] * self.shape[1]
            self.names = list(names or map(str, range(self.shape[1])))
        if self.shape[1] == 0:
            raise ValueError(f"X must have at least one column, got shape {self.shape}")

    def _read(self, x: Any) -> None:
        if isinstance(x, Tensor):
            self.form, self._dtype = "torch", str(x.dtype).removeprefix("torch.")
            if x.is_complex() or x.layout != torch.strided or x.is_meta:
                raise TypeError(f"X must be a dense table of real numbers, got {x.dtype}, {x.layout} on {x.device}")
            x = x.detach().cpu()
            x = (x.float() if x.is_floating_point() and x.dtype != torch.float64 else x).numpy()
        elif isinstance(x, np.ma.MaskedArray):
            self._dtype = str(x.dtype)
            x = np.ma.filled(x.astype(np.float64), np.nan)
        elif isinstance(x, np.ndarray | list | tuple):
            try:
                a = np.asarray(x)
            except ValueError as error:
                raise ValueError("X must have rows of equal length, got others") from error
            if a.dtype.kind in "US" and not isinstance(x, np.ndarray):
                a = np.asarray(x, dtype=object)  # lists keep their numbers beside strings
            x, self._dtype = a, str(a.dtype)
        else:
            got = "a sparse " * hasattr(x, "tocsr") + type(x).__name__
            raise TypeError(f"X must be an array, a tensor, a DataFrame or a list of rows, got {got}")
        if x.ndim != 2:
            raise ValueError(f"X must have two dimensions, got shape {tuple(x.shape)}")
        if x.dtype.kind in "biuf":
            self.matrix = x
        elif x.dtype.kind not in "OUST":
            raise TypeError(f"X must hold numbers or strings, got {x.dtype}")
        self._objects = x

    def place(self, row: int, column: int) -> str:
        """Where an element is, for a message."""
        return f"at row {row}, column {self.names[column]!r}" if self._frame is not None else f"at [{row}, {column}]"

    def categories(self, column: int) -> list[Hashable] | None:
        """The categories that the table itself declares."""
        if self._frame is None or self.dtypes[column] != "category":
            return None
        return list(self._frame.iloc[:, column].cat.categories)

    def has_truths(self, column: int) -> bool:
        """Whether all that is known in a column of Python objects is True or False."""
        if self.dtypes[column] not in ("object", "category"):
            return False
        values = (self._frame.iloc[:, column] if self._objects is None else self._objects[:, column]).tolist()
        known = {type(v) for v in values if not _missing(v)}
        return bool(known) and known <= {bool, np.bool_}

    def column(self, column: int) -> Column:
        """(rows,) values of one column."""
        if self._frame is not None:
            x = self._pandas(column)
        elif self.matrix is not None:
            x = self.matrix[:, column]
        else:
            assert self._objects is not None
            x = self._objects[:, column].astype(object)
        x = self._numbers_or_text(x, column) if x.dtype == object else x
        if x.dtype.kind in "iu" and len(x) and (x.max() > 2**53 or x.min() < -(2**53)):
            row = int(np.argmax(np.abs(x.astype(np.float64))))
            raise ValueError(f"X must hold integers up to 2^53, got {x[row]} {self.place(row, column)}")
        if x.dtype == object:
            return x
        x = x.astype(np.float64)
        if (bad := np.flatnonzero(np.isinf(x))).size:
            raise ValueError(
                f"X must be finite, or NaN where missing, got {x[bad[0]]} {self.place(int(bad[0]), column)}"
            )
        return x

    def _pandas(self, column: int) -> Column:
        series = self._frame.iloc[:, column]
        if self.dtypes[column] == "category":
            series = series.astype(object)
        missing = series.isna().to_numpy()
        kind = getattr(series.dtype, "kind", "O")
        if kind in "biuf":
            if missing.any():
                return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
            return np.asarray(series.to_numpy(dtype=series.dtype.type if kind == "b" else f"{kind}8"))
        if kind in "mMc":
            raise TypeError(f"X must hold numbers or strings, got {series.dtype} in column {self.names[column]!r}")
        x = series.to_numpy(dtype=object, copy=True)
        x[missing] = None
        return np.asarray(x)

    def _numbers_or_text(self, x: Column, column: int) -> Column:
        """Python objects as float64 where all are numbers; refused unless all are numbers or all are strings."""
        values = x.tolist()
        text = next((i for i, v in enumerate(values) if isinstance(v, str)), None)
        out = np.full(len(values), None if text is not None else np.nan, object if text is not None else np.float64)
        for row, v in enumerate(values):
            if _missing(v):
                continue
            if isinstance(v, str) if text is not None else isinstance(v, bool | int | float | np.number | np.bool_):
                out[row] = v
            else:
                have = "strings" if text is not None else "numbers or strings"
                raise TypeError(f"X must hold {have} in this column, got {type(v).__name__} {self.place(row, column)}")
        return out


def _missing(v: Any) -> bool:
    return v is None or type(v).__name__ == "NAType" or bool(v != v)


def build(
    columns: list[Column], form: str, dtypes: Sequence[str], names: Sequence[str]
) -> "NDArray[Any] | Tensor | Any":
    """A table of the form that was given, in its dtype where this holds the values."""
    if form == "pandas":
        import pandas  # only for those who came with it

        return pandas.DataFrame(
            {i: _series(pandas, x, dtype) for i, (x, dtype) in enumerate(zip(columns, dtypes, strict=True))}
        ).set_axis(list(names), axis=1)
    if any(x.dtype == object for x in columns):
        return np.stack([x.astype(object) for x in columns], 1)
    x = np.stack(columns, 1)
    if form == "torch":
        exact = torch.from_numpy(x)
        if len(set(dtypes)) > 1:
            return exact
        small = exact.to(getattr(torch, dtypes[0]))
        return small if small.is_floating_point() or small.double().equal(exact) else exact
    dtype = np.dtype(dtypes[0] if len(set(dtypes)) == 1 else np.float64)
    return x.astype(dtype) if dtype.kind == "f" or (dtype.kind in "biu" and _fits(x, dtype)) else x


def _fits(x: Column, dtype: "np.dtype[Any]") -> bool:
    if np.isnan(x).any():
        return False
    with np.errstate(invalid="ignore"):
        return bool((x.astype(dtype) == x).all())


def _series(pandas: Any, x: Column, dtype: str) -> Any:
    series = pandas.Series(x)
    if dtype == "category":
        return series.astype("category")
    if dtype == "bool" and series.isna().any():  # pandas would take NaN for True
        return series
    try:
        return series.astype(dtype)
    except (TypeError, ValueError):  # NaN among integers
        return series
