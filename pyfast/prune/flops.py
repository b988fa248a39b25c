"""How often a forward pass uses each weight."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from pyfast.prune.memory import Found
from pyfast.prune.targets import unwrap

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def uses(module: object, example: Tensor | tuple[Any, ...], found: Found) -> tuple[tuple[int, ...], int]:
    """Multiplications per weight of each found tensor in one forward pass; all those of other Linear and Conv layers.

    The pass runs in evaluation mode without gradients; every layer gets its mode back.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"flops must come with a module as targets, got {type(module).__name__}")
    count: dict[int, int] = {}
    weight_of: dict[int, Tensor] = {}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if isinstance(layer, nn.Linear):
            positions = output.numel() // max(layer.out_features, 1)
        elif isinstance(layer, _CONVS):
            positions = output.numel() // max(layer.out_channels, 1)
        else:  # a transposed convolution spreads every input position
            positions = inputs[0].numel() // max(weight.shape[0], 1)
        weight_of[id(weight)] = weight
        count[id(weight)] = count.get(id(weight), 0) + positions

    inner = unwrap(module)
    modes = [(m, m.training) for m in inner.modules()]
    layers = [m for m in inner.modules() if isinstance(m, (nn.Linear, *_CONVS, *_TRANSPOSED))]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        inner.eval()
        with torch.no_grad():
            inner(*(example if isinstance(example, tuple) else (example,)))
    finally:
        for hook in hooks:
            hook.remove()
        for m, mode in modes:
            m.training = mode
    per_weight = tuple(count.pop(id(t), 0) for t in found.tensors)
    for layer in layers:
        idle = next((n for n, t in zip(found.names, found.tensors, strict=True) if t is layer.weight), None)
        if idle and id(layer.weight) not in weight_of:
            warnings.warn(f"flops: the example never called the layer of {idle!r}, which counts nothing", stacklevel=3)
    return per_weight, sum(n * weight_of[i].numel() for i, n in count.items())
