"""Maximum likelihood by expectation maximisation."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pyfast import _ranks
from pyfast.spn import _scikit
from pyfast.spn._arguments import check_count, check_positive, check_seed
from pyfast.spn._columns import Columns
from pyfast.spn._fit import Kind
from pyfast.spn._hyper import Hyper
from pyfast.spn._network import START, Network, Parameters, purpose
from pyfast.spn._parameters import opened, start
from pyfast.spn._planner import structure_for
from pyfast.spn._rows import UniqueRows, mean, unique_rows
from pyfast.spn._spn import SPN
from pyfast.spn._start import clustered
from pyfast.spn._structure import Structure
from pyfast.spn._update import Update


class EM:
    """Learning of a sum-product network's parameters by expectation maximisation over all rows at once.

    Each iteration replaces every weight and every leaf by its best value given the posterior of the latent choices, so
    that without smoothing the likelihood never falls. NaN is a missing value, in training and everywhere else.

    Args:
        structure: "hclt" (a hidden Chow-Liu tree of the data), "rat", "tree" or a :class:`Structure`.
        columns: kinds of columns, as :meth:`Columns.fit_encoding` takes them.
        hidden: states per hidden variable of "hclt", or components per region of "rat"; None chooses by the size of the
            table.
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
        columns: Kind | Sequence[Kind] = "auto",
        hidden: int | None = None,
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
        return _scikit.params(self)

    def set_params(self, **params: Any) -> "EM":
        """Change the constructor's arguments.

        Raises:
            ValueError: if there is no argument of that name.
        """
        _scikit.set_params(self, params)
        return self

    def __sklearn_tags__(self) -> Any:
        return _scikit.tags()

    def __repr__(self) -> str:
        return _scikit.shown(self)

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
        structure = structure_for(self.structure, X, columns, self.hidden, len(encoded), 2 * len(rows.rows))
        network = Network(structure, columns)
        update = Update(network, columns, self.smoothing)
        times = rows.multiplicity.double()
        base = columns.log_base(rows.rows)
        now = best = self._start(network, columns, rows)
        self.trace_: list[float] = []
        self.trace_val_: list[float] = []
        top, waited = -math.inf, 0
        try:
            with _ranks.stopping_together(None) as stop:
                for i in range(self.iterations + 1):
                    self.trace_.append(mean(network.log_prob(rows.rows, now) + base, times))
                    found = self.trace_[-1]
                    if validation is not None:
                        found = mean(network.log_prob(validation, now) + columns.log_base(validation))
                        self.trace_val_.append(found)
                    if validation is None or found > max(self.trace_val_[:-1], default=-math.inf):
                        best = now
                    waited = 0 if found > top + self.tolerance else waited + 1
                    top = found if waited == 0 else top
                    if waited > self.patience or i == self.iterations:
                        break
                    now = update(now, rows.rows, times)
                    stop()
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
        if self.hidden is not None:
            check_count("hidden", self.hidden, 1)
        check_count("iterations", self.iterations, 1)
        check_count("patience", self.patience, 0)
        check_positive("smoothing", self.smoothing, or_zero=True)
        check_positive("tolerance", self.tolerance, or_zero=True)
        check_seed(self.seed)
        if self.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype must be float32 or float64, got {self.dtype}")

    def _start(self, network: Network, columns: Columns, rows: UniqueRows) -> Parameters:
        """Parameters drawn given a clustering of the rows where the structure has one, else from the prior."""
        what = purpose(START)
        counts = clustered(network, rows, self.seed, what)
        if counts is None:
            return start(network, columns, self.seed, self.dtype)
        hyper = Hyper(network, columns, 1.0, 2.0)
        law = network.law(hyper.mass, hyper.prior())
        return opened(network, counts, law, network.draw(counts, law, self.seed, what, self.dtype))

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
        return mean(self.log_prob(X))

    def sample(self, n: int | None = None, evidence: Any = None, seed: int | None = None) -> Any:
        """Draws of rows, given what is known of each; see :meth:`SPN.sample`."""
        return self._fitted().sample(n, evidence, seed)

    def mpe(self, X: Any) -> Any:
        """The most probable completion of each row; see :meth:`SPN.mpe`."""
        return self._fitted().mpe(X)
