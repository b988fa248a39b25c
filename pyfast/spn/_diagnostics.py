"""Convergence of several chains of one number."""

import math

import torch
from torch import Tensor


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
