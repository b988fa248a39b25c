"""The parameters of a network without constraints, what the kernels take for them, and where learning starts."""

import math

import torch
from torch import Tensor

from pyfast.spn._columns import Columns
from pyfast.spn._hyper import Hyper
from pyfast.spn._network import START, Counts, Law, Network, Parameters, purpose

TABLE, GAUSSIAN, POISSON, EXPONENTIAL = range(4)
OWN = 7  # its numbers are shares of candidates, which are learned as a table's are
_LOG_TWO_PI = math.log(2 * math.pi)
_NEVER = -1e31  # the log of 0, where a finite number is needed


class Free:
    """What is learned: any numbers are a network.

    One per weight, an unnormalised log probability; of a leaf, a table's unnormalised log probabilities, a Gaussian's
    mean and log of the deviation, or the log of a Poisson's or an exponential's rate.
    """

    def __init__(self, network: Network) -> None:
        structure, columns = network.structure, network.columns
        variable = structure.variable[structure.kind == 0].long()
        family = columns.family[variable]
        self.weight_sum, self.num_weights, self.num_sums = network.weight_sum, structure.num_weights, structure.num_sums
        self.num_leaf_parameters = int(network.leaf_first[-1])
        width = torch.where((family == TABLE) | (family == OWN), columns.width[variable], 0)
        size = torch.tensor([0, 2, 1, 1, 0, 0, 0, 0])[family.long()] + width
        first = size.cumsum(0) - size  # of each leaf's free numbers
        self.num_free = int(size.sum())
        leaves = torch.arange(len(family))
        self.table_leaf = leaves.repeat_interleave(width)  # of each number of a table
        inside = torch.arange(len(self.table_leaf)) - (width.cumsum(0) - width)[self.table_leaf]
        self.table_free = first[self.table_leaf] + inside
        self.table = network.leaf_first[self.table_leaf] + inside
        self.free = {f: first[family == f] for f in (GAUSSIAN, POISSON, EXPONENTIAL)}
        self.leaf = {f: network.leaf_first[:-1][family == f] for f in (GAUSSIAN, POISSON, EXPONENTIAL)}
        self.num_leaves = len(family)

    def parameters(self, log_weights: Tensor, free: Tensor) -> Parameters:
        """What the kernels take, differentiable.

        By index_select, whose derivative adds in order, where that of x[i] adds as threads come.
        """
        weights = _log_normalised(log_weights, self.weight_sum, self.num_sums).exp()
        tables = _log_normalised(free.index_select(0, self.table_free), self.table_leaf, self.num_leaves)
        leaves = free.new_zeros(self.num_leaf_parameters).index_copy(0, self.table, tables)
        at, to = self.free[GAUSSIAN], self.leaf[GAUSSIAN]
        log_deviation = free.index_select(0, at + 1)
        leaves = leaves.index_copy(0, to, -log_deviation - 0.5 * _LOG_TWO_PI)
        leaves = leaves.index_copy(0, to + 2, -0.5 * (-2 * log_deviation).exp())
        leaves = leaves.index_copy(0, to + 3, free.index_select(0, at))
        for family, rate, log_rate in ((POISSON, 0, 1), (EXPONENTIAL, 1, 0)):
            log, to = free.index_select(0, self.free[family]), self.leaf[family]
            leaves = leaves.index_copy(0, to + rate, -log.exp()).index_copy(0, to + log_rate, log)
        return Parameters(weights, leaves)

    def free_from(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Log weights and free leaf numbers that give these parameters."""
        weights, leaves = parameters.weights, parameters.leaves
        free = leaves.new_zeros(self.num_free)
        free[self.table_free] = leaves[self.table].clamp_min(_NEVER)
        at, to = self.free[GAUSSIAN], self.leaf[GAUSSIAN]
        free[at], free[at + 1] = leaves[to + 3], -0.5 * (-2 * leaves[to + 2]).log()
        free[self.free[POISSON]] = leaves[self.leaf[POISSON] + 1]
        free[self.free[EXPONENTIAL]] = leaves[self.leaf[EXPONENTIAL]]
        return weights.log().clamp_min(_NEVER), free


def _log_normalised(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """Numbers less the logsumexp of its group, for groups that lie one after the other."""
    most = x.detach().new_full((groups,), -math.inf).scatter_reduce(0, group, x.detach(), "amax")
    moved = x - most[group]
    total = x.new_zeros(groups).index_add(0, group, moved.exp())
    return moved - total.log().index_select(0, group)


def start(network: Network, columns: Columns, seed: int, dtype: torch.dtype = torch.float32) -> Parameters:
    """Uneven weights, and leaves from their priors, tables between the data's frequencies and chance."""
    hyper = Hyper(network, columns, 1.0, 2.0)
    law = network.law(hyper.mass, hyper.prior())
    spread = Law(torch.where(law.alpha > 0, 0.3, law.alpha), law.prior)
    none, what = network.no_counts(), purpose(START)
    drawn = network.draw(none, spread, seed, what, torch.float64)
    flat = network.draw(none, Law(spread.alpha, hyper.flat_prior()), seed, what, torch.float64).leaves
    mixed = (0.5 * flat.exp() + 0.5 * hyper.frequencies()).log()
    leaves = torch.where(hyper.in_tables, mixed, drawn.leaves)
    return opened(network, none, spread, Parameters(drawn.weights.to(dtype), leaves.to(dtype)))


def opened(network: Network, counts: Counts, law: Law, drawn: Parameters) -> Parameters:
    """Every candidate of a Density has a share where one was drawn, so that learning may come to any."""
    family = network.columns.family[network.leaf_variable]
    if not (family == OWN).any():
        return drawn
    all_of_them = network.predict(counts, law, torch.float64).leaves
    own = (family == OWN).repeat_interleave(network.leaf_first.diff())
    mixed = (0.5 * drawn.leaves.double().exp() + 0.5 * all_of_them.exp()).log()
    return Parameters(drawn.weights, torch.where(own, mixed.to(drawn.leaves.dtype), drawn.leaves))
