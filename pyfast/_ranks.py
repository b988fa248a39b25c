"""Ranks of a torch.distributed group that agree before they work, so that none waits for another that has given up."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def place(group: Any) -> tuple[int, int]:
    """This process's rank in the group, and the number of ranks."""
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group must be a torch.distributed process group with this process in it, got {group!r}")
    return dist.get_rank(group), dist.get_world_size(group)


def named(column: Sequence[int], value: int) -> str:
    """The ranks that have the value, in words."""
    found = [str(rank) for rank, x in enumerate(column) if x == value]
    return f"rank {found[0]}" if len(found) == 1 else f"ranks {', '.join(found)}"


def exchange(numbers: Sequence[int], group: Any) -> list[list[int]]:
    """All ranks' numbers; through the CPU where the group can, since a GPU would have to be waited for."""
    mine = torch.tensor([int(x) for x in numbers], device=_device(group))
    found = mine.new_empty(dist.get_world_size(group), len(numbers))
    dist.all_gather(list(found), mine, group)
    return found.tolist()


def check_valid(failed: Sequence[int]) -> None:
    """Raise if one of the ranks has told that it raises."""
    if any(failed):
        raise ValueError(f"the call must be valid on all ranks of group, got an error on {named(failed, 1)}")


@contextmanager
def agreeing(fields: Sequence[str], group: Any) -> Iterator[list[int]]:
    """The block fills the list with a number for each field; all ranks raise unless all come to the same ones.

    Without a group, nothing is asked.
    """
    numbers: list[int] = []
    if group is not None:
        place(group)
    try:
        yield numbers
    except BaseException:
        if group is not None:
            exchange([1] + [0] * len(fields), group)
        raise
    if group is None:
        return
    failed, *columns = zip(*exchange([0, *numbers], group), strict=True)
    check_valid(failed)
    for field, column in zip(fields, columns, strict=True):
        if len(set(column)) > 1:
            others = ", ".join(f"rank {rank}" for rank, x in enumerate(column) if x != column[0])
            raise ValueError(f"{field} must be the same on all ranks of group, got others on {others}")


def total(parts: Sequence[Tensor], group: Any) -> list[Tensor]:
    """Tensors of one integer dtype, each summed over the ranks: the same bits for any number of them."""
    flat = torch.cat([x.flatten() for x in parts]).to(_device(group))
    dist.all_reduce(flat, group=group)
    return _apart(flat, parts)


def of_first(parts: Sequence[Tensor], group: Any) -> list[Tensor]:
    """What rank 0 has of tensors of one dtype: processors of another kind may round otherwise."""
    flat = torch.cat([x.flatten() for x in parts]).to(_device(group))
    dist.broadcast(flat, group=group, group_src=0)
    return _apart(flat, parts)


@contextmanager
def stopping_together(group: Any) -> Iterator[Callable[[], None]]:
    """Ctrl-C is kept until the function is called, and then raised on all ranks if one has it; at once if repeated.

    Without a group it is raised at once, and once more by the function: Python drops what is raised while it collects
    garbage or calls a destructor. A handler of the user's own stays, then.
    """
    seen = torch.zeros(1, dtype=torch.int64)

    def note(*_: object) -> None:
        repeated = bool(seen)
        seen.fill_(1)
        if repeated or group is None:
            raise KeyboardInterrupt

    def stop() -> None:
        if seen if group is None else total([seen], group)[0]:
            raise KeyboardInterrupt

    mine = threading.current_thread() is threading.main_thread()  # no other may have a handler
    mine &= group is not None or signal.getsignal(signal.SIGINT) is signal.default_int_handler
    before = signal.signal(signal.SIGINT, note) if mine else None
    try:
        yield stop
    finally:
        if mine:
            signal.signal(signal.SIGINT, before)


def _apart(flat: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    sizes = [x.numel() for x in parts]
    return [x.view(part.shape) for x, part in zip(flat.to(parts[0].device).split(sizes), parts, strict=True)]


def _device(group: Any) -> torch.device:
    return torch.device("cpu" if "cpu:" in dist.get_backend_config(group) else "cuda")
