"""Which tensors a call is about: found by name, checked, and each weight counted once."""

import re
import sys
from collections.abc import Iterable, Mapping
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pyfast.prune.memory import Found, unique

Targets = nn.Module | Tensor | Iterable[Tensor] | Mapping[str, Tensor]
Filter = type[nn.Module] | str | Iterable[type[nn.Module] | str]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_DTYPES = (*_FLOATS, torch.int8)


def find(targets: Targets, include: Filter | None = None, exclude: Filter | None = None) -> Found:
    """The checked, de-duplicated tensors of ``targets``; see ``global_magnitude_`` for the forms it takes."""
    pairs = _named(targets, _split(include, "include"), _split(exclude, "exclude"))
    for name, tensor in pairs:
        check(name, tensor)
    return unique(pairs)


def unwrap(module: nn.Module) -> nn.Module:
    """The user's own module inside torch.compile and (distributed) data parallel wrappers."""
    while True:
        if "_orig_mod" in module._modules:
            module = module.get_submodule("_orig_mod")
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module


def parameters(module: nn.Module) -> list[tuple[nn.Module, str, str, nn.Parameter]]:
    """(owner, name in owner, qualified name, parameter), in module order, shared ones as often as they are owned."""
    return [
        (owner, name, f"{path}.{name}".lstrip(".").replace("_orig_mod.", ""), parameter)
        for path, owner in unwrap(module).named_modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None
    ]


def _plain(tensor: Tensor) -> bool:
    """Whether nothing can be wrong with a tensor of a plain type: most need no closer look."""
    dense = tensor.dtype in _DTYPES and tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_neg())
    return (
        dense
        and tensor.ndim <= 64
        and tensor.device.type in ("cpu", "cuda")
        and not getattr(tensor, "_is_flat_param", False)
    )


def check(name: str, tensor: object) -> None:
    """Raise TypeError unless ``tensor`` is a plain dense tensor in memory, of a dtype that has a magnitude."""

    def refuse(rule: str, got: object) -> NoReturn:
        raise TypeError(f"targets must {rule}, got {got} for {name!r}")

    if type(tensor) in (Tensor, nn.Parameter) and isinstance(tensor, Tensor) and _plain(tensor):
        return
    if isinstance(tensor, tuple) and len(tensor) == 2 and isinstance(tensor[0], nn.Module):
        refuse("be tensors, not (module, name) pairs: pass the model itself, or [m.weight for m, _ in pairs]", "a pair")
    if not isinstance(tensor, Tensor):
        refuse("be tensors", type(tensor).__name__)
    if nn.parameter.is_lazy(tensor):
        refuse("be initialised: run one batch through the model first", type(tensor).__name__)
    if type(tensor).__name__ == "DTensor":
        refuse("be plain tensors: prune before sharding, or gather with full_tensor()", "a DTensor")
    if getattr(tensor, "_is_flat_param", False):
        refuse("be plain tensors: prune before wrapping in FullyShardedDataParallel", "a FlatParameter")
    if type(tensor) not in (Tensor, nn.Parameter):
        refuse("be plain tensors: pass t.as_subclass(torch.Tensor) or its parts", type(tensor).__name__)
    if tensor.is_meta:
        refuse("hold data, so not be on the meta device", "a meta tensor")
    if tensor.layout != torch.strided or tensor.is_nested:
        refuse("be dense and strided", "a nested tensor" if tensor.is_nested else tensor.layout)
    if tensor.dtype not in _DTYPES:
        refuse(f"be one of {', '.join(str(d).removeprefix('torch.') for d in _DTYPES)}", tensor.dtype)
    if tensor.is_neg():
        refuse("be resolved: call resolve_neg() first", "a negated view")
    if tensor.ndim > 64:
        refuse("have at most 64 dimensions", tensor.ndim)
    if tensor.device.type not in ("cpu", "cuda"):
        refuse("be on the CPU or a CUDA device", tensor.device)


def _split(given: Filter | None, argument: str) -> tuple[tuple[type, ...], list[re.Pattern[str]]] | None:
    if given is None:
        return None
    items = [given] if isinstance(given, (str, type)) else list(given)
    classes, patterns = [], []
    for item in items:
        if isinstance(item, str):
            patterns.append(re.compile(item))
        elif isinstance(item, type) and issubclass(item, nn.Module):
            classes.append(item)
        else:
            raise TypeError(f"{argument} must hold module classes and regular expressions, got {item!r}")
    return tuple(classes), patterns


def _named(
    targets: Targets,
    include: tuple[tuple[type, ...], list[re.Pattern[str]]] | None,
    exclude: tuple[tuple[type, ...], list[re.Pattern[str]]] | None,
) -> list[tuple[str, Tensor]]:
    if isinstance(targets, nn.Module):
        pairs = _of_module(targets, include or (_LAYERS, []), exclude or ((), []))
    elif isinstance(targets, Mapping):
        pairs = _of_dict(targets, include, exclude)
    elif include or exclude:
        raise TypeError(f"include and exclude must come with a module or a dict, got {type(targets).__name__}")
    elif isinstance(targets, Tensor):
        return [("0", targets)]
    elif isinstance(targets, Iterable) and not isinstance(targets, str):
        pairs = [(str(i), tensor) for i, tensor in enumerate(targets)]
    else:
        raise TypeError(
            f"targets must be a module, a tensor, a list or a dict of tensors, got {type(targets).__name__}"
        )
    if not pairs:
        what = "module with a Linear or Conv layer (or say include=)" if isinstance(targets, nn.Module) else "tensor"
        raise ValueError(f"targets must hold at least one {what}, got none")
    return pairs


def _must_match(argument: str, patterns: list[re.Pattern[str]], names: list[str]) -> None:
    for pattern in patterns:  # a pattern that matches nothing is a misspelling
        if not any(pattern.search(name) for name in names):
            raise ValueError(f"{argument} must match a name in targets, got {pattern.pattern!r}, which matches none")


def _of_dict(
    targets: Mapping[str, Tensor],
    include: tuple[tuple[type, ...], list[re.Pattern[str]]] | None,
    exclude: tuple[tuple[type, ...], list[re.Pattern[str]]] | None,
) -> list[tuple[str, Tensor]]:
    names = list(targets)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"targets must have strings as names, got {name!r}")
    for argument, given in (("include", include), ("exclude", exclude)):
        if given and given[0]:
            raise TypeError(f"{argument} must hold regular expressions for a dict, got {given[0][0].__name__}")
        _must_match(argument, given[1] if given else [], names)
    wanted = [n for n in names if include is None or any(p.search(n) for p in include[1])]
    wanted = [n for n in wanted if exclude is None or not any(p.search(n) for p in exclude[1])]
    return [(n, targets[n]) for n in wanted if not _is_counter(targets[n])]


def _is_counter(value: object) -> bool:
    """State dicts hold integers, such as BatchNorm's number of batches, that are not weights."""
    if not isinstance(value, Tensor) or value.is_quantized:
        return False
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.int8)


def _of_module(
    module: nn.Module,
    include: tuple[tuple[type, ...], list[re.Pattern[str]]],
    exclude: tuple[tuple[type, ...], list[re.Pattern[str]]],
) -> list[tuple[str, Tensor]]:
    fsdp: type | None = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    for path, owner in unwrap(module).named_modules():
        if fsdp is not None and isinstance(owner, fsdp):
            raise TypeError(
                "targets must be plain modules: prune before wrapping in FullyShardedDataParallel, "
                f"got one at {path or 'the top'!r}"
            )
        if any(isinstance(owner, c) for c in include[0]) and not isinstance(owner, exclude[0]):
            _check_has_weight(path.replace("_orig_mod.", ""), owner, exclude[1])
    every = parameters(module)
    names = [name for _, _, name, _ in every]
    _must_match("include", include[1], names)
    _must_match("exclude", exclude[1], names)
    return [
        (name, parameter)
        for owner, own, name, parameter in every
        if (own == "weight" and isinstance(owner, include[0])) or any(p.search(name) for p in include[1])
        if not isinstance(owner, exclude[0]) and not any(p.search(name) for p in exclude[1])
    ]


def _check_has_weight(path: str, layer: nn.Module, exclude: list[re.Pattern[str]]) -> None:
    """Refuse a layer whose weight is recomputed from something else, where zeros would not last."""
    weight = f"{path}.weight".lstrip(".")
    if "weight" in layer._parameters or not hasattr(layer, "weight") or any(p.search(weight) for p in exclude):
        return
    if "weight_orig" in layer._parameters and "weight_mask" in layer._buffers:
        how = "is under torch.nn.utils.prune: call torch.nn.utils.prune.remove(layer, 'weight') first"
    elif parametrize.is_parametrized(layer, "weight"):
        how = (
            "is parametrized: call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first, "
            r"or name what to prune by include=r'parametrizations\.weight\.original'"
        )
    else:
        how = f"is computed from {', '.join(layer._parameters)}: undo that first, or name what to prune by include="
    raise TypeError(f"targets must own their weights, but {weight!r} {how}")
