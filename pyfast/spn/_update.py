"""One iteration of expectation maximisation."""

import math

import torch
from torch import Tensor

from pyfast.spn import _operators
from pyfast.spn._columns import Columns
from pyfast.spn._network import Network, Parameters
from pyfast.spn._parameters import EXPONENTIAL, GAUSSIAN, POISSON, TABLE

_FLOOR = 1e-4  # of a leaf's variance, and of its mean where that must be positive, relative to the column's


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
