"""Small masses, many children, and densities that a known table must come to."""

import numpy as np
import pytest
import torch

import pyfast
from pyfast.spn import BayesSPN, Structure


def wide_sum(children):
    """One sum over products of two leaves."""
    leaves, products = 2 * children, children
    kind = [0] * leaves + [1] * products + [2]
    first = [0] * (leaves + 1) + list(range(2, 2 * products + 1, 2)) + [2 * products + children]
    child = [*range(leaves), *range(leaves, leaves + products)]
    return Structure.from_csr(kind, first, child, [0, 1] * children + [-1] * (products + 1))


ROUNDED = 10_000 * torch.finfo(torch.float32).eps  # of a sum of so many equal terms, one after the other


@pytest.mark.filterwarnings("ignore:the chains disagree")  # eight sweeps are few
@pytest.mark.parametrize("hyper", ["fixed", "slice"])
@pytest.mark.parametrize("kernel", ["block", "isir", "topdown"])
def test_ten_thousand_children_share_one_mass(kernel, hyper):
    """A / K is 1e-4: Gamma draws of such shapes are smaller than any float, and most counts are 0."""
    X = np.random.default_rng(0).integers(0, 2, (40, 2)).astype(float)
    X[:20, 1] = X[:20, 0]
    model = BayesSPN(wide_sum(10_000), kernel=kernel, hyper=hyper, mass=1.0, sweeps=8).fit(X)
    all_rows = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=float)
    narrow = model.log_prob(all_rows)
    assert narrow.isfinite().all()
    assert float(narrow.exp().sum()) == pytest.approx(1, abs=ROUNDED)
    assert model.diagnostics().log_joint.isfinite().all()
    rows = model.columns_.encode(all_rows, torch.float64)
    for state in model.states_:
        given = model._answers().given(state)
        a, b = (
            model._network.log_prob(rows, model._network.predict(*given, dtype))
            for dtype in (torch.float32, torch.float64)
        )
        assert (a - b).abs().max() <= ROUNDED  # nats
        assert model._network.draw(*given, 0, 0).weights.isfinite().all()
    assert not np.isnan(model.sample(5)).any()


def test_ten_thousand_hidden_states():
    X = np.random.default_rng(0).integers(0, 2, (60, 1)).astype(float)
    model = BayesSPN(hidden=10_000, sweeps=6, warm=2).fit(X)
    both = model.log_prob(np.array([[0.0], [1.0]]))
    assert float(both.exp().sum()) == pytest.approx(1, abs=ROUNDED)
    assert float(both[1].exp()) == pytest.approx(X.mean(), abs=0.1)


REACHED = -18.4  # nats a row: -18.17 to -18.26 for three seeds, less four standard deviations


@pytest.fixture(scope="module")
def digits():
    """1,797 pictures of 64 bits."""
    bits = (pytest.importorskip("sklearn.datasets").load_digits().data > 7).astype(float)
    return bits[::2], bits[1::2]


def independent(train, test):
    share = (train.mean(0) * len(train) + 0.5) / (len(train) + 1)
    return float((test * np.log(share) + (1 - test) * np.log1p(-share)).sum(1).mean())


def chow_liu_tree(train, test):
    """Of a Chow-Liu tree with smoothed tables, by hand."""
    parent = pyfast.spn.chow_liu(train).tolist()
    total = 0.0
    for v, p in enumerate(parent):
        for a in (0, 1) if p >= 0 else (None,):
            there, asked = (slice(None), slice(None)) if a is None else (train[:, p] == a, test[:, p] == a)
            share = (train[there, v].sum() + 0.5) / (len(train[there]) + 1)
            x = test[asked, v]
            total += (x * np.log(share) + (1 - x) * np.log1p(-share)).sum()
    return total / len(test)


@pytest.mark.filterwarnings("ignore:the chains disagree")
def test_digits_come_to_their_density(digits):
    """What was reached when this was written, which is far above simpler models."""
    train, test = digits
    model = BayesSPN(hidden=16, sweeps=60).fit(train)
    found = model.score(test)
    assert found > chow_liu_tree(train, test) + 2 > independent(train, test) + 4
    assert found > REACHED
