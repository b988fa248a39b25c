"""Parameters drawn by the GPU's kernels, and whole sweeps: against their meaning, and against those of the CPU."""

import math
import pickle

import mpmath
import numpy as np
import pytest
import torch
from pyfast.kernels import spn
from pyfast.kernels.spn import _gibbs, _regions, _slabs
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import pyfast
from pyfast.reference import spn as reference
from pyfast.spn import BayesSPN, Categorical, Columns, Density, Structure
from pyfast.spn import _bayes as bayes
from pyfast.spn._network import CHOICES, PARAMETERS, Counts, Network, Parameters, purpose

HIGH = (1 << 64) - 3, (1 << 63) + 12345  # a seed and a purpose
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{x}:RuntimeWarning") for x in ("overflow", "invalid", "divide", "All-NaN")
]


NAN = float("nan")
BITS = ("bernoulli",) * 5
MIXED = ("bernoulli", "categorical", "gaussian", "poisson", "exponential")


def table(rows, kinds=BITS):
    """Some values are missing; every category is there."""
    g = np.random.default_rng(0)
    draw = {
        "bernoulli": lambda: g.integers(0, 2, rows),
        "categorical": lambda: (np.arange(rows) + g.integers(0, 2, rows)) % 5,
        "gaussian": lambda: g.normal(30, 2, rows),
        "poisson": lambda: g.poisson(3, rows),
        "exponential": lambda: g.exponential(7, rows),
    }
    X = np.stack([np.asarray(draw[k](), float) for k in kinds], 1)
    X[10:][g.random(X[10:].shape) < 0.15] = NAN
    return X


STRUCTURES = {
    "rat": lambda: pyfast.spn.rat(5, replicas=2, depth=1, sums=2, leaves=3),
    "wide rat": lambda: pyfast.spn.rat(5, replicas=1, depth=1, sums=2, leaves=17),
    "hclt": lambda: pyfast.spn.hclt(table(64), 3, "bernoulli"),
    "tree": lambda: pyfast.spn.tree(5, 2, 2),
}


def problem(structure, kinds=BITS, rows=40, dtype=torch.float64):
    """A network, rows, and parameters drawn from the prior."""
    X = table(rows, kinds)
    columns = Columns.fit_encoding(X, [Categorical(5) if k == "categorical" else k for k in kinds])
    net = Network(STRUCTURES[structure]() if isinstance(structure, str) else structure, columns)
    return net, columns.encode(X, dtype), net.draw(net.no_counts(), law_of(net, 20.0, 2.0), 7, purpose(2), dtype)


def law_of(net, mass, kappa):
    return net.law(torch.full((net.num_layers,), mass, dtype=torch.float64), net.columns.prior(kappa)[0])


def draw(net, counts, law, seed, what, dtype=torch.float64):
    weights, leaves = torch.full((net.structure.num_weights,), NAN, dtype=dtype), None
    leaves = torch.full((int(net.leaf_first[-1]),), NAN, dtype=dtype)
    spn.draw(net.graph, *counts, *law, net.leaf_prior, seed, what, weights, leaves)
    return weights, leaves


def meaning(net, counts, law, seed, what, m):
    s = net.structure
    ref = reference.Network(s.kind, s.first, s.child, s.variable, net.leaf_first, net.columns.family)
    found = reference.draw(ref, reference.Law(*law, net.leaf_prior), counts, net.columns.quantum, seed, what, m)
    return [torch.tensor([float(x) for x in y], dtype=torch.float64) for y in found]


def pieces(net, weights, leaves):
    """Numbers whose sizes have nothing to do with each other: weights, tables, and each of a curve's."""
    family = net.columns.family[net.leaf_variable]
    yield weights
    yield leaves[(family == reference.TABLE).repeat_interleave(net.leaf_first.diff())]
    for kind in family.unique().tolist():
        for i in range(4 * (kind != reference.TABLE)):
            yield leaves[net.leaf_first[:-1][family == kind] + i]


# every sum has one child
ONE_WIDE = Structure.from_csr([2, 1, 0, 2, 0], [0, 1, 3, 3, 4, 4], [1, 2, 3, 4], [-1, -1, 0, -1, 1], 2)
DRAWN = [("rat", BITS), ("hclt", MIXED), ("tree", MIXED)]


@pytest.mark.parametrize(("mass", "kappa"), [(3.0, 2.0), (1e-6, 1e-6), (1e9, 1e9)], ids=["some", "tiny", "huge"])
@pytest.mark.parametrize(("name", "kinds"), DRAWN)
def test_parameters(name, kinds, mass, kappa):
    """Before data and after, to 50 digits, the CPU's and ours err at most twice as much as float64 in plain Python.

    A decision to refuse that went the other way would be off by as much as the draws vary.
    """
    net, x, p = problem(name, kinds)
    law = law_of(net, mass, kappa)
    seen, _ = net.sweep(x, torch.ones(len(x), dtype=torch.int64), p, 5, 6)
    for counts, (seed, what) in ((seen, HIGH), (net.no_counts(), (5, purpose(PARAMETERS, 3, 9)))):
        with mpmath.workdps(50):
            truths = meaning(net, counts, law, seed, what, mpmath.mp)
        plain = meaning(net, counts, law, seed, what, math)
        single = draw(net, counts, law, seed, what, torch.float32)
        for got in (draw(net, counts, law, seed, what), net.draw(counts, law, seed, what, torch.float64)[:2]):
            for g, ours, truth in zip(*(pieces(net, *y) for y in (got, plain, truths)), strict=True):
                allowed = 2 * (ours - truth).abs().max() + 4 * torch.finfo(torch.float64).eps * truth.abs().max()
                assert (g - truth).abs().max() <= allowed
        for g, truth in zip(single, truths, strict=True):  # rounded once
            kept = truth.float().double()
            ends = torch.finfo(torch.float32).eps * kept.abs() + 2.0**-149
            assert ((g.double() - kept).abs() <= ends).all()


def test_normalised():
    net, _, _ = problem("wide rat")
    weights, leaves = draw(net, net.no_counts(), law_of(net, 1e-3, 2.0), 1, 2)
    total = torch.zeros(len(net.sums), dtype=torch.float64).index_add(0, net.weight_sum, weights)
    children = net.structure.first.diff()[net.sums]  # a division for each, and as many additions before and after it
    assert ((total - 1).abs() <= children * torch.finfo(torch.float64).eps).all()
    torch.testing.assert_close(leaves.view(-1, 2).exp().sum(1), torch.ones(len(leaves) // 2).double())


def test_one_child_has_all():
    net, _, _ = problem(ONE_WIDE, BITS[:2])
    for mass in (1e-6, 1.0, 1e9):
        weights, leaves = draw(net, net.no_counts(), law_of(net, mass, 2.0), 1, 2)
        assert torch.equal(weights, torch.ones(2, dtype=torch.float64))
        torch.testing.assert_close(leaves, net.draw(net.no_counts(), law_of(net, mass, 2.0), 1, 2, torch.float64)[1])
    leaf = Structure.from_csr([0], [0, 0], [], [0], 1)  # no sum
    net, _, _ = problem(leaf, ("categorical",))
    weights, leaves = draw(net, net.no_counts(), law_of(net, 1.0, 2.0), 1, 2)
    assert len(weights) == 0
    assert abs(float(leaves.exp().sum()) - 1) < 1e-14


@pytest.mark.parametrize("bad", [NAN, math.inf, -1.0])
def test_no_law_draws_forever(bad):
    """What is no mass gives NaN, and others their draws."""
    net, _, _ = problem("tree", MIXED)
    law = law_of(net, 1.0, 2.0)
    truth = draw(net, net.no_counts(), law, 1, 2)
    alpha = law.alpha.clone()
    alpha[net.sums[0]] = bad
    weights, leaves = draw(net, net.no_counts(), law._replace(alpha=alpha), 1, 2)
    assert torch.equal(weights.isnan(), net.weight_sum == 0)
    assert torch.equal(weights[net.weight_sum > 0], truth[0][net.weight_sum > 0])
    assert torch.equal(leaves, truth[1])
    _, leaves = draw(net, net.no_counts(), law._replace(prior=torch.full_like(law.prior, bad)), 1, 2)
    family = net.columns.family[net.leaf_variable].repeat_interleave(net.leaf_first.diff())
    assert leaves[family == reference.TABLE].isnan().all()


def gibbs_of(net, x, device):
    return spn.Gibbs(x.to(device), net.graph, net.leaf_prior, int(net.columns.width.sum()))


def replays(device):
    """One more than the sweeps of a test: on a GPU the first compiles, the second is captured, the third replayed."""
    return 5 if device == "cuda" else 2


def there(counts):
    return Counts(*(x.cpu() for x in counts))


@pytest.mark.parametrize(("name", "kinds"), DRAWN)
def test_sweeps(name, kinds, device):
    """Captured and replayed, launched, one kernel after the other, and on the CPU: the same counts, to the last one."""
    net, x, p = problem(name, kinds)
    ones, law = torch.ones(len(x), dtype=torch.int64), law_of(net, 3.0, 2.0)
    gibbs, apart = (gibbs_of(net, x, device) for _ in range(2))
    now = there(gibbs.choose(*p[:2], 5, purpose(CHOICES)))
    expected, likelihoods = net.sweep(x, ones, p, 5, purpose(CHOICES))
    assert all(map(torch.equal, now, expected))
    rounded = (4 + x.shape[1]) * torch.finfo(torch.float64).eps * likelihoods.abs()  # both round every variable
    assert ((gibbs.room.out.cpu() - likelihoods).abs() <= rounded).all()
    for sweep in range(1, replays(device)):
        words = 5, purpose(PARAMETERS, 0, sweep), purpose(CHOICES, 0, sweep)
        found = gibbs.sweep(*now, *law, *words)
        if device == "cuda":
            apart._launched = False  # is never captured
            assert all(map(torch.equal, found, apart.sweep(*now, *law, *words)))
            for name in ("weights", "leaves", "out"):
                assert torch.equal(getattr(gibbs.room, name), getattr(apart.room, name))
        weights, leaves = draw(net, now, law, *words[:2])
        counts, out = net.no_counts(), torch.full((len(x),), NAN, dtype=torch.float64)
        spn.sweep(x, ones, weights, leaves, words[0], words[2], 0, net.graph, *counts, out)
        assert all(map(torch.equal, there(found), counts))
        assert torch.equal(gibbs.room.out.cpu(), out)
        drawn = net.draw(now, law, *words[:2], torch.float64)
        assert all(map(torch.equal, counts, net.sweep(x, ones, drawn, words[0], words[2])[0]))
        now = counts
    assert (gibbs._graph is not None) == (device == "cuda")
    assert apart._graph is None


def test_a_statistic_stays_what_it_was(device):
    """Later sweeps do not change what earlier ones returned, nor what they were given."""
    net, x, p = problem("rat")
    gibbs, law = gibbs_of(net, x, device), law_of(net, 1.0, 2.0)
    first = gibbs.choose(*p[:2], 5, 6)
    kept = there(first)
    for sweep in range(1, replays(device)):
        gibbs.sweep(*first, *law, 5, 7 + sweep, 8 + sweep)
    assert all(map(torch.equal, there(first), kept))


@pytest.mark.parametrize("name", ["hclt", "tree"])
def test_slabs_share_their_memory(monkeypatch, name, device):
    net, x, _ = problem(name, rows=40)
    law = law_of(net, 1.0, 2.0)
    whole = gibbs_of(net, x, device)
    monkeypatch.setattr(_slabs, "CHUNK", 24)
    monkeypatch.setattr(_slabs, "ROOM", 1)
    parts = gibbs_of(net, x, device)
    assert [part.up.rows for part in parts.room.parts] == [24, 16]
    assert len({part.up.values.data_ptr() for part in parts.room.parts}) == 1
    for sweep in range(1, replays(device)):
        a, b = (g.sweep(*net.no_counts(), *law, 5, sweep, 100 + sweep) for g in (whole, parts))
        assert all(map(torch.equal, a, b))
        assert torch.equal(whole.room.out, parts.room.out)


def test_rows_beyond_the_range_of_a_float(device):
    """They go node by node after the sweep."""
    net, x, p = problem("rat", dtype=torch.float32)
    g = torch.Generator().manual_seed(2)
    weights = (80 * torch.randn(len(p.weights), generator=g, dtype=torch.float64).clamp(-1, 0)).exp()
    total = torch.zeros(len(net.sums), dtype=torch.float64).index_add(0, net.weight_sum, weights)
    leaves = -800 * torch.rand(len(p.leaves), generator=g)
    p = Parameters((weights / total[net.weight_sum]).float(), leaves)
    gibbs, ones = gibbs_of(net, x, device), torch.ones(len(x), dtype=torch.int64)
    counts = there(gibbs.choose(*p[:2], 5, 6))
    assert 0 < int((gibbs.room.parts[0].up.weak > 0).sum()) < len(x)
    expected, out = net.no_counts(), torch.full((len(x),), NAN, dtype=torch.float64)
    spn.sweep(x, ones, *p[:2], 5, 6, 0, net.graph, *expected, out)
    assert all(map(torch.equal, counts, expected))
    assert torch.equal(gibbs.room.out.cpu(), out)


class OnlyThere(TorchDispatchMode):
    """Raises where a tensor leaves its device, or comes there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, out)):
            if isinstance(x, torch.Tensor):
                assert x.device.type == "meta", f"{function} has a tensor on {x.device}"
        return out


@pytest.mark.skipif("config.getoption('--device') == 'cuda'", reason="replaces the launches of the interpreter")
@pytest.mark.parametrize(("name", "kinds"), DRAWN)
def test_nothing_in_a_sweep_waits_for_the_device(monkeypatch, name, kinds):
    """On a device whose tensors have no numbers: a look at one raises, as does a tensor that is elsewhere."""
    net, x, _ = problem(name, kinds, dtype=torch.float32)
    gibbs, launched = gibbs_of(net, x, "cpu"), []
    plan, room = (tree_map_only(torch.Tensor, lambda x: x.to("meta"), given) for given in (gibbs.plan, gibbs.room))

    def count(kernel, *args, grid, warmup, **constants):
        assert all(type(n) is int for n in grid)
        for x in (*args, *constants.values()):
            assert x is None or type(x) in (int, bool) or (isinstance(x, torch.Tensor) and x.is_meta)
        launched.append(kernel.fn.__name__)

    monkeypatch.setattr(type(_regions._up), "run", count)
    with OnlyThere():
        _gibbs.launch(plan, room, True)
        with pytest.raises(RuntimeError, match="meta"):
            bool(room.weak)
        with pytest.raises(NotImplementedError, match="meta"):
            room.out.cpu()
        with pytest.raises(AssertionError, match="on cpu"):
            room.out.copy_(torch.zeros(len(x)))
    levels = len(plan.dense.levels) if plan.dense else len(plan.nodes.groups)
    up, down = ("_up", "_draw") if plan.dense else ("_up_nodes", "_draw_nodes")
    parameters = ["_gammas", "_normals"] + ["_curves"] * (kinds == MIXED)
    assert launched == parameters + [up] * levels + [down] * levels


@pytest.fixture
def on_the_device(monkeypatch, device):
    """Tables are taken to be on the device that the kernels run on."""
    monkeypatch.setattr(bayes, "gpu_of", lambda X: torch.device(device))


KINDS = ["bernoulli", Categorical(5), "gaussian", "poisson", "exponential"]


def fitted(X, sweeps=2, **arguments):
    return BayesSPN(columns=KINDS, hidden=3, sweeps=sweeps, warm=1, burn=0.0, seed=4, **arguments).fit(X)


def test_estimator(monkeypatch, device):
    """The chains of the CPU; more sweeps go on anywhere."""
    X = table(50, MIXED)
    here = fitted(X)
    with monkeypatch.context() as change:
        change.setattr(bayes, "gpu_of", lambda X: torch.device(device))
        model = fitted(X)
        assert all(chain.resident is model._chains[0].resident is not None for chain in model._chains)
        same(model, here)
        copy = pickle.loads(pickle.dumps(model))
        same(copy.resume(X, sweeps=1), model.resume(X, sweeps=1))
    same(model, here.resume(X, sweeps=1))
    same(model.resume(X, sweeps=1), here.resume(X, sweeps=1))
    assert model._chains[0].resident is None


def same(model, other):
    for ours, its in zip(model.states_, other.states_, strict=True):
        assert torch.equal(ours.weight_counts, its.weight_counts)
        assert torch.equal(ours.leaf_counts, its.leaf_counts)
        assert torch.equal(ours.mass, its.mass)


def test_equal_rows_draw_apart(on_the_device):
    """A row that is there three times draws three times, in the order of the table."""
    X = table(15, MIXED)
    X = X[[i for i in range(15) for _ in range(3)]]
    model = fitted(X, sweeps=1, chains=1)
    chain = model._chains[0]
    assert len(chain._rows.rows) == 15
    before, law, sweep = chain.counts, chain.law, chain.sweeps
    chain.sweep()
    rows = model.columns_.encode(X)
    drawn = chain._network.draw(before, law, 4, purpose(PARAMETERS, 0, sweep))
    truth, _ = chain._network.sweep(rows, torch.ones(45, dtype=torch.int64), drawn, 4, purpose(CHOICES, 0, sweep))
    assert all(map(torch.equal, chain.counts, truth))


@pytest.mark.parametrize(
    ("arguments", "got"),
    [({"kernel": "isir"}, "isir, collapsed"), ({"mode": "collapsed"}, "block, collapsed")]
    + [({"kernel": "levels", "mode": "instantiated"}, "levels, instantiated")],
)
def test_refuses_kernels_of_the_cpu(on_the_device, device, arguments, got):
    with pytest.raises(
        ValueError, match=f"kernel must be block, and its mode instantiated, with X on {device}, got {got}"
    ):
        BayesSPN(hidden=2, sweeps=1, **arguments).fit(table(20, BITS))


def test_refuses_densities_and_ranks(on_the_device, device):
    own = Density(lambda x: x * x, lambda n, t, s: -n * math.log(s[0]) - t[0] / s[0] ** 2, parameters=[[1.0], [2.0]])
    with pytest.raises(ValueError, match=f"columns must be without Density with X on {device}, got one in column '1'"):
        BayesSPN(columns=["bernoulli", own], hidden=2, sweeps=1).fit(table(20, BITS[:2]))
    with pytest.raises(ValueError, match=f"group must be None with X on {device}, got one"):
        bayes.check_gpu(torch.device(device), "block", False, problem("rat")[0].columns, object())


def test_tables_elsewhere_are_for_the_cpu():
    assert bayes.gpu_of(table(5, BITS)) is None
    assert bayes.gpu_of(torch.zeros(2, 2)) is None
    with FakeTensorMode():
        assert bayes.gpu_of(torch.empty(2, 2, device="cuda")) == torch.device("cuda", 0)
    model = pyfast.spn.BayesSPN(hidden=2, sweeps=1).fit(table(20, BITS))
    assert model._chains[0].resident is None
