"""Sum-product networks of other packages: each one's network of the same size, and how it is asked."""

import functools
import importlib.metadata

import pytest
import torch

RAT = {"replicas": 8, "depth": 3, "sums": 12, "leaves": 12}


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
