"""Chains' values in closed form, what they keep, and what they refuse."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from spn_chains import CASES, KERNELS, NAMES, NAN, SEED, Case, State, build, case, codes, parameters, trees, which

from pyfast import _C
from pyfast.reference import spn as reference
from pyfast.reference.spn import EXPONENTIAL, GAUSSIAN, LEAF, POISSON, TABLE, Law

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
