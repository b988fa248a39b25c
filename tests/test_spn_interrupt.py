"""Ctrl-C ends every kind of learning within a second, and keeps what was learned until then."""

import contextlib
import math
import signal
import sys
import time

import numpy as np
import pytest
import torch

import pyfast
from pyfast.spn import EM, BayesSPN, ImplicitTree
from pyfast.spn._update import Update


@contextlib.contextmanager
def pressed_after(seconds):
    """Ctrl-C after so much of the processor's time; yields a list to which goes when it came."""
    at = []

    def press(*_):
        at.append(time.process_time())
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGPROF, press)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield at
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def table(n, d):
    g = np.random.default_rng(0)
    return (g.random((n, d)) < g.beta(0.5, 0.5, (6, d))[g.integers(6, size=n)]).astype(float)


MANY = 10**6
FITS = {
    "block, dense": (lambda: BayesSPN("rat", sweeps=MANY, warm=0), 20_000, 32, "stopped after"),
    "block, sparse": (
        lambda: BayesSPN(pyfast.spn.tree(32, 3, 2), kernel="block", sweeps=MANY),
        2000,
        32,
        "stopped",
    ),
    "hclt": (lambda: BayesSPN(hidden=16, sweeps=MANY, warm=0), 2000, 32, "stopped after"),
    "isir": (lambda: BayesSPN("tree", kernel="isir", sweeps=MANY), 1000, 32, "stopped after"),
    "informed": (lambda: BayesSPN("tree", kernel="informed", sweeps=MANY), 1000, 32, "stopped after"),
    "topdown, drawn": (
        lambda: BayesSPN("tree", kernel="topdown", mode="instantiated", sweeps=MANY),
        1000,
        32,
        "stopped",
    ),
    "warm": (lambda: BayesSPN(hidden=16, warm=MANY), 2000, 32, "before the first sweep; what was learned until then"),
    "EM": (lambda: EM("rat", iterations=MANY, patience=MANY), 20_000, 32, "stopped after"),
    "implicit": (lambda: ImplicitTree(10**6, 2, sweeps=MANY), 500, 32, None),
}


@pytest.mark.parametrize("name", FITS)
def test_it_ends_within_a_second(name):
    make, n, d, message = FITS[name]
    X, threads = table(n, d), torch.get_num_threads()
    torch.set_num_threads(1)  # so that the processor's time is what one waits on a machine that is free
    try:
        with (
            pytest.warns(UserWarning, match=message) if message else contextlib.nullcontext(),
            pressed_after(3.0) as at,
        ):
            model = make().fit(X)
        waited = time.process_time() - at[0]
    finally:
        torch.set_num_threads(threads)
    assert waited < 1
    assert math.isfinite(model.score(X[:50]))


def test_a_warm_start_that_was_stopped_has_learned():
    X = table(2000, 32)
    with pytest.warns(UserWarning, match="before the first sweep"), pressed_after(2.0):
        model = BayesSPN(hidden=8, warm=MANY, chains=2).fit(X)
    assert [s.sweep for s in model.states_] == [0]  # of the first chain: the second had not begun
    share = X.mean(0).clip(1e-6, 1 - 1e-6)
    alone = (X * np.log(share) + (1 - X) * np.log(1 - share)).sum(1).mean()
    assert model.score(X) > alone + 1
    assert model.sample(3).shape == (3, 32)


def test_a_chain_that_was_stopped_before_it_swept_begins_again(monkeypatch, tmp_path):
    steps, best, X = [], Update.best, table(300, 6)

    def stopping(*args):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return best(*args)

    settings = {"hidden": 3, "warm": 4, "sweeps": 5, "seed": 1}
    whole = BayesSPN(**settings).fit(X).log_prob(X)
    monkeypatch.setattr(Update, "best", stopping)
    with pytest.warns(UserWarning, match="before the first sweep"):
        model = BayesSPN(**settings).fit(X)
    model.save(tmp_path / "model.pt")
    loaded = BayesSPN.load(tmp_path / "model.pt")
    assert torch.equal(loaded.log_prob(X), model.log_prob(X))
    assert torch.equal(model.resume(X, 5).log_prob(X), whole)
    assert torch.equal(loaded.resume(X, 5).log_prob(X), whole)


def test_an_interruption_that_python_drops_ends_a_warm_start_after_its_step(monkeypatch):
    class Dropped:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    dropped, steps, best = [], [], Update.best

    def counted(*args):
        steps.append(1)
        if len(steps) == 3:
            Dropped()
        return best(*args)

    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    monkeypatch.setattr(Update, "best", counted)
    with pytest.warns(UserWarning, match="before the first sweep"):
        model = BayesSPN(hidden=4, warm=MANY).fit(table(2000, 8))
    assert len(dropped) == 1
    assert len(steps) == 3
    assert math.isfinite(model.score(table(50, 8)))
