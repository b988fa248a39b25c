"""The estimator: a table in, calibrated probabilities out."""

import hashlib
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pyfast import _ranks
from pyfast.spn import _files, _scikit, _settings
from pyfast.spn._arguments import check_count, check_seed
from pyfast.spn._chain import Chain, State
from pyfast.spn._columns import Columns
from pyfast.spn._diagnostics import Diagnostics, diagnosed, plot
from pyfast.spn._fit import Kind
from pyfast.spn._hyper import Hyper
from pyfast.spn._network import Counts, Law, Network
from pyfast.spn._planner import structure_for, sweeps_for, warm_for
from pyfast.spn._posterior import Posterior
from pyfast.spn._resident import Resident, check_gpu, gpu_of
from pyfast.spn._rows import mean, unique_rows
from pyfast.spn._structure import Structure

_SAME = ("X", "the estimator's arguments")  # on all ranks


class BayesSPN:
    """Bayesian learning of a sum-product network's parameters by Gibbs sampling, exact in the limit of many sweeps.

    Weights and leaf parameters have conjugate priors; what is sampled is which component of each sum explains which
    row. Predictions integrate weights and leaves out and average over the states that were kept. NaN is a missing
    value, in training and everywhere else; it is summed out exactly.

    Args:
        structure: "hclt" (a hidden Chow-Liu tree of the data), "rat", "tree" or a :class:`Structure`.
        columns: kinds of columns, as :meth:`Columns.fit_encoding` takes them.
        hidden: states per hidden variable of "hclt", or components per region of "rat"; None chooses by the size of the
            table.
        sweeps: Gibbs sweeps of each chain; None chooses by the size of the table.
        warm: passes of expectation maximisation, some hundred rows a step, before the first block sweep, for chains may
            begin anywhere; None chooses by the size of the table. On hidden trees they begin at a clustering of the
            rows.
        burn: share of the sweeps that are thrown away, in [0, 1).
        chains: independent chains.
        states: number of states kept, over all chains; after Ctrl-C at least so many, if there were as many.
        kernel: "block": all choices of a row at once, given all its values (upward and downward pass). On huge sparse
            networks, top-down moves: "topdown" (whole trees proposed from the sums alone), "levels" (subtrees, level by
            level), "isir" (one candidate subtree for each child), "informed" (children proposed by their univariate
            marginals). "auto" takes "block" where the network is dense or small, else "isir".
        mode: "instantiated" (weights and leaves are drawn, rows are independent given them), "collapsed" (they are
            integrated out, one row after the other) or "auto".
        lookahead: height up to which top-down moves sum exactly; "block" does so at any height.
        candidates: proposals of "isir" from the sum itself, at least 2; 0 takes one for each child. Other kernels do
            without.
        hyper: "slice" (masses of layers and strengths of tables' priors are sampled, too), "eb" (empirical Bayes: they
            climb to where they explain the choices best while the first fit burns in, and then stay; a column's
            strength by at most 256 random leaves a step) or "fixed".
        mass: Dirichlet mass of a sum, shared by its children; where "slice" and "eb" start.
        kappa: strength of the leaves' priors, in rows; where "slice" and "eb" start.
        seed: in [0, 2^64). The same chains on every machine with the same kernels, for any number of threads.
        progress: show a bar (needs tqdm).

    Attributes:
        columns_: the fitted :class:`Columns`.
        structure_: the :class:`Structure`.
        states_: the kept states.

    Source: Yokoi and Sato, "Top-down Bayesian posterior sampling for sum-product networks", 2024,
        https://arxiv.org/abs/2406.12353, for the collapsed posterior and top-down moves; Vergari et al., "Automatic
        Bayesian density analysis", AAAI 2019, for block Gibbs; Liu and Van den Broeck, NeurIPS 2021, for HCLTs.

    Example:
        >>> import torch, pyfast
        >>> one = (torch.arange(400)[:, None] % torch.tensor([2, 3, 5, 7]) == 0).double()
        >>> X = torch.cat([one, one], 1)  # column j and column j + 4 are equal
        >>> model = pyfast.spn.BayesSPN(hidden=4, sweeps=40, seed=1).fit(X)
        >>> equal, unequal = torch.zeros(8), torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0])
        >>> bool(model.log_prob(equal[None]) > model.log_prob(unequal[None]) + 3)
        True
        >>> model.sample(3).shape
        torch.Size([3, 8])
    """

    _chain_states: list[dict[str, Tensor]]  # of a loaded estimator, until it is resumed

    def __init__(
        self,
        structure: Structure | Literal["hclt", "rat", "tree"] = "hclt",
        columns: Kind | Sequence[Kind] = "auto",
        hidden: int | None = None,
        sweeps: int | None = None,
        warm: int | None = None,
        burn: float = 0.5,
        chains: int = 2,
        states: int = 20,
        kernel: str = "auto",
        mode: str = "auto",
        lookahead: int = 0,
        candidates: int = 0,
        hyper: str = "slice",
        mass: float = 1.0,
        kappa: float = 2.0,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.structure = structure
        self.columns = columns
        self.hidden = hidden
        self.sweeps = sweeps
        self.warm = warm
        self.burn = burn
        self.chains = chains
        self.states = states
        self.kernel = kernel
        self.mode = mode
        self.lookahead = lookahead
        self.candidates = candidates
        self.hyper = hyper
        self.mass = mass
        self.kappa = kappa
        self.seed = seed
        self.progress = progress

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as scikit-learn's ``clone`` and searches want them."""
        return _scikit.params(self)

    def set_params(self, **params: Any) -> "BayesSPN":
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

    def fit(self, X: Any, y: None = None, X_test: Any = None, group: Any = None) -> "BayesSPN":
        """Sample the posterior given a table.

        Ctrl-C stops the chains; what was sampled until then is kept, with a warning: before the first sweep, what was
        expected of one.

        Args:
            X: (N, D) table of numpy, torch or pandas, or a list of rows; NaN, None and NA are missing. Chains sweep on
                the GPU that a tensor is on, which takes the block kernel, five families, and no ``group``; all that is
                asked afterwards is answered by the CPU.
            y: not used; scikit-learn's pipelines pass it.
            X_test: a table whose mean log likelihood the progress bar shows.
            group: a torch.distributed process group, all of whose ranks make this call with the same table: they share
                its rows, and all come to what one process would, bit by bit. Block kernel only.

        Returns:
            This estimator.

        Raises:
            TypeError: if an argument is of another type.
            ValueError: if an argument is out of range or not for a GPU that ``X`` is on, or a value of ``X`` does not
                suit its column; on all ranks if one of them has another table or other arguments.
        """
        with _ranks.agreeing(_SAME, group) as same:
            sweeps, test = self._prepare(X, X_test, group)
            same += self._identity(sweeps)
        self._continue(sweeps, test, group)
        return self

    def _prepare(self, X: Any, X_test: Any, group: Any) -> tuple[int, Tensor | None]:
        """All of ``fit`` but the sweeps; returns how many."""
        _settings.check(self)
        columns = Columns.fit_encoding(X, self.columns)
        encoded = columns.encode(X, training=True)
        if len(encoded) == 0 or encoded.shape[1] == 0:
            raise ValueError(f"X must have at least one row and one column, got shape {tuple(encoded.shape)}")
        rows = unique_rows(encoded)
        different = self.chains * len(rows.rows)
        structure = structure_for(self.structure, X, columns, self.hidden, len(encoded), different)
        sweeps = self.sweeps or sweeps_for(structure, different)
        network = Network(structure, columns)
        self._until = int(self.burn * sweeps)
        warm = warm_for(structure, different) if self.warm is None else self.warm
        plan = _settings.plan(self, structure, group, warm, self._until)
        check_gpu(gpu_of(X), plan.kernel, plan.collapsed, columns, group)
        self.__dict__.pop("states_", None)  # of an earlier fit, whatever becomes of this one
        self._hyper = Hyper(network, columns, self.mass, self.kappa)
        chains = [
            Chain(network, columns, rows, plan, Hyper(network, columns, self.mass, self.kappa), self.seed, c)
            for c in range(self.chains)
        ]
        _place(chains, network, encoded, gpu_of(X))
        self.columns_, self.structure_, self._network, self._chains = columns, structure, network, chains
        self.n_features_in_, self.num_rows_, self._data = encoded.shape[1], len(encoded), _fingerprint(encoded)
        self._trace: list[list[float]] = [[] for _ in chains]
        self._kept: list[State] = []
        return sweeps, None if X_test is None else columns.encode(X_test)

    def _identity(self, sweeps: int) -> list[int]:
        """Of ``_SAME``: numbers that are equal where these are."""
        tensors = [*self._network.graph, *self._chains[0].state_dict().values()]
        bits = b"".join(x.contiguous().numpy().tobytes() for x in tensors)
        params = {k: v for k, v in self.get_params().items() if k not in ("structure", "columns", "progress")}
        hashed = hashlib.sha256(repr((sweeps, params)).encode() + bits).hexdigest()
        return [int(x[:15], 16) for x in (self._data, hashed)]

    def resume(self, X: Any, sweeps: int, X_test: Any = None, group: Any = None) -> "BayesSPN":
        """More sweeps of the chains of :meth:`fit`: bit by bit what one longer fit would have done.

        With ``hyper="eb"``, hyperparameters stay where the first fit's burn-in left them.

        Args:
            X: the table that was fitted, on the CPU or on a GPU.
            sweeps: how many more of each chain, at least 1.
            X_test: a table whose mean log likelihood the progress bar shows.
            group: as in :meth:`fit`, with any number of ranks.

        Returns:
            This estimator.

        Raises:
            TypeError: if ``sweeps`` is not an int.
            ValueError: if ``X`` is another table, ``sweeps`` is too small, or there was no fit.
        """
        with _ranks.agreeing(_SAME, group) as same:
            test = self._prepare_resume(X, sweeps, X_test, group)
            same += self._identity(sweeps)
        self._continue(sweeps, test, group)
        return self

    def _prepare_resume(self, X: Any, sweeps: int, X_test: Any, group: Any) -> Tensor | None:
        encoded = self._encode(X)
        if _fingerprint(encoded) != self._data:
            raise ValueError("X must be the table that was fitted, got another")
        check_count("sweeps", sweeps, 1)
        rows = unique_rows(encoded)
        warm = warm_for(self.structure_, self.chains * len(rows.rows)) if self.warm is None else self.warm
        plan = _settings.plan(
            self, self.structure_, group, warm, self._until
        )  # as fit does: a chain may have been stopped before it swept
        check_gpu(gpu_of(X), plan.kernel, plan.collapsed, self.columns_, group)
        if not self._chains:
            for c, state in enumerate(self._chain_states):
                hyper = Hyper(self._network, self.columns_, self.mass, self.kappa)
                self._chains.append(Chain(self._network, self.columns_, rows, plan, hyper, self.seed, c))
                self._chains[-1].load_state_dict(state)
        _place(self._chains, self._network, encoded, gpu_of(X))
        return None if X_test is None else self._encode(X_test)

    def _continue(self, sweeps: int, test: Tensor | None, group: Any) -> None:
        """Keeps every 1st, 2nd, 4th, ... sweep, so that which ones does not depend on when the chains were paused."""
        most = 2 * math.ceil(self.states / len(self._chains) / (1 - self.burn))
        self._kept = [s for s in self._kept if s.sweep]  # without what a chain expected before it was stopped
        bar = _progress(sweeps) if self.progress else None
        try:
            with _ranks.stopping_together(group) as stop:
                for _ in range(sweeps):
                    for chain, trace in zip(self._chains, self._trace, strict=True):
                        if chain.sweeps > min(c.sweeps for c in self._chains):
                            continue  # was ahead when Ctrl-C came
                        chain.sweep(group, stop)
                        trace.append(chain.log_joint)
                    done = self._chains[-1].sweeps
                    if done % self._step(done, most) == 0:
                        self._kept += [chain.state() for chain in self._chains]
                        self._kept = [s for s in self._kept if s.sweep % self._step(done, most) == 0]
                    if bar is not None:
                        self._show(bar, test)
                    stop()
        except KeyboardInterrupt:
            done = min(c.sweeps for c in self._chains)
            if done == 0:
                states = [c.state() if c.sweeps else c.warm_state() for c in self._chains]
                self._kept = [s for s in states if s is not None]
                if not self._kept:
                    raise
                self.states_, self._burned = self._kept, 0
                warnings.warn("stopped before the first sweep; what was learned until then is kept", stacklevel=3)
                return
            warnings.warn(f"stopped after {done} sweeps; what was sampled is kept", stacklevel=3)
        self._burned = self._burn_in(min(c.sweeps for c in self._chains))
        self.states_ = [s for s in self._kept if s.sweep > self._burned] or [c.state() for c in self._chains]

    def _burn_in(self, done: int) -> int:
        """How many of the first sweeps are thrown away."""
        return max(int(self.burn * done), self._until if self.hyper == "eb" else 0)

    @staticmethod
    def _step(done: int, most: int) -> int:
        """The power of two, every how many sweeps are kept so that of ``done`` sweeps at most ``most`` are."""
        return 1 << max(0, math.ceil(math.log2(done / most)))

    def _show(self, bar: Any, test: Tensor | None) -> None:
        said = {"log joint a row": f"{self._chains[-1].log_joint / self.num_rows_:.3f}"}
        if test is not None and self._kept:
            recent = self._kept[-1]
            score = self._answers_of([recent]).log_prob(test) + self.columns_.log_base(test)
            said["test"] = f"{float(score.mean()):.3f}"
        bar.set_postfix(said)
        bar.update()

    def log_prob(self, X: Any) -> Tensor:
        """Log posterior predictive density of rows: weights and leaves integrated out, averaged over states.

        Args:
            X: (N, D) table; what is missing is summed out, so this is the log of a marginal, too.

        Returns:
            (N,), float64, in nats.

        Raises:
            ValueError: if a value does not suit its column.
        """
        return self._log_prob(self._encode(X))

    def credible_interval(self, X: Any, level: float = 0.9) -> Tensor:
        """Central posterior interval of the log density of each row, for the network's parameters are not known.

        Args:
            X: (N, D) table.
            level: in (0, 1).

        Returns:
            (N, 2), float64: quantiles over four draws of the parameters from each state.

        Raises:
            ValueError: if ``level`` is out of range, or a value does not suit its column.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be in (0, 1), got {level}")
        rows = self._encode(X)
        return self._answers().credible_interval(rows, level) + self.columns_.log_base(rows)[:, None]

    def conditional(self, X: Any, given: Any) -> Tensor:
        """Log density of the values of ``X`` given those of ``given``, row by row.

        Args:
            X: (N, D) table; NaN where nothing is asked.
            given: (N, D) table; NaN where nothing is known. Where both have a value, they must be equal.

        Returns:
            (N,), float64; minus infinity where they differ.

        Raises:
            ValueError: if the shapes differ or a value does not suit its column.
        """
        asked, known = self._encode(X), self._encode(given)
        if asked.shape != known.shape:
            raise ValueError(f"given must have the shape of X, {tuple(asked.shape)}, got {tuple(known.shape)}")
        both = torch.where(asked.isnan(), known, asked)
        clash = (~known.isnan() & (both != known)).any(1)
        return torch.where(clash, -math.inf, self._log_prob(both) - self._log_prob(known))

    def score_samples(self, X: Any) -> Any:
        """:meth:`log_prob` as a numpy array, as scikit-learn's density estimators have it."""
        return self.log_prob(X).numpy()

    def score(self, X: Any, y: None = None) -> float:
        """Mean of :meth:`log_prob`, in nats a row."""
        return mean(self.log_prob(X))

    def sample(self, n: int | None = None, evidence: Any = None, seed: int | None = None) -> Any:
        """Draws from the posterior predictive, given what is known of each row.

        Args:
            n: number of rows, where there is no evidence.
            evidence: (N, D) table: what is missing is drawn given the rest of its row, what is there stays.
            seed: of the draws; by default the estimator's.

        Returns:
            (n or N, D), a table of the form that was fitted.

        Raises:
            TypeError: if ``n`` or ``seed`` is not an int.
            ValueError: if not exactly one of ``n`` and ``evidence`` is given, an argument is out of range, a value does
                not suit its column, or a row is impossible.
        """
        if (n is None) == (evidence is None):
            raise ValueError(f"n or evidence must be given, not both, got n={n}")
        seed = self.seed if seed is None else seed
        check_seed(seed)
        if evidence is None:
            assert n is not None
            check_count("n", n, 0)
            rows = torch.full((n, self._fitted().n_features_in_), math.nan)
        else:
            rows = self._encode(evidence)
        return self.columns_.decode(self._answers().sample(rows, seed), evidence)

    def mpe(self, X: Any) -> Any:
        """The most probable completion of each row and its latent choices, in the best of the kept states.

        Args:
            X: (N, D) table with missing values.

        Returns:
            (N, D), a table of the form that was fitted; what was there stays.

        Raises:
            ValueError: if a value does not suit its column, or a row is impossible.
        """
        rows = self._encode(X)
        return self.columns_.decode(self._answers().mpe(rows), X)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the data to a file, for :meth:`load`; a resumed chain goes on bit by bit.

        Args:
            path: of the file, which ``torch.load(path, weights_only=True)`` reads.

        Raises:
            ValueError: if there was no fit.
        """
        torch.save(_files.contents(self._fitted()), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "BayesSPN":
        """The estimator that :meth:`save` wrote; only tensors, numbers and text are read, no code.

        Args:
            path: of the file.

        Raises:
            ValueError, KeyError, RuntimeError: if the file is not one of these.
        """
        model = cls()
        _files.restore(model, torch.load(path, weights_only=True))
        if not model.states_:
            raise ValueError(f"path must name a file with kept states, got none in {os.fspath(path)}")
        return model

    def predictive_parameters(self, index: int) -> tuple[Tensor, Tensor]:
        """Weights and leaves of the network that predicts by one kept state, parameters integrated out.

        Args:
            index: of the state in ``states_``.

        Returns:
            (num_weights,) weights and the leaves' numbers, float32, where a column is Poisson float64: of tables, log
            probabilities of their categories; of a Gaussian, Poisson or exponential leaf, the four of its Student,
            negative binomial or Lomax density.

        Raises:
            IndexError: if there is no such state.
        """
        weights, leaves, _ = self._answers().predictive(self.states_[index])
        return weights, leaves

    def diagnostics(self) -> Diagnostics:
        """How well the chains have mixed; a warning where they disagree, or where the root hardly ever moves."""
        shortest = min(len(t) for t in self._fitted()._trace)
        trace = torch.tensor([t[:shortest] for t in self._trace], dtype=torch.float64)
        accepted = [c.accepted for c in self._chains if hasattr(c, "accepted")]
        moves = torch.stack(accepted).sum(0) if accepted else torch.empty(0, 2, dtype=torch.int64)
        return diagnosed(trace, self._burned, moves)

    def plot(self) -> Any:
        """How the chains went: each one's log joint density a row after every sweep, and how moves were accepted.

        Returns:
            The matplotlib figure (needs the extra "plot"); the sweeps that were thrown away are shaded.

        Raises:
            ValueError: if there was no fit, or no sweep of one.
        """
        if not min(len(t) for t in self._fitted()._trace):
            raise ValueError("fit must make a sweep before there is something to plot, got none")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the figure shows it
            found = self.diagnostics()
        return plot(found.log_joint / self.num_rows_, self._burned, found.r_hat, found.effective_size, found.accepted)

    def _fitted(self) -> "BayesSPN":
        if not hasattr(self, "states_"):
            raise ValueError("fit must be called first")
        return self

    def _encode(self, X: Any) -> Tensor:
        return self._fitted().columns_.encode(X)

    def _answers(self) -> Posterior:
        return self._answers_of(self._fitted().states_)

    def _answers_of(self, states: list[State]) -> Posterior:
        return Posterior(self._network, self._hyper, states, self.seed)

    def _log_prob(self, rows: Tensor) -> Tensor:
        return self._answers().log_prob(rows) + self.columns_.log_base(rows)


def _place(chains: list[Chain], network: Network, rows: Tensor, device: torch.device | None) -> None:
    """Where chains sweep over the encoded rows from now on: on a GPU, if one is given."""
    resident = None
    if device is not None:
        resident = chains[0].resident
        if resident is None or resident.device != device:
            resident = Resident(network, rows, device)
    for chain in chains:
        chain.place(resident)


def _progress(sweeps: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=sweeps, desc="sweeps")


def _fingerprint(rows: Tensor) -> str:
    return hashlib.sha256(rows.contiguous().numpy().tobytes()).hexdigest()


__all__ = ["BayesSPN", "Counts", "Diagnostics", "Law"]
