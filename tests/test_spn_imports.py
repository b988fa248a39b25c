"""Networks of other libraries: objects with their attributes stand for theirs, which need not be installed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from pyfast.spn import BayesSPN, from_deeprob, from_spflow


def make(name, **attributes):
    """An object of a class of that name."""
    return type(name, (SimpleNamespace,), {"__hash__": object.__hash__})(**attributes)


def leaf(name, variable, **attributes):
    return make(name, scope=[variable], children=[], id=0, **attributes)


def inner(name, children, **attributes):
    return make(name, scope=sorted({v for c in children for v in c.scope}), children=children, id=0, **attributes)


def rows(*kinds, n=200):
    g = np.random.default_rng(0)
    draw = {"g": g.normal, "b": lambda size: g.integers(2, size=size), "c": lambda size: g.integers(3, size=size)}
    X = np.stack([draw[k](size=n) for k in kinds], 1).astype(float)
    X[g.random(X.shape) < 0.2] = np.nan
    return X


def test_deeprob_gives_its_log_likelihood():
    b = [leaf("Bernoulli", 0, p=p) for p in (0.2, 0.7)]
    c = [
        leaf("Categorical", 1, categories=np.array(k), probabilities=p) for k, p in (((0, 2), (0.3, 0.7)), ((1,), (1,)))
    ]
    g = [leaf("Gaussian", 2, mean=m, stddev=s) for m, s in ((0.5, 2.0), (-1.0, 0.3))]
    mixed = inner("Sum", g, weights=np.array([0.25, 0.75]))
    root = inner(
        "Sum",
        [inner("Product", [b[0], c[0], mixed]), inner("Product", [b[1], c[1], mixed])],  # mixed is shared
        weights=np.array([0.6, 0.4]),
    )
    X = rows("b", "c", "g")
    with np.errstate(divide="ignore"):
        x = [np.where(np.isnan(X[:, j]), 0, X[:, j]) for j in range(3)]
        normal = 0.25 * stats.norm.pdf(x[2], 0.5, 2.0) + 0.75 * stats.norm.pdf(x[2], -1.0, 0.3)
        of = [
            [stats.bernoulli.pmf(x[0], 0.2), np.array([0.3, 0, 0.7])[x[1].astype(int)], normal],
            [stats.bernoulli.pmf(x[0], 0.7), np.array([0.0, 1, 0])[x[1].astype(int)], normal],
        ]
        one = [np.prod([np.where(np.isnan(X[:, j]), 1, f[j]) for j in range(3)], axis=0) for f in of]
        expected = np.log(0.6 * one[0] + 0.4 * one[1])
    model = from_deeprob(root)
    np.testing.assert_allclose(model.log_prob(X).detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    assert model.structure.num_leaves == 6
    assert np.isfinite(BayesSPN(model.structure, sweeps=4).fit(X).score(X))


def normal(query, channels, repetitions):
    g = torch.Generator().manual_seed(len(query) + query[0])
    shape = len(query), channels, repetitions
    params = {
        "loc": torch.randn(shape, generator=g).double(),
        "scale": 0.5 + torch.rand(shape, generator=g).double(),
    }
    scope = SimpleNamespace(query=query)
    return make("Normal", scope=scope, parameter_fn=None, out_shape=shape, params=lambda: params)


def log_weights(*shape, axis):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).double().log_softmax(axis)


@pytest.mark.parametrize("split", ["SplitConsecutive", "SplitInterleaved", "SplitByIndex"])
@pytest.mark.parametrize("product", ["ElementwiseProduct", "OuterProduct"])
def test_spflow_gives_its_log_likelihood(product, split):
    """Leaves (4, 3, 2), grouped in fours by repetition, split, multiplied, summed, repetitions mixed."""
    leaves = normal([0, 1, 2, 3], 3, 2)
    indices = torch.stack([torch.eye(4)[[2, 0, 3, 1]], torch.eye(4)], 2)
    grouped = make("Factorize", inputs=[leaves], indices=indices)
    parts = make(split, inputs=grouped, num_splits=2, dim=1, _indices=[[3, 0], [1, 2]])
    multiplied = make(product, inputs=[parts])
    width = 3 if product == "ElementwiseProduct" else 9
    summed = make("Sum", inputs=multiplied, log_weights=log_weights(2, width, 2, 2, axis=1))
    whole = make("Product", inputs=summed)
    mixed = make("RepetitionMixingLayer", inputs=whole, log_weights=log_weights(1, 2, 2, axis=2))
    root = make("Sum", inputs=mixed, log_weights=log_weights(1, 2, 1, 1, axis=1))

    X = rows("g", "g", "g", "g")
    x = torch.from_numpy(X)
    p = leaves.params()
    found = torch.distributions.Normal(p["loc"], p["scale"]).log_prob(x.nan_to_num()[:, :, None, None])
    found = torch.where(x.isnan()[:, :, None, None], 0.0, found)
    found = torch.einsum("bicr,ior->bocr", found, indices.double())
    at = {"SplitConsecutive": ([0, 1], [2, 3]), "SplitInterleaved": ([0, 2], [1, 3]), "SplitByIndex": ([3, 0], [1, 2])}
    left, right = (found[:, i] for i in at[split])
    found = (left[:, :, :, None] + right[:, :, None]).flatten(2, 3) if product == "OuterProduct" else left + right
    found = (found[:, :, :, None] + summed.log_weights).logsumexp(2).sum(1, keepdim=True)
    found = (found + mixed.log_weights).logsumexp(3)
    expected = (found + root.log_weights[:, :, 0, 0]).logsumexp(2).flatten()
    torch.testing.assert_close(from_spflow(root).log_prob(X).detach(), expected, rtol=1e-12, atol=1e-12)


def test_refusals_name_the_node():
    with pytest.raises(TypeError, match=r"got Isotonic of variables \[1\], id 0"):
        from_deeprob(inner("Product", [leaf("Bernoulli", 0, p=0.5), leaf("Isotonic", 1)]))
    with pytest.raises(TypeError, match="got int"):
        from_deeprob(3)
    with pytest.raises(ValueError, match="weights at every sum, got none at Sum"):
        from_deeprob(inner("Sum", [leaf("Bernoulli", 0, p=0.5)], weights=None))
    with pytest.raises(ValueError, match="one family for each variable"):
        from_deeprob(
            inner("Sum", [leaf("Bernoulli", 0, p=0.5), leaf("Gaussian", 0, mean=0.0, stddev=1.0)], weights=[0.5, 0.5])
        )
    with pytest.raises(ValueError, match="positive and finite deviations, got 0"):
        from_deeprob(leaf("Gaussian", 0, mean=0.0, stddev=0.0))
    loop = inner("Product", [leaf("Bernoulli", 0, p=0.5)])
    loop.children.append(loop)
    with pytest.raises(ValueError, match="without cycles"):
        from_deeprob(loop)
    with pytest.raises(TypeError, match="got EinsumLayer"):
        from_spflow(make("EinsumLayer"))
    with pytest.raises(ValueError, match="one output"):
        from_spflow(normal([0, 1], 2, 1))
    conditional = normal([0], 1, 1)
    conditional.parameter_fn = torch.nn.Identity()
    with pytest.raises(TypeError, match="conditional Normal"):
        from_spflow(conditional)
