"""Densities that users write: what they say must be what the kernels do, exactly."""

import copy
import itertools
import math
import pickle
import sys

import numpy as np
import pytest
import torch

import pyfast
from pyfast.spn import EM, SPN, BayesSPN, Columns, Density, Structure, unique_rows
from pyfast.spn._chain import Chain, Plan
from pyfast.spn._hyper import Hyper
from pyfast.spn._network import Network, Parameters
from pyfast.spn._update import Update

pytest.importorskip("numba")
NAN = math.nan
SCALES = np.array([0.4, 0.9, 2.0, 5.0])
ODDS = np.array([1.0, 2.0, 3.0, 2.0])


def statistics(x):
    return math.log(x), x * x


def log_rayleigh(n, t, scale):
    return t[0] - 2 * n * math.log(scale[0]) - t[1] / (2 * scale[0] ** 2)


def quantile(u, scale):
    return scale[0] * math.sqrt(-2 * math.log1p(-u))


RAYLEIGH = Density(statistics, log_rayleigh, SCALES, ODDS, quantile)


def value(x):
    return x


def log_waiting(n, t, theta):  # exponential of a known shift
    return n * math.log(theta[0]) - theta[0] * (t[0] - n * theta[1])


WAITING = Density(value, log_waiting, [[0.5, 0.0], [2.0, 0.0]])


def truth(x, scale):
    """The log density, by numpy."""
    return np.log(x) - 2 * np.log(scale) - x**2 / (2 * scale**2)


def evidence(x):
    """Log of the density of some values, the scale integrated out."""
    each = np.log(ODDS / ODDS.sum()) + truth(np.asarray(x)[:, None], SCALES).sum(0)
    return np.logaddexp.reduce(each)


def table(n=60, seed=0):
    """A Rayleigh column, a real one and a Rayleigh one, in two clusters, with gaps."""
    g = np.random.default_rng(seed)
    z = g.random(n) < 0.4
    X = np.stack(
        [g.rayleigh(np.where(z, 0.4, 3.0)), g.normal(np.where(z, 2, -2)), g.rayleigh(np.where(z, 5.0, 1.0))], 1
    )
    X[g.random(X.shape) < 0.1] = NAN
    return X, [RAYLEIGH, "gaussian", RAYLEIGH]


def structures(X, columns):
    return {
        "hclt": pyfast.spn.hclt(X, 3, columns),
        "rat": pyfast.spn.rat(X.shape[1], replicas=2, depth=1, sums=2, leaves=3),
        "tree": pyfast.spn.tree(X.shape[1], 2, 2),
    }


def law(net):
    hyper = Hyper(net, net.columns, 1.0, 2.0)
    return net.law(hyper.mass, hyper.prior())


def one_leaf(x, dtype=torch.float64):
    """A network of one leaf, its rows and what it has seen."""
    columns = Columns.fit_encoding(np.asarray(x)[:, None], RAYLEIGH)
    net = Network(pyfast.spn.rat(1, leaves=1), columns)
    rows = columns.encode(np.asarray(x)[:, None], dtype)
    nothing = net.draw(net.no_counts(), law(net), 0, 0, dtype)
    return net, rows, net.sweep(rows, torch.ones(len(rows), dtype=torch.int64), nothing, 0, 0)[0]


def test_a_leaf_is_the_mixture_of_its_candidates():
    x = np.array([0.1, 0.7, 1.3, 4.0, 11.0])
    net, rows, _ = one_leaf(x)
    share = np.array([0.1, 0.2, 0.3, 0.4])
    weights = net.predict(net.no_counts(), law(net), torch.float64).weights
    parameters = Parameters(weights, torch.tensor(np.log(share)))
    want = np.log((share * np.exp(truth(x[:, None], SCALES))).sum(1))
    np.testing.assert_allclose(net.log_prob(rows, parameters), want, rtol=1e-6)
    parameters.leaves[:] = torch.tensor([-math.inf, -math.inf, 0.0, -math.inf])
    np.testing.assert_allclose(net.log_prob(rows, parameters), truth(x, SCALES[2]), rtol=1e-6)


def test_predictive_is_a_ratio_of_evidences():
    x = np.array([0.3, 0.7, 1.3, 2.0])
    net, rows, counts = one_leaf(x)
    assert net.log_joint(counts, law(net)) == pytest.approx(evidence(x), abs=1e-6)
    got = net.log_prob(rows, net.predict(counts, law(net), torch.float64))
    np.testing.assert_allclose(got, [evidence([*x, v]) - evidence(x) for v in x], atol=1e-6)


def test_draws_follow_the_posterior():
    x = np.array([0.3, 0.7])
    net, _, counts = one_leaf(x)
    drawn = torch.stack([net.draw(counts, law(net), 1, what).leaves for what in range(4000)])
    assert ((drawn == 0).sum(1) == 1).all()
    assert ((drawn == 0) | (drawn == -math.inf)).all()
    posterior = ODDS * np.exp(truth(x[:, None], SCALES).sum(0))
    posterior /= posterior.sum()
    found = (drawn == 0).double().mean(0).numpy()
    assert (np.abs(found - posterior) <= 4.5 * np.sqrt(posterior * (1 - posterior) / 4000) + 1e-9).all()


@pytest.mark.parametrize("name", ["hclt", "rat", "tree"])
def test_every_form_says_the_same(name, threads):
    X, kinds = table()
    columns = Columns.fit_encoding(X, kinds)
    net = Network(structures(X, columns)[name], columns)
    drawn = net.predict(net.no_counts(), law(net), torch.float64)
    leaves = drawn.leaves + torch.where(drawn.leaves.isinf(), 0.0, torch.linspace(-1, 0, len(drawn.leaves)).double())
    parameters = Parameters(drawn.weights, leaves)
    rows = columns.encode(X, torch.float64)
    wide = threads(lambda: net.log_prob(rows, parameters))[0]
    single = rows.float(), parameters.weights.float(), leaves.float()
    narrow = net.log_prob(single[0], Parameters(*single[1:]))
    same = net.log_prob(single[0].double(), Parameters(*(x.double() for x in single[1:])))
    # logarithms err by their size, and every node, whose terms are positive, by a few roundings more
    allowed = 4 * torch.finfo(torch.float32).eps * (float(same.abs().max()) + net.structure.num_nodes)
    torch.testing.assert_close(narrow, same, rtol=0, atol=allowed)
    s = net.structure
    sparse = Structure.from_csr(s.kind, s.first, s.child, s.variable, s.num_variables)
    torch.testing.assert_close(Network(sparse, columns).log_prob(rows, parameters), wide, rtol=1e-9, atol=1e-9)
    assert net.log_prob(torch.full((1, 3), NAN).double(), parameters).abs() < 1e-9


@pytest.mark.parametrize("name", ["hclt", "tree"])
def test_derivatives(name):
    X, kinds = table(7)
    columns = Columns.fit_encoding(X, kinds)
    net = Network(structures(X, columns)[name], columns)
    rows = columns.encode(X, torch.float64)
    start = net.draw(net.no_counts(), law(net), 0, 0, torch.float64)
    own = (columns.family[net.leaf_variable] == 7).repeat_interleave(net.leaf_first.diff())
    leaves = torch.where(own, torch.linspace(-2, 0, len(own)).double(), start.leaves)
    free = leaves[own].clone().requires_grad_()

    def function(some):
        return net.log_prob(rows, Parameters(start.weights, leaves.index_copy(0, torch.nonzero(own).flatten(), some)))

    assert torch.autograd.gradcheck(function, free)


def exact_mean(X, probe):
    """Of p(probe | choices) over all choices of a mixture of two components."""
    total, weighed = -math.inf, -math.inf
    for z in itertools.product((0, 1), repeat=len(X)):
        parts = [[x for x, k in zip(X, z, strict=True) if k == c] for c in (0, 1)]
        n = [len(p) for p in parts]
        log = sum(math.lgamma(0.5 + m) for m in n) - math.lgamma(1 + len(X))
        log += sum(evidence(p) for p in parts if p)
        here = np.logaddexp.reduce(
            [
                math.log((0.5 + m) / (1 + len(X))) + evidence([*p, probe]) - (evidence(p) if p else 0.0)
                for m, p in zip(n, parts, strict=True)
            ]
        )
        total, weighed = np.logaddexp(total, log), np.logaddexp(weighed, log + here)
    return math.exp(weighed - total)


@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize("kernel", ["block", "topdown", "levels", "isir", "informed"])
def test_chains_average_to_the_exact_predictive(kernel, collapsed):
    X = np.array([0.2, 0.5, 3.0, 4.0, 1.0])
    columns = Columns.fit_encoding(X[:, None], RAYLEIGH)
    net = Network(pyfast.spn.hclt(X[:, None], 2, columns), columns)
    hyper = Hyper(net, columns, 1.0, 2.0)
    rows = unique_rows(columns.encode(X[:, None]))
    chain = Chain(net, columns, rows, Plan(kernel, collapsed, 0, 0, "fixed"), hyper, 3, 0)
    probe = torch.tensor([[2.5]])
    found = []
    for _ in range(2400):
        chain.sweep()
        found.append(float(net.log_prob(probe, net.predict(chain.counts, chain.law)).exp()))
    batches = np.array(found).reshape(24, 100).mean(1)
    assert abs(batches.mean() - exact_mean(X, 2.5)) <= 4.5 * batches.std(ddof=1) / math.sqrt(24)


def test_learning_finds_what_is_there():
    g = np.random.default_rng(0)
    z = g.random(800) < 0.5
    X = np.stack([g.rayleigh(np.where(z, 0.4, 5.0)), g.rayleigh(np.where(z, 5.0, 0.4))], 1)
    independent = np.mean([evidence([v]) for v in X.flatten()]) * 2
    bayes = BayesSPN(columns=RAYLEIGH, hidden=2, sweeps=40).fit(X)
    em = EM(columns=RAYLEIGH, hidden=2).fit(X)
    best = np.mean(
        np.logaddexp(
            truth(X[:, 0], 0.4) + truth(X[:, 1], 5.0),
            truth(X[:, 0], 5.0) + truth(X[:, 1], 0.4),
        )
        - math.log(2)
    )
    for model in (bayes, em):
        assert independent + 0.3 < model.score(X) < best + 0.01
        assert model.score(X) > best - 0.02
    assert bayes.columns_.densities == (RAYLEIGH, RAYLEIGH)


def test_likelihood_never_falls_and_modules_learn():
    X, kinds = table(100)
    trace = torch.tensor(
        EM(columns=kinds, hidden=3, smoothing=0, iterations=30, patience=30, dtype=torch.float64).fit(X).trace_
    )
    assert (trace.diff() >= -1e-12).all()
    columns = Columns.fit_encoding(X, kinds)
    model = SPN(pyfast.spn.hclt(X, 3, columns), columns)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(-model.log_prob(X).mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.2


def test_samples_follow_the_density():
    X, kinds = table(300)
    model = BayesSPN(columns=kinds, hidden=3, sweeps=20, states=1, chains=1).fit(X)
    drawn = np.sort(model.sample(4000, seed=5)[:, 0])
    grid = np.linspace(1e-3, 25, 20001)
    asked = np.full((len(grid), 3), NAN)
    asked[:, 0] = grid
    density = model.log_prob(asked).exp().numpy()
    below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid))])
    assert below[-1] == pytest.approx(1, abs=1e-3)
    far = np.abs(np.interp(drawn, grid, below) - (np.arange(4000) + 0.5) / 4000).max()
    assert far < 2.2 / math.sqrt(4000)  # Kolmogorov's statistic: one in ten thousand is larger
    given = X[:20].copy()
    given[:, 0] = NAN
    filled = model.sample(evidence=given)
    assert (filled[:, 0] > 0).all()


def test_what_a_density_cannot_tell_is_refused():
    X = np.random.default_rng(0).exponential(1.0, (40, 2))
    model = BayesSPN(columns=WAITING, hidden=2, sweeps=4).fit(X)
    assert model.log_prob(X).isfinite().all()
    with pytest.raises(ValueError, match="density has no quantile, got nan"):
        model.sample(2)
    with pytest.raises(ValueError, match="mode that is known, got nan"):
        model.mpe(np.array([[1.0, NAN]]))
    assert model.mpe(X[:2]).shape == (2, 2)
    with pytest.raises(ValueError, match="columns must be without Density"):
        model.save("nowhere")
    with pytest.raises(ValueError, match="columns must be of kinds that ImplicitTree knows, got a Density"):
        pyfast.spn.ImplicitTree(2, 2, columns=WAITING).fit(X)


def test_copies_and_pickles():
    assert copy.deepcopy(RAYLEIGH) is RAYLEIGH
    again = pickle.loads(pickle.dumps(RAYLEIGH))
    x = np.array([0.5, 2.0])
    assert (again.log_density(x) == RAYLEIGH.log_density(x)).all()
    assert repr(RAYLEIGH) == "Density(4 candidates of log_rayleigh)"
    X, kinds = table()
    assert Columns.fit_encoding(X, kinds) == Columns.fit_encoding(X, kinds)
    assert repr(Columns.fit_encoding(X, kinds)) == "Columns(3 variables: 2 density, 1 gaussian)"


@pytest.mark.parametrize("estimator", [BayesSPN(hidden=2, sweeps=6), EM(hidden=2, iterations=3)], ids=repr)
def test_fitted_estimators_in_another_process_call_its_functions(estimator):
    X, kinds = table(60)
    model = estimator.set_params(columns=kinds).fit(X)
    again = pickle.loads(pickle.dumps(model))
    network = again._network if isinstance(again, BayesSPN) else again.network_._network
    addresses = [d.addresses for d in again.columns_.densities if d is not None]
    assert network.graph[8][::2, :3].tolist() == addresses
    assert addresses != [d.addresses for d in model.columns_.densities if d is not None]
    assert torch.equal(again.log_prob(X), model.log_prob(X))
    assert torch.equal(copy.deepcopy(model).log_prob(X), model.log_prob(X))


def test_threads_do_not_show(threads):
    X, kinds = table(200)
    threads(lambda: BayesSPN(columns=kinds, hidden=4, sweeps=6).fit(X).log_prob(X))


def test_expected_statistics_as_counts_predict_the_same():
    """Of a table of every kind: the predictive of rounded statistics is that of the parameters, but for the prior."""
    g = np.random.default_rng(0)
    X = np.stack([g.normal(5, 2, 4000), g.poisson(3, 4000), g.exponential(2, 4000), g.integers(0, 3, 4000)], 1)
    kinds = ["gaussian", "poisson", "exponential", "categorical"]
    columns = Columns.fit_encoding(X, kinds)
    net = Network(pyfast.spn.hclt(X, 1, columns), columns)
    rows, times = columns.encode(X, training=True), torch.ones(4000, dtype=torch.float64)
    update, now = Update(net, columns, 0.0), net.draw(net.no_counts(), law(net), 0, 0)
    seen = update.expected(now, rows, times)
    found = net.log_prob(rows, net.predict(update.counts(seen), law(net)))
    torch.testing.assert_close(found, net.log_prob(rows, update.best(seen, now)), rtol=0, atol=0.05)


def no_number(x):
    return x.nothing


def not_additive(n, t, theta):
    return t[0] * t[0] * theta[0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, log_rayleigh, SCALES), TypeError, "statistics must be a function, got int"),
        ((statistics, None, SCALES), TypeError, "log_density must be a function, got NoneType"),
        ((statistics, log_rayleigh, SCALES, None, 1.0), TypeError, "quantile must be a function, got float"),
        ((no_number, log_rayleigh, SCALES), TypeError, "statistics, log_density and quantile must compile, got:"),
        ((statistics, log_rayleigh, []), ValueError, r"parameters must have shape \(M,\) or"),
        ((statistics, log_rayleigh, np.ones((2, 2, 2))), ValueError, r"parameters must have shape \(M,\) or"),
        ((statistics, log_rayleigh, [1.0, NAN]), ValueError, "parameters must be finite, got nan"),
        ((statistics, log_rayleigh, SCALES, [1.0]), ValueError, r"prior must have shape \(4,\), got \(1,\)"),
        ((statistics, log_rayleigh, SCALES, [1, 1, 0, 1]), ValueError, "prior must be positive and finite, got 0"),
        (
            (lambda x: (x, x, x, x, x, x, x, x, x), log_rayleigh, SCALES),
            ValueError,
            "statistics must return between 1 and 8",
        ),
    ],
)
def test_bad_densities_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Density(*arguments)


def test_bad_values_are_refused():
    X = np.array([[1.0], [2.0]])
    with pytest.raises(ValueError, match="log_density must add up over values as statistics do, got"):
        BayesSPN(columns=Density(value, not_additive, [1.0])).fit(X)
    with pytest.raises(ValueError, match=r"X must hold values whose log density is finite in this column, got -1.0 at"):
        BayesSPN(columns=RAYLEIGH).fit(np.array([[1.0], [-1.0]]))
    with pytest.raises(TypeError, match="X must hold numbers in a Density column"):
        BayesSPN(columns=RAYLEIGH).fit([["a"], ["b"]])
    columns = Columns.fit_encoding(X, RAYLEIGH)
    with pytest.raises(ValueError, match="within four times the range"):
        columns.encode(np.array([[1e4]]), training=True)
    with pytest.raises(TypeError, match="kinds must be of strings, Categorical or Density, got"):
        BayesSPN(columns=[3]).fit(X)


def test_without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match="Density needs numba"):
        Density(statistics, log_rayleigh, SCALES)
