"""Chains over induced trees against the law that they must leave as it is, which small networks let us enumerate."""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from pyfast import _C
from pyfast.reference import spn as reference
from pyfast.reference.spn import EXPONENTIAL, GAUSSIAN, LEAF, POISSON, PRODUCT, SUM, TABLE, Counts, Law, Network, Tree

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


# ---- collapsed: the law is p(Z | X) ----


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", [k for k, _ in SPLIT], ids=[n for _, n in SPLIT])
def test_one_step_leaves_the_posterior_as_it_is(kernel, name):
    law, copies = posterior(name), Copies(name, 4000)
    start = draw(law, copies.copies, np.random.default_rng(SEED))
    copies.set(start)
    copies.state.sweep(kernel, last=1)
    z = copies.get()
    assert (z[:, 0] != start[:, 0]).mean() > 0.05
    np.testing.assert_array_equal(z[:, 1:], start[:, 1:])
    assert chi_square(histogram(z, law), law) > 1e-4


@pytest.mark.parametrize("name", ["tree-densities", "shared-tables", "hclt-densities"])
@pytest.mark.parametrize("kernel", [k for k, _ in SPLIT], ids=[n for _, n in SPLIT])
def test_chains_arrive_at_the_posterior(kernel, name):
    law, copies = posterior(name), Copies(name, 2000)
    for sweep in range(12):
        copies.state.sweep(kernel, what=sweep)
    assert chi_square(histogram(copies.get(), law), law) > 1e-4


@pytest.mark.parametrize("name", ["tree-tables", "shared-tables", "hclt-densities"])
@pytest.mark.parametrize("lookahead", [0, 1])
def test_whole_trees_leave_the_posterior_as_it_is(name, lookahead):
    # One decision for the whole tree, so that copies cannot share a network.
    law, state, draws = posterior(name), State(case(name)), 3000
    starts = draw(law, draws, np.random.default_rng(SEED))
    ends = starts.copy()
    for i, start in enumerate(starts):
        state.choices.copy_(codes(name)[start])
        state.recount()
        state.sweep(("topdown", lookahead, 0), what=i, last=1)
        ends[i, 0] = which(name, state.choices[:1])[0]
    assert (ends != starts).any(1).mean() > 0.05
    assert int(state.accepted.sum(0)[0]) == draws
    assert chi_square(histogram(ends, law), law) > 1e-4


@pytest.mark.parametrize("name", CASES)
def test_samples_are_put_in_by_exact_draws_given_those_before(name):
    c, all_trees, copies = case(name), trees(name), Copies(name, 4000)
    copies.state.sweep(("block", 0, 0))
    law = np.zeros([len(all_trees)] * 3)
    for state in np.ndindex(law.shape):
        law[state] = 1.0
    for n in range(3):  # p(T_n | x_n, what came before), for every possible before
        for before in itertools.product(range(len(all_trees)), repeat=n):
            Z = [all_trees[t] for t in before] + [None] * (3 - n)
            p = reference.log_conditional(c.net, c.law, c.X, Z, n)[1].softmax(0).numpy()
            law[before] *= p.reshape([-1] + [1] * (2 - n))
    assert law.sum() == pytest.approx(1)
    assert chi_square(histogram(copies.get(), law), law) > 1e-4


# ---- instantiated: the law is p(T_n | x_n, weights, leaves); with these drawn in between, p(Z | X) again ----


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


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_given_parameters_the_law_of_a_tree_stays(kernel, name):
    c, many = case(name), 20000
    rng = np.random.default_rng(SEED)
    weights, leaves = parameters(c, *State(c).counts(), rng)
    net = c.net
    number = {v: i for i, v in enumerate(np.flatnonzero(net.kind.numpy() == LEAF).tolist())}
    sums = np.flatnonzero(net.kind.numpy() == SUM)
    at = dict(zip(sums.tolist(), np.cumsum([0, *np.diff(net.first.numpy())[sums]]).tolist(), strict=False))
    for row in c.X[:2]:
        state = State(c, row.repeat(many, 1))
        logs = []
        for tree in trees(name):
            log = sum(math.log(weights[at[s] + k]) for s, k in tree.choices)
            for v in tree.leaves:
                x, j = float(row[net.variable[v]]), int(net.leaf_first[number[v]])
                if not math.isnan(x):
                    if net.family[net.variable[v]] == TABLE:
                        log += float(leaves[j + int(x)])
                    else:
                        log += float(leaves[j] + x * (leaves[j + 1] + x * leaves[j + 2]))
            logs.append(log)
        logs = torch.tensor(logs, dtype=torch.float64)
        law = logs.softmax(0).numpy()
        # what log_likelihood says is the sum over all trees
        want = reference.log_likelihood(net, weights, leaves, row[None])
        torch.testing.assert_close(want, logs.logsumexp(0)[None])
        torch.testing.assert_close(state.log_likelihood(row[None], weights, leaves), want, rtol=1e-12, atol=1e-12)
        state.choices.copy_(codes(name)[rng.choice(len(law), many, p=law)])
        state.recount()
        state.sweep(kernel, weights=weights, leaves=leaves)
        assert chi_square(np.bincount(which(name, state.choices), minlength=len(law)), law) > 1e-4
        kept = [x.clone() for x in state.counts()]
        state.recount()
        for a, b in zip(kept, state.counts(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["tree-tables", "shared-densities", "hclt-densities"])
@pytest.mark.parametrize("kernel", [k for k, _ in SPLIT if k[1] == 0], ids=[n for k, n in SPLIT if k[1] == 0])
def test_parameters_drawn_in_between_leave_the_posterior_as_it_is(kernel, name):
    law, copies, rng = posterior(name), Copies(name, 3000), np.random.default_rng(SEED)
    copies.set(draw(law, copies.copies, rng))
    for sweep in range(2):
        weights, leaves = parameters(copies.case, *copies.state.counts(), rng)
        copies.state.sweep(kernel, what=sweep, weights=weights, leaves=leaves)
    assert chi_square(histogram(copies.get(), law), law) > 1e-4


# ---- the tests find the mistakes that are easily made ----


class Slow:
    """The kernels in Python, one sample's tree given all others', and what goes wrong with them.

    mistake: "self", counts that hold the sample itself; "scores", proposals from such counts; "normaliser", weights
    that are not divided by their sum; "shared", one array for all candidates; "sign", acceptance of what is worse.
    """

    def __init__(self, name, others, n, mistake=None):
        self.c, self.mistake = case(name), mistake
        self.empty = Counts(self.c.net, self.c.law, self.c.X, [None] * len(others))
        self.net, self.trees, self.row = self.c.net, trees(name), self.c.X[n].tolist()
        self.n, self.Z = n, [None if i == n else self.trees[t] for i, t in enumerate(others)]
        self.kind = self.net.kind.tolist()
        self.below = [self.net.children(v) for v in range(len(self.kind))]
        self.where = {t: i for i, t in enumerate(self.trees)}

    def look(self, t):
        """Weights and likelihoods as this kernel sees them while the sample's tree is t."""
        self.w, self.f = self.see(t if self.mistake == "self" else None)
        self.s = self.scores(t if self.mistake == "scores" else None)

    @functools.cache  # noqa: B019
    def see(self, t):
        Z = [self.trees[t] if i == self.n and t is not None else z for i, z in enumerate(self.Z)]
        counts = Counts(self.net, self.c.law, self.c.X, Z)
        free = self.mistake == "normaliser"
        w = {
            s: [counts.alpha[s] + c if free else counts.weight(s, k) for k, c in enumerate(cs)]
            for s, cs in counts.c.items()
        }
        return w, {v: math.exp(counts.leaf(v, self.row[counts.variable[v]])) for v in counts.x}

    @functools.cache  # noqa: B019
    def scores(self, t):
        """How well a child would fit if all variables were independent: from what the samples that pass it show."""
        Z = [self.trees[t] if i == self.n and t is not None else z for i, z in enumerate(self.Z)]
        X, score = self.c.X.tolist(), {}
        for v, kind in enumerate(self.kind):
            for k, c in enumerate(self.below[v] if kind == SUM else ()):
                passing = [x for x, z in zip(X, Z, strict=True) if z and self.passes(z, c)]
                score[v, k] = 1.0
                for leaf in self.some_leaves(c):
                    d = int(self.net.variable[leaf])
                    seen = [x[d] for x in passing if not math.isnan(x[d])]
                    counts = self.empty
                    log = reference.log_predictive(counts.family[leaf], counts.prior[leaf], seen, self.row[d])
                    score[v, k] *= math.exp(log)
        return score

    def passes(self, z, node):
        choices, waiting = dict(z.choices), [len(self.kind) - 1]
        while waiting:
            v = waiting.pop()
            if v == node:
                return True
            waiting += [self.below[v][choices[v]]] if self.kind[v] == SUM else self.below[v]
        return False

    def some_leaves(self, v):
        """One leaf for every variable below."""
        if self.kind[v] == LEAF:
            return [v]
        below = self.below[v][:1] if self.kind[v] == SUM else self.below[v]
        return [leaf for c in below for leaf in self.some_leaves(c)]

    def walk(self, v, z, rng=None):
        """The likelihood below v, by the choices in z; with rng, these are drawn first, into z."""
        if self.kind[v] == LEAF:
            return self.f[v]
        if self.kind[v] == PRODUCT:
            return math.prod([self.walk(c, z, rng) for c in self.below[v]])
        if rng is not None:
            p = np.array(self.w[v])
            z[v] = int(np.searchsorted(np.cumsum(p), rng.random() * p.sum()))
        return self.walk(self.below[v][z[v]], z, rng)

    def tree(self, z):
        choices, waiting = [], [len(self.kind) - 1]
        leaves = []
        while waiting:
            v = waiting.pop()
            if self.kind[v] == LEAF:
                leaves.append(v)
            elif self.kind[v] == PRODUCT:
                waiting += self.below[v][::-1]
            else:
                choices.append((v, z[v]))
                waiting.append(self.below[v][z[v]])
        return self.where[Tree(tuple(choices), tuple(leaves))]

    def block(self, t, rng):
        value = {}
        for v, kind in enumerate(self.kind):
            if kind == LEAF:
                value[v] = self.f[v]
            elif kind == PRODUCT:
                value[v] = math.prod(value[c] for c in self.below[v])
            else:
                value[v] = sum(w * value[c] for w, c in zip(self.w[v], self.below[v], strict=True))
        z = {}
        for v, kind in enumerate(self.kind):
            if kind == SUM:
                p = np.array([w * value[c] for w, c in zip(self.w[v], self.below[v], strict=True)])
                z[v] = int(np.searchsorted(np.cumsum(p), rng.random() * p.sum()))
        return self.tree(z)

    def topdown(self, t, rng):
        old, new, root = dict(self.trees[t].choices), {}, len(self.kind) - 1
        odds = self.walk(root, new, rng) / self.walk(root, old)
        accept = rng.random() < (1 / odds if self.mistake == "sign" else odds)
        return self.tree(new) if accept else t

    def informed(self, t, rng):
        """Proposals by weight times score, of the whole tree; odds are what is left over."""

        def walk(v, z, fresh):
            if self.kind[v] == LEAF:
                return self.f[v]
            if self.kind[v] == PRODUCT:
                return math.prod([walk(c, z, fresh) for c in self.below[v]])
            p = np.array([w * self.s[v, k] for k, w in enumerate(self.w[v])])
            if fresh:
                z[v] = int(np.searchsorted(np.cumsum(p), rng.random() * p.sum()))
            return p.sum() / self.s[v, z[v]] * walk(self.below[v][z[v]], z, fresh)

        new, root = {}, len(self.kind) - 1
        odds = walk(root, new, True) / walk(root, dict(self.trees[t].choices), False)
        return self.tree(new) if rng.random() < odds else t

    def isir(self, t, rng):
        root = len(self.kind) - 1
        old = dict(self.trees[t].choices)
        candidates, p, array = [], [], {}
        for k, c in enumerate(self.below[root]):
            if k == old[root]:
                z = old
                like = self.walk(c, z)
            else:
                z = array if self.mistake == "shared" else {}
                like = self.walk(c, z, rng)
            candidates.append(z)
            p.append(self.w[root][k] * like)
        k = int(np.searchsorted(np.cumsum(p), rng.random() * sum(p)))
        return self.tree({**candidates[k], root: k})

    def __call__(self, kernel, starts, rng):
        ends = []
        for t in starts.tolist():
            self.look(t)
            ends.append(getattr(self, kernel)(t, rng))
        return np.array(ends)


SETTINGS = [  # the trees of the samples that stay; that of sample 0 is drawn
    ("tree-tables", (0, 4, 2)),
    ("shared-tables", (0, 1, 8)),
    ("shared-densities", (0, 7, 2)),
]


def kept(setting, update, draws):
    """The p-value of p(T_0 | all else) after one update that starts from it."""
    name, others = setting
    c, Z = case(name), [trees(name)[t] for t in others]
    law = reference.log_conditional(c.net, c.law, c.X, Z, 0)[1].softmax(0).numpy()
    rng = np.random.default_rng(SEED)
    starts = rng.choice(len(law), draws, p=law)
    return chi_square(np.bincount(update(starts, rng), minlength=len(law)), law)


@pytest.mark.parametrize("kernel", ["block", "topdown", "isir", "informed"])
@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[2]])
def test_slow_kernels_keep_the_conditional(kernel, setting):
    assert kept(setting, functools.partial(Slow(*setting, 0), kernel), 4000) > 1e-4


@pytest.mark.parametrize(
    "mistake, kernel, setting, draws",
    [  # "self" hides from the block kernel: a weight that counts the sample itself still leaves Polya's urn as it is
        ("self", "topdown", SETTINGS[2], 12000),
        ("scores", "informed", SETTINGS[0], 16000),
        ("normaliser", "block", SETTINGS[0], 2000),
        ("shared", "isir", SETTINGS[1], 4000),
        ("sign", "topdown", SETTINGS[0], 2000),
        ("sign", "topdown", SETTINGS[2], 2000),
    ],
)
def test_mistakes_do_not_pass(mistake, kernel, setting, draws):
    assert kept(setting, functools.partial(Slow(*setting, 0, mistake), kernel), draws) < 1e-4


@pytest.mark.parametrize("kernel", [k for k, _ in SPLIT], ids=[n for _, n in SPLIT])
@pytest.mark.parametrize("setting", SETTINGS[:2])
def test_kernels_keep_the_conditional(kernel, setting):
    def update(starts, rng):
        copies = Copies(setting[0], len(starts))
        copies.set(np.stack([starts, *(np.full_like(starts, t) for t in setting[1][1:])], 1))
        copies.state.sweep(kernel, last=1)
        return copies.get()[:, 0]

    assert kept(setting, update, 10000) > 1e-4


# ---- identities ----


@pytest.mark.parametrize("name", CASES)
def test_root_value_is_the_ratio_of_joints(name):
    c, rng = case(name), np.random.default_rng(SEED)
    ts = rng.choice(len(trees(name)), len(c.X))
    state = State(c)
    state.choices.copy_(codes(name)[ts])
    state.recount()
    full = [trees(name)[t] for t in ts]
    for n in range(len(c.X)):
        _C.spn.remove(state.graph, state.X, state.choices, *state.counts(), torch.tensor([n]))
        assert (state.choices[n] == -1).all()
        Z = [None if i == n else t for i, t in enumerate(full)]
        _, logs = reference.log_conditional(c.net, c.law, c.X, Z, n)
        got = state.log_likelihood(c.X[n : n + 1])
        torch.testing.assert_close(got, logs.logsumexp(0)[None], rtol=1e-12, atol=1e-12)
        before = reference.log_joint(c.net, c.law, c.X, Z)
        joints = [reference.log_joint(c.net, c.law, c.X, [*Z[:n], t, *Z[n + 1 :]]) - before for t in trees(name)]
        torch.testing.assert_close(
            got[0], torch.tensor(joints, dtype=torch.float64).logsumexp(0), rtol=1e-12, atol=1e-12
        )
        state.sweep(("block", 0, 0), first=n, last=n + 1)
        full[n] = trees(name)[which(name, state.choices)[n]]


@pytest.mark.parametrize("structure", ["tree", "shared", "hclt"])
def test_predictive_sums_to_one_and_missing_values_are_summed_out(structure):
    state = State(case(f"{structure}-tables"))
    state.sweep(("isir", 0, 0))
    X = torch.tensor(list(itertools.product(range(2), range(3), range(2))), dtype=torch.float64)
    p = state.log_likelihood(X).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    for v in range(3):
        rest = X.clone()
        rest[:, v] = NAN
        same = (X[:, None] == X[None]) | (torch.arange(3) == v)
        torch.testing.assert_close(state.log_likelihood(rest).exp(), same.all(-1).double() @ p, rtol=1e-12, atol=0)
    assert state.log_likelihood(torch.full((1, 3), NAN, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-12)


def leaf_state(family, prior, values, quantum=1.0):
    """A network of one leaf that has seen some values."""
    nodes = [("leaf", 0)]
    net, _ = build(nodes, [(family, 4)])
    law = Law(
        torch.ones(1, dtype=torch.float64), torch.tensor(prior, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    )
    X = torch.tensor(values, dtype=torch.float64)[:, None]
    c = Case(net, law, X, torch.tensor([quantum], dtype=torch.float64))
    state = State(c)
    state.sweep(("block", 0, 0))
    return state


@pytest.mark.parametrize(
    "family, prior", [(GAUSSIAN, [0.3, 0.5, 1.5, 0.8]), (POISSON, [0.01, 0.7, 0, 0]), (EXPONENTIAL, [30.0, 7.0, 0, 0])]
)
@pytest.mark.parametrize("many", [0, 1, 5, 300])
def test_predictives_are_ratios_of_marginals(family, prior, many):
    rng = np.random.default_rng(SEED)
    quantum = 1.0 if family == POISSON else 1024.0
    values = np.round(rng.gamma(2, 2, many) * quantum) / quantum
    state = leaf_state(family, prior, values.tolist(), quantum)
    X = torch.tensor([0.0, 1, 2, 3, 20, 1000], dtype=torch.float64)
    want = [reference.log_predictive(family, prior, values.tolist(), x) for x in X.tolist()]
    torch.testing.assert_close(
        state.log_likelihood(X[:, None]), torch.tensor(want, dtype=torch.float64), rtol=1e-11, atol=1e-10
    )


def test_reference_likelihood_is_differentiable():
    c = case("shared-densities")
    weights, leaves = parameters(c, *State(c).counts(), np.random.default_rng(SEED))
    X = c.X
    f = functools.partial(reference.log_likelihood, c.net)
    assert torch.autograd.gradcheck(lambda w, t: f(w, t, X), (weights.requires_grad_(), leaves.requires_grad_()))


# ---- what a chain keeps ----


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_counts_are_conserved_and_draws_repeat(kernel, name):
    c, rng = case(name), np.random.default_rng(SEED)
    X = c.X[rng.choice(3, 40)]
    order = torch.tensor(rng.permutation(40))
    whole, parts, other = State(c, X), State(c, X.float()), State(c, X)
    for sweep in range(3):
        whole.sweep(kernel, what=sweep, order=order)
        for first, last in ((0, 7), (7, 7), (7, 40)):
            parts.sweep(kernel, what=sweep, order=order, first=first, last=last)
        other.sweep(kernel, what=sweep, order=order, seed=SEED + 1)
    for a, b in zip((whole.choices, *whole.counts()), (parts.choices, *parts.counts()), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert (whole.choices != other.choices).any()
    assert torch.equal(whole.accepted, parts.accepted)
    assert (whole.accepted[:, 1] <= whole.accepted[:, 0]).all()
    before = [x.clone() for x in whole.counts()]
    whole.recount()
    for a, b in zip(before, whole.counts(), strict=True):
        torch.testing.assert_close(a, b)
    assert whole.weight_counts[-len(c.net.children(len(c.net.kind) - 1)) :].sum() == 40
    over = c.net.variable[c.net.kind == LEAF]
    for v in range(3):
        seen = 0
        for leaf in (over == v).nonzero()[:, 0].tolist():
            span = whole.leaf_counts[c.net.leaf_first[leaf] : c.net.leaf_first[leaf + 1]]
            seen += int(span.sum() if c.net.family[v] == TABLE else span[0])
        assert seen == int((~X[:, v].isnan()).sum())
    _C.spn.remove(whole.graph, X, whole.choices, *whole.counts(), order)
    assert not any(x.any() for x in whole.counts())
    assert (whole.choices == -1).all()


def test_deep_and_wide_networks():
    # 5,000 sums in a row; then one sum of 3,000 children
    nodes = [("leaf", 0), ("leaf", 0)]
    top = 0
    for _ in range(5000):
        nodes.append(("sum", (top, 1)))
        top = len(nodes) - 1
    wide = [("leaf", 0)] * 3000 + [("sum", tuple(range(3000)))]
    for graph, most in ((nodes, 5000), (wide, 1)):
        net, law = build(graph, [(TABLE, 2)])
        X = torch.tensor([[0.0], [1], [1], [NAN]], dtype=torch.float64)
        state = State(Case(net, law, X, torch.ones(1, dtype=torch.float64)))
        assert state.choices.shape[1] == most
        for kernel in KERNELS:
            if most == 1 or kernel[0] in ("block", "topdown", "isir"):
                state.sweep(kernel)
        assert state.weight_counts.sum() >= 4
        assert int(state.leaf_counts.sum()) == 3


def test_network_without_sums():
    net, law = build([("leaf", 0), ("leaf", 1), ("product", (0, 1))], [(TABLE, 2), (POISSON, 4)])
    state = State(
        Case(net, law, torch.tensor([[0.0, 3], [1, NAN]], dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    )
    for kernel in KERNELS:
        state.sweep(kernel)
        assert state.choices.tolist() == [[0], [0]]
        assert state.leaf_counts.tolist() == [1, 1, 1, 3, 9, 0]


# ---- refusals ----


def test_bad_arguments_change_nothing():
    c = case("tree-tables")
    state = State(c)
    state.sweep(("isir", 0, 0))
    good = [x.clone() for x in (state.choices, *state.counts())]

    def refuse(error, match, change=None, **arguments):
        change = change or (lambda s: None)
        broken = State(c)
        for a, b in zip((broken.choices, *broken.counts()), good, strict=True):
            a.copy_(b)
        broken.kernel = ("levels", 0, 0)
        change(broken)
        before = [x.clone() for x in (broken.choices, *broken.counts(), broken.accepted)]
        with pytest.raises(error, match=match):
            broken.sweep(broken.kernel, **arguments)
        for a, b in zip(before, (broken.choices, *broken.counts(), broken.accepted), strict=True):
            torch.testing.assert_close(a, b)

    refuse(IndexError, r"choices\[2, 0\] must name a child", lambda s: s.choices[2].fill_(3))
    refuse(IndexError, r"choices\[1, 0\] must name a child", lambda s: s.choices[1, 0].fill_(-2))
    refuse(IndexError, r"choices\[0, 1\] must be -1 beyond", lambda s: s.choices[0].copy_(torch.tensor([2, 0])))
    refuse(IndexError, r"choices\[0, 1\] must be -1 beyond", lambda s: s.choices[0].copy_(torch.tensor([-1, 0])))
    refuse(ValueError, r"choices must be contiguous", lambda s: setattr(s, "choices", s.choices[:, :1].contiguous()))
    refuse(ValueError, r"weight_counts must", lambda s: setattr(s, "weight_counts", s.weight_counts.int()))
    refuse(ValueError, r"leaf_counts must", lambda s: setattr(s, "leaf_counts", s.leaf_counts[1:]))
    refuse(ValueError, r"accepted must", lambda s: setattr(s, "accepted", s.accepted[1:]))
    refuse(
        ValueError,
        r"X\[1, 1\] must",
        lambda s: setattr(s, "X", s.X.clone().index_fill_(1, torch.tensor(1), 3.0)),
        first=1,
    )
    refuse(ValueError, r"kernel must", lambda s: setattr(s, "kernel", ("gibbs", 0, 0)))
    refuse(ValueError, r"lookahead must", lambda s: setattr(s, "kernel", ("isir", -1, 0)))
    refuse(ValueError, r"candidates must", lambda s: setattr(s, "kernel", ("isir", 0, 1)))
    refuse(IndexError, r"first and last must", first=2, last=1)
    refuse(IndexError, r"first and last must", last=4)
    refuse(IndexError, r"order\[1\] must", order=torch.tensor([0, 3]), last=2)
    refuse(ValueError, r"weights and leaves must", weights=torch.ones(len(state.weight_counts)))
    bad = torch.ones(len(state.weight_counts)), torch.zeros(len(state.leaf_counts))
    refuse(ValueError, r"weights\[0\] must", weights=-bad[0], leaves=bad[1])
    refuse(ValueError, r"leaves\[0\] must", weights=bad[0], leaves=bad[1] + math.nan)
    law = c.law
    refuse(ValueError, r"alpha\[17\] must be pos", lambda s: setattr(s, "law", law._replace(alpha=0 * law.alpha)))
    refuse(ValueError, r"prior\[0\] must be pos", lambda s: setattr(s, "law", law._replace(prior=-law.prior)))
    refuse(IndexError, r"leaf_prior\[0\]", lambda s: setattr(s, "law", law._replace(leaf_prior=law.leaf_prior + 99)))


def test_graphs_that_are_no_networks():
    families = [(TABLE, 2), (TABLE, 2)]
    for nodes, rule in (
        ([("leaf", 0), ("leaf", 1), ("product", (0, 1)), ("sum", (0, 2))], "be complete"),
        ([("leaf", 0), ("leaf", 1), ("product", (0, 1, 1))], "be decomposable"),
    ):
        net, law = build(nodes, families)
        c = Case(net, law, torch.zeros(1, 2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
        with pytest.raises(ValueError, match=rule):
            _C.spn.max_sums(c.graph())
