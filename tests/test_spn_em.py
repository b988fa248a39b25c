import copy
import math
import signal
import sys
import threading

import pytest
import torch

import pyfast
from pyfast import _ranks
from pyfast.reference import spn as reference
from pyfast.spn import EM, SPN, Columns
from pyfast.spn._network import Network, Parameters
from pyfast.spn._parameters import start
from pyfast.spn._update import Update

NAN = math.nan


def mixed(rows=300, seed=0, missing=0.05):
    """Two clusters over a bit, three categories, a Gaussian, a Poisson and an exponential, with their kinds."""
    g = torch.Generator().manual_seed(seed)
    z = torch.rand(rows, generator=g) < 0.4
    bit = torch.rand(rows, generator=g) < torch.where(z, 0.9, 0.2)
    three = torch.where(z, torch.randint(2, (rows,), generator=g), torch.randint(1, 3, (rows,), generator=g))
    real = torch.randn(rows, generator=g) * torch.where(z, 0.5, 1.0) + torch.where(z, 4.0, -3.0)
    count = torch.poisson(torch.where(z, 1.0, 7.0), generator=g)
    wait = -torch.rand(rows, generator=g).log() * torch.where(z, 5.0, 0.5)
    X = torch.stack([bit.float(), three.float(), real, count, wait], 1).double()
    X[torch.rand(X.shape, generator=g) < missing] = NAN
    return X, ["bernoulli", "categorical", "gaussian", "poisson", "exponential"]


def structure_of(name, X, columns):
    if name == "hclt":
        return pyfast.spn.hclt(X, 4, columns)
    if name == "rat":
        return pyfast.spn.rat(X.shape[1], replicas=3, depth=1, sums=3, leaves=3)
    return pyfast.spn.tree(X.shape[1], sum_children=3, product_children=2)


@pytest.fixture(params=["hclt", "rat", "tree"])
def fitted(request):
    X, kinds = mixed()
    columns = Columns.fit_encoding(X, kinds)
    return X, columns, structure_of(request.param, X, columns)


def log_density(model, X):
    """Of a model's rows by the reference, from the definition of each family."""
    network, columns = Network(model.structure, model.columns), model.columns
    net = reference.Network(*network.graph[:6])
    p = model.network_parameters()
    rows = columns.encode(X, torch.float64)
    return reference.log_likelihood(net, p.weights.double(), p.leaves.double(), rows) + columns.log_base(rows)


def test_log_prob_and_its_derivatives_match_reference(fitted):
    X, columns, structure = fitted
    model = SPN(structure, columns, seed=3, dtype=torch.float64)
    fast, slow = model.log_prob(X), log_density(model, X)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(model.encode(X).clone()), model.log_prob(model.encode(X)))
    factor = torch.linspace(-1, 2, len(X), dtype=torch.float64)
    got = torch.autograd.grad(fast @ factor, list(model.parameters()))
    wanted = torch.autograd.grad(slow @ factor, list(model.parameters()))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_are_given_back(fitted, dtype):
    _, columns, structure = fitted
    given = start(Network(structure, columns), columns, 5, dtype)
    found = SPN(structure, columns, given.weights, given.leaves, dtype=dtype).network_parameters()
    tolerance = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.weights, given.weights, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.leaves, given.leaves, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("j", range(5))
def test_densities_integrate_to_one(j):
    X, kinds = mixed()
    columns = Columns.fit_encoding(X[:, j : j + 1], kinds[j])
    model = SPN(pyfast.spn.rat(1, leaves=3), columns, seed=1, dtype=torch.float64)
    with torch.no_grad():
        model.leaf_parameters *= 0.3  # near the column's mean and scale
    step, limit = 1.0, 0.99 * 2.0**30 / columns.quantum[0].item()
    grid = torch.arange(400.0 if kinds[j] == "poisson" else float(columns.width[0]))
    if kinds[j] in ("gaussian", "exponential"):  # in units of the column's scale
        step = 0.0005
        grid = torch.arange(-limit, limit, step) if kinds[j] == "gaussian" else torch.arange(step / 2, 25, step)
    total = model.log_prob(grid[:, None].double(), encoded=True).exp().sum() * step * columns.scale[0]
    assert abs(total.item() - 1) < 2e-5


def test_learns_by_any_optimizer(fitted):
    X, columns, structure = fitted
    for make in (lambda p: torch.optim.Adam(p, 0.05), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)):
        model = SPN(structure, columns, seed=1)
        rows = model.encode(X)
        optimizer = make(model.parameters())
        first = model.log_prob(rows, encoded=True).mean().item()
        for _ in range(60):
            optimizer.zero_grad()
            loss = -model.log_prob(rows, encoded=True).mean()
            loss.backward()
            optimizer.step()
        assert -loss.item() > first + 0.3


def test_gradients_of_many_weights_are_the_same_for_any_number_of_threads(threads):
    """Also where PyTorch was not told to be deterministic: atomic sums of floats would show."""
    torch.use_deterministic_algorithms(False)
    X = torch.randint(2, (64, 12), generator=torch.Generator().manual_seed(0)).double()
    columns = Columns.fit_encoding(X)
    model = SPN(pyfast.spn.hclt(X, 64, columns), columns)
    assert model.structure.num_weights > 40_000  # of which threads share
    threads(lambda: torch.autograd.grad(model.log_prob(X).sum(), list(model.parameters())))


def test_long_means_are_the_same_for_any_number_of_threads(threads):
    g = torch.Generator().manual_seed(0)
    X = torch.randn(70_000, 2, generator=g).double()
    model = EM(pyfast.spn.hclt(X[:100], 1), iterations=1)
    threads(lambda: torch.tensor([*model.fit(X, X_val=X).trace_, *model.trace_val_, model.score(X)]))


def test_state_dict(fitted):
    X, columns, structure = fitted
    one, other = SPN(structure, columns, seed=1), SPN(structure, columns, seed=2)
    assert not torch.equal(one.log_prob(X), other.log_prob(X))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.log_prob(X), other.log_prob(X))
    assert torch.equal(copy.deepcopy(one).log_prob(X), one.log_prob(X))
    assert torch.equal(SPN(structure, columns, seed=1).log_prob(X), one.log_prob(X))


def test_answers(fitted):
    X, columns, structure = fitted
    model = SPN(structure, columns, seed=1)
    given = X.clone()
    given[:, :3] = NAN
    asked = X.clone()
    asked[:, 3:] = NAN
    with torch.no_grad():
        torch.testing.assert_close(model.conditional(asked, given), model.log_prob(X) - model.log_prob(given))
        clash = given.clone()
        clash[:, 0] = 1 - X[:, 0]
        assert (model.conditional(X, clash) == -math.inf)[~X[:, 0].isnan()].all()
    for filled in (model.sample(evidence=given), model.mpe(given)):
        known = ~given.isnan()
        torch.testing.assert_close(filled.double()[known], given[known], rtol=1e-5, atol=1e-5)
        assert not filled.isnan().any()
    assert model.sample(7).shape == (7, 5)
    assert not torch.equal(model.sample(7, seed=4), model.sample(7, seed=5))


@pytest.mark.parametrize("structure", ["hclt", "rat", "tree"])
def test_nothing_is_completed_that_cannot_be(structure):
    X = torch.tensor([[0.0, 0, 0, 1], [1, 1, 1, 1]]).double().repeat(20, 1)
    model = EM(structure, hidden=2, iterations=40, smoothing=0).fit(X)
    rows = torch.tensor([[1.0, NAN, NAN, NAN], [NAN, NAN, NAN, 0]]).double()
    assert model.log_prob(rows).tolist()[1] == -math.inf
    assert math.isnan(model.conditional(rows[:1], rows[1:]))
    for complete in (lambda x: model.sample(evidence=x), model.mpe):
        with pytest.raises(ValueError, match="rows of a probability above 0, got 0 in row 1"):
            complete(rows)
        assert complete(rows[:1]).shape == (1, 4)


def test_arguments_of_networks_are_checked(fitted):
    _, columns, structure = fitted
    good = start(Network(structure, columns), columns, 0)
    for changed in ({"weights": 2 * good.weights}, {"leaves": good.leaves + 1}, {"weights": good.weights[1:]}):
        with pytest.raises(ValueError, match="must"):
            SPN(structure, columns, **({"weights": good.weights, "leaves": good.leaves} | changed))
    with pytest.raises(TypeError, match="dtype must"):
        SPN(structure, columns, dtype=torch.float16)
    with pytest.raises(ValueError, match="seed must"):
        SPN(structure, columns, seed=-1)
    with pytest.raises(ValueError, match="structure must have"):
        SPN(pyfast.spn.tree(3, sum_children=2, product_children=2), columns)
    with pytest.raises(ValueError, match="n or evidence"):
        SPN(structure, columns).sample()


@pytest.mark.parametrize("name", ["hclt", "rat", "tree"])
def test_likelihood_never_falls(name):
    X, kinds = mixed()
    columns = Columns.fit_encoding(X, kinds)
    structure = structure_of(name, X, columns)
    for dtype, slack in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        model = EM(structure, kinds, iterations=80, smoothing=0, patience=80, dtype=dtype).fit(X)
        trace = torch.tensor(model.trace_)
        assert len(trace) == 81
        assert (trace.diff() >= -slack).all()
        assert trace[-1] > trace[0] + 0.2
        torch.testing.assert_close(model.score(X), model.trace_[-1], rtol=0, atol=1e-5)


def test_one_iteration_is_the_textbook_s():
    """A mixture of two Gaussians: responsibilities, then their weighted means and variances."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(50, 1, generator=g).double() + 3 * (torch.rand(50, 1, generator=g) < 0.3)
    columns = Columns.fit_encoding(X, "gaussian")
    structure = pyfast.spn.rat(1, leaves=2)
    network = Network(structure, columns)
    x = columns.encode(X, torch.float64)
    w, m, s = torch.tensor([0.4, 0.6]).double(), torch.tensor([-0.5, 1.0]).double(), torch.tensor([0.7, 1.2]).double()
    leaves = torch.stack([-s.log() - 0.5 * math.log(2 * math.pi), 0 * s, -0.5 / s**2, m], 1).flatten()
    times = torch.arange(50).double() % 4
    new = Update(network, columns, 0.0)(Parameters(w, leaves), x, times)
    r = (w.log() - s.log() - 0.5 * ((x - m) / s) ** 2).softmax(1) * times[:, None]
    n = r.sum(0)
    mean = (r * x).sum(0) / n
    variance = (r * (x - mean) ** 2).sum(0) / n
    torch.testing.assert_close(new.weights, n / n.sum())
    torch.testing.assert_close(new.leaves.view(2, 4)[:, 3], mean)
    torch.testing.assert_close(-0.5 / new.leaves.view(2, 4)[:, 2], variance)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical", "poisson", "exponential", "gaussian"])
def test_a_single_leaf_is_fitted_in_one_iteration(kind):
    X, kinds = mixed(missing=0)
    x = X[:, kinds.index(kind)][:, None]
    one = pyfast.spn.Structure.from_csr([0], [0, 0], [], [0])
    model = EM(one, kind, iterations=1, smoothing=0, dtype=torch.float64).fit(x)
    mean = x.mean()
    wanted = {
        "poisson": lambda: mean.log() * x - mean - torch.lgamma(x + 1),
        "exponential": lambda: -mean.log() - x / mean,
        "gaussian": lambda: (
            -0.5 * (x - mean) ** 2 / x.var(correction=0) - 0.5 * (2 * math.pi * x.var(correction=0)).log()
        ),
    }.get(kind, lambda: (x == x.T).double().mean(0)[:, None].log())()
    torch.testing.assert_close(model.log_prob(x), wanted[:, 0])


def test_rows_repeated_count_as_often():
    X, kinds = mixed(60)
    columns = Columns.fit_encoding(X, kinds)
    network = Network(structure_of("hclt", X, columns), columns)
    rows, now = columns.encode(X, torch.float64), start(network, columns, 1, torch.float64)
    update, times = Update(network, columns, 0.0), torch.arange(60) % 4
    one, two = update(now, rows, times.double()), update(now, rows.repeat_interleave(times, 0), torch.ones(90).double())
    torch.testing.assert_close(one.weights, two.weights)
    torch.testing.assert_close(one.leaves, two.leaves)


def test_a_constant_column_keeps_a_width():
    X = torch.cat([torch.zeros(40, 1), torch.randn(40, 1, generator=torch.Generator().manual_seed(0))], 1)
    model = EM("tree", ["gaussian", "gaussian"], iterations=50, smoothing=0).fit(X)
    assert model.log_prob(X).isfinite().all()
    zeros = EM("tree", ["poisson", "exponential"], iterations=50, smoothing=0).fit(torch.zeros(30, 2))
    assert zeros.log_prob(torch.tensor([[0.0, 0.0], [3.0, 2.0]])).isfinite().all()


def test_validation_stops_and_keeps_the_best():
    X, kinds = mixed(40)
    other, _ = mixed(400, seed=1)
    model = EM("rat", kinds, hidden=8, iterations=200, smoothing=0, patience=3).fit(X, X_val=other)
    assert len(model.trace_val_) < 200
    torch.testing.assert_close(model.score(other), max(model.trace_val_), rtol=0, atol=1e-4)
    assert model.trace_val_[-1] < max(model.trace_val_)


def test_smoothing_keeps_everything_possible():
    X, kinds = mixed(60, missing=0)
    X[:, 0] = 0
    model = EM("hclt", kinds, hidden=3, iterations=20, smoothing=0.5).fit(X)
    unseen = X[:5].clone()
    unseen[:, 0] = 1
    assert model.log_prob(unseen).isfinite().all()


def test_interruption_keeps_what_was_learned():
    X, kinds = mixed(400)
    timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
    model = EM("rat", kinds, hidden=12, iterations=100_000, smoothing=0, patience=100_000)
    timer.start()
    with pytest.warns(UserWarning, match="what was learned is kept"):
        model.fit(X)
    assert 1 < len(model.trace_) < 100_000
    torch.testing.assert_close(model.score(X), model.trace_[-1], rtol=0, atol=1e-4)


def test_an_interruption_that_python_drops_is_not_lost(monkeypatch):
    class Dropped:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    with _ranks.stopping_together(None) as stop:
        stop()
        Dropped()
        assert len(dropped) == 1
        with pytest.raises(KeyboardInterrupt):
            stop()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_user_s_own_stays():
    seen, before = [], signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with _ranks.stopping_together(None) as stop:
            signal.raise_signal(signal.SIGINT)
            stop()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [1]


def test_estimator_s_manners():
    X, kinds = mixed(50)
    model = EM("tree", kinds, iterations=3)
    assert model.get_params()["iterations"] == 3
    assert repr(model).startswith("EM(structure='tree'")
    assert model.set_params(hidden=5).hidden == 5
    with pytest.raises(ValueError, match="fit must"):
        model.log_prob(X)
    with pytest.raises(ValueError, match="params must"):
        model.set_params(nothing=1)
    model.fit(X)
    assert model.score_samples(X).shape == (50,)
    assert model.sample(4).shape == (4, 5)
    assert not model.mpe(X).isnan().any()
    torch.testing.assert_close(model.conditional(X, X), torch.zeros(50, dtype=torch.float64))
    for bad in (
        {"structure": "other"},
        {"hidden": 0},
        {"iterations": 0},
        {"patience": -1},
        {"smoothing": -1},
        {"tolerance": NAN},
        {"seed": -1},
    ):
        with pytest.raises(ValueError, match="must"):
            EM(**bad).fit(X)
    with pytest.raises(TypeError, match="dtype must"):
        EM(dtype=torch.float16).fit(X)
    with pytest.raises(ValueError, match="X must have"):
        EM(pyfast.spn.tree(3, sum_children=2, product_children=2)).fit(X)
    with pytest.raises(ValueError, match="X_val must"):
        EM("tree", kinds).fit(X, X_val=X[:0])
