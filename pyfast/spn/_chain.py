"""One Markov chain over the latent choices of all rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyfast import _C, _ranks
from pyfast.spn._columns import Columns
from pyfast.spn._hyper import Hyper
from pyfast.spn._network import (
    CHOICES,
    HYPER,
    ORDER,
    PARAMETERS,
    START,
    WARM,
    Counts,
    Law,
    Network,
    Parameters,
    purpose,
)
from pyfast.spn._parameters import opened
from pyfast.spn._resident import Resident
from pyfast.spn._rows import UniqueRows
from pyfast.spn._start import clustered
from pyfast.spn._update import Stepwise, Update

_SAMPLES = 1 << 27  # samples times variables times height in one call, so that Ctrl-C need not wait long


class Plan(NamedTuple):
    """How a chain moves: a kernel of the spec, with parameters integrated out (collapsed) or drawn (instantiated)."""

    kernel: str
    collapsed: bool
    lookahead: int
    candidates: int
    hyper: str
    warm: int = 0  # iterations of EM before the first sweep
    until: int = 0  # after so many sweeps empirical Bayes stays where it is
    every: int = 2  # sweeps between moves of the hyperparameters


class State(NamedTuple):
    """What is kept of a chain after a sweep.

    Attributes:
        chain: its number.
        sweep: after how many sweeps.
        weight_counts: (num_weights,), int32: how many rows took each edge below a sum.
        leaf_counts: (numbers of leaves,), int64: what each leaf saw.
        mass: (layers,), float64: Dirichlet mass of the sums of each layer, shared by their children.
        kappa: (D,), float64: strength of the leaves' prior in each column.
    """

    chain: int
    sweep: int
    weight_counts: Tensor
    leaf_counts: Tensor
    mass: Tensor
    kappa: Tensor


class Chain:
    """Deterministic in (seed, index); all its state is in ``state_dict``."""

    def __init__(
        self, network: Network, columns: Columns, rows: UniqueRows, plan: Plan, hyper: Hyper, seed: int, index: int
    ) -> None:
        self._network, self._rows, self._plan = network, rows, plan
        self._columns, self._seed, self._index = columns, seed, index
        self.hyper = hyper
        self.sweeps = 0
        self.counts = network.no_counts()
        self.log_joint = 0.0  # of data and choices after the last sweep
        self.resident: Resident | None = None  # sweeps in place of the CPU
        self._there: Counts | None = None  # what that knows as `counts`
        self._warm: tuple[Update, Stepwise] | None = None  # while it has not swept
        self._by_tree = plan.collapsed or plan.kernel != "block"
        if self._by_tree:
            self._samples = rows.rows[rows.inverse].contiguous()
            n = len(self._samples)
            self._choices = torch.full((n, int(_C.spn.max_sums(network.graph))), -1, dtype=torch.int32)
            self.accepted = torch.zeros(int(_C.spn.heights(network.graph)), 2, dtype=torch.int64)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"resident": None, "_there": None}  # what a GPU holds stays there

    def place(self, resident: Resident | None) -> None:
        """Where to sweep from now on: there, or on the CPU."""
        if resident is not self.resident:
            self.resident, self._there = resident, None

    @property
    def law(self) -> Law:
        """Of weights and leaves before data, under the present hyperparameters."""
        return self._network.law(self.hyper.mass, self.hyper.prior())

    def state(self) -> State:
        """The present state, safe from later sweeps."""
        weights, leaves = self.counts
        hyper = self.hyper.mass.clone(), self.hyper.kappa.clone()
        return State(self._index, self.sweeps, weights.int(), leaves.clone(), *hyper)

    def sweep(self, group: Any = None, stop: Callable[[], None] = lambda: None) -> None:
        """Every row's choices anew, then the hyperparameters; the ranks of ``group`` share the rows.

        ``stop``, which may raise, is called by and by before the first sweep, which takes long to prepare.
        """
        law = self.law
        parameters = None
        if not self._plan.collapsed:
            if self.sweeps == 0:
                parameters = self._start(stop)
            elif self.resident is None:
                parameters = self._draw(law)
        if self.resident is not None:
            self._sweep_there(self.resident, law, parameters)
        elif self._by_tree:
            self._sweep_trees(law, parameters)
        else:
            assert parameters is not None
            self.counts = self._sweep_rows(parameters, group)
        self.log_joint = self._network.log_joint(self.counts, law)
        self.sweeps += 1
        if self.sweeps % self._plan.every == 0:
            self._move_hyper(group)

    def _move_hyper(self, group: Any) -> None:
        given = self.counts, self._seed, self._what(HYPER)
        if self._plan.hyper == "slice":
            self.hyper.slice_sample(*given)
        elif self._plan.hyper == "eb" and self.sweeps <= self._plan.until:
            self.hyper.climb(*given)
        if group is not None:
            self.hyper.mass, self.hyper.kappa = _ranks.of_first([self.hyper.mass, self.hyper.kappa], group)

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next sweep depends on."""
        state = {"weights": self.counts.weights, "leaves": self.counts.leaves}
        state |= {"mass": self.hyper.mass, "kappa": self.hyper.kappa, "sweeps": torch.tensor(self.sweeps)}
        if self._by_tree:
            state |= {"choices": self._choices, "accepted": self.accepted}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.counts, self._there = Counts(state["weights"].clone(), state["leaves"].clone()), None
        self.hyper.mass, self.hyper.kappa = state["mass"].clone(), state["kappa"].clone()
        self.sweeps = int(state["sweeps"])
        if self._by_tree:
            self._choices, self.accepted = state["choices"].clone(), state["accepted"].clone()

    def _what(self, tag: int) -> int:
        return purpose(tag, self._index, self.sweeps)

    def _draw(self, law: Law) -> Parameters:
        return self._network.draw(self.counts, law, self._seed, self._what(PARAMETERS))

    def _start(self, stop: Callable[[], None]) -> Parameters:
        """Any start is right. This one is near where most of the posterior is, if it can be."""
        law, what = self.law, self._what(START)
        counts = clustered(self._network, self._rows, self._seed, what)
        drawn = self._uneven(what) if counts is None else self._network.draw(counts, law, self._seed, what)
        if self._plan.warm:
            drawn = opened(self._network, self._network.no_counts() if counts is None else counts, law, drawn)
            update = Update(self._network, self._columns, 1.0)
            self._warm = update, Stepwise(update, self._rows, self._seed, self._what(WARM))
            for _ in range(self._plan.warm):
                drawn = self._warm[1].over_all_rows(drawn, stop)
        return drawn

    def warm_state(self) -> State | None:
        """Of a chain that was stopped before its first sweep: what it expects of one, if it came so far."""
        if self.sweeps or self._warm is None or not len(self._warm[1].seen.weights):
            return None
        weights, leaves = self._warm[0].counts(self._warm[1].seen)
        return State(self._index, 0, weights.int(), leaves, self.hyper.mass.clone(), self.hyper.kappa.clone())

    def _uneven(self, what: int) -> Parameters:
        """Uneven weights, and tables between the data's frequencies and chance."""
        law = self.law
        spread = Law(torch.where(law.alpha > 0, 0.3, law.alpha), law.prior)
        drawn = self._network.draw(self._network.no_counts(), spread, self._seed, what)
        flat = self._network.draw(
            self._network.no_counts(), Law(spread.alpha, self.hyper.flat_prior()), self._seed, what
        ).leaves
        mixed = (0.5 * flat.double().exp() + 0.5 * self.hyper.frequencies()).log().to(flat.dtype)
        return Parameters(drawn.weights, torch.where(self.hyper.in_tables, mixed, drawn.leaves))

    def _sweep_rows(self, parameters: Parameters, group: Any) -> Counts:
        rows, times, first = self._rows.rows, self._rows.multiplicity, 0
        if group is not None:
            rank, size = _ranks.place(group)
            weights, leaves = _ranks.of_first([parameters.weights, parameters.leaves], group)
            parameters = Parameters(weights, leaves)
            first, last = (len(rows) * i // size for i in (rank, rank + 1))
            rows, times = rows[first:last], times[first:last]
        counts, _ = self._network.sweep(rows, times, parameters, self._seed, self._what(CHOICES), first)
        return counts if group is None else Counts(*_ranks.total(counts, group))

    def _sweep_there(self, resident: Resident, law: Law, parameters: Parameters | None) -> None:
        what = self._what(CHOICES)
        if parameters is None:
            known = self._there or self.counts
            self._there = resident.sweep(known, law, self._seed, self._what(PARAMETERS), what)
        else:
            self._there = resident.choose(parameters, self._seed, what)
        self.counts = Counts(*(x.cpu() for x in self._there))

    def _sweep_trees(self, law: Law, parameters: Parameters | None) -> None:
        """Sample by sample; a new chain puts them in one after the other, in random order."""
        n = len(self._samples)
        order = None
        if self.sweeps == 0:
            words = torch.empty(n, 4, dtype=torch.int64)
            _C.random.bits(self._seed, self._what(ORDER), torch.arange(n), words)
            order = words[:, 0].argsort(stable=True)
        weights, leaves = (None, None) if parameters is None else (x.double() for x in parameters[:2])
        step = max(16, _SAMPLES // (self._samples.shape[1] * 64))
        for first in range(0, n, step):
            _C.spn.sweep(
                self._network.graph,
                self._samples,
                self._choices,
                *self.counts,
                *law,
                self._network.leaf_prior,
                weights,
                leaves,
                self._plan.kernel,
                self._plan.lookahead,
                self._plan.candidates,
                self._seed,
                self._what(CHOICES),
                first,
                min(first + step, n),
                order,
                self.accepted,
            )
