"""Parameters, choices and rows from their joint law: Gibbs steps leave it as it is, and posteriors fit it."""

import functools
import math

import pytest
import torch

import pyfast
from pyfast.spn._hyper import Hyper
from pyfast.spn._network import PARAMETERS, START, Network, purpose

NAN = math.nan
STRUCTURES = {
    "dense": functools.partial(pyfast.spn.rat, 4, replicas=2, depth=1, sums=2, leaves=3),
    "sparse": functools.partial(pyfast.spn.tree, 4, sum_children=2, product_children=2),
}


def network(kind):
    """Over a bit, three categories, a real number and a count."""
    g = torch.Generator().manual_seed(0)
    X = torch.rand(50, 4, generator=g, dtype=torch.float64)
    X = torch.stack([(X[:, 0] < 0.4) * 1.0, (X[:, 1] * 3).floor(), X[:, 2] * 4 - 2, (X[:, 3] * 6).floor()], 1)
    columns = pyfast.spn.Columns.fit_encoding(X, ["bernoulli", "categorical", "gaussian", "poisson"])
    columns.quantum[2] = 2.0**16  # Student's tails reach far beyond these rows
    return Network(STRUCTURES[kind](), columns), columns


def rows_of(net, theta, n, seed):
    """Rows from the law that the parameters say."""
    return net.complete(torch.full((n, 4), NAN), theta, seed, 0, 0, False)


def about(theta, X, probes, net):
    """Numbers of parameters and rows whose means exist, whatever the tails."""
    bit, kind, real, count = X[:, 0], X[:, 1], X[:, 2].tanh(), (X[:, 3] / 4).tanh()
    some = torch.stack([bit.mean(), (kind == 2).float().mean(), real.mean(), (bit * real).mean(), count.mean()])
    some = torch.cat([some, torch.stack([(count * real).mean(), (kind * bit).mean(), X[0, 2].sign()])])
    w = theta.weights[[0, -1]]
    return torch.cat([some, w, w**2, net.log_prob(probes, theta).tanh().float()]).double()


def worst_z(change):
    """Of paired differences, whose means are 0 if the law has not changed."""
    z = change.mean(0) / (change.std(0) / len(change) ** 0.5).clamp_min(1e-12)
    return float(z.abs().max())


@pytest.mark.parametrize("kind", STRUCTURES)
def test_gibbs_keeps_the_joint_law(kind):
    """Geweke, "Getting it right", 2004: from exact draws, rows and parameters in turn; 2,000 times 4 steps."""
    net, columns = network(kind)
    hyper = Hyper(net, columns, 1.5, 3.0)
    law, times = net.law(hyper.mass, hyper.prior()), torch.ones(6, dtype=torch.int64)
    missing = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) < 0.15
    probes = torch.tensor([[0.0, 1, 0.3, 2], [1, NAN, -1.0, 4]])
    changes = []
    for i in range(2000):
        theta = net.draw(net.no_counts(), law, i, purpose(START))
        X = rows_of(net, theta, 6, i)
        before, joint = about(theta, X, probes, net), []
        for step in range(4):
            seen = torch.where(missing, NAN, X)
            counts, _ = net.sweep(seen, times, theta, i, step)
            joint.append(net.log_joint(counts, law))
            theta = net.draw(counts, law, i, purpose(PARAMETERS, 0, step))
            X = rows_of(net, theta, 6, i + (step + 1) * 10_000)
        after = about(theta, X, probes, net)
        changes.append(
            torch.cat([after - before, torch.tensor([math.tanh(joint[-1] / 30) - math.tanh(joint[0] / 30)])])
        )
    assert worst_z(torch.stack(changes)) < 4


def test_hyperparameters_keep_the_joint_law():
    """The same with masses and strengths drawn from their priors, and moved by the slice sampler: 400 times 3 steps."""
    net, columns = network("dense")
    times, changes = torch.ones(6, dtype=torch.int64), []
    probes = torch.tensor([[0.0, 1, 0.3, 2], [1, NAN, -1.0, 4]])
    gamma = torch.distributions.Gamma(torch.tensor(2.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        masses, strengths = gamma.sample((400, net.num_layers)), 2 * gamma.sample((400, 4))
    for i in range(400):
        hyper = Hyper(net, columns, 1.0, 2.0)
        hyper.mass, hyper.kappa = masses[i], torch.where(columns.family == 0, strengths[i], 2.0)
        start = torch.cat([hyper.mass.log(), hyper.kappa[:2].log()])
        theta = net.draw(net.no_counts(), net.law(hyper.mass, hyper.prior()), i, purpose(START))
        X = rows_of(net, theta, 6, i)
        before = about(theta, X, probes, net)
        for step in range(3):
            counts, _ = net.sweep(X, times, theta, i, step)
            hyper.slice_sample(counts, i, 77 + step)
            theta = net.draw(counts, net.law(hyper.mass, hyper.prior()), i, purpose(PARAMETERS, 0, step))
            X = rows_of(net, theta, 6, i + (step + 1) * 10_000)
        end = torch.cat([hyper.mass.log(), hyper.kappa[:2].log()])
        changes.append(torch.cat([end - start, about(theta, X, probes, net) - before]))
    assert worst_z(torch.stack(changes)) < 4


@pytest.mark.parametrize("kind", STRUCTURES)
def test_posteriors_are_calibrated(kind):
    """Talts et al., "Validating Bayesian inference with simulation-based calibration", 2018: 256 replicates of 30 rows.

    What the true parameters say of three rows, none of which knows the components' order, ranks evenly among 15 draws.
    """
    net, columns = network(kind)
    hyper = Hyper(net, columns, 1.5, 3.0)
    law, times = net.law(hyper.mass, hyper.prior()), torch.ones(30, dtype=torch.int64)
    probes = torch.tensor([[0.0, 1, 0.3, 2], [1, NAN, NAN, NAN], [NAN, NAN, -1.0, 4]])
    ranks = torch.zeros(256, len(probes), dtype=torch.int64)
    for i in range(len(ranks)):
        truth = net.draw(net.no_counts(), law, i, purpose(START))
        X = rows_of(net, truth, 30, i)
        theta, draws = net.draw(net.no_counts(), law, i + 10_000, purpose(START)), []
        for step in range(80):
            counts, _ = net.sweep(X, times, theta, i, step)
            theta = net.draw(counts, law, i, purpose(PARAMETERS, 0, step))
            if step >= 20 and step % 4 == 0:
                draws.append(net.log_prob(probes, theta))
        ranks[i] = (torch.stack(draws) < net.log_prob(probes, truth)).sum(0)
    for column in ranks.T:
        seen = column.bincount(minlength=16).double()
        even = len(ranks) / 16
        assert float(((seen - even) ** 2 / even).sum()) < 44.3  # chi-square of 15 degrees of freedom, p = 1e-4
