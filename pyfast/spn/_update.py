"""Steps of expectation maximisation."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyfast.spn import _operators
from pyfast.spn._columns import Columns
from pyfast.spn._hyper import uniforms
from pyfast.spn._network import Counts, Network, Parameters
from pyfast.spn._parameters import EXPONENTIAL, GAUSSIAN, OWN, POISSON, TABLE
from pyfast.spn._rows import UniqueRows

_FLOOR = 1e-4  # of a leaf's variance, and of its mean where that must be positive, relative to the column's
_AT_ONCE, _POWER = 256, 0.3  # rows between steps; how fast the past is forgotten


class Expected(NamedTuple):
    """How often a sum is expected to send a row to each child; what leaves are expected to see.

    Of a table each category's number; of other leaves the number, sum and sum of squares of values as encoded.
    """

    weights: Tensor
    leaves: Tensor


class Update:
    """Expected statistics from the derivatives of the likelihood, then the best parameters for them."""

    def __init__(self, network: Network, columns: Columns, smoothing: float) -> None:
        self._network, self._smoothing = network, smoothing
        structure = network.structure
        self._of = network.weight_sum
        self._share = smoothing / network.num_children.double()[self._of]
        variable = structure.variable[structure.kind == 0].long()
        family, width = columns.family[variable], columns.width[variable]
        first = columns.width.cumsum(0) - columns.width  # of a column's summary
        in_table = ((family == TABLE) | (family == OWN)).repeat_interleave(width)
        self._leaf = torch.arange(len(family)).repeat_interleave(width)[in_table]  # of each number of a table
        self._table = torch.nonzero(in_table).flatten()
        inside = self._table - network.leaf_first[self._leaf]
        even = torch.where(family == TABLE, 1.0 / width, 0.0)[self._leaf]  # shares of candidates are their prior
        counts = columns.summary[first[variable[self._leaf]] + inside] + even
        self._prior = smoothing * counts / _totals(counts, self._leaf, len(family))
        self._num_leaves, self._family = len(family), family
        self._own = (family == OWN).repeat_interleave(width)
        self._at = {f: network.leaf_first[:-1][family == f] for f in (GAUSSIAN, POISSON, EXPONENTIAL)}
        of = {f: first[variable[family == f]] for f in self._at}
        self._mean = {f: columns.summary[of[f] + 1] for f in of}
        self._variance = {f: columns.summary[of[f] + 2] for f in of}

    def __call__(self, now: Parameters, rows: Tensor, times: Tensor) -> Parameters:
        return self.best(self.expected(now, rows, times), now)

    def expected(self, now: Parameters, rows: Tensor, times: Tensor) -> Expected:
        """Statistics of some rows, each so many times, given the posterior of their latent choices."""
        rows = rows.to(now.weights.dtype)
        dweights, leaves = torch.zeros_like(now.weights).double(), torch.zeros_like(now.leaves).double()
        for part in self._network.slices(len(rows)):
            some = times[part], rows[part], now.weights, now.leaves
            for total, found in zip(
                (dweights, leaves), _operators.log_prob_backward(*some, self._network.graph), strict=True
            ):
                total += found
        at = self._at[GAUSSIAN]
        n, mean, squares = leaves[at], now.leaves[at + 3].double(), leaves[at + 2]
        moved = leaves[at + 3] / (-2 * now.leaves[at + 2].double())  # sum of x - m
        leaves[at + 1] = moved + n * mean
        leaves[at + 2] = squares + (2 * moved + n * mean) * mean
        return Expected(now.weights.double() * dweights, leaves)

    def best(self, seen: Expected, now: Parameters) -> Parameters:
        """The parameters that explain these statistics best, or those of now where nothing was seen."""
        weights, leaves = now.weights.double(), now.leaves.double().clone()
        flow = seen.weights + self._share
        total = _totals(flow, self._of, self._network.structure.num_sums)
        weights = torch.where(total > 0, flow / total, weights)
        table = seen.leaves[self._table] + self._prior
        total = _totals(table, self._leaf, self._num_leaves)
        leaves[self._table] = torch.where(total > 0, (table / total).log(), leaves[self._table])
        self._gaussians(leaves, seen.leaves)
        self._rates(leaves, seen.leaves)
        return Parameters(weights.to(now.weights.dtype), leaves.to(now.leaves.dtype))

    def counts(self, seen: Expected) -> Counts:
        """The nearest that leaves can count; nothing at leaves with a density of their own."""
        leaves, quantum = seen.leaves.clone(), self._network.columns.quantum[self._network.leaf_variable]
        leaves[self._own] = 0
        whole = leaves.round().long()
        for family, at in self._at.items():
            q = quantum[self._family == family]
            whole[at + 1] = (leaves[at + 1] * q).round().long()
            squares = leaves[at + 2] * q**2 if family == GAUSSIAN else torch.zeros_like(q)
            whole[at + 3] = (squares / 2**30).long()
            whole[at + 2] = (squares - whole[at + 3].double() * 2**30).round().long()
        return Counts(seen.weights.round().long(), whole)

    def _gaussians(self, leaves: Tensor, found: Tensor) -> None:
        at, s = self._at[GAUSSIAN], self._smoothing
        mean, variance = self._mean[GAUSSIAN], self._variance[GAUSSIAN]
        total = found[at] + s
        middle = (found[at + 1] + s * mean) / total
        squares = (found[at + 2] + s * (variance + mean**2)) / total
        floor = _FLOOR * torch.where(variance > 0, variance, 1.0)
        new = torch.maximum(squares - middle**2, floor)
        seen = total > 0
        leaves[at] = torch.where(seen, -0.5 * (2 * math.pi * new).log(), leaves[at])
        leaves[at + 2] = torch.where(seen, -0.5 / new, leaves[at + 2])
        leaves[at + 3] = torch.where(seen, middle, leaves[at + 3])

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


class Stepwise:
    """Expectation maximisation that learns after every few hundred rows: many times faster at first.

    Statistics of all rows are a running mean of those of parts, of which the last weigh most.

    Source: Cappe and Moulines, "On-line expectation-maximization algorithm for latent data models", JRSS B 2009.
    """

    def __init__(self, update: Update, rows: UniqueRows, seed: int, what: int) -> None:
        self._update, self._seed, self._what = update, seed, what
        self._rows, self._total = rows.rows, rows.multiplicity.double().sum()
        self._parts = max(1, len(rows.rows) // _AT_ONCE)
        self._row, self._before, self._share, self._times = spread(rows.multiplicity, self._parts)
        self._steps, self.seen = 0, Expected(torch.zeros(0), torch.zeros(0))

    def over_all_rows(self, now: Parameters, stop: Callable[[], None]) -> Parameters:
        """Once through all rows, in an order that is drawn; ``stop`` is called after every step and may raise."""
        drawn = uniforms(self._seed, self._what + (self._steps << 20), len(self._row), 1)[0]
        drawn = torch.where(self._share * self._parts > 1, drawn, 0.5)  # a row with as many copies is in every part
        order = ((self._before + drawn) * self._share).argsort(stable=True)  # copies of a row are evenly apart
        for part in order.tensor_split(self._parts):
            times = self._times[part]
            found = self._update.expected(now, self._rows[self._row[part]], times * (self._total / times.sum()))
            share = (1 + self._steps) ** -_POWER
            self.seen = (
                Expected(*(a.lerp(b, share) for a, b in zip(self.seen, found, strict=True))) if self._steps else found
            )
            self._steps += 1
            now = self._update.best(self.seen, now)
            stop()
        return now


def spread(multiplicity: Tensor, parts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows that are there more often than most, several times, so that no part of all rows has too much of one.

    Returns:
        For each copy, of which there are at most twice as many as rows: its row, how many copies of it come before, the
        share of the row's that it is, and how often it stands for the row.
    """
    times, n = multiplicity.double(), len(multiplicity)
    copies = (times * n / times.sum()).ceil().clamp_max(parts).long()
    row = torch.arange(n).repeat_interleave(copies)
    before = torch.arange(len(row)) - (copies.cumsum(0) - copies)[row]
    share = 1 / copies.double()[row]
    return row, before, share, times[row] * share


def _totals(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """For each number, the sum of its group."""
    return torch.zeros(groups, dtype=x.dtype).index_add_(0, group, x)[group]
