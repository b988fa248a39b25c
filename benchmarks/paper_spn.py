"""The finding of "Top-down Bayesian posterior sampling for sum-product networks", on the largest trees.

The paper claims that a tree drawn from the root down and accepted by its leaves costs a sweep of a large network tens
to more than a hundred times less than the pass from the leaves up that exact Gibbs sampling needs.

    python benchmarks/paper_spn.py                 three networks, about 6 minutes
    python benchmarks/paper_spn.py --children 3    this one; the others' results stay as they are
    python benchmarks/paper_spn.py --quick         small networks on synthetic rows, seconds

Samples the choices of rows of plants (``--data``) in trees of 10 thousand to 700 thousand nodes by every kernel, and
follows the likelihood of test rows over time. Writes benchmarks/results/paper_spn.json; benchmarks/report.py turns it
into docs/paper_spn.md.

Source: Yokoi and Sato, 2024, https://arxiv.org/abs/2406.12353, abstract.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from pyfast import spn
from pyfast.spn._chain import Chain, Plan
from pyfast.spn._hyper import Hyper
from pyfast.spn._network import Network

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ((2, 4000), (3, 1000), (4, 300))  # children of a sum, training rows
KERNELS = {
    "block": ("block", True),
    "topdown": ("topdown", True),
    "levels": ("levels", True),
    "isir": ("isir", True),
    "block, drawn parameters": ("block", False),
}
LOOKS = 12  # at the likelihood, at the squares of equal steps in time
SOME = 500  # test rows that the curves are of
TEXT = """A sum has C_s products below it, each with two sums over half of the variables: {nodes} nodes over {d} \
variables ({data}). Choices of all rows are sampled for {seconds:g} s by one thread, with parameters integrated out; \
the first sweep puts rows in one after the other, from the leaves up for `block` and in networks of up to 65,536 \
edges, from the root down elsewhere. `block` is the exact pass from the leaves up, `topdown` the paper's proposal of \
whole trees, `levels` proposals level by level, `isir` one candidate for each child. `block, drawn parameters` is \
the exact pass with weights and leaves drawn once a sweep, rows side by side in vector registers, begun with random \
parameters: no kernel of the paper, but what a tree from the root down has to beat in practice."""


class Run(NamedTuple):
    """One kernel on one network: seconds of each sweep, and of the sweeps of a quarter of the rows.

    curve: (seconds, sweeps, log likelihood of some test rows by the state, by an average over states since half time).
    last: log likelihood of all test rows by the last state.
    """

    seconds: list[float]
    quarter: list[float]
    curve: list[tuple[float, int, float, float]]
    last: float
    accepted: float


def rows_of(directory, name, variables):
    with np.load(directory / "debd" / "debd20.npz") as archive:
        packed = [archive[f"{name}/{part}"] for part in ("train", "test")]
    return [torch.from_numpy(np.unpackbits(x, axis=1)[:, :variables].astype(np.float32)) for x in packed]


def synthetic(n, d):
    """Zeros and ones in clusters, for training and for testing."""
    g = np.random.default_rng(0)
    chance = g.beta(0.4, 1.2, (6, d))
    return torch.from_numpy((g.random((2 * n, d)) < chance[g.integers(6, size=2 * n)]).astype(np.float32)).split(n)


def chain_of(structure, rows, kernel):
    columns = spn.Columns.fit_encoding(rows, "bernoulli")
    network = Network(structure, columns)
    name, collapsed = KERNELS[kernel]
    plan = Plan(name, collapsed, lookahead=0, candidates=0, hyper="fixed")
    hyper = Hyper(network, columns, mass=1.0, kappa=2.0)
    return network, Chain(network, columns, spn.unique_rows(columns.encode(rows)), plan, hyper, seed=0, index=0)


def timed(chain):
    torch.set_num_threads(1)
    start = time.perf_counter()
    chain.sweep()
    return time.perf_counter() - start


def sampled(structure, rows, test, kernel, seconds):
    """Sweeps for so many seconds; the looks at test rows are not counted."""
    network, chain = chain_of(structure, rows, kernel)
    threads = torch.get_num_threads()
    some = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:SOME]]
    looks = [seconds * (i / LOOKS) ** 2 for i in range(1, LOOKS + 1)]
    spent, curve, seen = [], [], []
    while len(spent) < 2 or sum(spent) < seconds:
        spent.append(timed(chain))
        torch.set_num_threads(threads)
        if sum(spent) >= looks[0] or sum(spent) >= seconds:
            now = sum(spent)
            looks = [t for t in looks if t > now] or [math.inf]
            seen.append((now, network.log_prob(some, network.predict(chain.counts, chain.law))))
            late = torch.stack([x for t, x in seen if t >= now / 2])
            average = late.logsumexp(0) - math.log(len(late))
            curve.append((now, len(spent), float(seen[-1][1].mean()), float(average.mean())))
    last = float(network.log_prob(test, network.predict(chain.counts, chain.law)).mean())
    assert math.isfinite(last), "log likelihoods must be finite"
    _, small = chain_of(structure, rows[: len(rows) // 4], kernel)
    quarter: list[float] = []
    while len(quarter) < 4 or sum(quarter) < seconds / LOOKS:
        quarter.append(timed(small))
    torch.set_num_threads(threads)
    tried, made = chain.accepted.sum(0).tolist() if hasattr(chain, "accepted") else (0, 0)
    return Run(spent, quarter, curve, last, made / tried if tried else math.nan)


def later(seconds):
    """A sweep's usual time: the first, which sets the chain up, is none."""
    return statistics.median(seconds[1:])


def table(structures, sizes, found):
    rows = []
    for children, n in sizes:
        by = {kernel: found[children, kernel] for kernel in KERNELS}
        # what a row adds: without what a sweep costs the whole network, however few rows there are
        row = {k: (later(run.seconds) - later(run.quarter)) / (n - n // 4) for k, run in by.items()}
        for kernel, run in by.items():
            usual = later(run.seconds)
            rows.append(
                [
                    f"C_s = {children}, {structures[children].num_nodes:,} nodes, {n:,} rows",
                    kernel,
                    len(run.seconds),
                    f"{1e3 * usual:.3g}",
                    f"{later(by['block'].seconds) / usual:.3g}x",
                    f"{1e6 * row[kernel]:.3g}" if row[kernel] > 0 else "",  # lost in noise
                    f"{row['block'] / row[kernel]:.3g}x" if row[kernel] > 0 else "",
                    "" if math.isnan(run.accepted) or kernel == "block" else f"{run.accepted:.0%}",
                    f"{run.last:.2f}",
                    f"{run.curve[-1][3]:.2f}",
                ]
            )
    return rows


HEADER = [
    "network",
    "kernel",
    "sweeps",
    "ms a sweep",
    "faster than block",
    "µs a row",
    "faster than block",
    "moves made",
    "test log likelihood, last state",
    f"averaged, {SOME} rows",
]


def report(structures, sizes, found, data, d, seconds):
    """What report.py makes docs/paper_spn.md of."""
    nodes = ", ".join(f"{s.num_nodes:,}" for s in structures.values())
    lines = {
        children: {kernel: [(t, average) for t, _, _, average in found[children, kernel].curve] for kernel in KERNELS}
        for children, _ in sizes
    }
    return {
        "title": "Top-down posterior sampling of sum-product networks",
        "text": TEXT.format(nodes=nodes, d=d, data=data, seconds=seconds),
        "tables": [
            {
                "title": "Time and likelihood",
                "text": "A sweep's median time, the first not counted. A row's is what rows add to it: three quarters "
                "of them more. Nats a row; a state predicts with its parameters integrated out, averages are of states "
                "since half of the time.",
                "header": HEADER,
                "rows": table(structures, sizes, found),
            }
        ],
        "plots": [
            {
                "title": f"C_s = {children}, {structures[children].num_nodes:,} nodes, {n:,} rows",
                "x": "seconds of sampling",
                "y": "test log likelihood",
                "lines": lines[children],
            }
            for children, n in sizes
        ],
        "runs": {f"{children}, {kernel}": run._asdict() for (children, kernel), run in found.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks, synthetic rows, a tenth of a second each")
    parser.add_argument("--children", type=int, choices=[c for c, _ in NETWORKS], help="only this network")
    parser.add_argument("--seconds", type=float, default=12.0, help="time to sample with each kernel on each network")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="directory of data sets")
    parser.add_argument("--output", type=Path, help="by default in benchmarks/results, of --quick in build")
    options = parser.parse_args()
    place = ROOT / ("build" if options.quick else "benchmarks/results")
    options.output = options.output or place / "paper_spn.json"
    if options.quick:
        (train, test), sizes, data, seconds = synthetic(120, 12), ((2, 120), (3, 60)), "synthetic", 0.1
    else:
        if not (options.data / "debd" / "debd20.npz").exists():
            parser.error(f"--data must hold debd/debd20.npz, got {options.data}")
        train, test = rows_of(options.data, "plants", 69)
        sizes, data, seconds = NETWORKS, "plants", options.seconds
    d = train.shape[1]
    structures = {children: spn.tree(d, sum_children=children, product_children=2) for children, _ in sizes}
    jobs = [(children, n, kernel) for children, n in sizes for kernel in KERNELS]
    found = {}
    for children, n, kernel in tqdm(jobs):
        if options.quick or options.children in (None, children):
            found[children, kernel] = sampled(structures[children], train[:n], test, kernel, seconds)
        else:
            found[children, kernel] = Run(**json.loads(options.output.read_text())["runs"][f"{children}, {kernel}"])
    content = report(structures, sizes, found, data, d, seconds)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"{options.output} written; python benchmarks/report.py makes docs/paper_spn.md of it")


if __name__ == "__main__":
    main()
