"""Hyperparameters given the statistics: the Dirichlet mass of each layer of sums, the strength of tables' priors."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyfast import _C
from pyfast.spn._columns import Columns
from pyfast.spn._network import Counts, Network

_TABLE = 0
_STEPS_OUT, _STEPS_IN = 8, 40


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
        self.mass = _slice(self._mass_density(counts), self.mass.log(), seed, what).exp()
        if len(self._counted):
            drawn = _slice(self._kappa_density(counts), self.kappa.log(), seed, what + (1 << 39)).exp()
            has_table = torch.zeros(len(self.kappa), dtype=torch.bool)
            has_table[self._column[self._is_table]] = True
            self.kappa = torch.where(has_table, drawn, self.kappa)

    def _mass_density(self, counts: Counts) -> Callable[[Tensor], Tensor]:
        network = self._network
        seen = torch.nonzero(counts.weights).flatten()
        count, of = counts.weights[seen].double(), network.weight_sum[seen]
        total = torch.zeros(len(network.sums), dtype=torch.float64).index_add_(0, of, count)
        visited = torch.nonzero(total).flatten()
        total, layer, edge_layer = total[visited], network.layer[visited], network.layer[of]
        per_child = 1.0 / network.num_children[of]

        def density(log_mass: Tensor) -> Tensor:
            mass = log_mass.exp()
            here, below = mass[layer], mass[edge_layer] * per_child
            out = 2 * log_mass - mass  # Gamma(2, 1), of the logarithm
            out = out.index_add(0, layer, torch.lgamma(here) - torch.lgamma(here + total))
            return out.index_add(0, edge_layer, torch.lgamma(below + count) - torch.lgamma(below))

        return density

    def _kappa_density(self, counts: Counts) -> Callable[[Tensor], Tensor]:
        count = counts.leaves[self._counted].double()
        total = torch.zeros(len(self._variable), dtype=torch.float64).index_add_(0, self._leaf, count)
        visited = torch.nonzero(total).flatten()
        total, column = total[visited], self._variable[visited]
        some = torch.nonzero(count).flatten()
        count, base, of = count[some], self._base[self._place[some]], self._variable[self._leaf[some]]

        def density(log_kappa: Tensor) -> Tensor:
            kappa = log_kappa.exp()
            out = 2 * log_kappa - kappa / 2  # Gamma(2, 1 / 2), of the logarithm
            out = out.index_add(0, column, torch.lgamma(kappa[column]) - torch.lgamma(kappa[column] + total))
            share = kappa[of] * base
            return out.index_add(0, of, torch.lgamma(share + count) - torch.lgamma(share))

        return density


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
        left = torch.where((step < to_the_left) & (density(left) > level), left - 1, left)
        right = torch.where((step < _STEPS_OUT - 1 - to_the_left) & (density(right) > level), right + 1, right)
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
