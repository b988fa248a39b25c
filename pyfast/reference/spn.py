"""Bayesian sum-product networks: Yokoi and Sato, 2024, https://arxiv.org/abs/2406.12353; Zhao et al., 2016.

Sums s have weights w_s ~ Dirichlet(alpha_s), leaves l have parameters theta_l with conjugate priors, and every sample n
has an induced tree T_n: at each sum that it reaches, one child. Nodes are numbered with children before parents.

Densities leave out the factor h(x) that all leaves over a variable share: 1 / x! for Poisson leaves, 1 for the others.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyfast.reference.random import bits

LEAF, PRODUCT, SUM = 0, 1, 2
TABLE, GAUSSIAN, POISSON, EXPONENTIAL = 0, 1, 2, 3
STUDENT, NEGATIVE_BINOMIAL, LOMAX = 4, 5, 6  # these three with their parameters integrated out


class Network(NamedTuple):
    """kind, first, child, variable: a node's kind, where its children begin, these, and what a leaf is over.

    leaf_first: where a leaf's parameters begin, in the order of the leaves; family: what a variable's leaves are.
    """

    kind: Tensor
    first: Tensor
    child: Tensor
    variable: Tensor
    leaf_first: Tensor
    family: Tensor

    def children(self, node: int) -> list[int]:
        """Of a node, in order."""
        return self.child[int(self.first[node]) : int(self.first[node + 1])].tolist()


class Law(NamedTuple):
    """What the parameters are drawn from: the layout of alpha, prior and leaf_prior is pyfast.spn's.

    alpha (nodes): of each child of a sum. prior: of a leaf from leaf_prior (leaves) on, a table's Dirichlet masses;
    m, kappa, a, b of a Gaussian's normal-inverse-gamma; a, b of the Gamma of a Poisson's or an exponential's rate.
    """

    alpha: Tensor
    prior: Tensor
    leaf_prior: Tensor


class Tree(NamedTuple):
    """An induced tree: (sum, which of its children) in depth-first preorder; its leaves, from left to right."""

    choices: tuple[tuple[int, int], ...]
    leaves: tuple[int, ...]


def log_likelihood(net: Network, w: Tensor, theta: Tensor, X: Tensor) -> Tensor:
    """Log p(x_n | w, theta), (N): missing values, which are NaN, are summed out.

    w: the weights of all sums, one after the other. theta: a table's log probabilities; otherwise four numbers, see
    ``log_density``. Differentiable in both.
    """
    values: list[Tensor] = []
    weight = leaf = 0
    for v, kind in enumerate(net.kind.tolist()):
        below = net.children(v)
        if kind == LEAF:
            x, at = X[:, net.variable[v]], int(net.leaf_first[leaf])
            there, x = ~x.isnan(), x.nan_to_num()
            if net.family[net.variable[v]] == TABLE:
                f = theta[at + x.long()]
            else:
                f = log_density(int(net.family[net.variable[v]]), theta[at : at + 4], x)
            values.append(torch.where(there, f, 0))
            leaf += 1
        elif kind == PRODUCT:
            values.append(torch.stack([values[c] for c in below]).sum(0))
        else:
            terms = [w[weight + k].log() + values[c] for k, c in enumerate(below)]
            values.append(torch.stack(terms).logsumexp(0))
            weight += len(below)
    return values[-1]


def log_density(family: int, theta: Tensor, x: Tensor) -> Tensor:
    """Log density of a leaf that is no table: c0 + c1 x + c2 (x - m)^2, or a predictive distribution's."""
    c0, c1, c2, m = theta
    if family == STUDENT:
        return c0 + c1 * torch.log1p(c2 * (x - m) ** 2)
    if family == NEGATIVE_BINOMIAL:
        return c0 + torch.lgamma(x + c1) + c2 * x
    if family == LOMAX:
        return c0 + c1 * torch.log1p(c2 * x)
    return c0 + c1 * x + c2 * (x - m) ** 2


def induced_trees(net: Network) -> list[Tree]:
    """All induced trees of a small network."""
    trees: list[list[Tree]] = []
    for v, kind in enumerate(net.kind.tolist()):
        below = [trees[c] for c in net.children(v)]
        if kind == LEAF:
            trees.append([Tree((), (v,))])
        elif kind == PRODUCT:
            trees.append(
                [
                    Tree(sum((t.choices for t in ts), ()), sum((t.leaves for t in ts), ()))
                    for ts in itertools.product(*below)
                ]
            )
        else:
            trees.append([Tree(((v, k), *t.choices), t.leaves) for k, ts in enumerate(below) for t in ts])
    return trees[-1]


def log_marginal(family: int, prior: Sequence[float], x: Sequence[float]) -> float:
    """Log of the integral of p(x | theta) p(theta), of all values x that a leaf has."""
    n, total = len(x), math.fsum(x)
    if family == TABLE:
        counts = [sum(value == c for value in x) for c in range(len(prior))]
        return _log_beta([a + c for a, c in zip(prior, counts, strict=True)]) - _log_beta(prior)
    if family == GAUSSIAN:
        m, kappa, a, b = prior
        kappa_n, a_n = kappa + n, a + n / 2
        mean = total / n if n else m
        b_n = b + 0.5 * math.fsum((v - mean) ** 2 for v in x) + 0.5 * kappa * n * (mean - m) ** 2 / kappa_n
        normal = 0.5 * math.log(kappa / kappa_n) - n / 2 * math.log(2 * math.pi)
        return math.lgamma(a_n) - math.lgamma(a) + a * math.log(b) - a_n * math.log(b_n) + normal
    a, b = prior[:2]
    a_n, b_n = (a + total, b + n) if family == POISSON else (a + n, b + total)
    return a * math.log(b) - math.lgamma(a) + math.lgamma(a_n) - a_n * math.log(b_n)


def _log_beta(a: Sequence[float]) -> float:
    return sum(map(math.lgamma, a)) - math.lgamma(sum(a))


def log_predictive(family: int, prior: Sequence[float], seen: Sequence[float], x: float) -> float:
    """Log p(x | seen) under a leaf's prior: a ratio of marginal likelihoods. 0 where x is missing."""
    if math.isnan(x):
        return 0.0
    return log_marginal(family, prior, [*seen, x]) - log_marginal(family, prior, seen)


class Counts:
    """What samples with these trees leave behind: c_sk, how many of them pass child k of sum s, and the X_l of leaves.

    A tree that is None leaves nothing.
    """

    def __init__(self, net: Network, law: Law, X: Tensor, Z: Sequence[Tree | None]) -> None:
        self.c = {s: [0] * len(net.children(s)) for s in range(len(net.kind)) if net.kind[s] == SUM}
        self.x: dict[int, list[float]] = {v: [] for v in range(len(net.kind)) if net.kind[v] == LEAF}
        self.alpha: list[float] = law.alpha.tolist()
        self.family = {v: int(net.family[net.variable[v]]) for v in self.x}
        self.prior = {}
        for l, v in enumerate(self.x):
            at, size = int(law.leaf_prior[l]), int(net.leaf_first[l + 1] - net.leaf_first[l])
            self.prior[v] = law.prior[at : at + size].tolist()
        self.variable: list[int] = net.variable.tolist()
        for row, tree in zip(X.tolist(), Z, strict=True):
            if tree:
                self.add(row, tree)

    def add(self, row: Sequence[float], tree: Tree) -> None:
        """One more sample."""
        for s, k in tree.choices:
            self.c[s][k] += 1
        for l in tree.leaves:
            if not math.isnan(row[self.variable[l]]):
                self.x[l].append(row[self.variable[l]])

    def weight(self, s: int, k: int) -> float:
        """The predictive probability of a child, (alpha + c_sk) / (sum of all of them)."""
        return (self.alpha[s] + self.c[s][k]) / (self.alpha[s] * len(self.c[s]) + sum(self.c[s]))

    def leaf(self, l: int, x: float) -> float:
        """The log of a leaf's predictive density."""
        return log_predictive(self.family[l], self.prior[l], self.x[l], x)

    def log_joint(self) -> float:
        """Log p(X, Z), weights and leaves integrated out."""
        sums = [
            _log_beta([self.alpha[s] + n for n in c]) - _log_beta([self.alpha[s]] * len(c)) for s, c in self.c.items()
        ]
        return sum(sums) + sum(log_marginal(self.family[l], self.prior[l], x) for l, x in self.x.items())


def log_joint(net: Network, law: Law, X: Tensor, Z: Sequence[Tree | None]) -> float:
    """Log p(X, Z): prod_s B(alpha_s + c_s) / B(alpha_s) times the leaves' marginal likelihoods."""
    return Counts(net, law, X, Z).log_joint()


def log_conditional(net: Network, law: Law, X: Tensor, Z: Sequence[Tree | None], n: int) -> tuple[list[Tree], Tensor]:
    """All trees of sample n with log p(x_n, T_n | all other trees and samples).

    The trees' predictive weights times their leaves' predictives: within one tree no sum or leaf occurs twice.
    """
    others = Counts(net, law, X, [None if i == n else tree for i, tree in enumerate(Z)])
    row, trees = X[n].tolist(), induced_trees(net)
    weights = [math.fsum(math.log(others.weight(s, k)) for s, k in t.choices) for t in trees]
    leaves = [math.fsum(others.leaf(l, row[others.variable[l]]) for l in t.leaves) for t in trees]
    return trees, torch.tensor(weights, dtype=torch.float64) + torch.tensor(leaves, dtype=torch.float64)


def posterior(net: Network, law: Law, X: Tensor) -> tuple[list[tuple[Tree, ...]], Tensor]:
    """All joint states of the trees of all samples, with p(Z | X): a small network and few samples."""
    states = list(itertools.product(induced_trees(net), repeat=len(X)))
    logs = torch.tensor([log_joint(net, law, X, Z) for Z in states], dtype=torch.float64)
    return states, logs.softmax(0)


def draw(
    net: Network, law: Law, counts: tuple[Tensor, Tensor], quantum: Tensor, seed: int, what: int, m: Any = math
) -> tuple[list[Any], list[Any]]:
    """Weights and leaves given statistics: Dirichlet, normal-inverse-gamma and Gamma draws.

    counts: of a sum's children; of a table's categories, otherwise n, the sum and (in two words) the sum of squares of
    x in quanta. m: the module of log, exp, sqrt, cos and pi, for mpmath has more digits.
    """
    number = getattr(m, "mpf", float)
    alpha, prior = ([number(x) for x in y.tolist()] for y in (law.alpha, law.prior))
    seen, leaf_seen = (x.tolist() for x in counts)
    w: list[Any] = []
    theta: list[Any] = []
    leaf = 0
    for v, kind in enumerate(net.kind.tolist()):
        if kind == SUM:
            at, n = len(w), len(net.children(v))
            logs = [log_gamma(alpha[v] + seen[at + k], _attempts(seed, what, at + k), m) for k in range(n)]
            w += [m.exp(x) for x in _normalised(logs, m)]
        if kind != LEAF:
            continue
        at, end, before = int(net.leaf_first[leaf]), int(net.leaf_first[leaf + 1]), prior[int(law.leaf_prior[leaf]) :]
        family, leaf = int(net.family[net.variable[v]]), leaf + 1
        if family == TABLE:
            shapes = [before[i] + leaf_seen[at + i] for i in range(end - at)]
            names = [1 << 47 | (at + i) for i in range(end - at)]
            logs = [log_gamma(a, _attempts(seed, what, name), m) for a, name in zip(shapes, names, strict=True)]
            theta += _normalised(logs, m)
        else:
            q = number(float(quantum[net.variable[v]]))
            moments = leaf_seen[at], leaf_seen[at + 1] / q, (leaf_seen[at + 3] * 2**30 + leaf_seen[at + 2]) / (q * q)
            theta += _curve(family, before, moments, _stream(seed, what, v - (1 << 63)), m)
    return w, theta


def log_gamma(shape: Any, words: Iterator[Sequence[int]], m: Any = math) -> Any:
    """The log of a Gamma(shape, 1), from fours of random words: the first below 1, then one for each attempt.

    Marsaglia and Tsang, "A simple method for generating gamma variables", 2000; below 1, G(a) = G(a + 1) U^(1 / a).
    """
    small, (w0, w1, _, _) = int(shape < 1), next(words)
    d = (3 * (shape + small) - 1) / 3
    boost = m.log(1 - ((w0 << 32 | w1) >> 12) * 2.0**-52) / shape if small else 0
    for w0, w1, w2, w3 in words:
        radius = m.sqrt(-2 * m.log(1 - ((w0 << 32 | w1) >> 12) * 2.0**-52))
        x, u = radius * m.cos(2 * m.pi * (w2 * 2.0**-32)), ((w3 << 12 | w1 & 0xFFF) << 8 | 128) * 2.0**-52
        t = 1 + x / m.sqrt(9 * d)
        if t > 0 and m.log(u) < x * x / 2 + d - d * t**3 + 3 * d * m.log(t):
            break
    return m.log(d) + 3 * m.log(t) + boost


def _attempts(seed: int, what: int, name: int) -> Iterator[Sequence[int]]:
    for first in itertools.count(0, 4):
        yield from bits(seed, what, torch.arange(first, first + 4) << 48 | name).tolist()


def _stream(seed: int, what: int, name: int) -> Iterator[Sequence[int]]:
    """Words without end, of a key of their own."""
    w0, w1, w2, w3 = bits(seed, what, torch.tensor(name)).tolist()
    for first in itertools.count(0, 8):
        yield from bits(w1 << 32 | w0, w3 << 32 | w2, torch.arange(first, first + 8)).tolist()


def _normalised(logs: list[Any], m: Any) -> list[Any]:
    top = max(logs)
    total = m.log(sum(m.exp(x - top) for x in logs))
    return [x - top - total for x in logs]


def _curve(family: int, prior: Sequence[Any], moments: tuple[Any, ...], words: Iterator[Sequence[int]], m: Any) -> Any:
    """c0, c1, c2, m of a leaf that is no table."""

    def uniforms() -> tuple[float, float]:
        w0, w1, w2, w3 = next(words)
        return ((w0 << 32 | w1) >> 11) * 2.0**-53, ((w2 << 32 | w3) >> 11) * 2.0**-53

    def normal() -> Any:
        u, turn = uniforms()
        return m.sqrt(-2 * m.log(1 - u)) * m.cos(2 * m.pi * turn)

    def log_gamma(shape: Any) -> Any:
        d, small = (3 * shape - 1) / 3, shape < 1
        if small:
            return log_gamma(shape + 1) + m.log(1 - uniforms()[0]) / shape
        while True:
            x = normal()
            t = 1 + x / m.sqrt(9 * d)
            if t > 0 and m.log(1 - uniforms()[0]) < x * x / 2 + d - d * t**3 + 3 * d * m.log(t):
                return m.log(d) + 3 * m.log(t)

    n, total, squares = moments
    if family != GAUSSIAN:
        a, b = (prior[0] + total, prior[1] + n) if family == POISSON else (prior[0] + n, prior[1] + total)
        log_rate = log_gamma(a) - m.log(b)
        rate = m.exp(log_rate)
        return [-rate, log_rate, 0, 0] if family == POISSON else [log_rate, -rate, 0, 0]
    mean = total / n if n else 0
    kappa = prior[1] + n
    b = prior[3] + max(squares - total * mean, 0) / 2 + prior[1] * n * (mean - prior[0]) ** 2 / (2 * kappa)
    precision = m.exp(log_gamma(prior[2] + n * 0.5)) / b
    middle = (prior[1] * prior[0] + total) / kappa + normal() / m.sqrt(kappa * precision)
    return [(m.log(precision) - m.log(2 * m.pi)) / 2, 0, -precision / 2, middle]
