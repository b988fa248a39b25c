"""Trees that are never built against the same trees built, where these are small."""

import itertools
import math
import signal
import time

import pytest
import torch
from scipy import stats

from pyfast import _C
from pyfast.reference import spn as reference
from pyfast.reference.spn import LEAF, PRODUCT, SUM
from pyfast.spn import Categorical, Columns, ImplicitTree
from pyfast.spn._network import purpose

NAN = math.nan
MASS = 1.3


def word(seed, what, index):
    """64 random bits."""
    out = torch.empty(1, 4, dtype=torch.int64)
    _C.random.bits(seed, what, torch.tensor([index - (index >> 63 << 64)]), out)
    return int(out[0, 0]) << 32 | int(out[0, 1])


class Built:
    """The same tree, node by node: a network of the reference, and choices as its induced trees."""

    def __init__(self, columns, children, parts, seed, kappa=2.0):
        self.columns, self.children, self.parts, self.seed = columns, children, parts, seed
        self.prior, _ = columns.prior(kappa)
        self.tables = [columns.family, columns.width, columns.quantum, self.prior]
        self.nodes = []  # (kind, children or variable)
        self.below = {}  # of a sum: by child, the sums of its parts in order
        self.root = self.sum(0, list(range(len(columns))))
        kinds = torch.tensor([k for k, _ in self.nodes], dtype=torch.uint8)
        lists = [[] if k == LEAF else c for k, c in self.nodes]
        first = torch.tensor([0, *itertools.accumulate(map(len, lists))])
        variable = torch.tensor([c if k == LEAF else -1 for k, c in self.nodes], dtype=torch.int32)
        over = variable[kinds == LEAF].long()
        leaf_first = torch.cat([torch.zeros(1, dtype=torch.int64), columns.width[over].cumsum(0)])
        child = torch.tensor(list(itertools.chain(*lists)), dtype=torch.int32)
        self.net = reference.Network(kinds, first, child, variable, leaf_first, columns.family)
        alpha = torch.full((len(kinds),), MASS / children, dtype=torch.float64)
        self.law = reference.Law(alpha, self.prior, (columns.width.cumsum(0) - columns.width)[over])
        self.trees = reference.induced_trees(self.net)
        self.width = _C.spn.implicit_choices(len(columns), parts)

    def add(self, kind, what):
        self.nodes.append((kind, what))
        return len(self.nodes) - 1

    def sum(self, name, scope):
        products, below = [], []
        for k in range(self.children):
            id = word(self.seed, name, k)
            order = sorted(range(len(scope)), key=lambda i: (word(self.seed, id, 1 << 62 | i), i))
            if len(scope) <= self.parts:
                order = list(range(len(scope)))
            some, parts, sums, start = min(len(scope), self.parts), [], [], 0
            for p in range(some):
                size = len(scope) // some + (p < len(scope) % some)
                part = [scope[i] for i in order[start : start + size]]
                if size == 1:
                    parts.append(self.add(LEAF, part[0]))
                else:
                    parts.append(self.sum(word(self.seed, id, 1 << 63 | p), part))
                    sums.append(parts[-1])
                start += size
            products.append(self.add(PRODUCT, parts))
            below.append(sums)
        node = self.add(SUM, products)
        self.below[node] = below
        return node

    def choices(self, tree):
        """Of an induced tree, as the implicit one has them: sums in preorder."""
        chosen, out, waiting = dict(tree.choices), [], [self.root]
        while waiting:
            node = waiting.pop()
            out.append(chosen[node])
            waiting += reversed(self.below[node][chosen[node]])
        return out


CASES = {  # children, parts, columns, rows
    "deep": (2, 2, "bernoulli", [[0, 1, 1], [1, NAN, 0], [1, 1, 1]]),
    "wide": (4, 3, [Categorical(3), "bernoulli"], [[2, 1], [0, 1], [2, NAN], [1, 0]]),
    "densities": (2, 2, ["gaussian", "poisson", "exponential"], [[0.5, 3, NAN], [-1.25, 0, 0.125], [0.75, 7, 2.5]]),
    "single": (3, 2, "bernoulli", [[1], [0], [1], [1]]),
}


def case(name):
    children, parts, kinds, rows = CASES[name]
    columns = Columns.fit_encoding(torch.tensor(rows, dtype=torch.float64), kinds)
    rows = columns.encode(rows)
    seen = rows.double()  # as statistics remember it
    seen = torch.where(columns.family > 0, (seen * columns.quantum).round() / columns.quantum, seen)
    return Built(columns, children, parts, seed=5), rows, seen


def sweep(built, rows, choices, seed, candidates=0, what=0):
    tree = built.children, built.parts, built.seed, MASS
    return _C.spn.implicit_sweep(
        built.tables, rows, choices, *tree, candidates, seed, purpose(1, 0, what), torch.arange(len(rows))
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("candidates", [0, 2])
def test_one_sweep_leaves_the_posterior_as_it_is(name, candidates):
    built, rows, seen = case(name)
    states, p = reference.posterior(built.net, built.law, seen)
    trees = {tuple(built.choices(t)): i for i, t in enumerate(built.trees)}
    each = torch.tensor(list(trees))
    index = {t: i for i, t in enumerate(built.trees)}
    draws = 20_000
    start = torch.multinomial(p, draws, replacement=True, generator=torch.Generator().manual_seed(0))
    as_rows = torch.tensor([[index[t] for t in state] for state in states])
    moved, found = 0, torch.zeros(len(states))
    base = len(trees) ** torch.arange(len(rows) - 1, -1, -1)
    assert torch.equal((as_rows * base).sum(1), torch.arange(len(states)))
    for i, s in enumerate(start.tolist()):
        choices = each[as_rows[s]].contiguous()
        sweep(built, rows, choices, seed=i, candidates=candidates)
        end = sum(trees[tuple(c)] * int(b) for c, b in zip(choices.tolist(), base, strict=True))
        moved += end != s
        found[end] += 1
    often = p * draws >= 10
    observed = torch.cat([found[often], found[~often].sum()[None]]).double()
    expected = torch.cat([p[often], p[~often].sum()[None]]) * draws
    keep = expected > 0
    assert stats.chisquare(observed[keep].numpy(), expected[keep].numpy()).pvalue > 1e-4
    assert moved > draws / 10


@pytest.mark.parametrize("name", CASES)
def test_densities_are_those_of_the_tree_built(name):
    built, rows, seen = case(name)
    choices = torch.full((len(rows), built.width), -1, dtype=torch.int64)
    for what in range(3):
        log_joint, used = sweep(built, rows, choices, 1, what=what)
    trees = {tuple(built.choices(t)): t for t in built.trees}
    Z = [trees[tuple(c)] for c in choices.tolist()]
    assert math.isclose(log_joint, reference.log_joint(built.net, built.law, seen, Z), rel_tol=1e-11)
    assert used <= len(built.nodes)
    asked = torch.cat([rows, torch.full((1, rows.shape[1]), NAN)])
    out = torch.empty(len(asked), dtype=torch.float64)
    tree = built.children, built.parts, built.seed, MASS
    _C.spn.implicit_log_prob(built.tables, rows, choices, *tree, asked, out)
    for row, got in zip(torch.cat([seen, asked[-1:].double()]), out.tolist(), strict=True):
        _, logs = reference.log_conditional(built.net, built.law, torch.cat([seen, row[None]]), [*Z, None], len(rows))
        assert math.isclose(got, float(logs.logsumexp(0)), rel_tol=1e-10, abs_tol=1e-12)


def test_completions_follow_the_predictive():
    built, rows, _ = case("deep")
    choices = torch.full((len(rows), built.width), -1, dtype=torch.int64)
    sweep(built, rows, choices, 1)
    tree = built.children, built.parts, built.seed, MASS
    cells = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)))
    given = torch.cat([cells[:, :1], torch.ones(4, 1), cells[:, 1:]], 1)
    logs = torch.empty(4, dtype=torch.float64)
    _C.spn.implicit_log_prob(built.tables, rows, choices, *tree, given, logs)
    n = 40_000
    out = torch.tensor([[NAN, 1, NAN]]).repeat(n, 1)
    _C.spn.implicit_complete(built.tables, rows, choices, *tree, out, 3, purpose(2), purpose(3), 0)
    assert (out[:, 1] == 1).all()
    found = torch.bincount((2 * out[:, 0] + out[:, 2]).long(), minlength=4)
    assert stats.chisquare(found.numpy(), (logs.softmax(0) * n).numpy()).pvalue > 1e-4


def table(n=60, d=20):
    g = torch.Generator().manual_seed(1)
    half = (torch.rand(n, 1, generator=g) < 0.5).double()
    return ((half + (torch.rand(n, d, generator=g) < 0.1)) % 2).float()


def test_threads_do_not_show(threads):
    X = table()

    def fit():
        model = ImplicitTree(10**6, 5, sweeps=6, candidates=4, seed=2).fit(X)
        return model.log_joint_, model.log_prob(X), torch.as_tensor(model.sample(50, seed=4))

    threads(fit)


def test_seeds_differ():
    X = table()
    a, b = (ImplicitTree(100, 4, sweeps=4, seed=s).fit(X).log_joint_ for s in (0, 1))
    assert not torch.equal(a, b)


def test_learns_on_a_trillion_nodes():
    X = table(400, 30)
    model = ImplicitTree(200_000, 6, sweeps=10).fit(X[:300])
    assert model.num_nodes > 10**12
    assert model.used_nodes_ < 300 * 2 * 60
    one = X[:300].mean(0)
    alone = (X[300:] * one.log() + (1 - X[300:]) * (1 - one).log()).sum(1).mean()
    assert model.score(X[300:]) > alone + 5  # columns are far from independent
    half = X[300:].clone()
    half[:, 15:] = NAN
    drawn = torch.as_tensor(model.sample(evidence=half))
    assert (drawn[:, 15:] == X[300:, 15:]).float().mean() > 0.7
    assert torch.equal(drawn[:, :15], X[300:, :15])


def test_number_of_nodes():
    for children, parts in ((1, 2), (2, 2), (3, 3)):
        columns = Columns.fit_encoding(torch.zeros(1, 5), "bernoulli")
        model = ImplicitTree(children, parts, columns="bernoulli", sweeps=1).fit(torch.zeros(1, 5))
        assert model.num_nodes == len(Built(columns, children, parts, 0).nodes)


def test_interrupted_within_a_second_keeps_what_was_sampled():
    def stop(*_):
        raise KeyboardInterrupt

    X = table(300, 100)
    model = ImplicitTree(10**6, 5, sweeps=10**6)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        start = time.perf_counter()
        model.fit(X)
        assert time.perf_counter() - start < 2.5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    done = len(model.log_joint_)
    assert 0 < done < 10**6
    assert torch.equal(model.log_joint_, ImplicitTree(10**6, 5, sweeps=done).fit(X).log_joint_)


EDGES = {
    "one row": torch.ones(1, 3),
    "one column": torch.tensor([[0.0], [1.0]]),
    "constant": torch.zeros(20, 4),
    "nothing known": torch.full((5, 3), NAN),
    "two thousand": torch.zeros(4, 2000),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges_are_finite(name):
    model = ImplicitTree(10**6, 3, columns="bernoulli", sweeps=3).fit(EDGES[name])
    assert model.log_prob(EDGES[name]).isfinite().all()
    assert model.log_joint_.isfinite().all()
    assert torch.as_tensor(model.sample(2)).shape == (2, EDGES[name].shape[1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sum_children": 0}, ValueError, "sum_children must be at least 1, got 0"),
        ({"sum_children": 2**48}, ValueError, "sum_children must be at most"),
        ({"product_children": 1}, ValueError, "product_children must be at least 2, got 1"),
        ({"product_children": 2.5}, TypeError, "product_children must be an int, got float"),
        ({"candidates": 1}, ValueError, r"candidates must be 0 or in \[2, 2\^31\), got 1"),
        ({"burn": 1.0}, ValueError, "burn must be in"),
        ({"mass": NAN}, ValueError, "mass must be positive and finite, got nan"),
        ({"mass": "1"}, TypeError, "mass must be a number, got str"),
        ({"kappa": 0}, ValueError, "kappa must be positive and finite, got 0"),
        ({"seed": -1}, ValueError, "seed must be in"),
    ],
)
def test_arguments_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        ImplicitTree(**arguments).fit(table())


def test_hostile_tables():
    model = ImplicitTree(10, 2, sweeps=1)
    with pytest.raises(ValueError, match="fit must be called first"):
        model.log_prob([[0.0]])
    for bad in (torch.empty(0, 3), torch.empty(3, 0)):
        with pytest.raises(ValueError, match="X must have at least one"):
            model.fit(bad)
    model.fit(table())
    with pytest.raises(ValueError, match="X must have 20 columns, got 3"):
        model.score(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="0 or 1"):
        model.score(torch.full((1, 20), 2.0))


def test_bad_choices_change_nothing():
    built, rows, _ = case("deep")
    choices = torch.zeros(len(rows), built.width, dtype=torch.int64)
    choices[1, 0] = 2
    before = choices.clone()
    with pytest.raises(IndexError, match=r"choices\[1, 0\] must name a child, got 2"):
        sweep(built, rows, choices, 0)
    assert torch.equal(choices, before)
