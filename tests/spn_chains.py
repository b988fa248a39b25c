"""Small networks whose induced trees can be enumerated, and chains over them, for the tests of chains."""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
import torch

from pyfast import _C
from pyfast.reference import spn as reference
from pyfast.reference.spn import EXPONENTIAL, GAUSSIAN, LEAF, POISSON, PRODUCT, SUM, TABLE, Law, Network

NAN = math.nan
SEED = 20240617
KERNELS = [
    ("block", 0, 0),
    ("topdown", 0, 0),
    ("topdown", 1, 0),
    ("levels", 0, 0),
    ("levels", 1, 0),
    ("isir", 0, 0),
    ("isir", 1, 0),
    ("isir", 0, 2),
    ("informed", 0, 0),
    ("informed", 1, 0),
]
NAMES = ["-".join(map(str, k)) for k in KERNELS]
SPLIT = [(k, name) for k, name in zip(KERNELS, NAMES, strict=True) if k[0] != "topdown"]  # see Copies


# ---- networks ----


class Case(NamedTuple):
    net: Network
    law: Law
    X: torch.Tensor
    quantum: torch.Tensor

    def graph(self):
        n = self.net
        program = torch.empty(0, dtype=torch.int64)
        return [n.kind, n.first, n.child, n.variable, n.leaf_first, n.family, self.quantum, program]


def build(nodes, families):
    """nodes: ("leaf", variable) or ("product" or "sum", children). families: (family, width) of each variable."""
    kind = [{"leaf": LEAF, "product": PRODUCT, "sum": SUM}[k] for k, _ in nodes]
    child = [c for k, c in nodes if k != "leaf"]
    first = np.cumsum([0] + [0 if k == "leaf" else len(c) for k, c in nodes])
    over = [v for k, v in nodes if k == "leaf"]
    net = Network(
        torch.tensor(kind, dtype=torch.uint8),
        torch.tensor(first, dtype=torch.int64),
        torch.tensor(list(itertools.chain(*child)), dtype=torch.int32),
        torch.tensor([v if k == "leaf" else -1 for k, v in nodes], dtype=torch.int32),
        torch.tensor(np.cumsum([0] + [families[v][1] for v in over]), dtype=torch.int64),
        torch.tensor([f for f, _ in families], dtype=torch.uint8),
    )
    rng = np.random.default_rng(SEED)
    alpha = torch.tensor(rng.uniform(0.3, 1.5, len(nodes)))
    prior, at = [], []
    for i, v in enumerate(over):  # of all leaves their own, so that none can stand for another unnoticed
        at.append(len(prior))
        family, width = families[v]
        if family == TABLE:
            prior += (0.3 + 0.2 * np.arange(width) + 0.05 * i).tolist()
        elif family == GAUSSIAN:
            prior += [0.3 * (i % 3) - 0.2, 0.5, 1.5 + 0.1 * i, 0.8]
        else:
            prior += [1.2 + 0.1 * i, 0.7, 0, 0]
    return net, Law(alpha, torch.tensor(prior, dtype=torch.float64), torch.tensor(at))


def tree(families):
    """Children of one sum with none, one or more sums below."""
    leaf = [("leaf", v) for v in (0, 1, 2, 1, 2, 0, 1, 2, 1, 2, 1, 2, 0, 1, 2)]
    nodes = leaf + [("product", (1, 2)), ("product", (3, 4)), ("sum", (15, 16))]
    nodes += [("product", (6, 7)), ("product", (8, 9)), ("product", (10, 11)), ("sum", (18, 19, 20))]
    nodes += [("product", (0, 17)), ("product", (21, 5)), ("product", (12, 13, 14)), ("sum", (22, 23, 24))]
    return build(nodes, families)


def shared(families):
    """All candidates at the root pass one sum, whose children share leaves."""
    nodes = [("leaf", 0), ("leaf", 0), ("leaf", 0), ("leaf", 1), ("leaf", 1), ("leaf", 2), ("leaf", 2)]
    nodes += [("product", (3, 5)), ("product", (3, 6)), ("product", (4, 5)), ("sum", (7, 8, 9))]
    nodes += [("product", (0, 10)), ("product", (1, 10)), ("product", (10, 2)), ("sum", (11, 12, 13))]
    return build(nodes, families)


def hclt(families):
    """Two hidden states a variable; variables 1 and 2 hang from variable 0."""
    nodes = [("leaf", v) for v in (0, 0, 1, 1, 2, 2)]
    nodes += [("sum", (2, 3)), ("sum", (2, 3)), ("sum", (4, 5)), ("sum", (4, 5))]
    nodes += [("product", (0, 6, 8)), ("product", (1, 7, 9)), ("sum", (10, 11))]
    return build(nodes, families)


DATA = {
    "tables": ([(TABLE, 2), (TABLE, 3), (TABLE, 2)], [[0, 2, NAN], [1, 0, 1], [0, 2, 1]]),
    "densities": (
        [(GAUSSIAN, 4), (POISSON, 4), (EXPONENTIAL, 4)],
        [[0.5, 3, NAN], [-1.25, 0, 0.125], [0.75, 7, 2.5]],
    ),
}


@functools.cache
def case(name):
    structure, data = name.split("-")
    families, X = DATA[data]
    net, law = {"tree": tree, "shared": shared, "hclt": hclt}[structure](families)
    quantum = [1024.0 if f in (GAUSSIAN, EXPONENTIAL) else 1.0 for f, _ in families]
    return Case(net, law, torch.tensor(X, dtype=torch.float64), torch.tensor(quantum, dtype=torch.float64))


CASES = [f"{s}-{d}" for s in ("tree", "shared", "hclt") for d in DATA]


@functools.cache
def trees(name):
    return reference.induced_trees(case(name).net)


@functools.cache
def codes(name):
    """The choices of each tree, as a row of a chain's state has them."""
    width = max(len(t.choices) for t in trees(name))
    rows = [[k for _, k in t.choices] for t in trees(name)]
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.int32)


def which(name, choices):
    """The trees that rows of choices are."""
    return (choices[:, None] == codes(name)[None]).all(-1).int().argmax(1).numpy()


@functools.cache
def posterior(name):
    """p(Z | X) over all states, as a tensor with one axis a sample."""
    c = case(name)
    states, p = reference.posterior(c.net, c.law, c.X)
    assert len(states) == len(trees(name)) ** len(c.X)
    return p.view([len(trees(name))] * len(c.X)).numpy()


def chi_square(seen, law):
    """The p-value of counts against a law: cells that expect fewer than five are one."""
    seen, want = np.asarray(seen, dtype=float).ravel(), np.sum(seen) * np.asarray(law).ravel()
    small = want < 5
    seen = np.append(seen[~small], seen[small].sum())
    want = np.append(want[~small], want[small].sum())
    seen, want = seen[want > 0], want[want > 0]
    statistic = ((seen - want) ** 2 / want).sum()
    return torch.special.gammaincc(torch.tensor((len(want) - 1) / 2), torch.tensor(statistic / 2)).item()


# ---- states ----


class State:
    """A chain's tensors for a case, and calls on them."""

    def __init__(self, c, X=None, law=None):
        self.graph, self.law = c.graph(), law or c.law
        self.X = c.X if X is None else X
        weights = int(sum((c.net.first.diff())[c.net.kind == SUM]))
        width = _C.spn.max_sums(self.graph)
        self.choices = torch.full((len(self.X), width), -1, dtype=torch.int32)
        self.weight_counts = torch.zeros(weights, dtype=torch.int64)
        self.leaf_counts = torch.zeros(int(c.net.leaf_first[-1]), dtype=torch.int64)
        self.accepted = torch.zeros(_C.spn.heights(self.graph), 2, dtype=torch.int64)

    def counts(self):
        return self.weight_counts, self.leaf_counts

    def sweep(self, kernel, seed=SEED, what=0, first=0, last=None, order=None, weights=None, leaves=None):
        name, lookahead, candidates = kernel
        last = len(self.X) if last is None else last
        how = (name, lookahead, candidates, seed, what, first, last, order, self.accepted)
        _C.spn.sweep(self.graph, self.X, self.choices, *self.counts(), *self.law, weights, leaves, *how)

    def recount(self):
        _C.spn.recount(self.graph, self.X, self.choices, *self.counts())

    def log_likelihood(self, X, weights=None, leaves=None):
        out = torch.empty(len(X), dtype=torch.float64)
        _C.spn.log_likelihood(self.graph, X, *self.counts(), *self.law, weights, leaves, out)
        return out


class Copies:
    """Many copies of a case side by side, each with variables of its own, as one network: a product of them all.

    One sweep moves every copy on, independently of the others, by any kernel that acts on sums one by one.
    """

    def __init__(self, name, copies):
        self.name, self.copies = name, copies
        c = case(name)
        net, law, d = c.net, c.law, c.X.shape[1]
        steps = torch.arange(copies)[:, None]

        def tile(x, by):  # each copy's indices follow the last one's
            return (x[None] + by * steps.to(x.dtype)).flatten()

        nodes, edges = len(net.kind), len(net.child)
        variable = torch.where(net.variable >= 0, tile(net.variable, d).view(copies, -1), -1).flatten()
        end = torch.tensor([edges * copies + copies])
        roots = tile(torch.tensor([nodes - 1], dtype=torch.int32), nodes)
        big = Network(
            torch.cat([net.kind.repeat(copies), torch.tensor([PRODUCT], dtype=torch.uint8)]),
            torch.cat([tile(net.first[:-1], edges), torch.tensor([edges * copies]), end]),
            torch.cat([tile(net.child, nodes), roots]),
            torch.cat([variable, torch.tensor([-1], dtype=torch.int32)]),
            torch.cat([tile(net.leaf_first[:-1], int(net.leaf_first[-1])), net.leaf_first[-1:] * copies]),
            net.family.repeat(copies),
        )
        alpha = torch.cat([law.alpha.repeat(copies), torch.ones(1, dtype=torch.float64)])
        self.law = Law(alpha, law.prior, law.leaf_prior.repeat(copies))
        self.case = Case(big, self.law, c.X.repeat(1, copies), c.quantum.repeat(copies))
        self.state = State(self.case)
        self.codes = codes(name).numpy()

    def set(self, z):
        """z (copies, samples): which tree."""
        self.state.choices.fill_(-1)
        for n in range(z.shape[1]):
            row = self.codes[z[:, n]].ravel()
            row = row[row >= 0]
            self.state.choices[n, : len(row)] = torch.from_numpy(row)
        self.state.recount()

    def get(self):
        z = np.empty((self.copies, len(self.state.X)), dtype=int)
        for n, row in enumerate(self.state.choices.numpy()):
            row = np.append(row, np.full(self.codes.shape[1], -1, dtype=row.dtype))
            end = len(row) - self.codes.shape[1]
            tree = np.full(end, -1)  # whose choices begin here, if a tree's do
            for t, code in enumerate(self.codes):
                code = code[code >= 0]
                tree[np.all([row[i : end + i] == k for i, k in enumerate(code)], axis=0)] = t
            after = (np.arange(end) + (self.codes >= 0).sum(1)[tree]).tolist()
            at = [0]
            for _ in range(self.copies - 1):
                at.append(after[at[-1]])
            z[:, n] = tree[at]
            assert (tree[at] >= 0).all()
            assert (row[after[at[-1]] :] == -1).all()
        return z


def histogram(z, law):
    return np.bincount(np.ravel_multi_index(tuple(z.T), law.shape), minlength=law.size)


def draw(law, size, rng):
    flat = rng.choice(law.size, size, p=law.ravel())
    return np.stack(np.unravel_index(flat, law.shape), -1)


def dirichlets(a, groups, rng):
    """One draw from each group's Dirichlet, in logs."""
    g = np.log(rng.gamma(a + 1)) - rng.exponential(size=len(a)) / a  # a Gamma(a), where a may be tiny
    total = np.full(groups.max() + 1, -np.inf)
    np.logaddexp.at(total, groups, g)
    return g - total[groups]


def parameters(c, weight_counts, leaf_counts, rng):
    """Weights and leaves from their posteriors given counts: Dirichlet, normal-inverse-gamma, Gamma."""
    net, law = c.net, c.law
    sums = np.flatnonzero(net.kind.numpy() == SUM)
    sizes = np.diff(net.first.numpy())[sums]
    alpha = np.repeat(law.alpha.numpy()[sums], sizes)
    weights = dirichlets(alpha + weight_counts.numpy(), np.repeat(np.arange(len(sums)), sizes), rng)
    first, counts = net.leaf_first.numpy(), leaf_counts.numpy().astype(float)
    over = net.variable.numpy()[net.kind.numpy() == LEAF]
    family, prior, at = net.family.numpy()[over], law.prior.numpy(), law.leaf_prior.numpy()
    out = np.zeros(len(counts))
    table = family == TABLE
    if table.any():
        sizes = np.diff(first)[table]
        group = np.repeat(np.arange(len(sizes)), sizes)
        step = np.concatenate([np.arange(m) for m in sizes])
        where = np.repeat(first[:-1][table], sizes) + step
        out[where] = dirichlets(prior[np.repeat(at[table], sizes) + step] + counts[where], group, rng)
    for kind in (GAUSSIAN, POISSON, EXPONENTIAL):
        these = family == kind
        f, a = first[:-1][these], at[these]
        quantum = c.quantum.numpy()[over[these]]
        n, total = counts[f], counts[f + 1] / quantum
        if kind == GAUSSIAN:
            squares = (counts[f + 3] * 2.0**30 + counts[f + 2]) / quantum**2
            m, kappa, shape, rate = (prior[a + i] for i in range(4))
            mean = (kappa * m + total) / (kappa + n)
            rate = rate + 0.5 * (squares + kappa * m**2 - (kappa + n) * mean**2)
            variance = rate / rng.gamma(shape + n / 2)
            mean = mean + np.sqrt(variance / (kappa + n)) * rng.standard_normal(len(f))
            out[f] = -0.5 * np.log(2 * np.pi * variance) - 0.5 * mean**2 / variance
            out[f + 1], out[f + 2] = mean / variance, -0.5 / variance
        else:
            n, total = (total, n) if kind == POISSON else (n, total)
            rate = rng.gamma(prior[a] + n) / (prior[a + 1] + total)
            out[f], out[f + 1] = (-rate, np.log(rate)) if kind == POISSON else (np.log(rate), -rate)
    return torch.tensor(np.exp(weights)), torch.tensor(out)
