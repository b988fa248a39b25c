"""Convergence of several chains of one number."""

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Diagnostics(NamedTuple):
    """How well the chains have mixed.

    Attributes:
        log_joint: (chains, sweeps), of the training data and the choices after each sweep, parameters integrated out.
        r_hat: split R-hat of it after burn-in, NaN with fewer than 4 sweeps; above 1.05 the chains disagree.
        effective_size: how many independent draws the sweeps after burn-in are worth for its mean.
        accepted: (heights, 2), int64, per height of nodes: moves tried and moves made, over all chains; empty for
            exact block moves, which are always accepted.
    """

    log_joint: Tensor
    r_hat: float
    effective_size: float
    accepted: Tensor

    def __repr__(self) -> str:
        chains, sweeps = self.log_joint.shape
        return (
            f"Diagnostics(r_hat={self.r_hat:.3g}, effective_size={self.effective_size:.3g}, "
            f"log_joint of {chains} chains and {sweeps} sweeps, accepted at {len(self.accepted)} heights)"
        )


def diagnosed(trace: Tensor, burned: int, accepted: Tensor) -> Diagnostics:
    """Of (chains, sweeps), the first of which are thrown away, and moves; with a warning of what is not well."""
    kept = trace[:, min(burned, trace.shape[1]) :]
    found = Diagnostics(trace, split_r_hat(kept), effective_size(kept), accepted)
    if found.r_hat > 1.05:
        warnings.warn(f"the chains disagree: split R-hat is {found.r_hat:.2f}; sample longer", stacklevel=3)
    tried, made = accepted[-1].tolist() if len(accepted) else (0, 0)
    if made < tried / 100:
        warnings.warn(f"the root moves in {made} of {tried} tries; take another kernel", stacklevel=3)
    return found


def split_r_hat(x: Tensor) -> float:
    """Split R-hat of (chains, draws), Gelman et al., "Bayesian data analysis", 2013, 11.4; NaN below 4 draws."""
    half = x.shape[1] // 2
    if half < 2:
        return math.nan
    parts = torch.cat([x[:, :half], x[:, x.shape[1] - half :]])
    within = parts.var(1).mean()
    between = parts.mean(1).var()
    if within == 0:
        return 1.0 if between == 0 else math.inf
    return float((((half - 1) / half * within + between) / within).sqrt())


def effective_size(x: Tensor) -> float:
    """Effective number of draws of (chains, draws), ibid., 11.5, with Geyer's initial monotone sequence."""
    chains, n = x.shape
    if n < 4:
        return math.nan
    away = x - x.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(away, 2 * n)
    covariance = torch.fft.irfft(spectrum.abs() ** 2, 2 * n)[:, :n] / n
    within = covariance[:, 0].mean() * n / (n - 1)
    total = covariance[:, 0].mean() + (x.mean(1).var() if chains > 1 else 0)
    if total == 0:
        return float(chains * n)
    correlation = 1 - (within - covariance.mean(0)) / total
    correlation[0] = 1
    pairs = correlation[: n // 2 * 2].view(-1, 2).sum(1)
    negative = torch.nonzero(pairs < 0).flatten()
    pairs = pairs[: int(negative[0])] if len(negative) else pairs
    time = -1 + 2 * float(pairs.cummin(0).values.sum()) if len(pairs) else 1.0
    return float(min(chains * n / max(time, 1e-300), chains * n * math.log10(chains * n)))


def plot(trace: Tensor, burned: int, r_hat: float, size: float, accepted: Tensor) -> Any:
    """Figure of (chains, sweeps), with (heights, 2) moves tried and made beside it where there are any."""
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    figure = Figure(figsize=(10 if len(accepted) else 7, 3.6), layout="constrained")
    axes: Any = figure.subplots(1, 2 if len(accepted) else 1, squeeze=False)[0]
    for chain, values in enumerate(trace):
        axes[0].plot(range(1, len(values) + 1), values, lw=1, label=f"chain {chain}")
    axes[0].axvspan(1, max(burned, 1), color="0.9", label="thrown away")
    late = trace[:, trace.shape[1] // 10 :]
    low, high = float(late.min()), float(late.max())
    axes[0].set_ylim(low - 0.1 * (high - low) - 1e-9, high + 0.1 * (high - low) + 1e-9)
    axes[0].set(xlabel="sweep", ylabel="log joint density a row", title=f"split R-hat {r_hat:.2f}, size {size:.0f}")
    axes[0].legend(loc="lower right", fontsize="small")
    if len(accepted):
        share = (accepted[:, 1] / accepted[:, 0].clamp_min(1)).tolist()
        axes[1].bar(range(len(share)), share)
        axes[1].set(xlabel="height of the sum", ylabel="moves made / tried", ylim=(0, 1))
    return figure
