"""Where chains begin: counts of one whole state, a good one, the same on every machine."""

import math

import numpy as np
import pytest
import torch

import pyfast
from pyfast.spn import BayesSPN, Columns, unique_rows
from pyfast.spn._hyper import Hyper
from pyfast.spn._network import Network
from pyfast.spn._planner import structure_for, sweeps_for, warm_for
from pyfast.spn._start import _centres, _nearest, _some, clustered
from pyfast.spn._update import spread

NAN = math.nan


def mixed(n=300, missing=0.1):
    """Two clusters over a bit, three categories, a real number, a count and a wait."""
    g = np.random.default_rng(0)
    z = g.random(n) < 0.4
    X = np.stack(
        [
            g.random(n) < np.where(z, 0.9, 0.1),
            np.where(z, g.integers(0, 2, n), g.integers(1, 3, n)),
            g.normal(np.where(z, 4.0, -3.0), 0.5),
            g.poisson(np.where(z, 1.0, 9.0)),
            g.exponential(np.where(z, 5.0, 0.5)),
        ],
        1,
    ).astype(float)
    X[g.random(X.shape) < missing] = NAN
    return X, ["bernoulli", "categorical", "gaussian", "poisson", "exponential"]


def network_of(X, kinds, hidden):
    columns = Columns.fit_encoding(X, kinds)
    return Network(pyfast.spn.hclt(X, hidden, columns), columns), unique_rows(columns.encode(X, training=True))


def log_joint(net, counts):
    hyper = Hyper(net, net.columns, 1.0, 2.0)
    return net.log_joint(counts, net.law(hyper.mass, hyper.prior()))


@pytest.mark.parametrize("hidden", [1, 3, 8])
def test_counts_are_of_one_state_of_every_row(hidden):
    X, kinds = mixed()
    net, rows = network_of(np.tile(X, (2, 1)), kinds, hidden)
    counts = clustered(net, rows, 1, 0)
    taken = torch.zeros(len(net.sums), dtype=torch.int64).index_add_(0, net.weight_sum, counts.weights)
    assert int(taken[-1]) == 2 * len(X)  # the root's
    assert int(counts.weights.sum()) == 2 * len(X) * X.shape[1]  # every variable's state was chosen once
    variable = net.structure.variable[net.structure.kind == 0]
    for j in range(X.shape[1]):
        seen = X[~np.isnan(X[:, j]), j]
        at = [int(net.leaf_first[i]) for i in torch.nonzero(variable == j).flatten()]
        width = int(net.columns.width[j])
        found = torch.stack([counts.leaves[a : a + width] for a in at]).sum(0)
        if kinds[j] in ("bernoulli", "categorical"):
            assert found.tolist() == (2 * np.bincount(seen.astype(int), minlength=width)).tolist()
        else:
            encoded = rows.rows[:, j].double()
            there = ~encoded.isnan()
            q, times = (encoded[there] * net.columns.quantum[j]).round().long(), rows.multiplicity[there]
            assert int(found[0]) == 2 * len(seen)
            assert int(found[1]) == int((q * times).sum())
            assert int(found[2]) + int(found[3]) * 2**30 == sum(
                a * a * b for a, b in zip(q.tolist(), times.tolist(), strict=True)
            )


def test_statistics_are_those_of_a_sweep():
    """A network whose weights leave one choice gives the same counts by the kernel as by the start."""
    X, kinds = mixed()
    net, rows = network_of(X, kinds, 1)
    parameters = net.draw(
        net.no_counts(), net.law(*(lambda h: (h.mass, h.prior()))(Hyper(net, net.columns, 1, 2))), 0, 1
    )
    counts, _ = net.sweep(rows.rows, rows.multiplicity, parameters, 0, 2)
    found = clustered(net, rows, 0, 0)
    assert torch.equal(found.weights, counts.weights)
    assert torch.equal(found.leaves, counts.leaves)


def test_it_is_a_good_state():
    """Better than where hundreds of sweeps from the prior come to."""
    X, kinds = mixed(600, 0.0)
    net, rows = network_of(X, kinds, 4)
    model = BayesSPN(net.structure, kinds, sweeps=1, warm=0, chains=1, hyper="fixed").fit(X)
    uneven = model._chains[0]._uneven(0)
    counts, _ = net.sweep(rows.rows, rows.multiplicity, uneven, 0, 0)
    assert log_joint(net, clustered(net, rows, 0, 0)) > log_joint(net, counts) + 300


def test_threads_and_the_order_of_rows_do_not_show(threads):
    X, kinds = mixed(2000)
    net, rows = network_of(X, kinds, 8)
    threads(lambda: torch.cat([x.double() for x in clustered(net, rows, 3, 0)]))
    assert not torch.equal(clustered(net, rows, 3, 0).weights, clustered(net, rows, 4, 0).weights)


@pytest.mark.parametrize("structure", [pyfast.spn.rat(4, replicas=2, depth=1), pyfast.spn.tree(4, 2, 2)])
def test_other_structures_have_none(structure):
    X = np.random.default_rng(0).integers(0, 2, (50, 4)).astype(float)
    columns = Columns.fit_encoding(X)
    assert clustered(Network(structure, columns), unique_rows(columns.encode(X)), 0, 0) is None


@pytest.mark.parametrize(
    "X",
    [
        np.zeros((1, 1)),
        np.zeros((7, 3)),
        np.full((5, 2), NAN),
        np.array([[0.0, NAN], [NAN, 1.0]]),
        np.random.default_rng(0).normal(size=(3, 40)),
        np.random.default_rng(0).normal(size=(50, 2)) * [1e300, 1e-300],
    ],
    ids=["one", "constant", "missing", "never together", "wide", "far"],
)
def test_hostile_tables(X):
    model = BayesSPN(hidden=5, sweeps=4, warm=2).fit(X)
    assert model.log_prob(X).isfinite().all()


def test_means_of_groups_that_are_apart_are_found():
    g = torch.Generator().manual_seed(0)
    middle = torch.tensor([[400.0, 0.0], [-400.0, 0.0], [0.0, 400.0]])
    x = (middle.repeat(100, 1) + 20 * torch.randn(300, 2, generator=g)).round()[None]
    centres = _centres(x, torch.tensor([[[0, 1, 2]]] + [[[0, 0, 0]]] * 6))
    assert centres.round().equal(centres)
    torch.testing.assert_close(centres[0], x.view(100, 3, 2).mean(0), atol=0.5, rtol=0)
    distance = torch.cdist(x.double(), centres.double())
    assert torch.equal(_nearest(x, centres), distance.argmin(2))


def test_some_rows_are_all_where_they_are_few_and_spread_where_many():
    rows = unique_rows(torch.tensor([[0.0]] * 3 + [[1.0]] * 1 + [[2.0]] * 96))
    assert _some(rows, 100).bincount().tolist() == [3, 1, 96]
    assert _some(rows, 1000).bincount().tolist() == [3, 1, 96]
    assert _some(rows, 50).bincount().tolist() == [2, 0, 48]


def test_planned_sizes_fall_as_tables_grow():
    X = np.random.default_rng(0).integers(0, 2, (40, 30)).astype(float)
    columns = Columns.fit_encoding(X)
    sizes, sweeps = [], []
    for different in (10**4, 10**5, 10**7):
        structure = structure_for("hclt", X, columns, None, 10**7, different)
        sizes.append(structure.num_leaves // 30)
        sweeps.append(sweeps_for(structure, different))
        assert 0 < warm_for(structure, different) <= min(10, sweeps[-1])
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (128, 8)
    assert sweeps[-1] == 12
    assert sweeps_for(structure, 100) == 400


@pytest.mark.parametrize(("rows", "different", "most"), [(0, 0, 8), (600, 600, 12), (3000, 3000, 24), (10**6, 20, 16)])
def test_networks_are_no_larger_than_what_tables_can_tell(rows, different, most):
    """Four rows for each pair of states of two variables, and no more states than different rows."""
    X = np.random.default_rng(0).integers(0, 2, (40, 5)).astype(float)
    structure = structure_for("hclt", X, Columns.fit_encoding(X), None, rows, different)
    assert structure.num_leaves == 5 * most


def test_rows_that_are_there_often_are_in_every_part():
    """So that each step of the passes before the first sweep sees nearly the table's frequencies."""
    g = torch.Generator().manual_seed(0)
    times = torch.randint(1, 6, (3000,), generator=g)
    times[7], times[50] = 40_000, 900
    row, before, share, stands = spread(times, 11)
    assert len(row) < 6000
    torch.testing.assert_close(torch.zeros(3000).double().index_add_(0, row, stands), times.double())
    position = (before + torch.where(share * 11 > 1, torch.rand(len(row), generator=g), 0.5)) * share
    assert ((position >= 0) & (position < 1)).all()
    parts = position.argsort().tensor_split(11)
    assert (row == 7).sum() == (row == 50).sum() == 11
    usual = float(times[7] / times.sum())
    for part in parts[1:-1]:  # edges may have one less, or more
        there = stands[part][row[part] == 7].sum() / stands[part].sum()
        assert abs(float(there) - usual) < 0.1 * usual
    once = spread(torch.ones(5, dtype=torch.int64), 2)
    assert [x.tolist() for x in once] == [list(range(5)), [0] * 5, [1.0] * 5, [1.0] * 5]
