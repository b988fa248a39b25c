"""Prune little by little while training goes on."""

import math
from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor

from pyfast.prune import budget
from pyfast.prune.bits import pack, unpack
from pyfast.prune.magnitude import Nan, Ties, check_choices, select
from pyfast.prune.mask import BitMask
from pyfast.prune.memory import Found
from pyfast.prune.result import PruneResult
from pyfast.prune.targets import Filter, Targets, find

Schedule = Literal["cubic", "linear", "one_shot"] | Callable[[float], float]


def _cubic(progress: float) -> float:
    return 1 - (1 - progress) ** 3


def _linear(progress: float) -> float:
    return progress


def _one_shot(progress: float) -> float:
    return 1.0


_SCHEDULES: dict[str, Callable[[float], float]] = {"cubic": _cubic, "linear": _linear, "one_shot": _one_shot}


class GradualPruner:
    """Global magnitude pruning on a schedule: call ``step`` once after every optimizer step.

    Step ``start`` prunes ``initial``, step ``end`` prunes ``amount``, and every ``every`` steps in between the mask is
    found anew for a number of weights in between. All other steps set the weights that the mask prunes to zero again,
    since the optimizer has moved them. Steps are counted from 0; after ``end`` the mask stays.

    As a default, what was pruned stays pruned: every mask is found among the weights that the last one kept, with ties
    and zeros ranked among these alone. With ``regrow=True`` a new mask ranks all weights as the optimizer left them,
    so a pruned weight returns if that one update, made from zero, outgrew the threshold.

    The tensors are looked up once, here, as an optimizer does; moving the model to another device is fine. With data
    parallel training every rank finds the same mask, since the weights have the same bits.

    On CUDA a step that finds a new mask waits for the device; the others do not.

    Args:
        targets: what to prune, see ``global_magnitude_``.
        amount: number (int) or share (float) of the weights pruned in the end.
        start: step of the first pruning.
        end: step of the last one. "one_shot" prunes once, at ``start``, and takes no other ``end``.
        every: steps from one new mask to the next.
        schedule: "cubic", s = s_f + (s_i - s_f)(1 - p)^3 with the progress p from 0 at ``start`` to 1 at ``end``;
            "linear"; "one_shot"; or a function from p to the share of the way from ``initial`` to ``amount``, both
            in [0, 1]. The last step is always ``amount``. A share that shrinks needs ``regrow`` to have an effect.
        initial: number or share of the weights pruned at ``start``.
        regrow: whether pruned weights may return.
        min_keep: least number of weights that every layer keeps, see ``global_magnitude_``.
        max_sparsity: largest share of a layer to prune, see ``global_magnitude_``.
        ties: what becomes of weights equal to the threshold, see ``global_magnitude_``.
        nan: what becomes of NaN, see ``global_magnitude_``; looked at when a mask is found.
        include: what to prune in place of the default, see ``global_magnitude_``.
        exclude: what to leave out, see ``global_magnitude_``.

    Raises:
        ValueError: if the schedule is impossible, the minima leave too few weights to prune, or as
            ``global_magnitude_``.
        TypeError: as ``global_magnitude_``.

    Source: the cubic schedule is Zhu and Gupta, 2017, https://arxiv.org/abs/1710.01878, section 2; the flush after
    every step is that of Gupta et al., 2022, https://arxiv.org/abs/2209.14624.

    Example:
        >>> import torch, pyfast
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(10, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> pruner = pyfast.prune.GradualPruner(model, 0.9, end=4, min_keep=5)
        >>> for _ in range(6):
        ...     model(torch.randn(8, 10)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     pruner.step()
        ...     print(round(pruner.sparsity, 2))
        0.0
        0.52
        0.79
        0.89
        0.9
        0.9
        >>> pruner.done, int((model.weight == 0).sum())
        (True, 90)
    """

    def __init__(
        self,
        targets: Targets,
        amount: budget.Amount,
        *,
        start: int = 0,
        end: int | None = None,
        every: int = 1,
        schedule: Schedule = "cubic",
        initial: budget.Amount = 0.0,
        regrow: bool = False,
        min_keep: budget.MinKeep = 0,
        max_sparsity: budget.MaxSparsity | None = None,
        ties: Ties = "first",
        nan: Nan = "raise",
        include: Filter | None = None,
        exclude: Filter | None = None,
    ):
        check_choices(ties, nan)
        end = start if end is None and schedule == "one_shot" else end
        start, end, every = _count("start", start, 0), _count("end", end, 0), _count("every", every, 1)
        if end < start or (schedule == "one_shot" and end > start):
            rule = "be start for a one_shot schedule" if schedule == "one_shot" else f"not be before start ({start})"
            raise ValueError(f"end must {rule}, got {end}")
        if not callable(schedule) and schedule not in _SCHEDULES:
            raise ValueError(f"schedule must be a function or one of {', '.join(_SCHEDULES)}, got {schedule!r}")
        self._found: Found = find(targets, include, exclude)
        self._found.check_writable()
        sizes = self._found.sizes
        final, first = budget.number(amount, sum(sizes)), budget.number(initial, sum(sizes), "initial")
        if first > final:
            raise ValueError(f"initial must not prune more than amount ({final} weights), got {first}")
        self._minimum, caps = budget.minima(min_keep, max_sparsity, self._found.names, sizes, self._found.tied)
        budget.check_feasible(final, self._minimum, caps, sizes)
        self._share = schedule if callable(schedule) else _SCHEDULES[schedule]
        self._settings: dict[str, Any] = {
            "amount": final,
            "initial": first,
            "start": start,
            "end": end,
            "every": every,
            "schedule": "function" if callable(schedule) else schedule,
            "regrow": regrow,
            "minimum": self._minimum,
            "ties": ties,
            "nan": nan,
            "names": list(self._found.names),
            "shapes": [list(shape) for shape in self._found.shapes],
        }
        self._steps = 0
        self._result: PruneResult | None = None

    def step(self) -> None:
        """Prune, if this is a step to prune at; otherwise set what is pruned to zero again.

        Raises:
            ValueError: if a weight is NaN and ``nan`` is "raise", or a schedule function leaves [0, 1]; the step does
                not count then.
            RuntimeError: if a weight changes during the call, or its shape has changed since the start.
        """
        self._check_shapes()
        start, end, every = (self._settings[key] for key in ("start", "end", "every"))
        t = self._steps
        if start <= t <= end and ((t - start) % every == 0 or t == end):
            self._prune(self._number(t))
        elif self._result is not None:
            self._flush(self._result)
        self._steps += 1

    def _check_shapes(self) -> None:
        for name, now, then in zip(self._found.names, self._found.shapes, self._settings["shapes"], strict=True):
            if list(now) != then:
                raise RuntimeError(
                    f"targets must keep their shapes, got {now} for {name!r}, which began as {tuple(then)}"
                )

    def __repr__(self) -> str:
        s = self._settings
        when = f"from step {s['start']} to {s['end']}, every {s['every']}, {s['schedule']}"
        return f"GradualPruner({s['amount']:,} of {sum(self._found.sizes):,} weights, {when}; step {self._steps})"

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self._steps

    @property
    def result(self) -> PruneResult | None:
        """The last pruning; None before the first."""
        return self._result

    @property
    def mask(self) -> BitMask | None:
        """Which weights are kept; None before the first pruning."""
        return None if self._result is None else self._result.mask

    @property
    def sparsity(self) -> float:
        """Share of weights pruned so far. Waits for the device."""
        return 0.0 if self._result is None else self._result.sparsity

    @property
    def done(self) -> bool:
        """Whether ``amount`` has been reached, and the mask stays from now on."""
        return self._steps > int(self._settings["end"])

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on with the same bits, besides the weights and the optimizer's state."""
        result = self._result
        return {
            "steps": self._steps,
            "settings": dict(self._settings),
            "pruned": None if result is None else result.amount,
            "bits": None if result is None else result.mask.bits.clone(),
            "table": None if result is None else result.table.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken. The weights are left as they are.

        Args:
            state: from a pruner with the same settings and targets. A schedule function is not stored: give the same.

        Raises:
            ValueError: if a setting, name or shape differs; nothing is changed then.
        """
        missing = {"steps", "settings", "pruned", "bits", "table"} - set(state)
        if missing:
            raise ValueError(f"state must come from state_dict(), got one without {', '.join(sorted(missing))}")
        for key, mine in self._settings.items():
            theirs = state["settings"].get(key)
            if theirs != mine:
                raise ValueError(f"state must come from a pruner with the same {key}, {mine!r}, got {theirs!r}")
        result = None
        if state["bits"] is not None:
            device = self._found.tensors[0].device
            mask = BitMask(state["bits"].to(device, copy=True), self._found.names, self._found.shapes)
            table = state["table"].to(device, copy=True)
            wide = any(t.dtype == torch.float64 for t in self._found.tensors)
            result = PruneResult(mask, state["pruned"], self._found.tied, tuple(self._minimum), table, wide)
        self._steps, self._result = int(state["steps"]), result

    def _number(self, t: int) -> int:
        """Weights to prune at step t."""
        start, end, first, final = (self._settings[key] for key in ("start", "end", "initial", "amount"))
        if t == end:
            return int(final)
        progress = (t - start) / (end - start)
        share = self._share(progress)
        if not 0 <= share <= 1 or math.isnan(share):
            raise ValueError(f"schedule must return a share between 0 and 1, got {share} at progress {progress}")
        return round(first + (final - first) * share)

    def _flush(self, result: PruneResult) -> None:
        device = self._found.tensors[0].device
        if result.mask.bits.device != device:  # the model has moved
            self._result = result = replace(result, mask=result.mask.to(device))
        self._found.zero_(result.mask.bits)

    def _prune(self, number: int) -> None:
        last, regrow = self._result, self._settings["regrow"]
        if last is not None and not regrow:
            self._flush(last)
            number = max(number, last.amount)
        before = self._found.versions()
        result = select(self._found, number, self._minimum, self._settings["ties"], self._settings["nan"])
        if last is not None and not regrow and min(int(row[1]) for row in result.table[:-1].tolist()) == 0:
            result = self._among_kept(number, last)
        self._found.check_versions(before)
        self._found.zero_(result.mask.bits)
        self._result = result

    def _among_kept(self, number: int, last: PruneResult) -> PruneResult:
        """The same ranking with the pruned weights taken out.

        Needed only where a threshold is 0: there the weights just set to zero tie with zeros that are still kept.
        """
        found = self._found
        alive = unpack(last.mask.bits.to(found.tensors[0].device), found.shapes)
        rest = [_take(t.detach(), m) for t, m in zip(found.tensors, alive, strict=True)]
        fewer = max(number - (sum(found.sizes) - sum(len(t) for t in rest)), 0)
        part = Found(found.names, rest, found.tied, [])
        result = select(part, fewer, self._minimum, self._settings["ties"], self._settings["nan"])
        kept = []
        for m, chosen in zip(alive, unpack(result.mask.bits, part.shapes), strict=True):
            whole = torch.zeros_like(m)
            whole[m] = chosen
            kept.append(whole)
        return replace(result, mask=BitMask(pack(kept), found.names, found.shapes), amount=number)


def _take(tensor: Tensor, mask: Tensor) -> Tensor:
    """tensor[mask], also for float8, which torch cannot index."""
    if tensor.element_size() == 1:
        return tensor.view(torch.uint8)[mask].view(tensor.dtype)
    return tensor[mask]


def _count(argument: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument} must be a number of steps, got {value!r}")
    if value < least:
        raise ValueError(f"{argument} must be at least {least}, got {value}")
    return int(value)
