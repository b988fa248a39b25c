"""What the variables of a network are: families, encodings, priors."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyfast.spn._density import Density
from pyfast.spn._fit import (
    EXPONENTIAL,
    GAUSSIAN,
    MOST_POISSON,
    NAME,
    OWN,
    POISSON,
    TABLE,
    Kind,
    check_numbers,
    check_own,
    codes,
    fit,
    fit_bits,
    refuse,
    standard,
)
from pyfast.spn._structure import Structure
from pyfast.spn._table import Column, Table, build

_COUNTABLE = 2.0**30  # |value * quantum| in a leaf's statistics


@dataclass(frozen=True, eq=False, repr=False)
class Columns:
    """The variables of a data set: the family of each, how its values are encoded, and a summary of the data.

    Made by :meth:`fit_encoding`. Tables (Bernoulli and categorical) are encoded as codes 0, 1, ...; Gaussian columns
    are standardised, exponential ones divided by their mean, Poisson ones left as they are. NaN is a missing value.

    Args:
        family: (D,), uint8: 0 table, 1 Gaussian, 2 Poisson, 3 exponential, 7 a :class:`Density`.
        width: (D,), int64: numbers per leaf: a table's categories, at least a Density's candidates, 4 for the others.
        shift: (D,), float64: encoded = (value - shift) / scale.
        scale: (D,), float64.
        quantum: (D,), float64: leaves count values in units of 1 / quantum, a power of two.
        summary: (sum of width,), float64, of the training data: a table's numbers of each category; otherwise the
            number of values, and their mean, variance and largest absolute value as encoded; of a Density, the prior.
        categories: per column the values that the codes stand for, None where it is no table.
        names: per column.
        form: "numpy", "torch" or "pandas": the table that :meth:`decode` makes.
        dtypes: per column, of that table.
        densities: per column, None where it is no :class:`Density`.
        quanta: per column, of a Density's statistics.

    Example:
        >>> import torch, pyfast
        >>> X = torch.tensor([[0.0, 1.5], [1.0, 2.5], [1.0, float("nan")]])
        >>> columns = pyfast.spn.Columns.fit_encoding(X)
        >>> columns
        Columns(2 variables: 1 bernoulli, 1 gaussian)
        >>> columns.encode(X)
        tensor([[ 0., -1.],
                [ 1.,  1.],
                [ 1., nan]])
    """

    family: Tensor
    width: Tensor
    shift: Tensor
    scale: Tensor
    quantum: Tensor
    summary: Tensor
    categories: tuple[tuple[float | str, ...] | None, ...]
    names: tuple[str, ...]
    form: str
    dtypes: tuple[str, ...]
    densities: tuple[Density | None, ...]
    quanta: tuple[tuple[float, ...], ...]

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.family)

    def __repr__(self) -> str:
        kinds = [self._kind(j) for j in range(len(self))]
        parts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        return f"Columns({len(self):,} variables: {parts})"

    @property
    def kinds(self) -> dict[str, str]:
        """What each column was taken for, by its name."""
        return {name: self._kind(j) for j, name in enumerate(self.names)}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Columns):
            return NotImplemented
        mine, its = self._state(), other._state()
        return self.densities == other.densities and all(torch.equal(mine[name], its[name]) for name in mine)

    def _kind(self, column: int) -> str:
        if self.family[column] == OWN:
            return "density"
        if self.categories[column] is None:
            return NAME[int(self.family[column])]
        return "bernoulli" if self.categories[column] == (0.0, 1.0) else "categorical"

    @classmethod
    def fit_encoding(
        cls, X: Any, kinds: Kind | Sequence[Kind] = "auto", names: Sequence[str] | None = None
    ) -> "Columns":
        """Find out from training data how their columns are encoded.

        Args:
            X: (N, D) table of numpy, torch or pandas, or a list of rows: numbers, booleans or strings; NaN, None and NA
                are missing. N may be 0.
            kinds: for all columns or one for each: "bernoulli" (0 and 1), "categorical" (the values found, or those
                that pandas declares), ``Categorical(n)`` (the codes below n), "gaussian", "poisson" (integers from 0
                on), "exponential" (not negative), a :class:`Density` of one's own, or "auto": strings are categorical,
                zeros and ones Bernoulli, up to 16 different whole numbers categorical, other whole numbers from 0 on
                with a mean below 100 Poisson, all else Gaussian.
            names: of the columns, for messages; by default those of a DataFrame or their numbers.

        Returns:
            The fitted columns; with a warning of columns of more than 16 rows of text, each another.

        Raises:
            TypeError: if ``X`` or a kind is of another type.
            ValueError: if a value does not suit its column: the message names its row and column.

        Source: the conjugate families of Vergari et al., "Automatic Bayesian density analysis", AAAI 2019.
        """
        table = Table(X, names)
        d = table.shape[1]
        asked = [kinds] * d if isinstance(kinds, Kind) else list(kinds)
        if len(asked) != d or len(table.names) != d:
            raise ValueError(
                f"kinds and names must be one for each of {d} columns, got {len(asked)} and {len(table.names)}"
            )
        fits = fit_bits(table, asked) or [fit(table, j, kind) for j, kind in enumerate(asked)]
        family = torch.tensor([f.family for f in fits], dtype=torch.uint8)
        return cls(
            family=family,
            width=torch.tensor([len(f.summary) for f in fits]),
            shift=torch.tensor([f.shift for f in fits], dtype=torch.float64),
            scale=torch.tensor([f.scale for f in fits], dtype=torch.float64),
            quantum=torch.tensor([f.quantum for f in fits], dtype=torch.float64),
            summary=torch.tensor([x for f in fits for x in f.summary], dtype=torch.float64),
            categories=tuple(f.categories for f in fits),
            names=tuple(table.names),
            form=table.form,
            dtypes=tuple(table.dtypes),
            densities=tuple(f.density for f in fits),
            quanta=tuple(f.quanta for f in fits),
        )

    def encode(self, X: Any, dtype: torch.dtype = torch.float32, training: bool = False) -> Tensor:
        """Values as the kernels read them.

        Args:
            X: (N, D) table, as for :meth:`fit_encoding`, with the same columns.
            dtype: float32 or float64.
            training: refuse values that lie so far outside what was fitted that leaves cannot count them.

        Returns:
            (N, D), contiguous, with NaN for what is missing.

        Raises:
            TypeError: if ``X`` is of another type.
            ValueError: if the number of columns is another, or a value does not suit its column: the message names its
                row and column.
        """
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        table = Table(X, self.names if not hasattr(X, "columns") else None)
        if table.shape[1] != len(self):
            raise ValueError(f"X must have {len(self)} columns, got {table.shape[1]}")
        if table.form == self.form == "pandas" and table.names != list(self.names):
            raise ValueError(f"X must have the columns {list(self.names)}, got {table.names}")
        out = np.empty(table.shape, np.float32 if dtype == torch.float32 else np.float64)
        if self._all_plain(table):
            assert table.matrix is not None
            out[:] = table.matrix
            return torch.from_numpy(out)
        for j in range(len(self)):
            x = table.column(j)
            code = self._encode(table, j, x)
            with np.errstate(over="ignore"):
                out[:, j] = code
            bad = np.isinf(out[:, j])
            if training:
                bad |= self._too_far(j, code)
            refuse(bad, x, table, j, "within four times the range of the data fitted" if training else "in reach")
        return torch.from_numpy(out)

    def _too_far(self, j: int, code: Column) -> "NDArray[np.bool_]":
        """Which values leaves cannot count."""
        density = self.densities[j]
        if density is None:
            return np.asarray(np.abs(code) * float(self.quantum[j]) >= _COUNTABLE)
        there = np.flatnonzero(~np.isnan(code))
        out = np.zeros(len(code), bool)
        out[there] = (np.abs(density.statistics(code[there])) * self.quanta[j] >= _COUNTABLE).any(1)
        return out

    def _all_plain(self, table: Table) -> bool:
        """Whether all values are codes or counts as they stand: then they are looked at all at once."""
        if table.matrix is None or not all(c is None or c == tuple(range(len(c))) for c in self.categories):
            return False
        if ((self.family != TABLE) & (self.family != POISSON)).any():
            return False
        x, end = table.matrix, torch.where(self.family == TABLE, self.width, MOST_POISSON).numpy()
        if x.dtype.kind == "b":
            return bool((end >= 2).all())
        good = (x >= 0) & (x < end)
        if x.dtype.kind == "f":
            good = (good & (x == np.floor(x))) | np.isnan(x)
        return bool(good.all())

    def _encode(self, table: Table, j: int, x: Column) -> Column:
        categories = self.categories[j]
        if categories is not None:
            return codes(x, categories, table, j)
        density = self.densities[j]
        check_numbers(x, table, j, "Density" if density else NAME[int(self.family[j])])
        if density:
            check_own(x, density, table, j)
        return standard(x, float(self.shift[j]), float(self.scale[j]))

    def decode(self, rows: Tensor, given: Any = None) -> "NDArray[Any] | Tensor | Any":
        """Encoded values as a table of the form and dtype that was fitted.

        Args:
            rows: (N, D), float32 or float64, encoded.
            given: the table that was encoded and then completed: numbers that are there stay as they are, to the bit.

        Returns:
            A table as was given to :meth:`fit_encoding`; columns of float64 where its dtype cannot hold the values.

        Raises:
            ValueError: if the shape is another, or a code is not one of its table's.
        """
        if rows.dim() != 2 or rows.shape[1] != len(self):
            raise ValueError(f"rows must have shape (N, {len(self)}), got {tuple(rows.shape)}")
        x = rows.detach().cpu().double().numpy()
        there = None if given is None else Table(given, self.names)
        columns: list[Column] = []
        for j, categories in enumerate(self.categories):
            if categories is None:
                value = x[:, j] * float(self.scale[j]) + float(self.shift[j])
                known = value if there is None else there.column(j)
                columns.append(np.where(np.isnan(known), value, known))
                continue
            missing = np.isnan(x[:, j])
            code = np.where(missing, len(categories), x[:, j])
            bad = np.flatnonzero(~missing & ((code != np.round(code)) | (code < 0) | (code >= len(categories))))
            if len(bad):
                raise ValueError(
                    f"rows must hold codes below {len(categories)} in column {self.names[j]!r}, got {x[bad[0], j]} "
                    f"in row {bad[0]}"
                )
            python = any(isinstance(c, str | bool) for c in categories)
            values = np.array([*categories, None if python else math.nan], dtype=object if python else np.float64)
            columns.append(values[code.astype(np.int64)])
        real = (self.family == GAUSSIAN) | (self.family == EXPONENTIAL) | (self.family == OWN)
        dtypes = [
            dtype if "float" in dtype.lower() or not r else "float64"
            for dtype, r in zip(self.dtypes, real.tolist(), strict=True)
        ]
        return build(columns, self.form, dtypes, self.names)

    def log_base(self, rows: Tensor) -> Tensor:
        """The part of each row's log density that no leaf has: log h(x), summed over columns.

        It is minus the log of the scale for Gaussian and exponential values, and -log x! for Poisson ones. A network's
        log density of encoded rows plus this is the log density of the values that were given.

        Args:
            rows: (N, D), float32 or float64, encoded.

        Returns:
            (N,), float64. What is missing adds nothing.

        Raises:
            ValueError: if the shape is another.
        """
        if rows.dim() != 2 or rows.shape[1] != len(self):
            raise ValueError(f"rows must have shape (N, {len(self)}), got {tuple(rows.shape)}")
        out = torch.zeros(len(rows), dtype=torch.float64)
        for j in torch.nonzero((self.family != TABLE) & (self.family != OWN)).flatten().tolist():
            x = rows[:, j].detach().cpu().double()
            if self.family[j] == POISSON:
                out -= torch.lgamma(x + 1).nan_to_num(nan=0.0)
            else:
                out -= (~x.isnan()).double() * math.log(self.scale[j])
        return out

    def prior(self, kappa: float = 2.0) -> tuple[Tensor, Tensor]:
        """Conjugate priors per column, weak and centred on the data; see :meth:`leaf_prior` for those of leaves.

        Args:
            kappa: strength, in observations.

        Returns:
            (sum of width,), float64, and (D,), int64, where each column's begins. Tables: Dirichlet, ``kappa`` times
            the smoothed frequencies. Gaussian: the normal-inverse-gamma ``m, kappa / 4, 2, variance / 2``, m the mean:
            components are expected to have half of the column's variance. Poisson: Gamma ``shape, rate, 0, 0`` with the
            column's mean and overdispersion, but of rate at most ``kappa``. Exponential: Gamma ``2, mean, 0, 0``. A
            Density: the log probability of each candidate.

        Raises:
            ValueError: if ``kappa`` is not positive and finite.
        """
        if not 0 < kappa < math.inf:
            raise ValueError(f"kappa must be positive and finite, got {kappa}")
        first = self.width.cumsum(0) - self.width
        out = torch.zeros(int(self.width.sum()), dtype=torch.float64)
        columns = zip(first.tolist(), self.width.tolist(), self.family.tolist(), strict=True)
        for start, width, family in columns:
            data = self.summary[start : start + width]
            n, mean, variance = data[:3].tolist() if family not in (TABLE, OWN) else (0.0, 0.0, 0.0)
            if family == TABLE:
                out[start : start + width] = kappa * (data + 1 / width) / (data.sum() + 1)
            elif family == OWN:
                out[start : start + width] = data.log()
            elif family == GAUSSIAN:
                out[start : start + 4] = torch.tensor([mean, kappa / 4, 2.0, (variance if variance > 0 else 1.0) / 2])
            elif family == POISSON:
                mean = (n * mean + 0.5) / (n + 1)  # positive without data, too
                rate = min(kappa, mean / max(variance - mean, 1e-300))
                out[start : start + 2] = torch.tensor([mean * rate, rate])
            else:
                out[start : start + 2] = torch.tensor([2.0, mean if mean > 0 else 1.0])
        return out, first

    def leaf_first(self, structure: Structure) -> Tensor:
        """(leaves + 1,), int64: where the parameters and statistics of each leaf of a structure begin."""
        return torch.cat([torch.zeros(1, dtype=torch.int64), self.width[self._leaf_variable(structure)].cumsum(0)])

    def leaf_prior(self, structure: Structure) -> Tensor:
        """(leaves,), int64: where the prior of each leaf of a structure begins in what :meth:`prior` returns."""
        return (self.width.cumsum(0) - self.width)[self._leaf_variable(structure)]

    def _leaf_variable(self, structure: Structure) -> Tensor:
        if structure.num_variables != len(self):
            raise ValueError(f"structure must have {len(self)} variables, got {structure.num_variables}")
        return structure.variable[structure.kind == 0].long()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as tensors; :meth:`from_state_dict` takes it back.

        Raises:
            ValueError: if there is a :class:`Density`, which is code.
        """
        if (self.family == OWN).any():
            j = int((self.family == OWN).int().argmax())
            raise ValueError(
                f"columns must be without Density, which is code, to be saved, got one in column {self.names[j]!r}"
            )
        return self._state()

    def _state(self) -> dict[str, Tensor]:
        state = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("densities", "quanta")}
        text = json.dumps({name: x for name, x in state.items() if not isinstance(x, Tensor)})
        label = torch.tensor(list(text.encode()), dtype=torch.uint8)
        return {name: x for name, x in state.items() if isinstance(x, Tensor)} | {"labels": label}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "Columns":
        """The columns that gave this state.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            KeyError: if a tensor is missing.
            ValueError: if the tensors do not fit together.
        """
        labels = json.loads(bytes(state["labels"].tolist()).decode())
        categories = tuple(None if c is None else tuple(c) for c in labels["categories"])
        tensors: dict[str, Any] = {f.name: state[f.name] for f in fields(cls) if f.name in state}
        made = cls(
            **tensors,
            categories=categories,
            densities=(None,) * len(categories),
            quanta=((),) * len(categories),
            names=tuple(labels["names"]),
            form=str(labels["form"]),
            dtypes=tuple(labels["dtypes"]),
        )
        d = len(made)
        widths = [4 if c is None else len(c) for c in categories]
        sizes = [len(x) for x in (made.width, made.shift, made.scale, made.quantum, made.names, made.dtypes)]
        if set(sizes) != {d} or made.width.tolist() != widths or len(made.summary) != sum(widths):
            raise ValueError(f"state must be that of {d} columns, got sizes {sizes} and widths {widths}")
        return made
