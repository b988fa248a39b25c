"""Chains over induced trees against the law that they must leave as it is, which small networks let us enumerate."""

import itertools
import math

import numpy as np
import pytest
import torch
from spn_chains import (
    CASES,
    KERNELS,
    NAMES,
    SEED,
    SPLIT,
    Copies,
    State,
    case,
    chi_square,
    codes,
    draw,
    histogram,
    parameters,
    posterior,
    trees,
    which,
)

from pyfast.reference import spn as reference
from pyfast.reference.spn import LEAF, SUM, TABLE

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
