"""The minimum per layer as the authors of Global MP released it: an approximation, for comparison."""

from dataclasses import replace
from numbers import Real

from pyfast.prune.magnitude import select
from pyfast.prune.result import PruneResult
from pyfast.prune.targets import Filter, Targets, find

_ROUNDS = 1000


def rescaled_magnitude_(
    targets: Targets,
    sparsity: float,
    *,
    min_keep_percent: float = 0.0,
    include: Filter | None = None,
    exclude: Filter | None = None,
) -> PruneResult:
    """Prune in place as the code released with the paper does, to repeat its numbers; else use ``global_magnitude_``.

    A plain global pruning first gives a sparsity per layer. Layers smaller than the minimum are then left dense and
    all sparsities are multiplied to reach the target again; layers that fall below the minimum are set to it;
    and both are repeated until the target is met. Last, every layer is pruned by itself. The weights kept are not the
    largest ones that the minimum allows, counts are off by up to two per layer, a layer of exactly the minimum's
    size may fall below it, and the rescaling can fail where the problem has a solution. Ties with a layer's threshold
    are kept, as in the released code; unlike there, no uninitialised number enters the ranking.

    Args:
        targets: as in ``global_magnitude_``. NaN is refused.
        sparsity: share of the weights to prune, in (0, 1].
        min_keep_percent: least number of weights per layer, in percent of the weights of the whole network: 0.2 here is
            ``min_keep="0.2%"`` there.
        include: as in ``global_magnitude_``.
        exclude: as in ``global_magnitude_``.

    Returns:
        What was pruned. Its ``threshold`` is that of the first, plain pruning; a layer ``binds`` if it was left
        dense or set to the minimum.

    Raises:
        ValueError: if the rescaling fails: nothing is left to rescale, a layer's sparsity leaves [0, 1], or the target
            is not met in 1000 rounds; or as ``global_magnitude_``. Nothing is changed then.
        TypeError: as ``global_magnitude_``.

    Source: https://github.com/manasgupta-1/GlobalMP, re-derived from a description.

    Example:
        >>> import torch, pyfast
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.ReLU(), torch.nn.Linear(50, 2))
        >>> result = pyfast.prune.rescaled_magnitude_(model, 0.9, min_keep_percent=3)
        >>> [(layer.kept, layer.minimum) for layer in result.layers]
        [(78, 33), (34, 33)]
    """
    for argument, value, most in (("sparsity", sparsity, 1), ("min_keep_percent", min_keep_percent, 100)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{argument} must be a number, got {type(value).__name__}")
        if not 0 <= float(value) <= most or (argument == "sparsity" and value == 0):
            rule = "above 0" if argument == "sparsity" else "at least 0"
            raise ValueError(f"{argument} must be {rule} and at most {most}, got {value}")
    found = find(targets, include, exclude)
    found.check_writable()
    before = found.versions()
    sizes, total = found.sizes, sum(found.sizes)
    sigma, amount = int(total * min_keep_percent / 100), int(sparsity * total)
    plain = select(found, max(amount - 1, 0), [0] * len(sizes), "keep_all", "raise")
    shares, held = _rescale([layer.sparsity for layer in plain.layers], sizes, sigma, float(sparsity))
    # The released code keeps what is not below the k-th smallest weight of a layer, k = max(int(share n), 1).
    keep = [n - max(int(share * n) - 1, 0) for share, n in zip(shares, sizes, strict=True)]
    result = select(found, total - sum(keep), keep, "keep_all", "raise")
    table = result.table.clone()
    table[:-1, 2] = table.new_tensor(held)
    table[-1, 1] = plain.table[-1, 1]
    table[-1, 3] += plain.table[-1, 3]
    minimum = tuple(min(sigma, n) for n in sizes)
    found.check_versions(before)
    found.zero_(result.mask.bits)
    return replace(result, amount=amount, minimum=minimum, table=table)


def _rescale(shares: list[float], sizes: list[int], sigma: int, target: float) -> tuple[list[float], list[bool]]:
    """Sparsities per layer, and whether each was left dense or set to the minimum."""
    total = sum(sizes)
    shares = [0.0 if n < sigma else s for s, n in zip(shares, sizes, strict=True)]

    def reached() -> float:
        return sum(s * n for s, n in zip(shares, sizes, strict=True)) / total

    def clamp() -> None:
        for i, n in enumerate(sizes):
            if n > sigma and (1 - shares[i]) * n < sigma:
                shares[i] = 1 - sigma / n

    def scale() -> None:
        now = reached()
        if now == 0:
            raise ValueError(
                "min_keep_percent must leave something to rescale, got 0 weights pruned in layers of "
                f"more than {sigma}; global_magnitude_ meets every feasible minimum"
            )
        shares[:] = [s * target / now for s in shares]

    scale()
    if any((1 - s) * n < sigma for s, n in zip(shares, sizes, strict=True)):
        clamp()
        rounds = 0
        while reached() < target:
            if rounds == _ROUNDS:
                raise ValueError(
                    f"min_keep_percent must let the rescaling end, got {reached():.9g} of sparsity {target} after "
                    f"{_ROUNDS} rounds; global_magnitude_ meets every feasible minimum"
                )
            scale()
            clamp()
            rounds += 1
    for share in shares:
        if not 0 <= share <= 1:
            raise ValueError(
                f"min_keep_percent must let every layer's sparsity stay in [0, 1], got {share:.6g}; "
                "global_magnitude_ meets every feasible minimum"
            )
    return shares, [n < sigma or (n > sigma and s == 1 - sigma / n) for s, n in zip(shares, sizes, strict=True)]
