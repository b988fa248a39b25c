"""The estimator: what it learns, answers, keeps, saves and refuses."""

import math
import warnings

import numpy as np
import pytest
import torch

import pyfast
from pyfast.reference import spn as reference
from pyfast.spn import BayesSPN
from pyfast.spn._chain import Chain
from pyfast.spn._diagnostics import effective_size, split_r_hat
from pyfast.spn._hyper import Hyper, Shares, _slice, uniforms
from pyfast.spn._network import Counts, Network

NAN = float("nan")
pytestmark = pytest.mark.filterwarnings("ignore:the chains disagree")  # few sweeps


def doubled(n=300, d=3, seed=0):
    """Bits, each column twice: 0.69 d nats a row, where independent columns would need twice that."""
    bits = np.random.default_rng(seed).integers(0, 2, (n, d)).astype(float)
    return np.concatenate([bits, bits], 1)


@pytest.fixture(scope="module")
def model():
    return BayesSPN(hidden=4, sweeps=60, seed=1).fit(doubled())


def test_learns_what_is_there(model):
    assert model.score(doubled(seed=5)) > -3 * math.log(2) - 0.25


def test_probabilities_sum_to_one(model):
    cells = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6)
    log_p = model.log_prob(cells)
    assert float(log_p.logsumexp(0)) == pytest.approx(0, abs=1e-5)
    part = cells.clone()
    part[:, 2:] = NAN
    first = cells[:, :2]
    for row in torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 2):
        same = (first == row).all(1)
        assert float(log_p[same].logsumexp(0)) == pytest.approx(float(model.log_prob(part[same][:1])), abs=1e-5)


def test_conditional_is_joint_less_marginal(model):
    X = doubled(20, seed=2)
    known = X.copy()
    known[:, 3:] = NAN
    torch.testing.assert_close(model.conditional(X, known), model.log_prob(X) - model.log_prob(known))
    other = known.copy()
    other[:, 0] = 1 - other[:, 0]
    assert (model.conditional(X, other) == -math.inf).all()


def test_samples_follow_the_predictive(model):
    """Cells of 20,000 samples, by chi-square; and given evidence, from the conditional mixture over states."""
    cells = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6)
    code = 2 ** torch.arange(6)
    for known in (torch.full((6,), NAN), torch.tensor([1.0, NAN, NAN, NAN, 0.0, NAN])):
        n = 20_000
        drawn = torch.from_numpy(model.sample(evidence=known.double().repeat(n, 1).numpy(), seed=3))
        fits = ((cells == known) | known.isnan()).all(1)
        p = model.log_prob(cells[fits]).softmax(0)
        found = torch.bincount((drawn.long() * code).sum(1), minlength=64)[(cells[fits].long() * code).sum(1)]
        assert found.sum() == n
        assert ((found - n * p).abs() <= 4.5 * (n * p * (1 - p)).sqrt() + 3).all()


def test_mpe_keeps_what_is_known(model):
    X = doubled(40, seed=3)
    asked = X.copy()
    asked[:, 3:] = NAN
    assert (model.mpe(asked) == X).mean() > 0.95
    assert (model.mpe(X) == X).all()


def test_credible_interval_holds_the_predictive_mostly(model):
    X = doubled(50, seed=4)
    interval = model.credible_interval(X, 0.95)
    assert (interval[:, 0] < interval[:, 1]).all()
    inside = (interval[:, 0] <= model.log_prob(X)) & (model.log_prob(X) <= interval[:, 1] + 0.1)
    assert inside.double().mean() > 0.9


@pytest.mark.parametrize("kernel", ["block", "topdown", "levels", "isir", "informed"])
@pytest.mark.parametrize("mode", ["instantiated", "collapsed"])
def test_every_kernel_reaches_the_same_predictive(kernel, mode):
    """A network small enough to enumerate: log p(x* | X) averaged over states against the exact posterior mean."""
    structure = pyfast.spn.tree(2, 2, 2)
    X = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, NAN]])
    cells = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    model = BayesSPN(
        structure, kernel=kernel, mode=mode, hyper="fixed", sweeps=1500, burn=0.05, states=1000, chains=2, seed=3
    ).fit(X)
    net = model._network
    law = net.law(torch.ones(net.num_layers, dtype=torch.float64), model.columns_.prior(2.0)[0])
    ref = reference.Network(
        structure.kind, structure.first, structure.child, structure.variable, net.leaf_first, model.columns_.family
    )
    ref_law = reference.Law(*law, net.leaf_prior)
    states, p = reference.posterior(ref, ref_law, torch.from_numpy(X))
    want = np.zeros(4)
    for Z, weight in zip(states, p.tolist(), strict=True):
        for i, cell in enumerate(cells):
            both = torch.from_numpy(np.concatenate([X, cell[None]]))
            want[i] += weight * float(
                reference.log_conditional(ref, ref_law, both, [*Z, None], 3)[1].logsumexp(0).exp()
            )
    got = model.log_prob(cells).exp().numpy()
    assert got.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(got, want, atol=0.015)  # four standard errors of the slowest kernel


# ---- determinism and files


@pytest.mark.parametrize("options", [{}, {"structure": "tree", "kernel": "isir", "mode": "collapsed"}])
def test_resumed_is_uninterrupted(options, tmp_path):
    X = doubled(120)
    whole = BayesSPN(hidden=3, sweeps=33, states=6, seed=4, **options).fit(X)
    part = BayesSPN(hidden=3, sweeps=14, states=6, seed=4, **options).fit(X)
    part.save(tmp_path / "model.pt")
    loaded = BayesSPN.load(tmp_path / "model.pt")
    assert torch.equal(loaded.log_prob(X), part.log_prob(X))
    loaded.resume(X, 19)
    assert torch.equal(loaded.log_prob(X), whole.log_prob(X))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so short a chain has not mixed
        assert torch.equal(loaded.diagnostics().log_joint, whole.diagnostics().log_joint)
    with pytest.raises(ValueError, match="X must be the table that was fitted"):
        loaded.resume(X[:-1], 1)


@pytest.mark.parametrize("hyper", ["slice", "eb"])
def test_stopped_chains_are_saved_as_they_answer(hyper, tmp_path, monkeypatch):
    """Ctrl-C before a sweep is kept, and before empirical Bayes has settled."""

    def stop(*_):
        raise KeyboardInterrupt

    X, path = doubled(60), tmp_path / "model.pt"
    if hyper == "slice":
        monkeypatch.setattr(BayesSPN, "_step", stop)
        with pytest.warns(UserWarning, match="stopped after 1 sweeps"):
            model = BayesSPN(hidden=3, sweeps=20).fit(X)
    else:
        sweep = Chain.sweep
        monkeypatch.setattr(Chain, "sweep", lambda self, *args: stop() if self.sweeps == 4 else sweep(self, *args))
        with pytest.warns(UserWarning, match="stopped after 4 sweeps"):
            model = BayesSPN(hidden=3, sweeps=20, hyper=hyper).fit(X)
    monkeypatch.undo()
    model.save(path)
    assert torch.equal(BayesSPN.load(path).log_prob(X), model.log_prob(X))
    file = torch.load(path, weights_only=True)
    assert len(file["states"]) == 2
    torch.save(file | {"states": []}, path)
    with pytest.raises(ValueError, match=r"path must name a file with kept states, got none in .*model\.pt"):
        BayesSPN.load(path)


def test_threads_do_not_show(threads):
    threads(
        lambda: BayesSPN(hidden=8, sweeps=6, seed=2).fit(np.tile(doubled(2000, 8), (2, 1))).log_prob(doubled(50, 8))
    )


def test_seeds_differ():
    X = doubled(60)
    a, b = (BayesSPN(hidden=3, sweeps=6, seed=s).fit(X).log_prob(X) for s in (0, 1))
    assert not torch.equal(a, b)


def test_interrupted_keeps_what_was_sampled(monkeypatch):
    sweep, calls = Chain.sweep, []

    def stop_at_the_ninth(self, *args):
        calls.append(self)
        if len(calls) == 9:
            raise KeyboardInterrupt
        sweep(self, *args)

    X = doubled(60)
    monkeypatch.setattr(Chain, "sweep", stop_at_the_ninth)
    with pytest.warns(UserWarning, match="stopped after 4 sweeps"):
        stopped = BayesSPN(hidden=3, sweeps=50).fit(X)
    monkeypatch.undo()
    assert stopped.log_prob(X).isfinite().all()
    stopped.resume(X, 6)
    assert torch.equal(stopped.log_prob(X), BayesSPN(hidden=3, sweeps=10).fit(X).log_prob(X))


# ---- tables of all kinds


def test_mixed_columns_and_missing_values():
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, 400)
    frame = pd.DataFrame(
        {
            "colour": np.where(group, "red", "blue"),
            "height": rng.normal(group * 4.0, 1.0),
            "visits": rng.poisson(1 + 9 * group),
            "wait": rng.exponential(1 + 5.0 * group),
            "member": (group ^ (rng.random(400) < 0.1)).astype(bool),
        }
    )
    frame.loc[::5, "height"] = None
    kinds = ["categorical", "gaussian", "poisson", "exponential", "bernoulli"]
    model = BayesSPN(columns=kinds, hidden=4, sweeps=60).fit(frame)
    asked = frame.copy()
    asked["colour"] = None
    assert (model.mpe(asked)["colour"] == frame["colour"]).mean() > 0.9
    drawn = model.sample(500)
    assert list(drawn.columns) == list(frame.columns)
    assert set(drawn["colour"]) == {"red", "blue"}
    assert abs(drawn["height"].mean() - frame["height"].mean()) < 0.7
    assert model.log_prob(frame).isfinite().all()


def test_density_is_of_the_values_given():
    """The integral of a Gaussian column's density over its own units is one; scaling shifts it by log of the scale."""
    X = np.random.default_rng(1).normal(100, 25, (200, 1))
    model = BayesSPN(columns="gaussian", hidden=2, sweeps=20).fit(X)
    grid = np.linspace(-900, 1100, 20_001)[:, None]
    assert float(model.log_prob(grid).exp().sum() * 0.1) == pytest.approx(1, abs=1e-3)


EDGES = {
    "all zero": np.zeros((30, 4)),
    "all missing column": np.where(np.arange(4) == 1, NAN, doubled(30, 2)),
    "all missing row": np.vstack([np.full((1, 4), NAN), doubled(20, 2)]),
    "one row": np.array([[1.0, 0.0, 1.0]]),
    "one column": np.array([[0.0], [1.0], [1.0]]),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("structure", ["hclt", "rat", "tree"])
def test_edges_are_finite(name, structure):
    X = EDGES[name]
    model = BayesSPN(structure, "bernoulli", hidden=3, sweeps=8).fit(X)
    assert model.log_prob(X).isfinite().all()
    assert not np.isnan(model.sample(3)).any()
    assert model.diagnostics().log_joint.isfinite().all()


# ---- hyperparameters and diagnostics


def test_slice_sampler_draws_from_its_density():
    """A skewed and a two-peaked density: means of functions of 3,000 chains of 60 steps against the integral."""

    def density(x):
        skewed = 2 * x - x.exp()
        peaks = torch.logaddexp(-((x + 2) ** 2), -((x - 2) ** 2) / 0.5)
        return torch.where(torch.arange(len(x)) % 2 == 0, skewed, peaks)

    x = torch.zeros(6000, dtype=torch.float64)
    for step in range(60):
        x = _slice(density, x, 1, step)
    grid = torch.linspace(-12, 12, 48_001, dtype=torch.float64)
    for part in (0, 1):
        both = density(torch.stack([grid, grid], 1).flatten())[part::2]
        p = both.softmax(0)
        for f in (lambda v: v, lambda v: v**2, lambda v: (v > 0).double()):
            mean, got = (p * f(grid)).sum(), f(x[part::2])
            assert abs(float(got.mean() - mean)) < 5 * float(got.std()) / 3000**0.5


def test_hyper_densities_are_the_joint():
    """Differences of the slice sampler's densities are those of log p(X, Z), computed by the kernel."""
    X = doubled(80)
    columns = pyfast.spn.Columns.fit_encoding(X)
    net = Network(pyfast.spn.hclt(X, 3, columns), columns)
    hyper = Hyper(net, columns, 1.0, 2.0)
    law = net.law(hyper.mass, hyper.prior())
    rows = columns.encode(X)
    counts, _ = net.sweep(rows, torch.ones(80, dtype=torch.int64), net.draw(net.no_counts(), law, 1, 0), 2, 0)
    assert isinstance(counts, Counts)
    before = net.log_joint(counts, law)
    mass = torch.linspace(0.3, 2.0, net.num_layers, dtype=torch.float64)
    by_mass = hyper.of_sums(counts).density
    prior = lambda x: 2 * x.log() - x  # noqa: E731  Gamma(2, 1) of the logarithm
    change = (by_mass(mass.log()) - prior(mass) - by_mass(hyper.mass.log()) + prior(hyper.mass)).sum()
    assert net.log_joint(counts, net.law(mass, hyper.prior())) - before == pytest.approx(float(change), abs=1e-6)
    kappa = torch.linspace(0.5, 5.0, 6, dtype=torch.float64)
    by_kappa = hyper.of_leaves(counts).density
    prior = lambda x: 2 * x.log() - x / 2  # noqa: E731
    change = (by_kappa(kappa.log()) - prior(kappa) - by_kappa(hyper.kappa.log()) + prior(hyper.kappa)).sum()
    assert net.log_joint(counts, net.law(hyper.mass, hyper.prior(kappa))) - before == pytest.approx(
        float(change), abs=1e-6
    )


def test_climbing_finds_the_masses_and_never_descends():
    """Counts of 2,000 sets for each of three known masses, in uneven shares: all three come back within a tenth."""
    rng, masses = np.random.default_rng(0), torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64)
    part = np.array([0.1, 0.2, 0.3, 0.4])
    group = torch.arange(3).repeat_interleave(2000)
    counts = torch.from_numpy(
        np.array([rng.multinomial(50, rng.dirichlet(float(masses[g]) * part)) for g in group], dtype=np.float64)
    )
    set_, child = torch.nonzero(counts).unbind(1)
    seen = counts[set_, child]
    one, each = torch.ones(len(group)).double(), torch.ones(len(seen)).double()
    shares = Shares(counts.sum(1), group, one, seen, torch.tensor(part)[child], group[set_], each, 0.5)
    x, before = torch.ones(3, dtype=torch.float64), torch.full((3,), -math.inf, dtype=torch.float64)
    for _ in range(200):
        now = shares.density(x.log()) - x.log()  # the density of x
        assert (now >= before - 1e-9 * now.abs()).all()
        x, before = shares.climb(x), now
    torch.testing.assert_close(x, masses, rtol=0.1, atol=0)
    log_x = x.log().requires_grad_()
    slope = torch.autograd.grad((shares.density(log_x) - log_x).sum(), log_x)[0]
    assert slope.abs().max() < 1e-2  # of some 1e5 nats


def test_a_step_looks_at_some_leaves_of_each_column():
    X = doubled(400)
    columns = pyfast.spn.Columns.fit_encoding(X)
    net = Network(pyfast.spn.rat(6, replicas=40, depth=1, sums=3, leaves=12), columns)
    hyper, counts = Hyper(net, columns, 1.0, 2.0), net.no_counts()
    counts.leaves[::2] = torch.arange(1, len(counts.leaves) // 2 + 1)
    order = uniforms(0, 0, net.structure.num_leaves, 1)[0]
    every, some = hyper.of_leaves(counts), hyper.of_leaves(counts, order)
    assert every.group.bincount(every.sets).tolist() == [480] * 6
    assert some.group.bincount(some.sets).tolist() == [256] * 6
    kept = dict(zip(every.seen.tolist(), every.part.tolist(), strict=True))
    assert [kept[x] for x in some.seen.tolist()] == some.part.tolist()
    other = hyper.of_leaves(counts, uniforms(0, 1, net.structure.num_leaves, 1)[0])
    assert not torch.equal(some.seen, other.seen)


def test_empirical_bayes_stays_after_the_first_burn_in(tmp_path):
    X = doubled()
    fitted = BayesSPN(hidden=4, sweeps=20, burn=0.5, hyper="eb", seed=2).fit(X)
    for chain in range(2):
        mine = [s for s in fitted.states_ if s.chain == chain]
        assert len(mine) > 1
        assert all(torch.equal(s.mass, mine[0].mass) and torch.equal(s.kappa, mine[0].kappa) for s in mine)
        assert not torch.equal(mine[0].mass, torch.ones_like(mine[0].mass))
        assert not torch.equal(mine[0].kappa, torch.full_like(mine[0].kappa, 2.0))
    fitted.save(tmp_path / "model.pt")
    loaded = BayesSPN.load(tmp_path / "model.pt").resume(X, 20)
    fitted.resume(X, 20)
    for a, b in zip(fitted.states_, loaded.states_, strict=True):
        assert a.sweep == b.sweep > 20
        assert torch.equal(a.weight_counts, b.weight_counts)
        assert torch.equal(a.kappa, b.kappa)
    with pytest.raises(ValueError, match=r"burn must be in \[0, 1\), above 0 for hyper='eb', got 0"):
        BayesSPN(hyper="eb", burn=0).fit(X)


def test_uniforms_are_open():
    u = uniforms(1, 2, 50_000, 2)
    assert u.min() > 0
    assert u.max() < 1
    assert abs(float(u.mean()) - 0.5) < 0.01


def test_diagnostics_of_known_chains():
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(4, 2000, dtype=torch.float64, generator=generator)
    assert split_r_hat(white) < 1.01
    assert 6000 < effective_size(white) < 12_000
    shifted = white + torch.arange(4)[:, None]
    assert split_r_hat(shifted) > 1.3
    slow = torch.zeros(4, 2000, dtype=torch.float64)
    for t in range(1, 2000):
        slow[:, t] = 0.9 * slow[:, t - 1] + white[:, t]
    assert effective_size(slow) == pytest.approx(8000 * 0.1 / 1.9, rel=0.35)  # (1 - r) / (1 + r)
    assert math.isnan(split_r_hat(white[:, :3]))


def test_chains_that_disagree_are_told():
    model = BayesSPN(hidden=3, sweeps=30).fit(doubled(60))
    model._trace = [[float(i + 100 * c) for i in range(30)] for c in range(2)]
    with pytest.warns(UserWarning, match="the chains disagree: split R-hat is"):
        model.diagnostics()


def test_a_root_that_hardly_moves_is_told():
    model = BayesSPN("tree", kernel="topdown", sweeps=10).fit(doubled(30))
    model._chains[0].accepted[-1] = torch.tensor([10_000, 3])
    model._chains[1].accepted[-1] = torch.tensor([10_000, 150])
    with pytest.warns(UserWarning, match="the root moves in 153 of 20000 tries; take another kernel"):
        model.diagnostics()
    model._chains[1].accepted[-1] = torch.tensor([10_000, 250])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the chains disagree")
        model.diagnostics()


# ---- scikit-learn's ways, and refusals


def test_clones_and_pipelines():
    base = pytest.importorskip("sklearn.base")
    model = BayesSPN(hidden=3, sweeps=5, kappa=1.0)
    copy = base.clone(model)
    assert copy.get_params() == model.get_params()
    assert not hasattr(copy, "states_")
    assert repr(copy) == "BayesSPN(hidden=3, sweeps=5, kappa=1.0)"
    X = doubled(40)
    assert copy.fit(X, None) is copy
    assert copy.score_samples(X).shape == (40,)
    with pytest.raises(ValueError, match="params must be among"):
        model.set_params(sweep=3)


REFUSED = [
    ("kernel", "gibbs", ValueError, "kernel must be one of"),
    ("mode", "exact", ValueError, "mode must be"),
    ("hyper", "map", ValueError, "hyper must be slice, eb or fixed"),
    ("structure", "chain", ValueError, "structure must be"),
    ("chains", 0, ValueError, "chains must be at least 1, got 0"),
    ("chains", True, TypeError, "chains must be an int, got bool"),
    ("states", 0, ValueError, "states must be"),
    ("hidden", 0, ValueError, "hidden must be"),
    ("hidden", 10**5, ValueError, r"hidden must make fewer than 2\^31 weights and leaves, got 50000700000"),
    ("sweeps", -1, ValueError, "sweeps must be"),
    ("warm", 1.5, TypeError, "warm must be an int, got float"),
    ("burn", 1.0, ValueError, r"burn must be in \[0, 1\), got 1.0"),
    ("burn", None, TypeError, "burn must be a number, got NoneType"),
    ("mass", 0.0, ValueError, "mass must be positive and finite, got 0.0"),
    ("mass", "1", TypeError, "mass must be a number, got str"),
    ("kappa", NAN, ValueError, "kappa must be positive and finite, got nan"),
    ("seed", -1, ValueError, r"seed must be in \[0, 2\^64\), got -1"),
    ("seed", 0.5, TypeError, "seed must be an int, got float"),
    ("lookahead", -1, ValueError, "lookahead must be at least 0, got -1"),
    ("lookahead", 2**31, ValueError, r"lookahead must be below 2\^31, got 2147483648"),
    ("candidates", 1, ValueError, r"candidates must be 0 or in \[2, 2\^31\), got 1"),
    ("candidates", 2**31, ValueError, "candidates must be 0 or in .*, got 2147483648"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), REFUSED)
def test_arguments_are_refused_by_name(name, value, error, message):
    with pytest.raises(error, match=message):
        BayesSPN(**{name: value}).fit(doubled(10))


def test_hostile_tables_are_refused_by_cell():
    for X in (np.empty((0, 3)), np.empty((3, 0))):
        with pytest.raises(ValueError, match="X must have at least one"):
            BayesSPN().fit(X)
    with pytest.raises(ValueError, match="inf"):
        BayesSPN(columns="gaussian").fit(np.array([[1.0, math.inf], [2.0, 3.0]]))
    model = BayesSPN(hidden=2, sweeps=4).fit(doubled(20))
    with pytest.raises(ValueError, match="columns"):
        model.log_prob(np.zeros((2, 3)))
    bad = doubled(3)
    bad[2, 1] = 2
    with pytest.raises(ValueError, match=r"row 2|\[2, 1\]"):
        model.log_prob(bad)
    with pytest.raises(ValueError, match="n or evidence"):
        model.sample()
    with pytest.raises(ValueError, match="level"):
        model.credible_interval(doubled(2), 1.0)
    with pytest.raises(ValueError, match="fit must be called first"):
        BayesSPN().log_prob(doubled(2))
    assert model.log_prob(np.empty((0, 6))).shape == (0,)


@pytest.mark.parametrize(("mean", "rows"), [(5, 3000), (90, 50_000), (3e5, 100)])
def test_large_counts_have_the_density_of_their_negative_binomial(mean, rows):
    """In closed form: one leaf, which has seen all rows; constants of 1e8 nats cancel."""
    X = np.random.default_rng(0).poisson(mean, (rows, 1)).astype(float)
    model = BayesSPN(pyfast.spn.rat(1, leaves=1), columns="poisson", sweeps=2, hyper="fixed", states=1).fit(X)
    a, b = (model.columns_.prior(model.kappa)[0][:2] + torch.tensor([X.sum(), rows])).tolist()
    x = X[:50, 0]
    wanted = [math.lgamma(a + k) - math.lgamma(a) - math.lgamma(k + 1) - a * math.log1p(1 / b) for k in x]
    wanted = torch.tensor(wanted, dtype=torch.float64) - torch.from_numpy(x) * math.log1p(b)
    rounded = 16 * math.lgamma(a) * np.finfo(float).eps
    torch.testing.assert_close(model.log_prob(X[:50]), wanted, rtol=0, atol=rounded)
    assert model.mpe([[NAN]]).item() == pytest.approx(mean, rel=0.1)


def test_numbers_of_numpy_are_arguments(tmp_path):
    X, three = doubled(40), np.int64(3)
    model = BayesSPN(hidden=three, sweeps=three, chains=np.int32(2), seed=np.uint64(2**64 - 1)).fit(X)
    same = BayesSPN(hidden=3, sweeps=3, seed=2**64 - 1).fit(X)
    assert torch.equal(model.log_prob(X), same.log_prob(X))
    model.save(tmp_path / "model.pt")
    assert BayesSPN.load(tmp_path / "model.pt").get_params() == same.get_params()
    pyfast.spn.EM(hidden=three, iterations=three, seed=three).fit(X)


@pytest.mark.parametrize("network", [True, False])
def test_draws_are_refused_by_argument(model, network):
    made = pyfast.spn.SPN(model.structure_, model.columns_) if network else model
    for n, seed, error, message in [
        (-1, 0, ValueError, "n must be at least 0, got -1"),
        (2.5, 0, TypeError, "n must be an int, got float"),
        (1, -1, ValueError, r"seed must be in \[0, 2\^64\), got -1"),
        (1, 2**64, ValueError, "seed must be in"),
        (1, 0.5, TypeError, "seed must be an int, got float"),
    ]:
        with pytest.raises(error, match=message):
            made.sample(n, seed=seed)
    assert len(made.sample(1, seed=2**64 - 1)) == 1


def test_no_warning_in_an_ordinary_fit():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BayesSPN(hidden=2, sweeps=4).fit(doubled(20)).sample(2)
