"""The finding of the Global Magnitude Pruning paper, in small.

The paper claims that one threshold for the whole network rivals more elaborate rules, and that a minimum per layer
saves networks without shortcuts from collapse at high sparsity.

    python benchmarks/paper_prune.py            three seeds, minutes
    python benchmarks/paper_prune.py --quick    one seed, one epoch, seconds

A network without shortcuts is trained on scikit-learn's digits, pruned in one shot and fine-tuned, or pruned gradually
while it trains. Writes benchmarks/results/paper_prune.json; benchmarks/report.py turns it into docs/paper_prune.md.

Source: Gupta et al., 2022, https://arxiv.org/abs/2209.14624, tables for WRN-28-8, ResNet-50, MobileNet-V1 and -V2.
"""

import argparse
import copy
import json
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from pyfast import prune
from pyfast.demo import digits

RESULTS = Path(__file__).resolve().parent / "results"
SPARSITIES = (0.8, 0.9, 0.95, 0.98, 0.99)
TRAIN, TUNE = {"rate": 0.1, "decay": 0.02}, {"rate": 0.05, "decay": 0.0}
THEIRS = [
    ["MobileNet-V2, CIFAR-10", "98%", "94.15", "Global MP 10 (layers emptied)", "Global MP + MT 82.97 ± 0.57"],
    ["MobileNet-V1, ImageNet", "90%", "71.95", "Global MP 59.49; GMP 61.80; STR 61.51", "Global MP + MT 63.94"],
    ["WRN-28-8, CIFAR-10", "90%", "96.06", "SNIP 95.49; SM 95.67; DSR 95.81; DPF 96.08", "Global MP 96.30 ± 0.03"],
    ["WRN-28-8, CIFAR-10", "95%", "96.06", "SNIP 94.93; SM 95.64; DSR 95.55; DPF 95.98", "Global MP 96.16 ± 0.02"],
    ["WRN-28-8, CIFAR-10", "97.5%", "96.06", "SNIP 94.11; SM 95.31; DSR 95.11; DPF 95.84", "Global MP 95.68 ± 0.08"],
    ["ResNet-50, ImageNet", "80%", "77.0", "GMP 75.60; RigL+ERK 75.10; STR 76.19", "one-shot 76.84; gradual 76.12"],
    ["ResNet-50, ImageNet", "90%", "77.0", "GMP 73.91; RigL+ERK 73.00; STR 74.73", "one-shot 75.28; gradual 74.83"],
    ["ResNet-50, ImageNet", "95%", "77.0", "GMP 70.59; RigL+ERK 70.00; STR 70.40", "one-shot 71.56; gradual 72.14"],
    ["ResNet-50, ImageNet", "98%", "77.0", "GMP 57.90; STR 61.46", "one-shot 61.80; gradual 66.57"],
]


def weights(net):
    """The prunable weights of the network by name."""
    return {
        f"{name}.weight": m.weight.detach() for name, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))
    }


def minimum(net, sparsity):
    """A minimum per layer that takes half of what is kept, as the paper's 0.2% of MobileNet-V1 roughly does."""
    sizes = [w.numel() for w in weights(net).values()]
    return (sum(sizes) - round(sparsity * sum(sizes))) // (2 * len(sizes))


def uniform(net, sparsity):
    """Layer-wise magnitude pruning: the same share of every layer falls."""
    masks = [prune.global_magnitude_({name: w}, sparsity).mask.to_bool() for name, w in weights(net).items()]
    return prune.BitMask.from_bool({name: mask for one in masks for name, mask in one.items()})


def erdos_renyi(net, sparsity):
    """Layer-wise magnitude with Erdős-Rényi-kernel densities, proportional to (sum of the sizes) / (their product)."""
    layers = weights(net)
    budget = sum(w.numel() for w in layers.values()) * (1 - sparsity)
    raw = {name: sum(w.shape) / w.numel() for name, w in layers.items()}
    dense: set[str] = set()
    while True:
        left = budget - sum(layers[name].numel() for name in dense)
        scale = left / sum(raw[name] * w.numel() for name, w in layers.items() if name not in dense)
        full = {name for name in layers if name not in dense and scale * raw[name] >= 1}
        if not full:
            break
        dense |= full
    density = {name: 1.0 if name in dense else scale * raw[name] for name in layers}
    masks = [prune.global_magnitude_({name: w}, 1 - density[name]).mask.to_bool() for name, w in layers.items()]
    return prune.BitMask.from_bool({name: mask for one in masks for name, mask in one.items()})


ONE_SHOT = {
    "uniform": uniform,
    "Erdős-Rényi": erdos_renyi,
    "Global MP": lambda net, s: prune.global_magnitude_(net, s).mask,
    "Global MP + MT": lambda net, s: prune.global_magnitude_(net, s, min_keep=minimum(net, s)).mask,
}


def trained(seed, epochs):
    """A dense network and its accuracy."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    x, y, test_x, test_y = digits.images()
    torch.manual_seed(seed)
    net = digits.network()
    digits.train(net, x, y, epochs=epochs, seed=seed, **TRAIN)
    return net, digits.accuracy(net, test_x, test_y)


def fine_tuned(dense, name, sparsity, epochs, seed):
    """Accuracy after pruning in one shot and training what is left; number of weights in the smallest layer."""
    x, y, test_x, test_y = digits.images()
    net = copy.deepcopy(dense)
    mask = ONE_SHOT[name](net, sparsity)
    digits.train(net, x, y, epochs=epochs, seed=seed, after_step=lambda _: mask.apply_(net), **TUNE)
    return digits.accuracy(net, test_x, test_y), min(int(m.sum()) for m in mask.to_bool().values())


def gradual(name, sparsity, epochs, seed):
    """Accuracy of a network pruned while it trains from scratch; number of weights in its smallest layer."""
    x, y, test_x, test_y = digits.images()
    torch.manual_seed(seed)
    net = digits.network()
    steps = epochs * (len(x) // 64)
    pruner = prune.GradualPruner(
        net,
        sparsity,
        start=steps // 5,
        end=steps * 7 // 10,
        every=max(steps // 50, 1),
        min_keep=minimum(net, sparsity) if "MT" in name else 0,
    )
    digits.train(net, x, y, epochs=epochs, seed=seed, after_step=lambda _: pruner.step(), **TRAIN)
    return digits.accuracy(net, test_x, test_y), min(int((w != 0).sum()) for w in weights(net).values())


def attempt(dense, method, sparsity, epochs, seed):
    """One network of the experiment; runs in a process of its own."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    name, _, way = method.partition(", ")
    return (
        fine_tuned(dense, name, sparsity, epochs, seed) if way == "one-shot" else gradual(name, sparsity, epochs, seed)
    )


def experiment(seeds, train_epochs, tune_epochs, sparsities, workers):
    """{method: {sparsity: [(accuracy, smallest layer), one per seed]}} and the dense accuracies."""
    methods = {f"{name}, one-shot": tune_epochs for name in ONE_SHOT}
    methods |= {f"{name}, gradual": train_epochs for name in ("Global MP", "Global MP + MT")}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        dense = list(tqdm(pool.map(trained, seeds, [train_epochs] * len(seeds)), "dense", len(seeds)))
        jobs = {
            pool.submit(attempt, net, method, s, epochs, seed): (method, s, seed)
            for seed, (net, _) in zip(seeds, dense, strict=True)
            for s in sparsities
            for method, epochs in methods.items()
        }
        done = {jobs[job]: job.result() for job in tqdm(as_completed(jobs), "pruned", len(jobs))}
    found = {m: {s: [done[m, s, seed] for seed in seeds] for s in sparsities} for m in methods}
    return found, [score for _, score in dense]


def tables(found, dense):
    """What report.py prints."""
    sparsities = list(next(iter(found.values())))

    def cell(runs):
        scores, smallest = zip(*runs, strict=True)
        spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        return f"{statistics.mean(scores):.1f}{spread} ({min(smallest)})"

    ours = [[name, *(cell(by[s]) for s in sparsities)] for name, by in found.items()]
    seeds = f"{len(dense)} seed{'s' if len(dense) > 1 else ''}"
    return [
        {
            "title": f"Here: accuracy in % over {seeds}; in brackets the fewest weights left in a layer",
            "text": f"Dense: {statistics.mean(dense):.1f}%. Chance: 10%.",
            "header": ["method", *(f"{100 * s:g}%" for s in sparsities)],
            "rows": ours,
        },
        {
            "title": "The paper: top-1 accuracy in %",
            "text": "Other networks and data, so the comparison is of the order of methods, not of the numbers.",
            "header": ["network", "sparsity", "dense", "others", "theirs"],
            "rows": THEIRS,
        },
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, one sparsity")
    parser.add_argument("--workers", type=int, default=torch.get_num_threads(), help="processes, of one thread each")
    parser.add_argument("--output", type=Path, default=RESULTS / "paper_prune.json")
    options = parser.parse_args()
    plan = ((0,), 1, 1, (0.98,)) if options.quick else ((0, 1, 2), 15, 4, SPARSITIES)
    found, dense = experiment(*plan, options.workers)
    report = {
        "title": "Global Magnitude Pruning, the paper's finding in small",
        "text": "A network of depthwise separable convolutions without shortcuts (201,088 weights in 14 layers) on "
        "scikit-learn's 8x8 digits, 500 of them for testing. One-shot: trained, pruned, fine-tuned. Gradual: pruned "
        "while training, by a cubic schedule. MT: a minimum per layer that takes half of the weights kept.",
        "tables": tables(found, dense),
        "dense": dense,
        "runs": {name: {str(s): runs for s, runs in by.items()} for name, by in found.items()},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(f"{options.output} written; python benchmarks/report.py makes docs/paper_prune.md of it")


if __name__ == "__main__":
    main()
