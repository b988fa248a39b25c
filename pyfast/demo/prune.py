"""Global magnitude pruning of a trained network, with and without a minimum per layer, and against PyTorch's own."""

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from pyfast import prune
from pyfast.demo import digits, shapes
from pyfast.reference import prune as reference

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
Images = tuple[Tensor, Tensor, Tensor, Tensor]


def run(console: Console, plot: Path | None, quick: bool) -> dict[str, Any]:
    """Prune at seven sparsities, show what a minimum per layer saves, and race."""
    net, images = digits.pretrained(), digits.images()
    dense = digits.accuracy(net, images[2], images[3])
    n = sum(m.weight.numel() for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    console.rule("Global magnitude pruning, one shot, no training afterwards")
    console.print(
        f"A network without shortcuts, {n:,} weights in {len(layer_sizes(net))} layers, reads {dense:.1f}% of 500 "
        "handwritten digits.\nAccuracies below: after batch norm's means and variances were taken anew from the "
        "training images; in brackets before."
    )
    rows = []
    for sparsity in SPARSITIES:
        kept = n - round(sparsity * n)
        minimum = 3 * kept // (4 * len(layer_sizes(net)))  # three quarters of what is kept, shared out evenly
        rows.append({"plain": attempt(net, images, sparsity, 0), "minimum": attempt(net, images, sparsity, minimum)})
    console.print(_overview(rows))
    telling = max(rows, key=lambda r: (bool(r["plain"]["emptied"]), r["minimum"]["accuracy"] - r["plain"]["accuracy"]))
    console.print(_story(telling))
    console.print(_per_layer(telling))
    races = [_race("this network", [w.detach() for w in _weights(net)], rounds=5)]
    if not quick:
        g = torch.Generator().manual_seed(0)
        races.append(_race("ResNet-50's shapes", [torch.randn(s, generator=g) for s in shapes.resnet50()], rounds=2))
    console.print(_times(races))
    agrees = all(row[way]["agrees"] for row in rows for way in row) and all(race["agrees"] for race in races)
    console.print(f"masks equal the reference: {'yes' if agrees else 'NO'}")
    if plot is not None:
        draw(rows, dense, plot)
        console.print(f"plot: {plot}")
    return {"agrees": agrees, "dense_accuracy": dense, "weights": n, "sparsities": rows, "races": races}


def layer_sizes(net: nn.Module) -> list[int]:
    """Numbers of weights of the layers that are pruned."""
    return [w.numel() for w in _weights(net)]


def attempt(net: nn.Module, images: Images, sparsity: float, minimum: int) -> dict[str, Any]:
    """Prune a copy of the network and measure it.

    Returns:
        The threshold, per-layer counts, accuracy before and after batch norm's statistics were taken anew, the names
        of emptied layers, and whether the pruned copy holds exactly the weights that ``pyfast.reference`` keeps.
    """
    x, _, test_x, test_y = images
    pruned = copy.deepcopy(net)
    result = prune.global_magnitude_(pruned, sparsity, min_keep=minimum)
    weights = [w.detach() for w in _weights(net)]
    floors = [min(minimum, w.numel()) for w in weights]
    masks, _, _ = reference.select(weights, round(sparsity * sum(map(torch.numel, weights))), floors)
    agrees = all(
        torch.equal(after, torch.where(mask, before, 0.0)) and torch.equal(mask, ours)
        for after, before, mask, ours in zip(
            _weights(pruned), weights, masks, result.mask.to_bool().values(), strict=True
        )
    )
    before = digits.accuracy(pruned, test_x, test_y)
    digits.recalibrate(pruned, x)
    smallest = min(result.layers, key=lambda layer: layer.kept)
    return {
        "sparsity": sparsity,
        "min_keep": minimum,
        "threshold": result.threshold,
        "kept": result.kept,
        "accuracy": digits.accuracy(pruned, test_x, test_y),
        "accuracy_before_recalibration": before,
        "smallest": [_short(smallest.name), smallest.kept],
        "emptied": [_short(layer.name) for layer in result.layers if not layer.kept],
        "layers": [
            {"name": _short(r.name), "shape": list(r.shape), "size": r.size, "kept": r.kept, "binds": r.binds}
            for r in result.layers
        ],
        "agrees": agrees,
    }


def draw(rows: list[dict[str, Any]], dense: float, path: Path) -> None:
    """Draw accuracy and the smallest layer against the share of weights kept. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    kept = [100 * (1 - row["plain"]["sparsity"]) for row in rows]
    for way, label in (("plain", "no minimum"), ("minimum", "minimum per layer")):
        left.plot(kept, [row[way]["accuracy"] for row in rows], "o-", label=label)
        right.plot(kept, [row[way]["smallest"][1] for row in rows], "o-", label=label)
    left.axhline(dense, color="gray", linestyle=":", label="dense")
    left.axhline(10, color="gray", linestyle="--", label="chance")
    left.set_ylabel("test accuracy, %")
    right.set_ylabel("weights left in the smallest layer")
    right.set_yscale("symlog", linthresh=1)
    right.set_ylim(bottom=-0.2)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xticks(kept, [f"{k:g}" for k in kept], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("weights kept, %")
        axes.legend()
    figure.suptitle("Global magnitude pruning of a network without shortcuts: one shot, batch norm recalibrated")
    figure.savefig(path, dpi=120)


def _weights(net: nn.Module) -> list[Tensor]:
    return [m.weight for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def _short(name: str) -> str:
    return name.removesuffix(".weight").removesuffix(".convolution")


def _overview(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in ("\nsparsity", "\nthreshold", "no minimum:\naccuracy", "smallest\nlayer", "layers\nemptied"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("minimum:\nmin_keep", "\naccuracy", "smallest\nlayer"):
        table.add_column(heading, justify="right", style="green", no_wrap=True)
    for row in rows:
        a, b = row["plain"], row["minimum"]
        accuracy, saved = (f"{r['accuracy']:.1f} ({r['accuracy_before_recalibration']:.1f})" for r in (a, b))
        left, emptied, minimum, still = a["smallest"][1], len(a["emptied"]), b["min_keep"], b["smallest"][1]
        head = (f"{100 * a['sparsity']:g}%", f"{a['threshold']:.4f}", accuracy)
        table.add_row(*head, f"{left}", f"{emptied}", f"{minimum}", saved, f"{still}")
    return table


def _story(row: dict[str, Any]) -> str:
    a, b = row["plain"], row["minimum"]
    name, kept = a["smallest"]
    state = f"{', '.join(a['emptied'])} emptied" if a["emptied"] else f"{name} is left with {kept} weights"
    return (
        f"At {100 * a['sparsity']:g}% the minimum matters most: without it, {state}, accuracy {a['accuracy']:.1f}% "
        f"(chance is 10%); with [green]min_keep={b['min_keep']}[/] no layer collapses, accuracy {b['accuracy']:.1f}%. "
        "No weight was trained in between."
    )


def _per_layer(row: dict[str, Any]) -> Table:
    title = f"per layer at {100 * row['plain']['sparsity']:g}%"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))
    table.add_column("\nlayer", no_wrap=True)
    headings = ("\nshape", "\nweights", "no minimum:\nkept", "\nsparsity", "minimum:\nkept", "\nsparsity", "\nbinds")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for a, b in zip(row["plain"]["layers"], row["minimum"]["layers"], strict=True):
        before, after = (f"{1 - r['kept'] / r['size']:.1%}" for r in (a, b))
        left = f"{a['kept']:,}" if a["kept"] else "[bold red]0[/]"
        head = (a["name"], "x".join(map(str, a["shape"])), f"{a['size']:,}")
        table.add_row(*head, left, before, f"{b['kept']:,}", after, "yes" if b["binds"] else "")
    return table


def _race(name: str, weights: list[Tensor], rounds: int) -> dict[str, Any]:
    """Best times to prune 90% by both libraries in turn, on fresh copies, after checking the mask."""
    amount = 0.9
    masks = reference.global_magnitude_mask(weights, round(amount * sum(map(torch.numel, weights))))
    copies = [w.clone() for w in weights]
    prune.global_magnitude_(copies, amount)
    agrees = all(torch.equal(c, torch.where(m, w, 0.0)) for c, m, w in zip(copies, masks, weights, strict=True))
    ours, theirs = math.inf, math.inf
    for _ in range(rounds):
        holders = [nn.Module() for _ in weights]
        for holder, w in zip(holders, weights, strict=True):
            holder.weight = nn.Parameter(w.clone())
        pairs = [(holder, "weight") for holder in holders]
        seconds = _seconds(torch_prune.global_unstructured, pairs, torch_prune.L1Unstructured, amount=amount)
        theirs = min(theirs, seconds)
        for _ in range(3):
            for c, w in zip(copies, weights, strict=True):
                c.copy_(w)
            ours = min(ours, _seconds(prune.global_magnitude_, copies, amount))
    n = sum(map(torch.numel, weights))
    return {"name": name, "weights": n, "tensors": len(weights), "pyfast": ours, "torch": theirs, "agrees": agrees}


def _seconds(call: Callable[..., object], *args: Any, **options: Any) -> float:
    start = time.perf_counter()
    call(*args, **options)
    return time.perf_counter() - start


def _times(races: list[dict[str, Any]]) -> Table:
    title = f"pruning 90% in place, best of several, {torch.get_num_threads()} threads"
    table = Table(title=title, box=None, padding=(0, 2, 0, 0))
    table.add_column("weights of")
    for heading in ("number", "tensors", "pyfast", "torch.nn.utils.prune", "ratio"):
        table.add_column(heading, justify="right")
    for r in races:
        table.add_row(
            r["name"],
            f"{r['weights']:,}",
            f"{r['tensors']}",
            f"{1e3 * r['pyfast']:,.2f} ms",
            f"{1e3 * r['torch']:,.2f} ms",
            f"{r['torch'] / r['pyfast']:,.0f}x",
        )
    return table
