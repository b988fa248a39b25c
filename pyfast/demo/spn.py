"""A sum-product network of scikit-learn's digits: learned in seconds, checked, sampled, and asked for hidden halves."""

import copy
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyfast import spn
from pyfast.reference import spn as reference

SIDE, SHOWN = 8, 10
BINS = 10


def run(console: Console, plot: Path | None, quick: bool) -> dict[str, Any]:
    """Learn binarised digits, hold likelihoods against the reference, complete half-hidden digits, show how sure."""
    train, test = digits()
    console.rule("Sum-product networks: exact probabilities, calibrated")
    start = time.perf_counter()
    model = spn.BayesSPN(hidden=16, sweeps=60 if quick else 240, seed=0).fit(train)
    seconds = time.perf_counter() - start
    console.print(
        f"scikit-learn's digits, {SIDE} x {SIDE} pixels, black or white: {len(train):,} learned in {seconds:.1f} s "
        f"({model.structure_}), {len(test)} held out."
    )
    hidden = test.copy()
    hidden[:, SIDE * SIDE // 2 :] = math.nan  # the lower half
    error, halves = check(model, test, hidden)
    scores = {"Bayesian network": model.score(test), "independent pixels": independent(train, test)}
    table = Table("model", "log probability of a held-out digit (nats)", title="The higher, the better")
    for name, score in scores.items():
        table.add_row(name, f"{score:.2f}")
    console.print(table)
    said, seen, count = calibration(model, hidden, test)
    off = float(np.average(np.abs(said - seen), weights=count))
    right = float((model.mpe(hidden) == test)[:, SIDE * SIDE // 2 :].mean())
    console.print(
        f"Lower halves from upper ones: {right:.1%} of the hidden pixels are what the best completion says; what the "
        f"network gives a probability of p happens with frequency p to within {off:.3f} on average."
    )
    agrees = error < 1e-4 and halves < 1e-9
    console.print(f"largest error against the float64 reference: {error:.2g} nats; equal: {'yes' if agrees else 'NO'}")
    if plot is not None:
        draw(model, test, hidden, (said, seen, count), plot)
        console.print(f"plot: {plot}")
    numbers = {"seconds": seconds, "scores": scores, "error": error, "calibration": off, "right": right}
    return {"agrees": agrees, "train": len(train), "test": len(test)} | numbers


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Every fifth digit is held out."""
    from sklearn.datasets import load_digits

    pixels = (load_digits().data > 7).astype(np.float64)
    held = np.arange(len(pixels)) % 5 == 0
    return pixels[~held], pixels[held]


def check(model: spn.BayesSPN, test: np.ndarray, hidden: np.ndarray) -> tuple[float, float]:
    """Error of a state's likelihoods against the reference; that of joint = marginal times conditional."""
    one = copy.copy(model)
    one.states_ = model.states_[:1]
    got = one.log_prob(test)
    weights, leaves = one.predictive_parameters(0)
    s, columns = model.structure_, model.columns_
    network = reference.Network(s.kind, s.first, s.child, s.variable, columns.leaf_first(s), columns.family)
    rows = torch.from_numpy(test)
    want = reference.log_likelihood(network, weights.double(), leaves.double(), rows)
    upper = model.log_prob(hidden)
    lower = model.conditional(test, given=hidden)
    return float((got - want).abs().max()), float((upper + lower - model.log_prob(test)).abs().max())


def independent(train: np.ndarray, test: np.ndarray) -> float:
    """Mean log probability if pixels knew nothing of each other."""
    p = (train.sum(0) + 0.5) / (len(train) + 1)
    return float((test * np.log(p) + (1 - test) * np.log1p(-p)).sum(1).mean())


def calibration(model: spn.BayesSPN, hidden: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each hidden pixel alone given the upper half: what was said and what happened, by deciles of what was said."""
    pixels = range(SIDE * SIDE // 2, SIDE * SIDE, 3)
    said, seen = [], []
    for pixel in pixels:
        asked = np.full_like(hidden, math.nan)
        asked[:, pixel] = 1
        said.append(model.conditional(asked, given=hidden).exp().numpy())
        seen.append(test[:, pixel])
    p, y = np.concatenate(said), np.concatenate(seen)
    group = np.minimum((p * BINS).astype(int), BINS - 1)
    count = np.bincount(group, minlength=BINS)
    there = count > 0
    mean = [np.bincount(group, weights=x, minlength=BINS)[there] / count[there] for x in (p, y)]
    return mean[0], mean[1], count[there]


def draw(
    model: spn.BayesSPN,
    test: np.ndarray,
    hidden: np.ndarray,
    calibrated: tuple[np.ndarray, np.ndarray, np.ndarray],
    path: Path,
) -> None:
    """Digits, their completions, new samples; and calibration."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    some = hidden[:SHOWN]
    rows = {
        "held out": test[:SHOWN],
        "lower half hidden": some,
        "completed at random": _array(model.sample(evidence=some, seed=1)),
        "most probable": _array(model.mpe(some)),
        "new samples": _array(model.sample(SHOWN, seed=2)),
    }
    figure = plt.figure(figsize=(11, 4.2), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(2.2, 1))
    left, right = parts
    axes = left.subplots(len(rows), SHOWN)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.reshape(SIDE, SIDE), cmap="Greys", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    said, seen, count = calibrated
    axis = right.subplots()
    axis.plot([0, 1], [0, 1], color="0.7", lw=1)
    axis.scatter(said, seen, s=4 + 60 * np.sqrt(count / count.max()))
    axis.set(xlabel="probability given to a hidden pixel", ylabel="how often it was black", aspect="equal")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _array(x: Any) -> np.ndarray:
    return x.numpy() if isinstance(x, Tensor) else np.asarray(x)
