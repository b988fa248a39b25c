"""A structure over columns, as the kernels take it: likelihoods, Gibbs steps and draws for given parameters."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyfast import _C
from pyfast.spn import _operators, _validity
from pyfast.spn._columns import Columns
from pyfast.spn._fit import OWN, POISSON
from pyfast.spn._structure import Structure
from pyfast.spn._validity import SUM

_MANY = 1000  # counts of which float32 makes errors of 1e-4 nats
_SLICE = 1 << 31  # rows times edges in one call of a kernel, so that Ctrl-C need not wait long

# What random numbers are for, and of which chain and sweep.
CHOICES, PARAMETERS, HYPER, SAMPLE_STATE, SAMPLE_CHOICES, SAMPLE_VALUES, START, ORDER, WARM = range(1, 10)


def purpose(what: int, chain: int = 0, sweep: int = 0) -> int:
    """The middle part of a random number's name, see csrc/random.h."""
    return what << 56 | chain << 40 | sweep


class Law(NamedTuple):
    """What weights and leaves are drawn from.

    Attributes:
        alpha: (nodes,), float64: Dirichlet mass of each child of a sum.
        prior: float64: what the leaves' priors are made of.
    """

    alpha: Tensor
    prior: Tensor


class Counts(NamedTuple):
    """The statistics of a state: how many samples took each edge below a sum, and what each leaf saw."""

    weights: Tensor
    leaves: Tensor


class Parameters(NamedTuple):
    """Weights (num_weights,) and leaves; ``integrated`` where leaves are predictive distributions."""

    weights: Tensor
    leaves: Tensor
    integrated: bool = False


class Network:
    """The kernels of one structure over columns of these families."""

    def __init__(self, structure: Structure, columns: Columns) -> None:
        self.structure, self.columns = structure, columns
        self.leaf_first, self.leaf_prior = columns.leaf_first(structure), columns.leaf_prior(structure)
        s = structure
        self.graph = [s.kind, s.first, s.child, s.variable, self.leaf_first]
        self.graph += [columns.family, columns.quantum, s.program]
        own = columns.family == OWN
        if own.any():
            self.graph += _functions(columns)
        # with the parameters integrated out, Gaussians are Student's t, Poissons negative binomials, and so on
        integrated = torch.where((columns.family > 0) & ~own, columns.family + 3, columns.family).to(torch.uint8)
        self._predictive = [*self.graph[:5], integrated, *self.graph[6:]]
        self._dense = len(s.program) > 0
        # What the densities of counts are made of grows with them (a negative binomial's with those of all rows).
        counts = columns.family == POISSON
        most = columns.summary[(columns.width.cumsum(0) - columns.width)[counts] + 3]
        self._dtype = torch.float64 if (most > _MANY).any() else torch.float32
        self._predictive_dtype = torch.float64 if counts.any() else torch.float32
        self._edges = len(s.child) + s.num_leaves
        self.leaf_variable = s.variable[s.kind == 0].long()
        children = s.first.diff()
        self.sums = torch.nonzero(s.kind == SUM).flatten()
        self.num_children = children[self.sums]
        heights = torch.from_numpy(_validity.heights(s.first.numpy(), s.child.numpy())).long()
        _, self.layer = heights[self.sums].unique(return_inverse=True)  # of each sum
        self.num_layers = int(self.layer.max()) + 1 if len(self.layer) else 0
        self.weight_sum = torch.repeat_interleave(torch.arange(len(self.sums)), self.num_children)  # of each weight

    def __reduce__(self) -> Any:
        return Network, (self.structure, self.columns)  # addresses of functions are those of this process

    def law(self, mass: Tensor, prior: Tensor) -> Law:
        """Mass (layers,) per sum, shared by its children in equal parts."""
        alpha = torch.zeros(self.structure.num_nodes, dtype=torch.float64)
        alpha[self.sums] = mass[self.layer] / self.num_children
        return Law(alpha, prior)

    def no_counts(self) -> Counts:
        sizes = self.structure.num_weights, int(self.leaf_first[-1])
        return Counts(*(torch.zeros(n, dtype=torch.int64) for n in sizes))

    def draw(self, counts: Counts, law: Law, seed: int, what: int, dtype: torch.dtype | None = None) -> Parameters:
        """Weights and leaves from their posterior given the statistics."""
        dtype = dtype or self._dtype
        weights = torch.empty(self.structure.num_weights, dtype=dtype)
        leaves = torch.empty(int(self.leaf_first[-1]), dtype=dtype)
        _C.spn.draw(self.graph, *counts, *law, self.leaf_prior, seed, what, weights, leaves)
        return Parameters(weights, leaves)

    def predict(self, counts: Counts, law: Law, dtype: torch.dtype | None = None) -> Parameters:
        """The network whose likelihood of a new row is the posterior mean of that likelihood."""
        dtype = dtype or self._predictive_dtype
        weights = torch.empty(self.structure.num_weights, dtype=dtype)
        leaves = torch.empty(int(self.leaf_first[-1]), dtype=dtype)
        _C.spn.predict(self.graph, *counts, *law, self.leaf_prior, weights, leaves)
        return Parameters(weights, leaves, integrated=True)

    def log_joint(self, counts: Counts, law: Law) -> float:
        """Log p(rows, choices), weights and leaves integrated out; without what the leaves of a column share."""
        return float(_C.spn.log_joint(self.graph, *counts, *law, self.leaf_prior))

    def log_prob(self, rows: Tensor, parameters: Parameters) -> Tensor:
        """(N,), float64, differentiable in weights and leaves: without what the leaves of a column share."""
        graph = self._predictive if parameters.integrated else self.graph
        weights, leaves = parameters.weights.contiguous(), parameters.leaves.contiguous()
        rows = rows.to(weights.dtype).contiguous()
        parts = [_operators.log_prob(rows[part], weights, leaves, graph) for part in self.slices(len(rows))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def sweep(
        self, rows: Tensor, times: Tensor, parameters: Parameters, seed: int, what: int, first: int = 0
    ) -> tuple[Counts, Tensor]:
        """An induced tree for every row given the parameters; their statistics, and (N,) log likelihoods.

        The rows are numbers ``first``, ``first`` + 1, ... to the random numbers.
        """
        kernel = _C.spn.dense_sweep if self._dense else _C.spn.sparse_sweep
        counts, out = self.no_counts(), torch.empty(len(rows), dtype=torch.float64)
        rows = rows.to(parameters.weights.dtype)
        for part in self.slices(len(rows)):
            some = rows[part], times[part], parameters.weights, parameters.leaves
            kernel(self.graph, *some, seed, what, first + part.start, *counts, out[part])
        return counts, out

    def complete(self, rows: Tensor, parameters: Parameters, seed: int, chain: int, first: int, best: bool) -> Tensor:
        """What is missing is drawn given the rest of its row, or (``best``) the most probable completion."""
        graph = self._predictive if parameters.integrated else self.graph
        out = rows.to(parameters.weights.dtype).clone()
        names = [purpose(tag, chain) for tag in (SAMPLE_CHOICES, SAMPLE_VALUES)]
        for part in self.slices(len(rows)):
            _C.spn.complete(
                graph, out[part], parameters.weights, parameters.leaves, best, seed, *names, first + part.start
            )
        return out

    def slices(self, n: int) -> list[slice]:
        """At least one part of n rows, each small enough for one call of a kernel."""
        step = max(64, _SLICE // self._edges)
        return [slice(i, min(i + step, n)) for i in range(0, max(n, 1), step)]


def _functions(columns: Columns) -> list[Tensor]:
    """Of columns with a density of their own: addresses of functions and sizes, and constants; see csrc/spn/graph.h."""
    addresses, constants = torch.zeros(len(columns), 6, dtype=torch.int64), [torch.empty(0, dtype=torch.float64)]
    first = 0
    for j, density in enumerate(columns.densities):
        if density is None:
            continue
        theta = torch.from_numpy(density.parameters)
        theta = torch.cat([theta, theta[-1:].expand(density.width - len(theta), -1)])
        addresses[j] = torch.tensor([*density.addresses, density.size, theta.shape[1], first])
        constants += [torch.tensor(columns.quanta[j], dtype=torch.float64), theta.flatten()]
        first += density.size + theta.numel()
    return [addresses, torch.cat(constants)]
