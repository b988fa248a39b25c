"""Energy models of crystals on our operators and on PyTorch's own: the same curves, in a fraction of the time.

    python benchmarks/paper_crystal.py                                  what is not yet in the results, half an hour
    python benchmarks/paper_crystal.py --run "SchNet|Carbon-24|pyfast"  this run, anew
    python benchmarks/paper_crystal.py --quick                          crystals that pymatgen ships, seconds

Trains a SchNet and a DimeNet++ of the sizes of the papers from the same weights and through the same batches, on the
validation sets of Carbon-24 and Perov-5, and tests on their test sets: training sets could not be had (``--data``).
Writes benchmarks/results/paper_crystal.json; benchmarks/report.py turns it into docs/paper_crystal.md.

Sources: Schütt et al., 2017, https://arxiv.org/abs/1706.08566; Gasteiger et al., 2020,
https://arxiv.org/abs/2011.14115; Xie et al., 2021, https://arxiv.org/abs/2110.06197.
"""

import argparse
import json
import math
import platform
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from crystal_models import DimeNet, SchNet, batched
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from pyfast import crystal
from pyfast.demo.crystal import prototypes

ROOT = Path(__file__).resolve().parents[1]


class Crystals(NamedTuple):
    """Positions (n, 3) and cells (b, 3, 3) Å, atoms of each (b,), atomic numbers (n,), and what to learn (b,)."""

    positions: Tensor
    cell: Tensor
    natoms: Tensor
    numbers: Tensor
    energy: Tensor

    def pick(self, which):
        """Those crystals, in this order."""
        first = self.natoms.cumsum(0) - self.natoms
        sizes = self.natoms[which]
        atoms = torch.repeat_interleave(first[which] - (sizes.cumsum(0) - sizes), sizes) + torch.arange(sizes.sum())
        return Crystals(self.positions[atoms], self.cell[which], sizes, self.numbers[atoms], self.energy[which])


def load(directory, name, energy):
    with np.load(directory / "crystals" / f"{name}.npz") as archive:
        frac, cell, natoms, z, y = (torch.from_numpy(archive[k]) for k in ("frac", "cell", "natoms", "z", energy))
    cell, natoms = cell.double(), natoms.long()
    positions = (frac.double()[:, None] @ cell[torch.repeat_interleave(natoms)])[:, 0]
    return Crystals(positions, cell, natoms, z.long(), y.double())


def shipped(most=12):
    """Prototypes of up to so many atoms, and for an energy what pairs of a Morse potential have, per atom."""
    _, c = prototypes()
    which = (c.natoms <= most).nonzero()[::4, 0]
    found = Crystals(c.positions, c.cell, c.natoms, c.numbers, torch.zeros(len(c.natoms)).double()).pick(which)
    graph = crystal.radius_graph(found.positions, found.cell, 5.0, natoms=found.natoms)
    depth = torch.exp(2.5 - graph.distance)
    pairs = 0.05 * (depth.square() - 2 * depth)
    return found._replace(energy=crystal.segment_sum(pairs, graph.edge_ptr) / found.natoms)


# Training


class Task(NamedTuple):
    """Files of a data set, what is learnt, how many crystals a batch has, and epochs by model and way."""

    name: str
    energy: str
    batch: int
    epochs: dict[str, tuple[int, int]]


TASKS = {
    "Carbon-24": Task("carbon_24", "energy_per_atom", 64, {"SchNet": (15, 2), "DimeNet++": (3, 3)}),
    "Perov-5": Task("perov_5", "heat_ref", 64, {"SchNet": (15, 2), "DimeNet++": (3, 3)}),
}
MODELS = {"SchNet": SchNet, "DimeNet++": DimeNet}
WAYS = ("pyfast", "torch", "torch, double")
FIRST = 30  # steps whose losses are compared
RATE = 1e-3


def train(model, how, epochs, planned, crystals, test, size):
    """So many epochs, with Adam and a rate that falls to zero as a cosine at the end of those planned."""
    dtype = torch.float64 if how.endswith("double") else torch.float32
    torch.manual_seed(0)
    net = MODELS[model](how.split(",")[0]).to(dtype)
    steps = math.ceil(len(crystals.natoms) / size)
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, planned * steps)
    centre, scale = crystals.energy.mean(), crystals.energy.std()
    losses, seconds, graphs, looks = [], [], [], []
    for epoch in range(epochs):
        order = torch.randperm(len(crystals.natoms), generator=torch.Generator().manual_seed(epoch))
        spent = building = 0.0
        for which in order.split(size):
            part = crystals.pick(which)
            start = time.perf_counter()
            batch = batched(part, dtype, net.K, net.CUTOFF)
            building += time.perf_counter() - start
            want = ((part.energy - centre) / scale).to(dtype)
            start = time.perf_counter()
            loss = F.l1_loss(net(batch), want)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            spent += time.perf_counter() - start
            losses.append(loss.item())
            if how.endswith("double") and len(losses) == FIRST:
                return {"losses": losses}
        seconds.append(spent)
        graphs.append(building)
        if epoch + 1 == epochs or (epoch + 1) & epoch == 0:
            looks.append((epoch + 1, sum(seconds), error(net, dtype, test, size, centre, scale)))
    assert math.isfinite(losses[-1]), "losses must be finite"
    return {
        "losses": losses[:FIRST],
        "epochs": [float(x.mean()) for x in torch.tensor(losses).split(steps)],
        "seconds": seconds,
        "graphs": statistics.median(graphs),
        "looks": looks,
        "parameters": sum(p.numel() for p in net.parameters()),
        "crystals": (len(crystals.natoms), len(test.natoms)),
        "mean": float((test.energy - centre).abs().mean()),
    }


@torch.no_grad()
def error(net, dtype, test, size, centre, scale):
    """Mean absolute error of the test crystals, eV per atom."""
    off = 0.0
    for which in torch.arange(len(test.natoms)).split(size):
        part = test.pick(which)
        off += float((net(batched(part, dtype, net.K, net.CUTOFF)) * scale + centre - part.energy).abs().sum())
    return off / len(test.natoms)


PUBLISHED = {
    "Perov-5": "as recalled of Matbench's perovskites (Castelli et al., 2012), trained on four times as many: "
    "CGCNN 0.045, DimeNet++ 0.038, MEGNet 0.035, SchNet 0.034, ALIGNN 0.029, coGN 0.027, the mean 0.566",
    "Carbon-24": "none that we recall",
}


def tables(runs):
    pairs = [(m, d) for d in dict.fromkeys(n[1] for n in runs) for m in MODELS if (m, d, "pyfast") in runs]
    speed, errors, same = [], [], []
    for model, data in pairs:
        ours, plain, double = (runs.get((model, data, how)) for how in WAYS)
        label = f"{model}, {data}"
        test, mean = ours["looks"][-1][2], ours["mean"]
        errors.append([label, f"{ours['parameters']:,}", len(ours["epochs"]), f"{test:.4f}", f"{mean:.4f}"])
        if not plain:
            continue
        mine, theirs = min(ours["seconds"]), min(plain["seconds"])
        both = min(len(ours["epochs"]), len(plain["epochs"])) - 1
        speed.append(
            [label, *(f"{t:.3g} s" for t in (mine, theirs)), f"{theirs / mine:.3g}x", f"{ours['graphs']:.2g} s"]
            + [f"{run['epochs'][both]:.4f}" for run in (ours, plain)]
        )
        if double:
            a, b, c = (
                torch.tensor(run["losses"][: len(double["losses"])], dtype=torch.float64)
                for run in (ours, plain, double)
            )
            off = [[f"{float(d):.1e}" for d in ((x / c - 1).abs()[0], (x / c - 1).abs().max())] for x in (a, b)]
            same.append([label, len(c), *(" to ".join(o) for o in off)])
    return [
        {
            "title": "Time of an epoch",
            "text": "The quickest epoch of training, forward, backward and Adam's step, as other programs slowed down "
            "the others; and the mean loss of the last epoch that both went through. Both ways are given the same "
            "graphs, whose time is beside them.",
            "header": ["", "pyfast", "PyTorch's operators", "ratio", "graphs", "pyfast's loss", "PyTorch's"],
            "rows": speed,
        },
        {
            "title": "The same curve",
            "text": "How far the losses of the first steps are from those in double precision, as a share: that of the "
            "first step, and the largest. Where both ways are as far, they differ by rounding alone.",
            "header": ["", "steps", "pyfast", "PyTorch's operators"],
            "rows": same,
        },
        {
            "title": "Errors",
            "text": "Mean absolute error of energies per atom (Carbon-24) and heats of formation (Perov-5) in eV, on "
            "test crystals; and of always saying the mean of the training crystals. Published: "
            + "; ".join(f"{data}: {said}" for data, said in PUBLISHED.items())
            + ".",
            "header": ["", "parameters", "epochs", "test error", "the mean's"],
            "rows": errors,
        },
    ]


def plots(runs):
    found = []
    for model, data, how in runs:
        if how != "pyfast":
            continue
        lines = {
            way: [(epochs * min(run["seconds"]), off) for epochs, _, off in run["looks"]]
            for way in WAYS[:2]
            if (run := runs.get((model, data, way)))
        }
        labels = {
            "title": f"{model}, {data}",
            "x": "seconds of training, as in the quickest epoch",
            "y": "test error, eV",
        }
        found.append(labels | {"lines": lines})
    return found


TEXT = """A SchNet (128 channels, six interactions, 50 Gaussians; all neighbours within 5 Å) whose filters are read \
from tables, and a DimeNet++ (that of CDVAE's encoder, along the 12 nearest, with ties, within 7 Å) whose triplets \
are tiles, beside the same models in PyTorch's own operators, `index_add` and indexing, as PyTorch Geometric has them: \
from the same weights, through the same batches. {data}. {threads} threads, {processor}."""


def content(runs):
    """What report.py makes docs/paper_crystal.md of."""
    named = {tuple(name.split("|")): run for name, run in runs.items()}
    data = "Carbon-24 and Perov-5 are trained on their validation sets and tested on their test sets"
    if ("SchNet", "prototypes", "pyfast") in named:
        data = "Prototypes that pymatgen ships, with energies of pairs"
    text = TEXT.format(data=data, threads=torch.get_num_threads(), processor=processor())
    found = {"title": "Energy models of crystals", "text": text, "tables": tables(named), "runs": runs}
    return found | {"plots": plots(named)}


def processor():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def jobs(options):
    """{name: what makes it}, in order."""
    found = {}
    if options.quick:
        both = shipped()
        order = torch.randperm(len(both.natoms), generator=torch.Generator().manual_seed(0))
        parts = [both.pick(x) for x in order.split(2 * len(order) // 3 + 1)]
        for model in MODELS:
            for how in WAYS:
                epochs = 3 if how == "pyfast" else 1
                found[f"{model}|prototypes|{how}"] = lambda m=model, h=how, e=epochs: train(m, h, e, 3, *parts, 16)
        return found
    for data, task in TASKS.items():
        for model, (many, few) in task.epochs.items():
            for how in WAYS:

                def job(task=task, model=model, how=how, epochs=many if how == "pyfast" else few, planned=many):
                    parts = (load(options.data, f"{task.name}_{part}", task.energy) for part in ("val", "test"))
                    return train(model, how, epochs, planned, *parts, task.batch)

                found[f"{model}|{data}|{how}"] = job
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="crystals that pymatgen ships, and little training")
    parser.add_argument("--run", help="only this part, anew; the others' results stay as they are")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="directory of data sets")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "paper_crystal.json")
    options = parser.parse_args()
    if not options.quick and not (options.data / "crystals").is_dir():
        parser.error(f"--data must hold crystals, got {options.data}")
    there = json.loads(options.output.read_text())["runs"] if options.output.exists() else {}
    todo = jobs(options)
    if options.run and options.run not in todo:
        parser.error(f"--run must be one of {', '.join(todo)}, got {options.run}")
    for name, job in tqdm(todo.items()):
        if name == options.run or (options.run is None and name not in there):
            there[name] = job()
            made = content({n: there[n] for n in todo if n in there})
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    print(f"{options.output} written; python benchmarks/report.py makes docs/{options.output.stem}.md of it")


if __name__ == "__main__":
    main()
