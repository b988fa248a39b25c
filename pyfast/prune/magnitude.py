"""Prune the smallest weights of a whole network at once."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from pyfast.prune import _operators, budget
from pyfast.prune import flops as _flops
from pyfast.prune.mask import BitMask
from pyfast.prune.memory import Found
from pyfast.prune.result import PruneResult
from pyfast.prune.targets import Filter, Targets, find

Ties = Literal["first", "keep_all", "prune_all"]
Nan = Literal["raise", "keep", "prune"]


def global_magnitude_(
    targets: Targets,
    amount: budget.Amount,
    *,
    min_keep: budget.MinKeep = 0,
    max_sparsity: budget.MaxSparsity | None = None,
    ties: Ties = "first",
    nan: Nan = "raise",
    include: Filter | None = None,
    exclude: Filter | None = None,
    flops: Tensor | tuple[Any, ...] | None = None,
) -> PruneResult:
    """Set the smallest weights of all targets together to zero, in place.

    Exactly ``amount`` weights fall: of equal magnitudes those that come later. Each layer keeps its minimum of largest
    weights, and what is left of the budget is spent on the largest of the others: the kept weights have the largest
    total magnitude that the minima allow. The result does not depend on the number of threads.

    Args:
        targets: what to prune, float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2 or int8, freely mixed,
            of any strides, on one device. Either a module: the ``weight`` of every Linear, Conv and ConvTranspose
            layer, in module order (not the ``in_proj_weight`` of MultiheadAttention: include it), under their
            qualified names; torch.compile and data parallel wrappers are looked through. Or a dict of tensors, such
            as a state dict: every tensor in it counts, biases and normalisation too, so choose with ``include``;
            integer tensors other than int8 are passed over. Or a tensor, or an iterable of tensors, named "0", "1",
            and so on. Memory that is listed twice (tied weights, a view of another target) counts once.
        amount: number of weights to prune as an int, or share of them as a float in [0, 1], rounded to a whole number.
        min_keep: least number of weights that every layer keeps: an int; or a percentage of the weights of the whole
            network as a string, "0.2%", rounded down as in the paper; or a share of the layer as a float in [0, 1],
            rounded up; or a dict from name to one of these (0 where missing). A smaller layer stays dense.
        max_sparsity: largest share of a layer to prune, a float or a dict from name to float: a layer of n weights
            keeps at least (1 - max_sparsity) n, rounded up. Where ``min_keep`` says more, that counts.
        ties: of weights equal to the threshold, keep the "first" and prune exactly ``amount``; "keep_all", so that
            fewer may fall; or "prune_all", so that more may, but never beyond a layer's minimum.
        nan: "raise" an error, before anything changes; "keep" them, above infinity; or "prune" them, as if they were
            zero. On CUDA "raise" waits for the device, the others do not.
        include: module classes, whose ``weight`` is pruned, and regular expressions to search for in the names of
            parameters, in place of the default. For a dict: regular expressions only.
        exclude: the same, to leave out; a class leaves out every parameter that its modules own themselves.
        flops: an example input (or tuple of inputs) for a module, to count the multiplications saved as well. It runs
            forward once, in evaluation mode, on the dense weights.

    Returns:
        What was pruned, see ``PruneResult``; its ``mask`` can be applied again after every optimizer step.

    Raises:
        ValueError: if ``targets`` are empty or overlap in part, an argument is outside its range, a name is unknown,
            the minima leave too few weights to prune (the message says what would fit), or a weight is NaN.
        TypeError: if a target is not a dense CPU or CUDA tensor of a supported dtype, its weight is computed
            from another (torch.nn.utils.prune, parametrizations), or devices differ.
        RuntimeError: if a target changes during the call, or is an inference tensor outside of inference mode.
            Whatever is raised, nothing was changed.

    Source: Gupta et al., 2022, https://arxiv.org/abs/2209.14624, section 3; the minimum per layer is their MT, which is
    met exactly here (``rescaled_magnitude_`` has the approximation that they released).

    Example:
        >>> import torch, pyfast
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.ReLU(), torch.nn.Linear(50, 2))
        >>> result = pyfast.prune.global_magnitude_(model, 0.9, min_keep=30)
        >>> result.pruned, [layer.kept for layer in result.layers]
        (990, [80, 30])
        >>> sum(int((layer.weight == 0).sum()) for layer in (model[0], model[2]))
        990
    """
    found = find(targets, include, exclude)
    found.check_writable()
    before = found.versions()
    result = _rank(targets, found, amount, min_keep, max_sparsity, ties, nan, flops)
    found.check_versions(before)
    found.zero_(result.mask.bits)
    return result


def global_magnitude_mask(
    targets: Targets,
    amount: budget.Amount,
    *,
    min_keep: budget.MinKeep = 0,
    max_sparsity: budget.MaxSparsity | None = None,
    ties: Ties = "first",
    nan: Nan = "raise",
    include: Filter | None = None,
    exclude: Filter | None = None,
    flops: Tensor | tuple[Any, ...] | None = None,
) -> PruneResult:
    """Find what ``global_magnitude_`` would prune, and change nothing.

    Args:
        targets: as in ``global_magnitude_``, like all other arguments.
        amount: number of weights to prune as an int, share of them as a float.
        min_keep: least number of weights that every layer keeps.
        max_sparsity: largest share of a layer to prune.
        ties: what becomes of weights equal to the threshold.
        nan: what becomes of NaN.
        include: what to prune in place of the default.
        exclude: what to leave out.
        flops: an example input, to count multiplications.

    Returns:
        What would be pruned; ``result.mask.apply_(targets)`` does it.

    Raises:
        ValueError: as ``global_magnitude_``.
        TypeError: as ``global_magnitude_``.
        RuntimeError: if a target changes during the call.

    Source: Gupta et al., 2022, https://arxiv.org/abs/2209.14624, section 3.

    Example:
        >>> import torch, pyfast
        >>> w = torch.tensor([0.5, -3.0, 2.0, -0.1])
        >>> pyfast.prune.global_magnitude_mask(w, 2).mask.to_bool()["0"].tolist()
        [False, True, True, False]
    """
    found = find(targets, include, exclude)
    before = found.versions()
    result = _rank(targets, found, amount, min_keep, max_sparsity, ties, nan, flops)
    found.check_versions(before)
    return result


def check_choices(ties: str, nan: str) -> None:
    """Raise ValueError unless both are among the words that they may be."""
    for argument, value, choices in (("ties", ties, Ties), ("nan", nan, Nan)):
        if value not in choices.__args__:  # type: ignore[attr-defined]
            raise ValueError(f"{argument} must be one of {', '.join(choices.__args__)}, got {value!r}")  # type: ignore[attr-defined]


def select(found: Found, prune: int, minimum: list[int], ties: Ties, nan: Nan) -> PruneResult:
    """Run the kernel on checked arguments."""
    with torch.no_grad():
        floors = minimum if any(minimum) else []
        bits, table = _operators.select(found.tensors, prune, floors, ties, nan == "prune")
    if nan == "raise":
        check_nan(found, table)
    wide = any(t.dtype == torch.float64 for t in found.tensors)
    return PruneResult(BitMask(bits, found.names, found.shapes), prune, found.tied, tuple(minimum), table, wide)


def check_nan(found: Found, table: Tensor) -> None:
    """Raise ValueError naming the first NaN, if the kernel counted any."""
    for name, tensor, count in zip(found.names, found.tensors, table[:-1, 3].tolist(), strict=True):
        if count:
            bad = tensor.detach().float().isnan()
            first = tuple(int(i) for i in torch.unravel_index(bad.flatten().to(torch.uint8).argmax(), tensor.shape))
            raise ValueError(
                f"targets must not hold NaN, got {count} in {name!r}, the first at {first}; "
                "nan='keep' or nan='prune' allows them"
            )


def _rank(
    targets: Targets,
    found: Found,
    amount: budget.Amount,
    min_keep: budget.MinKeep,
    max_sparsity: budget.MaxSparsity | None,
    ties: Ties,
    nan: Nan,
    flops: Tensor | tuple[Any, ...] | None,
) -> PruneResult:
    check_choices(ties, nan)
    prune = budget.number(amount, sum(found.sizes))
    floors, caps = budget.minima(min_keep, max_sparsity, found.names, found.sizes, found.tied)
    budget.check_feasible(prune, floors, caps, found.sizes)
    uses = None if flops is None else _flops.uses(targets, flops, found)
    result = select(found, prune, floors, ties, nan)
    return replace(result, uses=uses)
