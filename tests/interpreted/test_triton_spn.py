"""The kernels of sum-product networks against those of the CPU, and against their meaning in float64."""

import gc
import math

import numpy as np
import pytest
import torch
from pyfast.kernels import spn
from pyfast.kernels.spn import _plan, _slabs

import pyfast
from pyfast.reference import spn as reference
from pyfast.spn import Categorical, Columns, Structure
from pyfast.spn._network import Network, Parameters, purpose

NAN = float("nan")
BLOCK = spn.NODES["BN"]
# What is masked, Triton's interpreter computes all the same.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{x}:RuntimeWarning") for x in ("overflow", "invalid", "divide", "All-NaN")
]


def sparse(s):
    return Structure.from_csr(s.kind, s.first, s.child, s.variable, s.num_variables)


def table(rows, kinds, missing=0.15, seed=0):
    g = np.random.default_rng(seed)
    draw = {
        "bernoulli": lambda: g.integers(0, 2, rows),
        "categorical": lambda: g.integers(0, 5, rows),
        "gaussian": lambda: g.normal(30, 2, rows),
        "poisson": lambda: g.poisson(3, rows),
        "exponential": lambda: g.exponential(7, rows),
    }
    X = np.stack([np.asarray(draw[k](), float) for k in kinds], 1)
    X[g.random(X.shape) < missing] = NAN
    X[:5] = np.stack([[c] * len(kinds) for c in range(5)])  # every category is there
    for j, kind in enumerate(kinds):
        if kind == "bernoulli":
            X[:5, j] %= 2
    return X


BITS = ("bernoulli",) * 5
MIXED = ("bernoulli", "categorical", "gaussian", "poisson", "exponential")
STRUCTURES = {
    "rat": lambda: pyfast.spn.rat(5, replicas=2, depth=2, sums=2, leaves=3),
    "wide rat": lambda: pyfast.spn.rat(5, replicas=1, depth=1, sums=2, leaves=17),
    "hclt": lambda: pyfast.spn.hclt(table(64, BITS, seed=3), 3, "bernoulli"),
    "wide hclt": lambda: pyfast.spn.hclt(table(64, BITS, seed=3), 18, "bernoulli"),
    "tree": lambda: pyfast.spn.tree(5, 2, 2),
    "graph": lambda: sparse(pyfast.spn.rat(5, replicas=2, depth=2, sums=2, leaves=2)),
}
CASES = [(name, BITS) for name in STRUCTURES] + [(name, MIXED) for name in ("rat", "hclt", "tree")]


def problem(name, kinds=BITS, rows=BLOCK + 1, dtype=torch.float64, structure=None):
    """A network, rows of which some values are missing, and parameters drawn given them."""
    X = table(max(rows, 40), kinds)
    columns = Columns.fit_encoding(X, [Categorical(5) if k == "categorical" else k for k in kinds])
    net = Network(structure or STRUCTURES[name](), columns)
    law = net.law(torch.full((net.num_layers,), 20.0, dtype=torch.float64), columns.prior(2.0)[0])
    return net, columns.encode(X, dtype)[:rows], net.draw(net.no_counts(), law, 7, purpose(2), dtype)


def log_prob(net, x, p, graph=None):
    out = torch.full((len(x),), NAN, dtype=torch.float64)
    spn.log_prob(x, p.weights, p.leaves, graph or net.graph, out)
    return out


def sweep(net, x, times, p, seed, what, first_row=0):
    counts, out = net.no_counts(), torch.full((len(x),), NAN, dtype=torch.float64)
    spn.sweep(x, times, p.weights, p.leaves, seed, what, first_row, net.graph, *counts, out)
    return counts, out


def slopes(net, grad, x, p):
    dweights, dleaves = torch.full_like(p.weights, NAN), torch.full_like(p.leaves, NAN)
    spn.log_prob_backward(grad, x, p.weights, p.leaves, net.graph, dweights, dleaves)
    return dweights, dleaves


def wide(p):
    return Parameters(p.weights.double(), p.leaves.double(), p.integrated)


def plain(net, x, weights, leaves):
    """The reference, whose curves are c0 + c1 x + c2 x^2; ours are c0 + c1 x + c2 (x - m)^2."""
    s, pieces = net.structure, []
    over = s.variable[s.kind == reference.LEAF]
    for piece, v in zip(leaves.tensor_split(net.leaf_first[1:-1]), over.tolist(), strict=True):
        if net.columns.family[v] != reference.TABLE:
            c0, c1, c2, m = piece
            piece = torch.stack([c0 + c2 * m * m, c1 - 2 * c2 * m, c2, 0 * m])
        pieces.append(piece)
    ref = reference.Network(s.kind, s.first, s.child, s.variable, net.leaf_first, net.columns.family)
    return reference.log_likelihood(ref, weights, torch.cat(pieces), x)


def close(got, ours, truth, terms=0):
    """`got` errs at most twice as much as `ours`, and 4 eps of the scale.

    In float64 itself ours is no truth, so that both may round every term of a sum.
    """
    roundings = 4 + (terms if got.dtype == ours.dtype == torch.float64 else 0)
    allowed = 2 * (ours.double() - truth).abs().max() + roundings * torch.finfo(ours.dtype).eps * truth.abs().max()
    assert (got.double() - truth).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "kinds"), CASES)
def test_likelihoods(name, kinds, dtype):
    net, x, p = problem(name, kinds, dtype=dtype)
    assert (spn.plan(net.graph, x.device).dense is None) == (name in ("tree", "graph"))
    truth = plain(net, x.double(), *wide(p)[:2])
    close(log_prob(net, x, p), plain(net, x, *p[:2]), truth)
    torch.testing.assert_close(net.log_prob(x.double(), wide(p)), truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rows", [0, 1, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("name", ["rat", "tree"])
def test_numbers_of_rows(name, rows):
    net, x, p = problem(name, rows=rows)
    torch.testing.assert_close(log_prob(net, x, p), net.log_prob(x, p), rtol=1e-13, atol=0)
    counts, out = sweep(net, x, torch.ones(rows, dtype=torch.int64), p, 3, 4)
    expected, _ = net.sweep(x, torch.ones(rows, dtype=torch.int64), p, 3, 4)
    assert all(map(torch.equal, counts, expected))
    assert out.isfinite().all()
    grads = slopes(net, torch.ones(rows, dtype=torch.float64), x, p)
    assert all(g.isfinite().all() for g in grads)
    if rows == 0:
        assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("name", ["rat", "tree"])
def test_predictive_leaves(name):
    """Student's t, negative binomial and Lomax leaves, once the parameters are integrated out."""
    net, x, p = problem(name, MIXED)
    law = net.law(torch.ones(net.num_layers, dtype=torch.float64), net.columns.prior(2.0)[0])
    counts, _ = net.sweep(x, torch.ones(len(x), dtype=torch.int64), p, 3, 4)
    for dtype in (torch.float64, torch.float32):
        q = net.predict(counts, law, dtype)
        got = log_prob(net, x.to(dtype), q, net._predictive)
        truth = net.log_prob(x.to(dtype).double(), wide(q))
        rounding = torch.finfo(dtype).eps * 5 * q.leaves.abs().max()  # terms of a density of five variables
        assert (got - truth).abs().max() <= 4 * rounding
    with pytest.raises(NotImplementedError, match="CPU"):
        spn.log_prob_backward(torch.ones(len(x)), x, q.weights, q.leaves, net._predictive, q.weights, q.leaves)


@pytest.mark.parametrize(("name", "kinds"), CASES)
def test_draws_are_those_of_the_cpu(name, kinds):
    """Bit for bit in float64: the same random numbers, the same choices. Rows of times 0 leave nothing."""
    net, x, p = problem(name, kinds)
    times = (torch.arange(len(x)) % 4 > 0).long()
    for seed, what in ((5, purpose(1, 3, 9)), ((1 << 64) - 3, (1 << 63) + 12345)):
        expected, truth = net.sweep(x, times, p, seed, what)
        counts, out = sweep(net, x, times, p, seed, what)
        assert int(counts.weights.sum()) > 0
        assert torch.equal(counts.weights, expected.weights)
        assert torch.equal(counts.leaves, expected.leaves)
        torch.testing.assert_close(out, truth, rtol=1e-13, atol=0)
    single = Parameters(p.weights.float(), p.leaves.float())
    total = sweep(net, x.float(), times, single, 5, 6)[0]
    assert int((total.weights - net.sweep(x.float(), times, single, 5, 6)[0].weights).abs().sum()) <= 2  # ties


@pytest.mark.parametrize("name", ["hclt", "tree"])
def test_draws_know_rows_by_their_numbers(name):
    """Rows from the 9th on, said to be those, draw what they draw among all; counts are added to."""
    net, x, p = problem(name)
    times = (torch.arange(len(x)) >= 9).long()
    expected, _ = net.sweep(x, times, p, 5, 6)
    counts, out = net.no_counts(), torch.empty(len(x) - 9, dtype=torch.float64)
    counts.weights.add_(100)
    spn.sweep(x[9:], times[9:], p.weights, p.leaves, 5, 6, 9, net.graph, *counts, out)
    assert torch.equal(counts.weights, expected.weights + 100)
    assert torch.equal(counts.leaves, expected.leaves)


def test_equal_rows_together_are_for_the_cpu():
    net, x, p = problem("rat", rows=3)
    counts, out = net.no_counts(), torch.zeros(3, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match=r"times must be 0 or 1 on cpu, got 0 to 2: .* CPU"):
        spn.sweep(x, torch.tensor([0, 2, 1]), *p[:2], 5, 6, 0, net.graph, *counts, out)
    assert not any(c.any() for c in (*counts, out))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "kinds"), CASES)
def test_derivatives(name, kinds, dtype):
    net, x, p = problem(name, kinds, dtype=dtype)
    p = p._replace(weights=p.weights.clamp(1e-3))
    grad = torch.randn(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    grad[3] = 0

    def autograd(x, p):
        inputs = [y.detach().requires_grad_() for y in p[:2]]
        return torch.autograd.grad((plain(net, x, *inputs).double() * grad).sum(), inputs)

    got = slopes(net, grad, x, p)
    for g, ours, truth in zip(got, autograd(x, p), autograd(x.double(), wide(p)), strict=True):
        close(g, ours, truth, terms=len(x))


@pytest.mark.parametrize("name", ["hclt", "tree"])
def test_derivatives_scale_and_repeat(name):
    """The largest factor sets the scale, and powers of two round nothing, even in float32."""
    net, x, p = problem(name, rows=9, dtype=torch.float32)
    grad = torch.randn(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = slopes(net, grad, x, p)
    assert all(map(torch.equal, got, slopes(net, grad, x, p)))
    for scale in (2.0**-100, 2.0**90):
        scaled = slopes(net, grad * scale, x, p)
        assert all(torch.equal(a, b * scale) for a, b in zip(scaled, got, strict=True))
    for scale in (2.0**-900, 2.0**900):
        scaled, truth = slopes(net, grad * scale, x.double(), wide(p)), slopes(net, grad, x.double(), wide(p))
        assert all(torch.equal(a, b * scale) for a, b in zip(scaled, truth, strict=True))
    nothing = slopes(net, 0 * grad, x, p)
    assert not any(g.any() for g in nothing)


@pytest.mark.parametrize("name", ["rat", "hclt"])
@pytest.mark.parametrize(("dtype", "strength"), [(torch.float32, 80), (torch.float64, 700)])
def test_rows_beyond_the_range_of_a_float(name, dtype, strength, device):
    """Components that differ by hundreds of powers of ten: some rows go node by node, and all are right."""
    net, x, p = problem(name, dtype=dtype)
    g = torch.Generator().manual_seed(2)
    leaves = -(10 * strength * torch.rand(len(p.leaves), generator=g)).to(dtype)
    sums, logits = net.weight_sum, torch.randn(len(p.weights), generator=g, dtype=torch.float64)
    weights = (strength * logits.clamp(-1, 0)).exp()
    total = torch.zeros(int(sums.max()) + 1, dtype=torch.float64).index_add(0, sums, weights)
    weights = (weights / total[sums]).to(dtype)
    p = Parameters(weights, leaves)
    there = [t.to(device) for t in (x, weights, leaves)]
    passes = list(_slabs.passes(spn.plan([t.to(device) for t in net.graph], there[0].device), *there))
    assert [up.weak is None for _, up in passes] == [False, True]
    assert 0 < len(passes[1][0]) < len(x)

    graph = Network(sparse(net.structure), net.columns)
    likelihood = plain(net, x.double(), *wide(p)[:2])
    close(log_prob(net, x, p), plain(net, x, *p[:2]), likelihood)
    times = torch.ones(len(x), dtype=torch.int64)
    counts, _ = sweep(net, x, times, p, 5, 6)
    expected, _ = graph.sweep(x.double(), times, wide(p), 5, 6)
    assert torch.equal(counts.weights, expected.weights)
    assert torch.equal(counts.leaves, expected.leaves)
    everything = wide(p).leaves.requires_grad_()
    (truth,) = torch.autograd.grad(plain(net, x.double(), wide(p).weights, everything).sum(), [everything])
    got = slopes(net, torch.ones(len(x), dtype=torch.float64), x, p)[1]
    # What flows through a leaf lies in [0, 1] for each row; the reference takes it from logarithms as large as these.
    rounding = 64 * torch.finfo(dtype).eps + torch.finfo(torch.float64).eps * likelihood.abs().max()
    assert (got - truth).abs().max() <= len(x) * rounding


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["rat", "tree"])
def test_values_far_from_every_leaf(name, dtype):
    """Log densities down to -1e25: far below what a power of two with an exponent of 32 bits can stand for."""
    net, x, p = problem(name, MIXED, rows=40, dtype=dtype)
    x[:, 2] = (10.0 ** torch.arange(1, 12.9, 0.3)).to(dtype) * torch.tensor([1, -1]).repeat(20)
    truth, eps = plain(net, x.double(), *wide(p)[:2]), torch.finfo(dtype).eps
    assert truth.min() < -1e20
    terms = 4 + (5 if dtype == torch.float64 else 0)  # there plain PyTorch is the truth, and rounds every variable
    error = (log_prob(net, x, p) - truth).abs()
    assert (error <= 2 * (plain(net, x, *p[:2]).double() - truth).abs() + terms * eps * truth.abs()).all()
    near = truth > -1e10  # farther down, the logarithms of the CPU's rows no longer tell trees apart either
    wanted = zip(*(slopes_of_cpu(net, row.double(), wide(p)) for row in x[near].split(1)), strict=True)
    # A flow is a product over levels, each of a weight and a value over a sum of as many values as a node has children;
    # a leaf's parameter takes four operations more. A small flow p, whose logarithm is rounded, is off by p |log p| eps
    # at most, less than eps. Densities are rounded in double, by six operations here and there.
    roundings = net.structure.height * (int(net.structure.first.diff().max()) + 2) + 4 + int(near.sum())
    allowed = roundings * eps + 12 * torch.finfo(torch.float64).eps * float(truth[near].abs().max())
    grad = torch.ones(int(near.sum()), dtype=torch.float64)
    for got, want in zip(slopes(net, grad, x[near], p), map(torch.stack, wanted), strict=True):
        assert ((got.double() - want.sum(0)).abs() <= allowed * (want.abs().sum(0) + 1)).all()


def slopes_of_cpu(net, x, p):
    q = Parameters(p.weights.requires_grad_(), p.leaves.requires_grad_(), p.integrated)
    return torch.autograd.grad(net.log_prob(x, q).sum(), q[:2])


@pytest.mark.parametrize("name", ["rat", "tree"])
def test_impossible_rows(name):
    """Log likelihood -inf; nothing is drawn below them, nothing flows."""
    net, x, p = problem(name, rows=9)
    x = x.nan_to_num(0)
    over = net.structure.variable[net.structure.kind == reference.LEAF]
    ones = net.leaf_first[:-1][over == 2] + 1
    p.leaves[ones] = -math.inf
    x[:, 2] = torch.arange(9) % 2
    assert torch.equal(log_prob(net, x, p).isinf(), x[:, 2] == 1)
    times = torch.ones(9, dtype=torch.int64)
    counts, _ = sweep(net, x, times, p, 5, 6)
    expected, _ = net.sweep(x, times, p, 5, 6)
    assert all(map(torch.equal, counts, expected))
    some = slopes(net, torch.ones(5, dtype=torch.float64), x[::2], p)
    for g, expected in zip(slopes(net, torch.ones(9, dtype=torch.float64), x, p), some, strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-12, atol=0)


def test_a_code_that_a_table_lacks_makes_its_row_nan():
    for name in ("rat", "tree"):
        net, x, p = problem(name, rows=5)
        x[1, 2], x[3, 0] = 2, 0.5
        assert log_prob(net, x, p).isnan().tolist() == [False, True, False, True, False]
        counts, _ = sweep(net, x, torch.ones(5, dtype=torch.int64), p, 5, 6)
        assert counts.weights[-int(net.num_children[-1]) :].sum() == 3  # choices at the root


@pytest.mark.parametrize("name", ["hclt", "tree"])
def test_slabs_of_rows(monkeypatch, name):
    """Derivatives in several chunks, then rows in several slabs: all the same."""
    net, x, p = problem(name, rows=40)
    whole = log_prob(net, x, p), *sweep(net, x, torch.ones(len(x), dtype=torch.int64), p, 5, 6)[0]
    grad = torch.randn(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    truth = slopes(net, grad, x, p)
    monkeypatch.setattr(_slabs, "CHUNK", 16)
    for got, expected in zip(slopes(net, grad, x, p), truth, strict=True):
        close(got, expected, expected, terms=len(x))
    monkeypatch.setattr(_slabs, "ROOM", 1)
    parts = log_prob(net, x, p), *sweep(net, x, torch.ones(len(x), dtype=torch.int64), p, 5, 6)[0]
    assert all(map(torch.equal, whole, parts))
    for got, expected in zip(slopes(net, grad, x, p), truth, strict=True):
        close(got, expected, expected, terms=len(x))


def test_regions_too_wide_go_node_by_node(monkeypatch):
    monkeypatch.setattr(_plan, "WIDEST", 2)
    net, x, p = problem("hclt", rows=9)
    assert spn.plan(net.graph, x.device).dense is None
    torch.testing.assert_close(log_prob(net, x, p), net.log_prob(x, p), rtol=1e-13, atol=0)


def test_plans_live_as_long_as_their_graph_stays():
    net, _, _ = problem("rat", rows=1)
    device = torch.device("cpu")
    graph = [x.clone() for x in net.graph]
    made = spn.plan(graph, device)
    assert spn.plan(list(graph), device) is made
    assert spn.plan([*graph[:6], graph[6].clone(), graph[7]], device) is not made
    again = spn.plan(graph, device)
    graph[6].mul_(2)
    assert spn.plan(graph, device) is not again
    gc.collect()
    before = len(_plan._plans)
    del graph
    gc.collect()
    assert len(_plan._plans) == before - 1
