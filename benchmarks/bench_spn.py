"""Sum-product networks: likelihoods, Gibbs sweeps and samples against PyTorch and the packages that have them.

The gate: log likelihoods are held against PyTorch in float64, which `prove` holds against ``pyfast.reference``; a
sweep's statistics against their expectations, the gradient of the log likelihood, within bounds that one correct sweep
in ten million exceeds; samples against the network's own marginals. PyTorch has the same network and parameters.

Other packages draw networks of the same size: their own splits, their own parameters. They sample no posteriors, so a
complete sweep (parameters drawn, all rows' choices drawn) races against one step of their learning over the same rows.
They are held to what any must satisfy: probabilities of all rows of a small network sum to one. Not raced: sampling by
libcirkit 0.3.1, whose query raises TypeError for these layers.
"""

import copy
import functools
import math
import os

import numpy as np
import pytest
import torch
from spn_packages import PACKAGES, RAT, package
from spn_torch import TorchHclt, TorchRat, moved

from pyfast import spn
from pyfast.reference import spn as reference
from pyfast.spn._chain import Chain, Plan
from pyfast.spn._hyper import Hyper
from pyfast.spn._network import CHOICES, PARAMETERS, Counts, Law, Network, purpose
from pyfast.spn._resident import Resident


def table(n, d, seed=0):
    """Zeros and ones in clusters."""
    g = np.random.default_rng(seed)
    chance = g.beta(0.4, 1.2, (12, d))
    return torch.from_numpy((g.random((n, d)) < chance[g.integers(12, size=n)]).astype(np.float32))


def repeated(n, d, unique, seed=0):
    """Rows of which few are different, and those by a heavy-tailed law: like visits to a web site."""
    g = np.random.default_rng(seed)
    share = 1 / np.arange(1, unique + 1) ** 1.1
    return table(unique, d, seed)[torch.from_numpy(g.choice(unique, n, p=share / share.sum()))]


class Case:
    """A network over rows, a few sweeps after the start of a chain."""

    def __init__(self, kind, rows, size, sweeps=3):
        columns = spn.Columns.fit_encoding(rows, "bernoulli")
        structure = spn.rat(rows.shape[1], **size) if kind == "RAT" else spn.hclt(rows, columns=columns, **size)
        self.network, self.rows = Network(structure, columns), columns.encode(rows)
        self.times = torch.ones(len(rows), dtype=torch.int64)
        self.torch = (TorchRat if kind == "RAT" else TorchHclt)(self.network)
        self.unique = spn.unique_rows(self.rows)
        plan = Plan("block", collapsed=False, lookahead=0, candidates=0, hyper="fixed")
        chain = Chain(self.network, columns, self.unique, plan, Hyper(self.network, columns, 1.0, 2.0), 0, 0)
        for _ in range(sweeps):
            chain.sweep()
        self.counts, self.law = chain.counts, chain.law
        self.parameters = self.network.draw(self.counts, self.law, 1, purpose(PARAMETERS))
        self.layout = self.torch.layout(*self.parameters[:2])
        self.drawn = 0

    def gibbs(self, rows, times):
        """One complete sweep: parameters given the statistics, then all choices given the parameters."""
        self.drawn += 1
        parameters = self.network.draw(self.counts, self.law, 0, purpose(PARAMETERS, 1, self.drawn))
        return parameters, *self.network.sweep(rows, times, parameters, 0, purpose(CHOICES, 1, self.drawn))

    def sample(self, n):
        """Rows with nothing given, from pyfast."""
        self.drawn += 1
        nothing = torch.full((n, self.rows.shape[1]), math.nan)
        return self.network.complete(nothing, self.parameters, 0, self.drawn, 0, False)

    def check_log_prob(self, answer, rows, parameters):
        """It may err twice as much as PyTorch in float32."""
        weights, leaves = parameters[:2]
        plain = self.torch.log_prob(rows, self.torch.layout(weights, leaves))
        truth = self.torch.log_prob(rows.double(), self.torch.layout(weights.double(), leaves.double()))
        allowed = 2 * (plain - truth).abs().max() + 4 * torch.finfo(torch.float32).eps * truth.abs().max()
        assert answer.shape == truth.shape, f"wrong answer: {tuple(answer.shape)} where {tuple(truth.shape)} was due"
        error = (answer - truth).abs().max()
        assert error <= allowed, f"wrong answer: error {error:.3g} exceeds {allowed:.3g}"

    def check_gibbs(self, answer, rows, times):
        """The statistics are sums of independent choices: Bernstein's inequality bounds how far they may be off."""
        parameters, counts, found = answer
        weights, leaves = (x.double().requires_grad_() for x in parameters[:2])
        total = 0
        for x, n, got in zip(rows.split(2048), times.split(2048), found.split(2048), strict=True):
            truth = self.torch.log_prob(x.double(), self.torch.layout(weights, leaves))
            error = (got - truth.detach()).abs().max()
            assert error <= 2e-4, f"wrong answer: a log likelihood is off by {error:.3g}"
            (truth * n).sum().backward()
            total += int(n.sum())
        d = rows.shape[1]
        assert counts.leaves.sum() == total * d, (
            f"wrong answer: {counts.leaves.sum()} values where {total * d} were due"
        )
        expected = weights.grad * weights.detach(), leaves.grad
        for name, count, mean in zip(("weights", "leaves"), counts, expected, strict=True):
            excess = ((count - mean).abs() - 10 - (100 + 60 * mean).sqrt()).max()
            assert excess <= 0, f"wrong answer: statistics of {name} exceed their bound by {excess:.3g}"

    def check_sample(self, answer, n):
        """Means against the marginals of single variables, in standard errors."""
        check_bits(answer, n, self.rows.shape[1])
        one = torch.full((self.rows.shape[1],) * 2, math.nan).fill_diagonal_(1)
        p = self.network.log_prob(one, self.parameters).exp().clamp(max=1)
        off = ((answer.double().mean(0) - p).abs() - 6 * (p * (1 - p) / n).sqrt() - 10 / n).max()
        assert off <= 0, f"wrong answer: a mean is {off:.3g} farther off than it may"


def check_bits(answer, n, d):
    assert answer.shape == (n, d), f"wrong answer: {tuple(answer.shape)} where {(n, d)} was due"
    assert ((answer == 0) | (answer == 1)).all(), "wrong answer: not zeros and ones"
    assert 0.02 < answer.float().mean() < 0.98, "wrong answer: hardly any variety"


@functools.cache
def prove():
    """PyTorch's networks are those of ``pyfast.reference``, and sweeps in PyTorch pass the gate."""
    for kind, size in (("RAT", {"replicas": 2, "depth": 2, "sums": 3, "leaves": 2}), ("HCLT", {"hidden": 3})):
        this = Case(kind, table(300, 9), size)
        s, network = this.network.structure, this.network
        net = reference.Network(s.kind, s.first, s.child, s.variable, network.leaf_first, network.columns.family)
        weights, leaves = (x.double() for x in this.parameters[:2])
        truth = reference.log_likelihood(net, weights, leaves, this.rows.double())
        found = this.torch.log_prob(this.rows.double(), this.torch.layout(weights, leaves))
        torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-11)
        this.check_gibbs(this.torch.gibbs(this.rows, this.counts, this.law), this.rows, this.times)


@functools.lru_cache(maxsize=1)  # one at a time in memory
def case(kind, n, quick):
    prove()
    if kind == "RAT":
        return Case(kind, table(n, 69), RAT)
    return Case(kind, table(n, 12 if quick else 100), {"hidden": 8 if quick else 32})


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def check_finite(answer, n):
    assert answer.shape == (n,), f"wrong answer: {tuple(answer.shape)} where {(n,)} was due"
    assert (answer.isfinite() & (answer < 0)).all(), "wrong answer: not the logs of probabilities"


ROWS = pytest.mark.parametrize("n", [2048], ids="RAT 69, {} rows, one thread".format)


@pytest.mark.parametrize("peer", ["pyfast", "torch", "torch.compile", *PACKAGES])
@ROWS
def bench_log_prob(race, benchmark, quick, one_thread, n, peer):
    n = 64 if quick else n
    this = case("RAT", n, quick)
    if peer in PACKAGES:
        model, benchmark.extra_info["note"] = package(peer, 69)
        with torch.no_grad():
            race(model.log_prob, model.encode(this.rows), check=lambda answer, rows: check_finite(answer, n))
        return

    def check(answer, rows, *_):
        this.check_log_prob(answer, rows, this.parameters)

    if peer == "pyfast":
        race(this.network.log_prob, this.rows, this.parameters, check=check)
    else:
        function = this.torch.log_prob if peer == "torch" else torch.compile(this.torch.log_prob, dynamic=False)
        function(this.rows, this.layout)  # compiles
        race(function, this.rows, this.layout, check=check)


@pytest.mark.parametrize("peer", ["pyfast", "torch", *PACKAGES])
@ROWS
def bench_sweep(race, benchmark, quick, one_thread, n, peer):
    """Parameters drawn given statistics, then all rows' choices; other packages: one step of their learning."""
    n = 64 if quick else n
    this = case("RAT", n, quick)
    if peer in PACKAGES:
        model, note = package(peer, 69)
        benchmark.extra_info["note"] = f"{model.what}; {note}"
        rows = model.encode(this.rows)

        def check(answer, *_):
            assert 0 < answer < math.inf, "wrong answer: not the negative log of a probability"

        race(lambda fresh, x: fresh.step(x), check=check, setup=lambda: (copy.deepcopy(model), rows))
        return
    race_sweep(race, this, peer)


def race_sweep(race, this, peer):
    if peer == "torch":
        check = lambda answer, rows, *_: this.check_gibbs(answer, rows, this.times)  # noqa: E731
        race(this.torch.gibbs, this.rows, this.counts, this.law, check=check)
    else:
        race(this.gibbs, this.rows, this.times, check=this.check_gibbs)


@pytest.mark.parametrize("peer", ["pyfast", "torch"])
@pytest.mark.parametrize("n", [8192], ids="HCLT 100, K = 32, {} rows, one thread".format)
def bench_sweep_hclt(race, quick, one_thread, n, peer):
    race_sweep(race, case("HCLT", 64 if quick else n, quick), peer)


@pytest.mark.parametrize("peer", ["pyfast", "pyfast, CPU", "torch"])
@pytest.mark.parametrize("kind", ["RAT", "HCLT"], ids=["RAT 69, 16384 rows", "HCLT 100, K = 32, 16384 rows"])
@pytest.mark.parametrize("device", ["cuda"])
def bench_gpu_sweep(race, quick, device, kind, peer):
    """A sweep of which everything is on the GPU, captured once; PyTorch's network there; all threads of the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    this = case(kind, 64 if quick else 16384, quick)
    if peer == "pyfast, CPU":
        race(this.gibbs, this.rows, this.times, check=this.check_gibbs)
        return
    counts, law = Counts(*moved(list(this.counts), device)), Law(*moved(list(this.law), device))
    rows, plain = this.rows.to(device), this.torch.to(device)
    resident, drawn = Resident(this.network, this.rows, torch.device(device)), iter(range(1 << 40))

    def pyfast(rows):
        names = [purpose(tag, 1, next(drawn)) for tag in (PARAMETERS, CHOICES)]
        found = resident.sweep(counts, law, 0, *names)
        return resident.parameters, found, resident.log_likelihoods

    def pytorch(rows):
        with torch.device(device):
            return plain.gibbs(rows, counts, law)

    race(
        pyfast if peer == "pyfast" else pytorch,
        rows,
        check=lambda answer, rows: this.check_gibbs(moved(answer, "cpu"), this.rows, this.times),
    )


@pytest.mark.parametrize("peer", ["pyfast", "torch", "SPFlow", "deeprob-kit"])
@ROWS
def bench_sample(race, benchmark, quick, one_thread, n, peer):
    """Rows from the whole network, with nothing given."""
    n = 512 if quick else n
    this = case("RAT", 64 if quick else n, quick)
    if peer in PACKAGES:
        d = 64 if peer == "deeprob-kit" else 69
        model, benchmark.extra_info["note"] = package(peer, d)
        if d == 64:
            benchmark.extra_info["note"] += ", and 64 variables: it cannot sample 69"
        with torch.no_grad():
            race(model.sample, n, check=lambda answer, n: check_bits(answer, n, d))
    elif peer == "pyfast":
        race(this.sample, n, check=this.check_sample)
    else:
        race(this.torch.sample, n, this.parameters.leaves, this.layout, check=lambda a, n, *_: this.check_sample(a, n))


@functools.lru_cache(maxsize=1)
def repeating(name, quick, directory):
    """HCLT over rows that repeat; those of real data are the training rows of a set of DEBD."""
    prove()
    if name == "synthetic":
        rows = repeated(*((3000, 6, 40) if quick else (200_000, 17, 9000)))
    else:
        with np.load(directory / "debd" / "debd20.npz") as archive:
            d = {"msnbc": 17, "kdd": 64}[name]
            rows = torch.from_numpy(np.unpackbits(archive[f"{name}/train"], axis=1)[:, :d].astype(np.float32))
        rows = rows[: 2000 if quick else None]
    return Case("HCLT", rows, {"hidden": 4 if quick else 32})


@pytest.mark.parametrize("peer", ["pyfast", "pyfast, every row"])
@pytest.mark.parametrize("name", ["synthetic", "msnbc", "kdd"], ids="{}, HCLT, K = 32, one thread".format)
def bench_repeated_rows(race, benchmark, request, quick, one_thread, name, peer):
    """A sweep over different rows with their multiplicities, and over all rows as if all were different."""
    this = repeating(name, quick, None if name == "synthetic" else request.getfixturevalue("data"))
    rows, times, _ = this.unique if peer == "pyfast" else (this.rows, this.times, None)
    benchmark.extra_info["note"] = f"{len(rows):,} rows"
    race(this.gibbs, rows, times, check=this.check_gibbs)


@pytest.mark.parametrize("peer", ["pyfast", "pyfast, one thread"])
@pytest.mark.parametrize("kind", ["RAT", "HCLT"], ids=["RAT 69, 16384 rows", "HCLT 100, K = 32, 16384 rows"])
def bench_two_threads(race, quick, kind, peer):
    """The same sweep by two threads and by one; it must be the same to the last bit."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one processor")
    this = case(kind, 64 if quick else 16384, quick)
    before = torch.get_num_threads()

    def once(threads):
        torch.set_num_threads(threads)
        this.drawn = 0
        return this.gibbs(this.rows, this.times)

    def check(answer, rows, times):
        alone = once(1)
        torch.set_num_threads(threads)
        for mine, other in zip(answer[1] + answer[2:], alone[1] + alone[2:], strict=True):
            assert torch.equal(mine, other), "wrong answer: one thread has another"

    threads = 1 if "one" in peer else 2
    torch.set_num_threads(threads)
    try:
        this.drawn = 0
        race(this.gibbs, this.rows, this.times, check=check)
    finally:
        torch.set_num_threads(before)
