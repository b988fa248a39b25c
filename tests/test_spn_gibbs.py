"""Gibbs steps with weights and leaves given, their draws, and the predictive network: each against its exact law."""

import math

import numpy as np
import pytest
import torch

import pyfast
from pyfast import _C
from pyfast.reference import spn as reference
from pyfast.spn import Columns, Structure
from pyfast.spn._network import Counts, Law, Network, Parameters

NAN = float("nan")


def network(structure, kinds="bernoulli", X=None):
    if X is None:
        X = np.array([[0.0] * structure.num_variables, [1.0] * structure.num_variables])
    return Network(structure, Columns.fit_encoding(X, kinds))


def law(net, mass=1.0, kappa=2.0):
    return net.law(torch.full((net.num_layers,), mass, dtype=torch.float64), net.columns.prior(kappa)[0])


def reference_network(net):
    s = net.structure
    return reference.Network(s.kind, s.first, s.child, s.variable, net.leaf_first, net.columns.family)


def sparse(structure):
    return Structure.from_csr(
        structure.kind, structure.first, structure.child, structure.variable, structure.num_variables
    )


def bits(d, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (64, d)).astype(float)


STRUCTURES = {
    "hclt": lambda: pyfast.spn.hclt(bits(3), 2, "bernoulli"),
    "rat": lambda: pyfast.spn.rat(3, replicas=2, depth=1, sums=2, leaves=2),
    "deep rat": lambda: pyfast.spn.rat(4, replicas=2, depth=2, sums=2, leaves=2),
    "tree": lambda: pyfast.spn.tree(3, 2, 2),
    "graph": lambda: sparse(pyfast.spn.rat(3, replicas=2, depth=1, sums=2, leaves=2)),
    "one variable": lambda: pyfast.spn.rat(1, leaves=5),
}


def expected(net, parameters, row):
    """How likely one row's tree holds each edge below a sum: the sum over all its trees, by enumeration."""
    ref = reference_network(net)
    leaf_of = {v: i for i, v in enumerate(torch.nonzero(net.structure.kind == 0).flatten().tolist())}
    first_weight, n = {}, 0
    for v, kind in enumerate(net.structure.kind.tolist()):
        if kind == 2:
            first_weight[v] = n
            n += int(net.structure.first[v + 1] - net.structure.first[v])
    weights, leaves = parameters.weights.double(), parameters.leaves.double()
    share, total = torch.zeros(n, dtype=torch.float64), 0.0
    for tree in reference.induced_trees(ref):
        p = math.prod(float(weights[first_weight[s] + k]) for s, k in tree.choices)
        for node in tree.leaves:
            v, at = int(net.structure.variable[node]), int(net.leaf_first[leaf_of[node]])
            if not math.isnan(row[v]):
                p *= math.exp(leaves[at + int(row[v])])
        total += p
        for s, k in tree.choices:
            share[first_weight[s] + k] += p
    return share / total, math.log(total)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("times", [1, 3, 50_000])
def test_choices_follow_their_conditional_law(name, times):
    """50,000 trees for one row: edges are taken as often as enumeration says, equal rows alone or together."""
    net = network(STRUCTURES[name]())
    parameters = net.draw(net.no_counts(), law(net), 3, 0)
    row = torch.tensor([1.0, NAN, 0.0, 1.0])[: net.structure.num_variables]
    n = 50_000 // times
    counts, scores = net.sweep(row.repeat(n, 1), torch.full((n,), times), parameters, 11, 0)
    share, log_value = expected(net, parameters, row.tolist())
    torch.testing.assert_close(scores, torch.full((n,), log_value, dtype=torch.float64), rtol=0, atol=1e-5)
    spread = (n * times * share * (1 - share)).sqrt()
    away = (counts.weights - n * times * share).abs()
    assert (away <= 4.5 * spread + 3).all(), (away / spread).max()  # 3: what is rare is not normal
    assert (counts.weights[share == 0] == 0).all()


@pytest.mark.parametrize("name", STRUCTURES)
def test_counts_are_conserved(name):
    net = network(STRUCTURES[name]())
    d = net.structure.num_variables
    rows = torch.from_numpy(bits(d)).float()
    rows[::7, 0] = NAN
    times = torch.arange(len(rows)) % 5
    parameters = net.draw(net.no_counts(), law(net), 5, 0)
    counts, _ = net.sweep(rows, times, parameters, 1, 0)
    root = net.num_children[-1]
    assert counts.weights[-root:].sum() == times.sum()
    variable = net.structure.variable[net.structure.kind == 0]
    for v in range(d):
        seen = counts.leaves.view(-1, 2)[variable == v].sum(0)
        for value in (0, 1):
            assert seen[value] == times[rows[:, v] == value].sum()


def test_dense_and_sparse_forms_draw_the_same():
    """Random numbers are named by nodes, so only a tie within rounding could tell the forms apart."""
    structure = pyfast.spn.rat(9, replicas=3, depth=2, sums=4, leaves=3)
    X = bits(9, 1)
    dense, loose = network(structure), network(sparse(structure))
    parameters = dense.draw(dense.no_counts(), law(dense), 5, 0)
    rows, times = torch.from_numpy(X).float(), torch.ones(64, dtype=torch.int64)
    a, b = (net.sweep(rows, times, parameters, 1, 2) for net in (dense, loose))
    assert torch.equal(a[0].weights, b[0].weights)
    assert torch.equal(a[0].leaves, b[0].leaves)
    torch.testing.assert_close(a[1], b[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["hclt", "rat", "graph"])
def test_threads_do_not_show(name, threads):
    X = bits(12, 2)
    structure = {
        "hclt": lambda: pyfast.spn.hclt(X, 16, "bernoulli"),
        "rat": lambda: pyfast.spn.rat(12, 4, 2, 8, 8),
        "graph": lambda: sparse(pyfast.spn.rat(12, 4, 2, 8, 8)),
    }[name]()
    net = network(structure)
    rows, times = torch.from_numpy(np.repeat(X, 40, 0)).float(), torch.arange(64 * 40) % 3
    parameters = net.draw(net.no_counts(), law(net), 5, 0)
    threads(lambda: net.draw(net.no_counts(), law(net), 5, 1)[:2])
    threads(lambda: (*net.sweep(rows, times, parameters, 1, 0)[0], net.log_prob(rows, parameters)))


def test_slices_do_not_show(monkeypatch):
    """Ctrl-C can come between slices of rows; where they are cut changes nothing."""
    net = network(pyfast.spn.rat(6, 2, 1, 3, 3))
    rows, times = torch.from_numpy(np.repeat(bits(6), 5, 0)).float(), torch.ones(320, dtype=torch.int64)
    parameters = net.draw(net.no_counts(), law(net), 5, 0)
    whole = net.sweep(rows, times, parameters, 1, 0)
    monkeypatch.setattr("pyfast.spn._network._SLICE", 1)
    parts = net.sweep(rows, times, parameters, 1, 0)
    assert torch.equal(whole[0].weights, parts[0].weights)
    assert torch.equal(whole[0].leaves, parts[0].leaves)
    assert torch.equal(whole[1], parts[1])


# ---- draws of parameters


def moments_agree(x, mean, variance, fourth=None):
    """Means and variances of columns of x within 5 standard errors."""
    n = len(x)
    assert ((x.mean(0) - mean).abs() <= 5 * (variance / n).sqrt() + 1e-12).all()
    spread = ((x - mean) ** 2).var(0).div(n).sqrt()
    assert (((x - mean) ** 2).mean(0) - variance).abs().le(5 * spread + 1e-12).all()


def test_weights_are_dirichlet():
    net = network(pyfast.spn.rat(1, leaves=4))
    counts = Counts(torch.tensor([0, 1, 5, 40]), torch.zeros(8, dtype=torch.int64))
    drawn = torch.stack([net.draw(counts, law(net), 1, what, torch.float64).weights for what in range(2000)])
    a = counts.weights + 0.25
    mean = a / a.sum()
    moments_agree(drawn, mean, mean * (1 - mean) / (a.sum() + 1))
    torch.testing.assert_close(drawn.sum(1), torch.ones(2000, dtype=torch.float64))


def test_small_masses_neither_vanish_nor_overflow():
    """alpha = 1e-6 with 4,000 children: draws far below the smallest float, whose logarithms still compare."""
    net = network(pyfast.spn.rat(1, leaves=4000))
    parameters = net.draw(net.no_counts(), law(net, mass=4e-3), 1, 0)
    assert parameters.weights.isfinite().all()
    torch.testing.assert_close(parameters.weights.sum(), torch.ones(()))


CONJUGATE = {
    "bernoulli": np.array([[0.0], [1.0], [1.0], [1.0]]),
    "categorical": np.array([["a"], ["b"], ["c"], ["c"]]),
    "gaussian": np.array([[1.0], [2.5], [0.5], [9.0]]),
    "poisson": np.array([[0.0], [3.0], [4.0], [20.0]]),
    "exponential": np.array([[0.1], [0.0], [2.0], [0.7]]),
}


def seen_by_one_leaf(kind):
    X = CONJUGATE[kind]
    net = network(pyfast.spn.rat(1, leaves=1), kind, X)
    rows = net.columns.encode(X, torch.float64)
    nothing = net.draw(net.no_counts(), law(net), 0, 0, torch.float64)
    counts, _ = net.sweep(rows, torch.ones(4, dtype=torch.int64), nothing, 0, 0)
    return net, rows, counts


@pytest.mark.parametrize("kind", CONJUGATE)
def test_predictive_is_a_ratio_of_marginal_likelihoods(kind):
    """One leaf: its predictive density, the joint, and the reference's closed form are the same numbers."""
    net, rows, counts = seen_by_one_leaf(kind)
    family, prior = int(net.columns.family[0]), net.columns.prior(2.0)[0].tolist()
    seen = rows[:, 0].tolist()
    got = net.log_prob(rows, net.predict(counts, law(net), torch.float64))
    want = [reference.log_predictive(family, prior, seen, x) for x in seen]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=0, atol=1e-7)
    joint = reference.log_marginal(family, prior, seen)
    assert net.log_joint(counts, law(net)) == pytest.approx(joint, abs=1e-7)


@pytest.mark.parametrize("kind", CONJUGATE)
def test_predictive_is_the_mean_over_parameter_draws(kind):
    """E[p(x | theta)] over posterior draws: checks the draws of all five families against closed forms."""
    net, rows, counts = seen_by_one_leaf(kind)
    want = net.log_prob(rows, net.predict(counts, law(net), torch.float64)).exp()
    draws = torch.stack(
        [net.log_prob(rows, net.draw(counts, law(net), 1, what, torch.float64)).exp() for what in range(2000)]
    )
    error = draws.std(0) / 2000**0.5
    assert ((draws.mean(0) - want).abs() <= 4.5 * error).all()


@pytest.mark.parametrize("kind", CONJUGATE)
@pytest.mark.parametrize("integrated", [False, True])
def test_sampled_values_follow_their_density(kind, integrated):
    """The distribution function of 20,000 sampled values against that of the density, summed or integrated."""
    net, _, counts = seen_by_one_leaf(kind)
    parameters = (
        net.predict(counts, law(net), torch.float64) if integrated else net.draw(counts, law(net), 4, 0, torch.float64)
    )
    n = 20_000
    x = net.complete(torch.full((n, 1), NAN, dtype=torch.float64), parameters, 9, 0, 0, False).flatten().sort().values
    discrete = kind in ("bernoulli", "categorical", "poisson")
    if discrete:
        grid = torch.arange(0, 400.0 if kind == "poisson" else float(net.columns.width[0]), dtype=torch.float64)
        log_p = net.log_prob(grid[:, None], parameters)
        if kind == "poisson":
            log_p = log_p - torch.lgamma(grid + 1)
        cdf = log_p.exp().cumsum(0)
    else:
        edge = 400.0 if integrated else 60.0  # heavy tails
        u = torch.linspace(-1, 1, 400_001, dtype=torch.float64) if kind == "gaussian" else None
        grid = edge * u**3 if u is not None else edge * torch.linspace(0, 1, 400_001, dtype=torch.float64) ** 3
        p = net.log_prob(grid[:, None], parameters).exp()
        cdf = torch.cat([torch.zeros(1), ((p[1:] + p[:-1]) / 2 * grid.diff()).cumsum(0)])
        cdf = cdf + (1 - cdf[-1]) / 2 * (kind == "gaussian")  # what lies beyond the edge
    empirical = torch.searchsorted(x, grid, right=True) / n
    assert (empirical - cdf).abs().max() < 2.0 / n**0.5  # Kolmogorov and Smirnov, p = 0.0007


# ---- completion


@pytest.mark.parametrize("name", STRUCTURES)
def test_completion_follows_the_conditional(name):
    net = network(STRUCTURES[name]())
    d = net.structure.num_variables
    parameters = net.draw(net.no_counts(), law(net), 8, 0)
    for known in ({}, {0: 1.0}):
        row = torch.full((d,), NAN)
        for v, value in known.items():
            row[v] = value
        if not row.isnan().any():
            continue
        n = 20_000
        drawn = net.complete(row.repeat(n, 1), parameters, 2, 0, 0, False)
        cells = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * d).view(-1, d)
        cells = cells[[all(cell[v] == value for v, value in known.items()) for cell in cells]]
        p = net.log_prob(cells, parameters).softmax(0)
        code = 2 ** torch.arange(d)
        found = torch.bincount((drawn.long() * code).sum(1), minlength=2**d)[(cells.long() * code).sum(1)]
        assert found.sum() == n
        assert ((found - n * p).abs() <= 4.5 * (n * p * (1 - p)).sqrt() + 1).all()


def test_best_completion_by_brute_force():
    for seed in range(20):
        net = network(STRUCTURES["deep rat"]())
        parameters = net.draw(net.no_counts(), law(net), seed, 0)
        row = torch.tensor([NAN, 1.0, NAN, NAN])
        got = net.complete(row[None], parameters, 0, 0, 0, True)[0]
        ref, best = reference_network(net), (-math.inf, None)
        leaf_of = {v: i for i, v in enumerate(torch.nonzero(net.structure.kind == 0).flatten().tolist())}
        weights = dict(zip(*first_weights(net), strict=True))
        for tree in reference.induced_trees(ref):
            p = sum(math.log(float(parameters.weights[weights[s] + k])) for s, k in tree.choices)
            x = row.clone()
            for node in tree.leaves:
                at, v = int(net.leaf_first[leaf_of[node]]), int(net.structure.variable[node])
                options = parameters.leaves[at : at + 2]
                if math.isnan(row[v]):
                    x[v] = float(options.argmax())
                p += float(options[int(x[v])])
            if p > best[0]:
                best = (p, x)
        assert torch.equal(got, best[1])


def first_weights(net):
    sums = net.sums.tolist()
    return sums, [0, *net.num_children.cumsum(0).tolist()[:-1]]


def test_rows_of_a_block_do_not_show_in_each_other():
    net = network(STRUCTURES["rat"]())
    parameters = net.draw(net.no_counts(), law(net), 8, 0)
    rows = torch.tensor([[NAN, NAN, NAN], [1.0, NAN, 0.0], [NAN, NAN, 1.0]]).repeat(7, 1)
    together = net.complete(rows, parameters, 2, 0, 0, False)
    alone = torch.cat([net.complete(rows[i : i + 1], parameters, 2, 0, i, False) for i in range(len(rows))])
    assert torch.equal(together, alone)


# ---- numerics


def test_float_is_left_where_it_is_too_narrow():
    """Two variables that contradict each other by e^-200: float loses one component, double keeps it."""
    net = network(pyfast.spn.hclt(bits(3), 2, "bernoulli"))
    low = -200.0
    one = math.log1p(-math.exp(low))
    leaves = torch.tensor([low, one, one, low] * 3, dtype=torch.float64)  # states 0 and 1 say opposite things
    weights = torch.full((net.structure.num_weights,), 0.5, dtype=torch.float64)
    rows = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    narrow = net.log_prob(rows, Parameters(weights.float(), leaves.float()))
    wide = net.log_prob(rows.double(), Parameters(weights, leaves))
    torch.testing.assert_close(narrow, wide, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["hclt", "rat"])
def test_two_thousand_variables(name):
    X = bits(2000, 3)
    structure = pyfast.spn.hclt(X, 3, "bernoulli") if name == "hclt" else pyfast.spn.rat(2000, 2, 4, 3, 3)
    net = network(structure)
    parameters = net.draw(net.no_counts(), law(net), 1, 0)
    rows = torch.from_numpy(X).float()
    narrow = net.log_prob(rows, parameters)
    wide = net.log_prob(rows.double(), Parameters(parameters.weights.double(), parameters.leaves.double()))
    assert wide.max() < -1000
    ref = reference_network(net)
    plain = reference.log_likelihood(ref, parameters.weights, parameters.leaves, rows).double()
    allowed = 2 * (plain - wide).abs().max() + 4 * torch.finfo(torch.float32).eps * wide.abs().max()
    loose = network(sparse(structure)).log_prob(rows, parameters)
    for found in (narrow, loose):
        assert (found - wide).abs().max() <= allowed  # as ``check`` has it


def test_missing_rows_cost_nothing():
    net = network(STRUCTURES["rat"]())
    parameters = net.draw(net.no_counts(), law(net), 1, 0)
    torch.testing.assert_close(net.log_prob(torch.full((3, 3), NAN), parameters), torch.zeros(3).double())
    assert net.log_prob(torch.empty(0, 3), parameters).shape == (0,)


def test_raw_kernels_refuse_what_they_cannot_read():
    net = network(STRUCTURES["rat"]())
    p = net.draw(net.no_counts(), law(net), 1, 0)
    rows = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"X\[1, 2\] must be a value of its column"):
        net.log_prob(torch.tensor([[0.0, 0, 0], [0, 0, 2]]), p)
    with pytest.raises(ValueError, match="weights must be contiguous"):
        net.log_prob(rows, p._replace(weights=p.weights[:-1]))
    with pytest.raises(ValueError, match="X must have shape"):
        net.log_prob(torch.zeros(2, 4), p)
    out = torch.empty(2, dtype=torch.float64)
    for i in range(8):
        broken = [x.clone() for x in net.graph]
        broken[i] = broken[i][:-1]
        with pytest.raises(ValueError, match="must"):
            _C.spn.log_prob(rows, *p[:2], broken, out)
    rng = np.random.default_rng(0)
    for _ in range(300):  # a program of other numbers is refused or harmless, never read out of bounds
        broken = [x.clone() for x in net.graph]
        at = rng.integers(len(broken[7]))
        broken[7][at] = int(rng.integers(-5, 60))
        try:
            _C.spn.log_prob(rows, *p[:2], broken, out)
        except ValueError as error:
            assert "must" in str(error)  # noqa: PT017


def test_alpha_must_be_positive():
    net = network(STRUCTURES["rat"]())
    bad = Law(torch.zeros(net.structure.num_nodes, dtype=torch.float64), net.columns.prior(2.0)[0])
    with pytest.raises(ValueError, match="alpha must be positive"):
        net.draw(net.no_counts(), bad, 1, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_what_no_gamma_draw_can_be_of_is_refused(bad):
    """As a damaged file may have it: such a draw would never end."""
    X, kinds = [[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 2.0, 1.0]], ["bernoulli", "gaussian", "poisson", "exponential"]
    columns = Columns.fit_encoding(X, kinds)
    net = Network(pyfast.spn.rat(4, replicas=1, depth=1, sums=2, leaves=2), columns)
    alpha = torch.ones(net.structure.num_nodes, dtype=torch.float64)
    prior, first = columns.prior(2.0)
    none = net.no_counts()
    for at in (*first.tolist(), int(first[1]) + 1, int(first[1]) + 3, int(first[2]) + 1, int(first[3]) + 1):
        law = Law(alpha, prior.clone())
        law.prior[at] = bad
        if at == first[1] and math.isfinite(bad):
            continue  # a mean
        for make in (lambda law=law: net.draw(none, law, 1, 0), lambda law=law: net.predict(none, law)):
            with pytest.raises(ValueError, match="prior must be positive and finite"):
                make()
    for counts, message in zip(none, ("weight_counts must not be negative", "leaf_counts must be"), strict=True):
        for at in range(len(counts)):
            if message.startswith("leaf") and at >= 4 and (at - 4) % 4 > 0:
                continue  # sums, which may be negative
            counts[at] = -1
            with pytest.raises(ValueError, match=message):
                net.draw(none, Law(alpha, prior), 1, 0)
            counts[at] = 0
