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
import importlib.metadata
import math
import os

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map_only

from pyfast import spn
from pyfast.reference import spn as reference
from pyfast.spn._chain import Chain, Plan
from pyfast.spn._hyper import Hyper
from pyfast.spn._network import CHOICES, PARAMETERS, Counts, Law, Network, Parameters, purpose
from pyfast.spn._resident import Resident

RAT = {"replicas": 8, "depth": 3, "sums": 12, "leaves": 12}
TINY = torch.finfo(torch.float32).tiny


def choose(p):
    """One place of each last dimension, with these odds."""
    c = p.cumsum(-1)
    u = torch.rand(c.shape[:-1]).unsqueeze(-1) * c[..., -1:]
    return torch.searchsorted(c, u.to(c.dtype), right=True).squeeze(-1).clamp_max(p.shape[-1] - 1)


class Torch:
    """What both kinds of network have in PyTorch: parameters drawn all at once."""

    def __init__(self, network):
        self.network, self.structure = network, network.structure
        self.num_leaves, self.num_weights = self.structure.num_leaves, self.structure.num_weights
        children, runs = torch.unique_consecutive(network.num_children, return_counts=True)
        self.blocks = list(zip(children.tolist(), (children * runs).tolist(), strict=True))  # of sums of one size
        self.edge_sum, self.leaf_prior = network.sums[network.weight_sum], network.leaf_prior

    def to(self, device):
        """The same on a device, for calls under ``torch.device(device)``."""
        twin = copy.copy(self)
        vars(twin).update(moved(vars(self), device))
        return twin

    def draw(self, counts, law):
        """Weights and leaves given statistics."""
        gammas = torch._standard_gamma(counts.weights + law.alpha[self.edge_sum]).clamp_min_(1e-300)
        parts = gammas.split([size for _, size in self.blocks])
        parts = [x.view(-1, k) for x, (k, _) in zip(parts, self.blocks, strict=True)]
        weights = torch.cat([(x / x.sum(1, keepdim=True)).flatten() for x in parts])
        prior = law.prior[self.leaf_prior[:, None] + torch.arange(2)]
        chances = torch._standard_gamma(counts.leaves.view(-1, 2) + prior).clamp_min_(1e-300)
        leaves = (chances / chances.sum(1, keepdim=True)).log().flatten()
        return Parameters(weights.float(), leaves.float())

    def gibbs(self, rows, counts, law):
        """One complete sweep."""
        parameters = self.draw(counts, law)
        return parameters, *self.sweep(rows, self.layout(*parameters[:2]))


class TorchRat(Torch):
    """A RAT-SPN layer by layer: outer products, one batched matrix product a layer, values scaled by their maxima.

    Regions 2p and 2p + 1 of a layer are what region p above splits into.
    """

    def __init__(self, network):
        super().__init__(network)
        found = spn.regions(self.structure.program)
        term = found[-1].terms[0]
        level = [r for pair in term.regions for r in pair]
        size = found[level[0]].outputs * found[level[1]].outputs
        self.index = [term.first_weight + torch.arange(len(term.regions) * size).view(-1, 1, size)]
        while isinstance(found[level[0]].terms[0], spn.Pairs):
            terms, outputs = [found[r].terms[0] for r in level], found[level[0]].outputs
            first, below = torch.tensor([t.first_weight for t in terms]), [t.regions[0] for t in terms]
            size = math.prod(found[r].outputs for r in below[0])
            self.index.append(first[:, None, None] + torch.arange(outputs * size).view(outputs, size))
            level = [r for pair in below for r in pair]
        self.index.reverse()  # (regions, outputs, products), from the leaves up
        terms, d = [found[r].terms[0] for r in level], self.structure.num_variables
        widest, components = max(len(t.variables) for t in terms), torch.arange(found[level[0]].outputs)
        self.variables = torch.full((len(terms), widest), d)
        self.leaves = torch.full((len(terms), len(components), widest), self.num_leaves)
        self.wide = torch.full(
            (len(terms), d, len(components)), self.num_leaves
        )  # the same for a product with all rows
        for q, t in enumerate(terms):
            self.variables[q, : len(t.variables)] = torch.tensor(t.variables)
            leaves = torch.tensor(t.first_leaves)[:, None] + components
            self.leaves[q, :, : len(t.variables)] = leaves.T
            self.wide[q, torch.tensor(t.variables)] = leaves

    def layout(self, weights, leaves):
        """Parameters as the products want them."""
        zero, one = torch.cat([leaves, leaves.new_zeros(2)]).view(-1, 2)[self.wide].unbind(-1)
        return one - zero, zero.sum(1, keepdim=True), *(weights[i] for i in self.index)

    def up(self, rows, slope, bias, *weights):
        """Values of the regions below each layer, the root's products, log values of the replicas."""
        v = torch.baddbmm(bias, rows.expand(len(bias), *rows.shape), slope)
        top = v.amax(-1, keepdim=True)
        v, below = (v - top).exp(), []
        for i, w in enumerate(weights):
            below.append(v)
            top = top[0::2] + top[1::2]
            products = (v[0::2].unsqueeze(-1) * v[1::2].unsqueeze(-2)).flatten(2)
            v = torch.bmm(products, w.mT)
            if i < len(weights) - 1:
                most = v.amax(-1, keepdim=True).clamp_min(TINY)
                v, top = v / most, top + most.log()
        return below, products, (v.clamp_min(TINY).log() + top).squeeze(-1)

    def log_prob(self, rows, layout):
        """The root's."""
        return self.up(rows, *layout)[-1].logsumexp(0)

    def sweep(self, rows, layout):
        """An induced tree for every row: its statistics, and log likelihoods."""
        below, products, roots = self.up(rows, *layout)
        n, weights = torch.arange(len(rows)), layout[2:]
        r = choose((roots - roots.amax(0)).exp().T)
        z = choose(products[r, n] * weights[-1][r, 0])

        def odds(level, region, k):
            left, right = below[level][2 * region, n[:, None]], below[level][2 * region + 1, n[:, None]]
            return (left.unsqueeze(-1) * right.unsqueeze(-2)).flatten(2) * weights[level][region, k]

        leaf, variable, taken = self.down(r, z, odds)
        value = torch.nn.functional.pad(rows, (0, 1)).gather(1, variable.flatten(1)).flatten().long()
        counted = torch.bincount(2 * leaf.flatten() + value, minlength=2 * self.num_leaves + 2)[:-2]
        return Counts(torch.bincount(torch.cat(taken), minlength=self.num_weights), counted), roots.logsumexp(0)

    def down(self, r, z, odds):
        """Leaves of every row, their variables, and the weights passed, below product z of replica r."""
        taken, region, k = [self.index[-1][r, 0, z]], r[:, None], z[:, None]
        for level in range(len(self.index) - 1, -1, -1):
            if level < len(self.index) - 1:
                z = choose(odds(level, region, k))
                taken.append(self.index[level][region, k, z].flatten())
                k = z
            below = (self.index[level - 1] if level else self.leaves).shape[1]
            region = torch.stack([2 * region, 2 * region + 1], -1).flatten(1)
            k = torch.stack([k // below, k % below], -1).flatten(1)
        return self.leaves[region, k], self.variables[region], taken

    def sample(self, n, leaves, layout):
        """Rows with nothing given."""
        size = self.index[-1].shape[-1]
        z = torch.multinomial(layout[-1].flatten(), n, replacement=True)
        leaf, variable, _ = self.down(z // size, z % size, lambda level, region, k: layout[2 + level][region, k])
        chance = torch.nn.functional.pad(leaves[1::2], (0, 1)).exp()[leaf].flatten(1)
        rows = torch.empty(n, self.structure.num_variables + 1)
        return rows.scatter_(1, variable.flatten(1), (torch.rand(chance.shape) < chance).float())[:, :-1]


class TorchHclt(Torch):
    """A hidden Chow-Liu tree region by region, each with all rows."""

    def __init__(self, network):
        super().__init__(network)
        *self.regions, root = spn.regions(self.structure.program)
        self.mixtures = {
            t.region: t
            for region in [*self.regions, root]
            for t in region.terms[isinstance(region.terms[0], spn.Leaves) :]
        }
        self.k = self.regions[0].outputs
        self.index = []
        for r in range(len(self.regions)):
            t, outputs = self.mixtures[r], 1 if r == len(self.regions) - 1 else self.k
            self.index.append(t.first_weight + t.row_stride * torch.arange(outputs)[:, None] + torch.arange(self.k))
        self.variable = [region.terms[0].variables[0] for region in self.regions]
        self.leaf = torch.tensor([region.terms[0].first_leaves[0] for region in self.regions])[:, None] + torch.arange(
            self.k
        )

    def layout(self, weights, leaves):
        """Parameters as the products want them."""
        return leaves.view(-1, 2)[self.leaf].exp(), [weights[i] for i in self.index]

    def up(self, rows, chances, weights):
        """Values of all regions; log likelihoods."""
        values, total = [], 0
        for r, region in enumerate(self.regions):
            zero, one = chances[r].unbind(-1)
            v = torch.addcmul(zero, rows[:, self.variable[r], None], one - zero)
            for t in region.terms[1:]:
                v = v * (values[t.region] @ weights[t.region].mT)
            most = v.amax(1, keepdim=True).clamp_min(TINY)
            values.append(v / most)
            total = total + most.log()
        return values, ((values[-1] @ weights[-1].mT).clamp_min(TINY).log() + total).squeeze(1)

    def log_prob(self, rows, layout):
        """The root's."""
        return self.up(rows, *layout)[-1]

    def sweep(self, rows, layout):
        """An induced tree for every row: its statistics, and log likelihoods."""
        (_, weights), (values, found) = layout, self.up(rows, *layout)
        chosen = {len(self.regions) - 1: torch.zeros(len(rows), dtype=torch.int64)}  # output of the mixture over each
        leaves, edges = (
            torch.zeros(2 * self.num_leaves, dtype=torch.int64),
            torch.empty(self.num_weights, dtype=torch.int64),
        )
        for r in range(len(self.regions) - 1, -1, -1):
            above = chosen.pop(r)
            z = choose(weights[r][above] * values[r])
            edges[self.index[r]] = torch.bincount(above * self.k + z, minlength=weights[r].numel()).view_as(weights[r])
            seen = torch.bincount(2 * z + rows[:, self.variable[r]].long(), minlength=2 * self.k)
            leaves.view(-1, 2)[self.leaf[r]] = seen.view(-1, 2)
            for t in self.regions[r].terms[1:]:
                chosen[t.region] = z
        return Counts(edges, leaves), found


def moved(tree, device):
    """All tensors on a device."""
    return tree_map_only(torch.Tensor, lambda x: x.to(device), tree)


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


# Each peer's network of the same size, and how it is asked.


class Cirkit:
    """GPL-3: imported where it is installed, part of no extra."""

    name = distribution = "libcirkit"

    def __init__(self, d, replicas, depth, sums, leaves):
        pytest.importorskip("cirkit", reason="libcirkit is not installed")
        from cirkit.pipeline import compile as compiled
        from cirkit.templates.region_graph import RandomBinaryTree
        from cirkit.templates.utils import Parameterization, name_to_input_layer_factory, parameterization_to_factory

        weights = parameterization_to_factory(Parameterization(activation="softmax", initialization="normal"))
        circuit = RandomBinaryTree(d, depth=depth, num_repetitions=replicas).build_circuit(
            input_factory=name_to_input_layer_factory("categorical", num_categories=2),  # faster than "binomial"
            sum_product="tucker",
            sum_weight_factory=weights,
            nary_sum_weight_factory=weights,
            num_input_units=leaves,
            num_sum_units=sums,
        )
        self.model = compiled(circuit)

    def encode(self, rows):
        """As the package wants them."""
        return rows.long()

    def log_prob(self, rows):
        """Of every row."""
        return self.model(rows).flatten()

    def gradients(self, rows):
        """Forward and backward: what a step of gradient descent takes, but for the optimizer."""
        self.model.zero_grad()
        loss = -self.model(rows).mean()
        loss.backward()
        return loss.detach()

    step, what = gradients, "forward and backward"


class SPFlow:
    """Of version 1.1, the rewrite in PyTorch."""

    name, distribution = "SPFlow", "spflow"

    def __init__(self, d, replicas, depth, sums, leaves):
        pytest.importorskip("spflow", reason="SPFlow is not installed")
        from spflow.meta.data.scope import Scope
        from spflow.modules.leaves import Bernoulli
        from spflow.zoo.rat import RatSPN

        leaf = Bernoulli(scope=Scope(list(range(d))), out_channels=leaves, num_repetitions=replicas)
        size = {"n_region_nodes": sums, "num_repetitions": replicas, "depth": depth}
        self.model = RatSPN([leaf], n_root_nodes=1, **size, outer_product=True)

    def encode(self, rows):
        """As the package wants them."""
        return rows

    def log_prob(self, rows):
        """Of every row."""
        return self.model.log_likelihood(rows).flatten()

    def step(self, rows):
        """EM. From a fresh copy every time: the third step in a row may give NaN."""
        from spflow.learn.expectation_maximization import expectation_maximization

        return -expectation_maximization(self.model, rows, max_steps=1)[0]

    what = "EM step"

    def sample(self, n):
        """Rows with nothing given."""
        return self.model.sample(num_samples=n)


class Deeprob:
    """No longer developed."""

    name = distribution = "deeprob-kit"

    def __init__(self, d, replicas, depth, sums, leaves):
        pytest.importorskip("deeprob", reason="deeprob-kit is not installed")
        from deeprob.spn.models.ratspn import BernoulliRatSpn

        size = {"rg_depth": depth, "rg_repetitions": replicas, "rg_batch": leaves, "rg_sum": sums}
        self.model = BernoulliRatSpn(d, **size, random_state=0)

    def encode(self, rows):
        """As the package wants them."""
        return rows

    def log_prob(self, rows):
        """Of every row."""
        return self.model(rows).flatten()

    step, what = Cirkit.gradients, Cirkit.what

    def sample(self, n):
        """Rows with nothing given."""
        return self.model.sample(n)


PACKAGES = {kind.name: kind for kind in (Cirkit, SPFlow, Deeprob)}


@functools.cache
def sums_to_one(package):
    """The package's network of six variables gives all 64 rows together probability one."""
    rows = (torch.arange(64)[:, None] >> torch.arange(6) & 1).float()
    small = PACKAGES[package](6, replicas=2, depth=1, sums=3, leaves=3)
    with torch.no_grad():
        total = small.log_prob(small.encode(rows)).double().exp().sum()
    assert abs(total - 1) < 1e-4, f"wrong answer: probabilities of all rows sum to {total:.6g}"


@functools.lru_cache(maxsize=1)
def package(name, d):
    sums_to_one(name)
    made = PACKAGES[name](d, **RAT)
    parameters = sum(p.numel() for p in made.model.parameters())
    version = importlib.metadata.version(made.distribution)
    return made, f"{version}, splits and {parameters:,} parameters of its own"


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
