"""A small network without shortcuts, on scikit-learn's handwritten digits: shared by the demo and the benchmarks."""

from collections import OrderedDict
from collections.abc import Callable
from importlib import resources
from itertools import pairwise

import torch
from torch import Tensor, nn

CHANNELS = (32, 64, 128, 128, 256, 256, 256)
STRIDES = (2, 1, 1, 2, 1, 1)


def network() -> nn.Sequential:
    """MobileNet's layers in small: a convolution, six depthwise separable ones with batch norm, a linear layer.

    (n, 1, 8, 8) images to (n, 10) logits. There are no shortcuts: when a layer is empty, nothing passes.
    """
    net = nn.Sequential()
    net.add_module("stem", _normed(nn.Conv2d(1, CHANNELS[0], 3, padding=1, bias=False)))
    for i, ((c, d), stride) in enumerate(zip(pairwise(CHANNELS), STRIDES, strict=True), 1):
        net.add_module(f"depthwise{i}", _normed(nn.Conv2d(c, c, 3, stride, padding=1, groups=c, bias=False)))
        net.add_module(f"pointwise{i}", _normed(nn.Conv2d(c, d, 1, bias=False)))
    net.add_module("pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flatten", nn.Flatten())
    net.add_module("linear", nn.Linear(CHANNELS[-1], 10))
    return net


def pretrained() -> nn.Sequential:
    """The network with the weights that ``benchmarks/train_digits.py`` trained. Needs safetensors."""
    from safetensors.torch import load

    net = network()
    net.load_state_dict(load(resources.files("pyfast").joinpath("data/digits.safetensors").read_bytes()))
    return net.eval()


def images(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 1,797 digits, split by ``seed``: (1297, 1, 8, 8) images, their labels, 500 test images, their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
    x = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
    y = torch.tensor(digits.target)[order]
    return x[500:], y[500:], x[:500], y[:500]


def train(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    rate: float,
    decay: float,
    seed: int,
    after_step: Callable[[int], object] = lambda step: None,
    batch: int = 64,
) -> None:
    """Train by SGD with Nesterov momentum, one cycle of the rate, and shifts by up to one pixel.

    ``after_step`` is called with the number of steps made, after each.
    """
    g = torch.Generator().manual_seed(seed)
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    net.train()
    for step in range(1, steps + 1):
        if (step - 1) % (len(x) // batch) == 0:
            batches = iter(torch.randperm(len(x), generator=g).split(batch))
        chosen = next(batches)
        down, right = torch.randint(3, (2,), generator=g).tolist()
        shifted = nn.functional.pad(x[chosen], (1, 1, 1, 1))[..., down : down + 8, right : right + 8]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(shifted), y[chosen], label_smoothing=0.1).backward()
        optimizer.step()
        schedule.step()
        after_step(step)
    net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percentage of the images that the network recognises."""
    net.eval()
    return 100 * (net(x).argmax(1) == y).double().mean().item()


@torch.no_grad()
def recalibrate(net: nn.Module, x: Tensor) -> None:
    """Take batch norm's means and variances anew from the images, as is usual after pruning; weights stay."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches
    net.train()
    for part in x.split(650):
        net(part)
    net.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _normed(convolution: nn.Conv2d) -> nn.Sequential:
    norm = nn.BatchNorm2d(convolution.out_channels)
    return nn.Sequential(OrderedDict(convolution=convolution, norm=norm, relu=nn.ReLU()))
