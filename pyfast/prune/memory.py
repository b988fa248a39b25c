"""Tensors whose memory is known: each weight counted once, changed in place."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyfast.prune import _operators


@dataclass(frozen=True)
class Found:
    """The tensors that count, in order. ``tied`` names those left out because their memory lies inside another."""

    names: tuple[str, ...]
    tensors: list[Tensor]
    tied: dict[str, str]
    views: list[Tensor]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """One shape per tensor."""
        return tuple(tuple(t.shape) for t in self.tensors)

    @property
    def sizes(self) -> list[int]:
        """Number of weights per tensor."""
        return [t.numel() for t in self.tensors]

    def check_writable(self) -> None:
        """Raise RuntimeError where torch would refuse to change a tensor in place."""
        for name, tensor in zip(self.names, self.tensors, strict=True):
            if tensor.is_inference() and not torch.is_inference_mode_enabled():
                raise RuntimeError(
                    "targets must be normal tensors outside torch.inference_mode(), "
                    f"got an inference tensor for {name!r}: call within torch.inference_mode()"
                )

    def versions(self) -> list[int]:
        """What autograd counts changes by."""
        return [0 if t.is_inference() else t._version for t in self.tensors]  # inference tensors have none

    def check_versions(self, before: list[int]) -> None:
        """Raise RuntimeError if a tensor was changed since."""
        for name, old, new in zip(self.names, before, self.versions(), strict=True):
            if old != new:
                raise RuntimeError(f"targets must not change during the call, but {name!r} did; nothing was pruned")

    def zero_(self, bits: Tensor) -> None:
        """Set every weight whose bit is 0 to zero, and let autograd know."""
        with torch.no_grad():
            _operators.apply(self.tensors, bits)
        torch.autograd.graph.increment_version([t for t in (*self.tensors, *self.views) if not t.is_inference()])


def unique(pairs: list[tuple[str, Tensor]]) -> Found:
    """Leave out every tensor whose memory lies inside another; refuse those that overlap in part, or themselves."""
    names, tensors = [name for name, _ in pairs], [tensor for _, tensor in pairs]
    for name, tensor in pairs:
        if tensor.device != tensors[0].device:
            raise TypeError(
                f"targets must be on one device, got {names[0]!r} on {tensors[0].device}, {name!r} on {tensor.device}"
            )
        if _overlaps_itself(tensor):
            raise ValueError(f"targets must not overlap themselves, got strides {tensor.stride()} for {name!r}")
    holder = _holders(names, tensors)
    own = [i for i, h in enumerate(holder) if i == h]
    left_out = [i for i, h in enumerate(holder) if i != h]
    return Found(
        tuple(names[i] for i in own),
        [tensors[i] for i in own],
        {names[i]: names[holder[i]] for i in left_out},
        [tensors[i] for i in left_out],
    )


def _reach(tensor: Tensor) -> int:
    """Elements from the first to behind the last in memory."""
    if tensor.is_contiguous():
        return tensor.numel()
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _overlaps_itself(tensor: Tensor) -> bool:
    if tensor.is_contiguous():
        return False
    reach = 0
    for stride, n in sorted((s, n) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1):
        if stride <= reach:
            break
        reach += stride * (n - 1)
    else:
        return False
    if any(s == 0 and n > 1 for n, s in zip(tensor.shape, tensor.stride(), strict=True)):
        return True
    touched = torch.zeros(_reach(tensor), dtype=torch.uint8, device="cpu")
    touched.as_strided(tensor.shape, tensor.stride()).fill_(1)
    return int(touched.count_nonzero()) < tensor.numel()


def _holders(names: list[str], tensors: list[Tensor]) -> list[int]:
    """For each tensor the position of the one that counts for it: itself, or one that covers its memory."""
    holder = list(range(len(tensors)))
    first = {id(tensor): i for i, tensor in reversed(list(enumerate(tensors)))}
    start = [t.data_ptr() if t.numel() else 0 for t in tensors]
    end = [s + _reach(t) * t.element_size() for s, t in zip(start, tensors, strict=True)]
    group: list[int] = []
    reached = 0
    for i in sorted(range(len(tensors)), key=lambda i: (start[i], -end[i], i)):
        if first[id(tensors[i])] != i:
            holder[i] = first[id(tensors[i])]
        elif tensors[i].numel():
            if start[i] >= reached:
                _settle(group, names, tensors, start, end, holder)
                group = []
            group.append(i)
            reached = max(reached, end[i])
    _settle(group, names, tensors, start, end, holder)
    for i in range(len(holder)):
        while holder[holder[i]] != holder[i]:
            holder[i] = holder[holder[i]]
    return holder


def _settle(
    group: list[int], names: list[str], tensors: list[Tensor], start: list[int], end: list[int], holder: list[int]
) -> None:
    """Decide who holds whom among tensors whose ranges of memory meet."""
    if len(group) < 2:
        return
    base, size = start[group[0]], tensors[group[0]].element_size()
    for i in group:
        if tensors[i].dtype != tensors[group[0]].dtype or (start[i] - base) % size:
            raise ValueError(
                f"targets must not share memory under different dtypes, got {names[group[0]]!r} and {names[i]!r}"
            )
    rest = group[:1]
    for i in group[1:]:  # inside a gapless tensor: nothing to look at
        cover = tensors[rest[-1]]
        if end[i] <= end[rest[-1]] and _reach(cover) == cover.numel():
            holder[i] = rest[-1]
        else:
            rest.append(i)
    if len(rest) == 1:
        return
    owner = torch.zeros((max(end[i] for i in rest) - base) // size, dtype=torch.int32, device="cpu")
    for i in sorted(rest, key=lambda i: (-tensors[i].numel(), i)):
        spots = owner.as_strided(tensors[i].shape, tensors[i].stride(), (start[i] - base) // size)
        taken = spots[spots != 0]
        if not len(taken):
            spots.fill_(i + 1)
        elif len(taken) == tensors[i].numel() and bool((taken == taken[0]).all()):
            holder[i] = int(taken[0]) - 1
        else:
            raise ValueError(f"targets must not overlap in part, got {names[int(taken[0]) - 1]!r} and {names[i]!r}")
