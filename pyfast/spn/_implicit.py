"""The largest tree of sums and products at any width: what no row uses is never built."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyfast import _C
from pyfast.spn import _scikit
from pyfast.spn._arguments import check_burn, check_candidates, check_count, check_positive, check_seed
from pyfast.spn._columns import Columns
from pyfast.spn._fit import OWN, Kind
from pyfast.spn._network import CHOICES, ORDER, SAMPLE_CHOICES, SAMPLE_STATE, SAMPLE_VALUES, purpose
from pyfast.spn._rows import mean


class ImplicitTree:
    """Bayesian learning on the largest tree of sums and products, of 10^12 nodes as well as of ten.

    Every sum has ``sum_children`` products below it, each of which splits the sum's variables at random into
    ``product_children`` parts of near equal size, and every part of more than one variable is a sum again. Only nodes
    that some row uses are held in memory, at most rows times columns times the height: children of a sum that none
    uses are alike, and are one candidate together, exactly. With ``sum_children`` going to infinity this is a nested
    Chinese restaurant process.

    Weights and leaf parameters are integrated out, and each row's choices are sampled given all others' by i-SIR over
    children from the root down. Deterministic in ``seed``, for any number of threads.

    Args:
        sum_children: C_s, in [1, 2^47].
        product_children: C_p, at least 2. Few levels of wide sums are fast: sqrt(D) makes two.
        columns: kinds of columns, as :meth:`Columns.fit_encoding` takes them.
        candidates: trees that are proposed at a sum of which more children are in use, or 0 for one below each of
            these: slower, and better mixed.
        sweeps: over all rows.
        burn: share of the sweeps that are thrown away, in [0, 1).
        states: number of states kept, over which predictions are averaged.
        mass: Dirichlet mass of a sum, shared by its children.
        kappa: strength of the leaves' priors, in rows.
        seed: in [0, 2^64), of splits and choices.

    Attributes:
        columns_: the fitted :class:`Columns`.
        log_joint_: after each sweep, the log joint density of data and choices, parameters integrated out.
        used_nodes_: nodes in memory after the last sweep.

    Source: Yokoi and Sato, "Top-down Bayesian posterior sampling for sum-product networks", 2024,
        https://arxiv.org/abs/2406.12353, for the tree and the collapsed posterior; Andrieu, Lee and Vihola, "Uniform
        ergodicity of the iterated conditional SMC and geometric ergodicity of particle Gibbs samplers", 2018, for
        i-SIR; Blei, Griffiths and Jordan, "The nested Chinese restaurant process", 2010, for the limit.

    Example:
        >>> import torch, pyfast
        >>> one = (torch.arange(200)[:, None] % torch.tensor([2, 3, 5]) == 0).double()
        >>> X = torch.cat([one, one], 1)
        >>> model = pyfast.spn.ImplicitTree(sum_children=10**6, product_children=3, sweeps=20).fit(X)
        >>> model.num_nodes > 10**12, model.used_nodes_ < 10**4
        (True, True)
        >>> model.log_prob(X).shape
        torch.Size([200])
    """

    def __init__(
        self,
        sum_children: int = 1000,
        product_children: int = 2,
        columns: Kind | Sequence[Kind] = "auto",
        candidates: int = 0,
        sweeps: int = 100,
        burn: float = 0.5,
        states: int = 10,
        mass: float = 1.0,
        kappa: float = 2.0,
        seed: int = 0,
    ) -> None:
        self.sum_children, self.product_children, self.columns = sum_children, product_children, columns
        self.candidates, self.sweeps, self.burn, self.states = candidates, sweeps, burn, states
        self.mass, self.kappa, self.seed = mass, kappa, seed

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as scikit-learn's ``clone`` and searches want them."""
        return _scikit.params(self)

    def set_params(self, **params: Any) -> "ImplicitTree":
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

    def fit(self, X: Any, y: None = None) -> "ImplicitTree":
        """Sample the posterior given a table. Ctrl-C ends it within a second; what was sampled until then is kept.

        Args:
            X: (N, D) table of numpy, torch or pandas, or a list of rows; NaN, None and NA are missing.
            y: not used; scikit-learn's pipelines pass it.

        Returns:
            This estimator.

        Raises:
            TypeError: if an argument is of another type.
            ValueError: if an argument is out of range, a value does not suit its column, or there is none.
            KeyboardInterrupt: if Ctrl-C comes before the first sweep is done.
        """
        self._check()
        columns = Columns.fit_encoding(X, self.columns)
        if (columns.family == OWN).any():
            raise ValueError("columns must be of kinds that ImplicitTree knows, got a Density")
        rows = columns.encode(X, training=True)
        if len(rows) == 0 or rows.shape[1] == 0:
            raise ValueError(f"X must have at least one row and one column, got shape {tuple(rows.shape)}")
        prior, _ = columns.prior(self.kappa)
        tables = [columns.family, columns.width, columns.quantum, prior]
        parts = max(2, min(self.product_children, rows.shape[1]))  # more would be one for each column, too
        width = _C.spn.implicit_choices(rows.shape[1], parts)
        choices, kept, joint = torch.full((len(rows), width), -1, dtype=torch.int64), [], []
        words = torch.empty(len(rows), 4, dtype=torch.int64)
        _C.random.bits(self.seed, purpose(ORDER), torch.arange(len(rows)), words)
        first, used = words[:, 0].argsort(stable=True), 0
        step = max(1, math.ceil(self.sweeps * (1 - self.burn) / self.states))
        tree = self.sum_children, parts, self.seed, self.mass
        try:
            for sweep in range(self.sweeps):
                order = first if sweep == 0 else torch.arange(len(rows))
                next_choices = choices.clone()  # the old ones stay whole if Ctrl-C comes
                what = purpose(CHOICES, 0, sweep)
                log, used = _C.spn.implicit_sweep(
                    tables, rows, next_choices, *tree, self.candidates, self.seed, what, order
                )
                choices = next_choices
                joint.append(log)
                if (self.sweeps - 1 - sweep) % step == 0:
                    kept.append((sweep, choices))
        except KeyboardInterrupt:
            if not joint:
                raise
            kept.append((len(joint) - 1, choices))
        late = [c for sweep, c in kept if sweep >= self.burn * len(joint)]
        self.columns_, self._rows, self._tables, self._tree = columns, rows, tables, tree
        self._kept = late[-self.states :]
        self.log_joint_, self.used_nodes_ = torch.tensor(joint, dtype=torch.float64), used
        self.n_features_in_ = rows.shape[1]
        return self

    def _check(self) -> None:
        check_count("sum_children", self.sum_children, 1)
        if self.sum_children > 2**47:
            raise ValueError(f"sum_children must be at most 2^47, got {self.sum_children}")
        check_count("product_children", self.product_children, 2)
        check_candidates(self.candidates)
        check_count("sweeps", self.sweeps, 1)
        check_count("states", self.states, 1)
        check_burn(self.burn)
        check_positive("mass", self.mass)
        check_positive("kappa", self.kappa)
        check_seed(self.seed)

    @property
    def num_nodes(self) -> int:
        """Of the whole tree, used or not."""
        nodes, sizes = 1, {len(self._fitted().columns_): 1}
        children, most = self._tree[:2]
        while sizes:
            below: dict[int, int] = {}
            for size, times in sizes.items():
                parts, times = min(size, most), times * children
                nodes += times * (1 + parts)
                for part, number in ((size // parts, parts - size % parts), (size // parts + 1, size % parts)):
                    if number and part > 1:
                        below[part] = below.get(part, 0) + times * number
            sizes = below
        return nodes

    def log_prob(self, X: Any) -> Tensor:
        """Log posterior predictive density of rows: parameters integrated out, averaged over the states kept.

        Args:
            X: (N, D) table; what is missing is summed out.

        Returns:
            (N,), float64, in nats.

        Raises:
            ValueError: if a value does not suit its column, or there was no fit.
        """
        rows = self._fitted().columns_.encode(X)
        found = torch.empty(len(self._kept), len(rows), dtype=torch.float64)
        for choices, out in zip(self._kept, found, strict=True):
            _C.spn.implicit_log_prob(self._tables, self._rows, choices, *self._tree, rows, out)
        return found.logsumexp(0) - math.log(len(found)) + self.columns_.log_base(rows)

    def score_samples(self, X: Any) -> Any:
        """:meth:`log_prob` as a numpy array, as scikit-learn's density estimators have it."""
        return self.log_prob(X).numpy()

    def score(self, X: Any, y: None = None) -> float:
        """Mean of :meth:`log_prob`, in nats a row."""
        return mean(self.log_prob(X))

    def sample(self, n: int = 1, evidence: Any = None, seed: int = 0) -> Any:
        """Rows from the posterior predictive, or what is missing in ``evidence`` drawn given the rest of its row.

        Args:
            n: number of rows, without ``evidence``.
            evidence: (N, D) table.
            seed: of the draws, in [0, 2^64).

        Returns:
            A table of the form that was fitted.

        Raises:
            TypeError: if ``n`` or ``seed`` is not an int.
            ValueError: if an argument is out of range, a value does not suit its column, or there was no fit.
        """
        columns = self._fitted().columns_
        check_count("n", n, 0)
        check_seed(seed)
        out = torch.full((n, len(columns)), math.nan) if evidence is None else columns.encode(evidence)
        logs = torch.empty(len(self._kept), len(out), dtype=torch.float64)
        for choices, log in zip(self._kept, logs, strict=True):  # a state explains the evidence as well as it can
            _C.spn.implicit_log_prob(self._tables, self._rows, choices, *self._tree, out, log)
        words = torch.empty(len(out), 4, dtype=torch.int64)
        _C.random.bits(seed, purpose(SAMPLE_STATE), torch.arange(len(out)), words)
        share = logs.softmax(0).cumsum(0)
        state = (share < (words[:, 0] >> 1).double() * 2.0**-31).sum(0).clamp_max(len(logs) - 1)
        for i, choices in enumerate(self._kept):
            here = torch.nonzero(state == i).flatten()
            some = out[here]
            names = [purpose(tag, i) for tag in (SAMPLE_CHOICES, SAMPLE_VALUES)]
            _C.spn.implicit_complete(self._tables, self._rows, choices, *self._tree, some, seed, *names, 0)
            out[here] = some
        return columns.decode(out, evidence)

    def _fitted(self) -> "ImplicitTree":
        if not hasattr(self, "_kept"):
            raise ValueError("fit must be called first")
        return self
