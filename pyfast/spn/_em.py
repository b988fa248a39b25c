"""Maximum likelihood by expectation maximisation."""

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pyfast.spn import _operators
from pyfast.spn._columns import Columns
from pyfast.spn._fit import Categorical
from pyfast.spn._hclt import hclt
from pyfast.spn._network import Network, Parameters
from pyfast.spn._parameters import EXPONENTIAL, GAUSSIAN, POISSON, TABLE, start
from pyfast.spn._rat import rat
from pyfast.spn._rows import unique_rows
from pyfast.spn._spn import SPN
from pyfast.spn._structure import Structure
from pyfast.spn._tree import tree

_FLOOR = 1e-4  # of a leaf's variance, and of its mean where that must be positive, relative to the column's


class EM:
    """Learning of a sum-product network's parameters by expectation maximisation over all rows at once.

    Each iteration replaces every weight and every leaf by its best value given the posterior of the latent choices, so
    that without smoothing the likelihood never falls. NaN is a missing value, in training and everywhere else.

    Args:
        structure: "hclt" (a hidden Chow-Liu tree of the data), "rat", "tree" or a :class:`Structure`.
        columns: kinds of columns, as :meth:`Columns.fit_encoding` takes them.
        hidden: states per hidden variable of "hclt", or components per region of "rat".
        iterations: at most so many.
        smoothing: rows that every sum and every leaf has seen before the data: evenly shared by a sum's children, and
            like the column as a whole at a leaf. 0 is maximum likelihood.
        patience: stop after so many iterations that did not raise the mean log likelihood of ``X_val`` (without one: of
            the training data) by ``tolerance``; with ``X_val``, the parameters that were best there are kept.
        tolerance: in nats a row.
        seed: of the start, in [0, 2^64).
        dtype: float32 or float64, of the parameters and all that is computed from them.

    Attributes:
        columns_: the fitted :class:`Columns`.
        structure_: the :class:`Structure`.
        network_: the learned :class:`SPN`.
        trace_: mean log likelihood of the training data before each iteration.
        trace_val_: the same of ``X_val``.

    Source: Poon and Domingos, "Sum-product networks: a new deep architecture", UAI 2011, section 4; Peharz et al., "On
        the latent variable interpretation in sum-product networks", IEEE TPAMI 2016, for the exact updates.

    Example:
        >>> import torch, pyfast
        >>> bit = (torch.arange(64)[:, None] >> torch.arange(3)) & 1
        >>> X = torch.cat([bit, bit], 1)  # column j and column j + 3 are equal
        >>> model = pyfast.spn.EM(hidden=4, iterations=100, smoothing=0.01).fit(X)
        >>> model.score(X) > -2.4  # -6 log 2 = -4.2 when columns are independent, -3 log 2 = -2.1 at best
        True
    """

    def __init__(
        self,
        structure: Structure | Literal["hclt", "rat", "tree"] = "hclt",
        columns: str | Categorical | Sequence[str | Categorical] = "auto",
        hidden: int = 16,
        iterations: int = 200,
        smoothing: float = 0.1,
        patience: int = 5,
        tolerance: float = 1e-4,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.structure = structure
        self.columns = columns
        self.hidden = hidden
        self.iterations = iterations
        self.smoothing = smoothing
        self.patience = patience
        self.tolerance = tolerance
        self.seed = seed
        self.dtype = dtype

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as scikit-learn's ``clone`` and searches want them."""
        return {name: getattr(self, name) for name in list(inspect.signature(type(self).__init__).parameters)[1:]}

    def set_params(self, **params: Any) -> "EM":
        """Change the constructor's arguments.

        Raises:
            ValueError: if there is no argument of that name.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"params must be among {sorted(known)}, got {name}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        default = type(self)().get_params()
        changed = (f"{k}={v!r}" for k, v in self.get_params().items() if v is not default[k] and v != default[k])
        return f"EM({', '.join(changed)})"

    def fit(self, X: Any, y: None = None, X_val: Any = None) -> "EM":
        """Learn from a table.

        Ctrl-C stops; what was learned until then is kept, with a warning.

        Args:
            X: (N, D) table of numpy, torch or pandas, or a list of rows; NaN, None and NA are missing.
            y: not used; scikit-learn's pipelines pass it.
            X_val: a table whose likelihood tells when to stop.

        Returns:
            This estimator.

        Raises:
            TypeError: if an argument is of another type.
            ValueError: if an argument is out of range, or a value of ``X`` does not suit its column.
        """
        self._check()
        columns = Columns.fit_encoding(X, self.columns)
        encoded = columns.encode(X, self.dtype, training=True)
        if len(encoded) == 0 or encoded.shape[1] == 0:
            raise ValueError(f"X must have at least one row and one column, got shape {tuple(encoded.shape)}")
        validation = None if X_val is None else columns.encode(X_val, self.dtype)
        if validation is not None and len(validation) == 0:
            raise ValueError("X_val must have at least one row, got none")
        rows = unique_rows(encoded)
        structure = self._make_structure(X, columns)
        network = Network(structure, columns)
        update = _Update(network, columns, self.smoothing)
        times = rows.multiplicity.double()
        base = columns.log_base(rows.rows) @ times / times.sum()
        now = best = start(network, columns, self.seed, self.dtype)
        self.trace_: list[float] = []
        self.trace_val_: list[float] = []
        top, waited = -math.inf, 0
        try:
            for i in range(self.iterations + 1):
                self.trace_.append(float(network.log_prob(rows.rows, now) @ times / times.sum() + base))
                found = self.trace_[-1]
                if validation is not None:
                    found = float((network.log_prob(validation, now) + columns.log_base(validation)).mean())
                    self.trace_val_.append(found)
                if validation is None or found > max(self.trace_val_[:-1], default=-math.inf):
                    best = now
                waited = 0 if found > top + self.tolerance else waited + 1
                top = found if waited == 0 else top
                if waited > self.patience or i == self.iterations:
                    break
                now = update(now, rows.rows, times)
        except KeyboardInterrupt:
            warnings.warn(
                f"stopped after {len(self.trace_) - 1} of {self.iterations} iterations; what was learned is kept",
                stacklevel=2,
            )
        self.columns_, self.structure_, self.n_features_in_ = columns, structure, encoded.shape[1]
        self.network_ = SPN(structure, columns, *best[:2], seed=self.seed, dtype=self.dtype)
        return self

    def _check(self) -> None:
        if not isinstance(self.structure, Structure) and self.structure not in ("hclt", "rat", "tree"):
            raise ValueError(f"structure must be a Structure, hclt, rat or tree, got {self.structure!r}")
        for name, least in (("hidden", 1), ("iterations", 1), ("patience", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        for name in ("smoothing", "tolerance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed must be in [0, 2^64), got {self.seed!r}")
        if self.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype must be float32 or float64, got {self.dtype}")

    def _make_structure(self, X: Any, columns: Columns) -> Structure:
        d = len(columns)
        if isinstance(self.structure, Structure):
            if self.structure.num_variables != d:
                raise ValueError(f"X must have {self.structure.num_variables} columns, got {d}")
            return self.structure
        if self.structure == "tree":
            return tree(d, sum_children=2, product_children=2)
        if self.structure == "rat":
            depth = max(1, min(3, int(math.log2(max(d, 2)))))
            return rat(d, replicas=8, depth=depth, sums=self.hidden, leaves=self.hidden)
        return hclt(X, self.hidden, columns)

    def _fitted(self) -> SPN:
        if not hasattr(self, "network_"):
            raise ValueError("fit must be called first")
        return self.network_

    def log_prob(self, X: Any) -> Tensor:
        """(N,), float64: log density of rows; see :meth:`SPN.log_prob`."""
        with torch.no_grad():
            return self._fitted().log_prob(X)

    def conditional(self, X: Any, given: Any) -> Tensor:
        """(N,), float64: log density of ``X`` given ``given``; see :meth:`SPN.conditional`."""
        with torch.no_grad():
            return self._fitted().conditional(X, given)

    def score_samples(self, X: Any) -> Any:
        """:meth:`log_prob` as a numpy array, as scikit-learn's density estimators have it."""
        return self.log_prob(X).numpy()

    def score(self, X: Any, y: None = None) -> float:
        """Mean of :meth:`log_prob`, in nats a row."""
        return float(self.log_prob(X).mean())

    def sample(self, n: int | None = None, evidence: Any = None, seed: int | None = None) -> Any:
        """Draws of rows, given what is known of each; see :meth:`SPN.sample`."""
        return self._fitted().sample(n, evidence, seed)

    def mpe(self, X: Any) -> Any:
        """The most probable completion of each row; see :meth:`SPN.mpe`."""
        return self._fitted().mpe(X)


class _Update:
    """One iteration: expected statistics from the derivatives of the likelihood, then the best parameters for them."""

    def __init__(self, network: Network, columns: Columns, smoothing: float) -> None:
        self._network, self._smoothing = network, smoothing
        structure = network.structure
        self._of = network.weight_sum
        self._share = smoothing / network.num_children.double()[self._of]
        variable = structure.variable[structure.kind == 0].long()
        family, width = columns.family[variable], columns.width[variable]
        first = columns.width.cumsum(0) - columns.width  # of a column's summary
        in_table = (family == TABLE).repeat_interleave(width)
        self._leaf = torch.arange(len(family)).repeat_interleave(width)[in_table]  # of each number of a table
        self._table = torch.nonzero(in_table).flatten()
        inside = self._table - network.leaf_first[self._leaf]
        counts = columns.summary[first[variable[self._leaf]] + inside] + 1.0 / width[self._leaf]
        self._prior = smoothing * counts / _totals(counts, self._leaf, len(family))
        self._num_leaves = len(family)
        self._at = {f: network.leaf_first[:-1][family == f] for f in (GAUSSIAN, POISSON, EXPONENTIAL)}
        of = {f: first[variable[family == f]] for f in self._at}
        self._mean = {f: columns.summary[of[f] + 1] for f in of}
        self._variance = {f: columns.summary[of[f] + 2] for f in of}

    def __call__(self, now: Parameters, rows: Tensor, times: Tensor) -> Parameters:
        weights, leaves = now.weights.double(), now.leaves.double().clone()
        dweights, dleaves = torch.zeros_like(weights), torch.zeros_like(leaves)
        for part in self._network.slices(len(rows)):
            some = times[part], rows[part], now.weights, now.leaves
            for total, found in zip(
                (dweights, dleaves), _operators.log_prob_backward(*some, self._network.graph), strict=True
            ):
                total += found
        flow = weights * dweights + self._share
        total = _totals(flow, self._of, self._network.structure.num_sums)
        weights = torch.where(total > 0, flow / total, weights)
        seen = dleaves[self._table] + self._prior
        total = _totals(seen, self._leaf, self._num_leaves)
        leaves[self._table] = torch.where(total > 0, (seen / total).log(), leaves[self._table])
        self._gaussians(leaves, dleaves)
        self._rates(leaves, dleaves)
        return Parameters(weights.to(now.weights.dtype), leaves.to(now.leaves.dtype))

    def _gaussians(self, leaves: Tensor, found: Tensor) -> None:
        at, s = self._at[GAUSSIAN], self._smoothing
        mean, variance = self._mean[GAUSSIAN], self._variance[GAUSSIAN]
        old, n = leaves[at + 3], found[at]
        moved = found[at + 3] / (-2 * leaves[at + 2])  # sum of x - m
        total = n + s
        shift = (moved + s * (mean - old)) / total  # of the mean
        squares = found[at + 2] + s * (variance + (mean - old) ** 2)
        floor = _FLOOR * torch.where(variance > 0, variance, 1.0)
        new = torch.maximum(squares / total - shift**2, floor)
        seen = total > 0
        leaves[at] = torch.where(seen, -0.5 * (2 * math.pi * new).log(), leaves[at])
        leaves[at + 2] = torch.where(seen, -0.5 / new, leaves[at + 2])
        leaves[at + 3] = torch.where(seen, old + shift, old)

    def _rates(self, leaves: Tensor, found: Tensor) -> None:
        for family in (POISSON, EXPONENTIAL):
            at, s = self._at[family], self._smoothing
            mean = torch.where(self._mean[family] > 0, self._mean[family], 1.0)
            total = found[at] + s
            value = torch.maximum((found[at + 1] + s * mean) / total, _FLOOR * mean)
            rate, linear = (value, value.log()) if family == POISSON else (-value.log(), -1 / value)
            seen = total > 0
            constant = -rate if family == POISSON else rate
            leaves[at] = torch.where(seen, constant, leaves[at])
            leaves[at + 1] = torch.where(seen, linear, leaves[at + 1])


def _totals(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """For each number, the sum of its group."""
    return torch.zeros(groups, dtype=x.dtype).index_add_(0, group, x)[group]
