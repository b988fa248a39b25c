"""Hyperparameters given the statistics: the Dirichlet mass of each layer of sums, the strength of tables' priors."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyfast import _C
from pyfast.spn._columns import Columns
from pyfast.spn._network import Counts, Network

_TABLE = 0
_STEPS_OUT, _STEPS_IN = 8, 40
_LEAVES = 256  # of a column that one step of empirical Bayes looks at
_SMALL = 64  # counts below are many, and often equal


class Shares(NamedTuple):
    """Counts whose probabilities are Dirichlet: in sets, each with its group's mass x, shared in fixed parts.

    x is Gamma(2, 1 / rate) before data. What is equal stands here once.

    Attributes:
        total, group, sets: (different sets,): of counts, whose mass it has, and how many there are.
        seen, part, of, times: (different positive counts,): itself, its share of the mass, its group, and how many.
        rate: of the Gamma distribution.
    """

    total: Tensor
    group: Tensor
    sets: Tensor
    seen: Tensor
    part: Tensor
    of: Tensor
    times: Tensor
    rate: float

    def density(self, log_x: Tensor) -> Tensor:
        """Log posterior of the logarithm of each group's mass, up to a constant."""
        x = log_x.exp()
        whole, part = x[self.group], x[self.of] * self.part
        out = 2 * log_x - x * self.rate
        out = out.index_add(0, self.group, self.sets * (torch.lgamma(whole) - torch.lgamma(whole + self.total)))
        return out.index_add(0, self.of, self.times * (torch.lgamma(part + self.seen) - torch.lgamma(part)))

    def climb(self, x: Tensor) -> Tensor:
        """Masses whose posterior (of x, not of its logarithm) is higher: the top of a bound that touches it at x.

        Source: Minka, "Estimating a Dirichlet distribution", 2000, equation 55, with a prior.
        """
        whole, part = x[self.group], x[self.of] * self.part
        slope = torch.full_like(x, self.rate)
        steps = torch.digamma(whole + self.total) - torch.digamma(whole)
        slope = slope.index_add(0, self.group, self.sets * steps)
        power = torch.ones_like(x)
        steps = part * (torch.digamma(part + self.seen) - torch.digamma(part))
        power = power.index_add(0, self.of, self.times * steps)
        return power / slope


class Hyper:
    """Masses (layers,) and strengths (columns,), and the laws they make; Gamma(2, 1) and Gamma(2, 1 / 2) before data.

    Only columns of tables have a strength that is learned; the priors of others are set by the data's moments.
    """

    def __init__(self, network: Network, columns: Columns, mass: float, kappa: float) -> None:
        self._network = network
        self.mass = torch.full((network.num_layers,), mass, dtype=torch.float64)
        self.kappa = torch.full((len(columns),), kappa, dtype=torch.float64)
        self._base, _ = columns.prior(1.0)
        self._fixed, _ = columns.prior(kappa)
        self._column = torch.repeat_interleave(torch.arange(len(columns)), columns.width)  # of each number in a prior
        self._is_table = columns.family[self._column] == _TABLE
        self._has_table = columns.family == _TABLE
        structure = network.structure
        variable = structure.variable[structure.kind == 0].long()
        is_table = columns.family[variable] == _TABLE
        # the statistics that are a table's counts: their leaf, and their place in the prior
        sizes = network.leaf_first.diff()
        self._leaf = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        inside = torch.arange(len(self._leaf)) - network.leaf_first[self._leaf]
        self._counted = torch.nonzero(is_table[self._leaf]).flatten()
        self._place = (network.leaf_prior[self._leaf] + inside)[self._counted]
        self._leaf, self._variable = self._leaf[self._counted], variable
        self.in_tables = torch.zeros(int(network.leaf_first[-1]), dtype=torch.bool)
        self.in_tables[self._counted] = True
        # sums whose children have equal shares of equal masses
        self._sorts, self._sort = torch.stack([network.layer, network.num_children]).unique(dim=1, return_inverse=True)

    def prior(self, kappa: Tensor | None = None) -> Tensor:
        kappa = self.kappa if kappa is None else kappa
        return torch.where(self._is_table, self._base * kappa[self._column], self._fixed)

    def flat_prior(self) -> Tensor:
        """The prior with every distribution over a table's categories as likely as any other."""
        return torch.where(self._is_table, 1.0, self._fixed)

    def frequencies(self) -> Tensor:
        """(parameters,): for each number of a table leaf, how frequent its category is in the data."""
        out = torch.zeros(len(self.in_tables), dtype=torch.float64)
        out[self._counted] = self._base[self._place]
        return out

    def slice_sample(self, counts: Counts, seed: int, what: int) -> None:
        """One slice-sampling step of every hyperparameter, each given the statistics alone."""
        self.mass = _slice(self.of_sums(counts).density, self.mass.log(), seed, what).exp()
        if len(self._counted):
            drawn = _slice(self.of_leaves(counts).density, self.kappa.log(), seed, what + (1 << 39)).exp()
            self.kappa = torch.where(self._has_table, drawn, self.kappa)

    def climb(self, counts: Counts, seed: int, what: int) -> None:
        """One step of empirical Bayes: all hyperparameters go uphill, strengths as some leaves of a column see it."""
        self.mass = self.of_sums(counts).climb(self.mass)
        if len(self._counted):
            chosen = uniforms(seed, what, len(self._variable), 1)[0]
            self.kappa = torch.where(self._has_table, self.of_leaves(counts, chosen).climb(self.kappa), self.kappa)

    def of_sums(self, counts: Counts) -> Shares:
        """What the sums have sent to their children, by layer."""
        network = self._network
        total = torch.zeros(len(network.sums), dtype=torch.int64).index_add_(0, network.weight_sum, counts.weights)
        group, whole, sets = _tally(network.layer, total)
        sort, seen, times = _tally(self._sort[network.weight_sum], counts.weights)
        layer, children = self._sorts[:, sort]
        return Shares(whole, group, sets, seen, 1.0 / children.double(), layer, times, 1.0)

    def of_leaves(self, counts: Counts, order: Tensor | None = None) -> Shares:
        """What the tables have seen, by column; of some leaves of each only, the first in an ``order``, if given."""
        count, place = counts.leaves[self._counted], self._place
        total = torch.zeros(len(self._variable), dtype=torch.int64).index_add_(0, self._leaf, count)
        if order is not None:
            total = torch.where(self._first(total > 0, order), total, 0)
            count = torch.where(total[self._leaf] > 0, count, 0)
        group, whole, sets = _tally(self._variable, total)
        place, seen, times = _tally(place, count)
        return Shares(whole, group, sets, seen, self._base[place], self._column[place], times, 0.5)

    def _first(self, able: Tensor, order: Tensor) -> Tensor:
        """Which leaves are among the first of their column that are able."""
        found = torch.nonzero(able).flatten()
        found = found[order[found].argsort(stable=True)]
        found = found[self._variable[found].argsort(stable=True)]
        column = self._variable[found]
        start = torch.searchsorted(column, torch.arange(len(self.kappa)))
        out = torch.zeros_like(able)
        out[found[torch.arange(len(found)) - start[column] < _LEAVES]] = True
        return out


def _tally(kind: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positive counts and their kinds, small equal ones once; and how many of each there are, as float64."""
    large = torch.nonzero(count >= _SMALL).flatten()
    times = (kind * _SMALL + count)[count < _SMALL].bincount()
    small = torch.nonzero(times).flatten()
    small = small[small % _SMALL > 0]
    times = torch.cat([times[small].double(), torch.ones(len(large), dtype=torch.float64)])
    return torch.cat([small // _SMALL, kind[large]]), torch.cat([small % _SMALL, count[large]]).double(), times


def _slice(density: Callable[[Tensor], Tensor], x: Tensor, seed: int, what: int) -> Tensor:
    """Neal, "Slice sampling", 2003: stepping out by 1 and shrinking, all coordinates side by side and independent."""
    n = len(x)
    if n == 0:
        return x
    draws = uniforms(seed, what, n, 3 + _STEPS_IN)
    level = density(x) + draws[0].log()
    left = x - draws[1]
    right = left + 1
    to_the_left = (draws[2] * _STEPS_OUT).floor()  # so many steps may go left, the others right
    for step in range(_STEPS_OUT):
        go_left = (step < to_the_left) & (density(left) > level)
        go_right = (step < _STEPS_OUT - 1 - to_the_left) & (density(right) > level)
        if not (go_left | go_right).any():
            break
        left, right = left - go_left.double(), right + go_right.double()
    found, done = x, torch.zeros(n, dtype=torch.bool)
    for u in draws[3:]:
        tried = left + u * (right - left)
        good = ~done & (density(tried) > level)
        found = torch.where(good, tried, found)
        done |= good
        if done.all():
            break
        left = torch.where(~done & (tried < x), tried, left)
        right = torch.where(~done & (tried >= x), tried, right)
    return found


def uniforms(seed: int, what: int, n: int, steps: int) -> Tensor:
    """(steps, n), float64, in (0, 1)."""
    words = torch.empty(steps * n, 4, dtype=torch.int64)
    _C.random.bits(seed, what, torch.arange(steps * n), words)
    return ((words[:, 0] << 21 | words[:, 1] >> 11).double() + 0.5).mul(2.0**-53).view(steps, n)
