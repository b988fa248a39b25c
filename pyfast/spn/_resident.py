"""Rows that stay on a GPU, where chains of block moves sweep over them."""

import importlib
from typing import Any

import torch
from torch import Tensor

from pyfast.spn._columns import Columns
from pyfast.spn._fit import OWN
from pyfast.spn._network import Counts, Law, Network, Parameters


def gpu_of(X: Any) -> torch.device | None:
    """Where a table is, if that is a GPU."""
    return X.device if isinstance(X, Tensor) and X.is_cuda else None


def check_gpu(device: torch.device | None, kernel: str, collapsed: bool, columns: Columns, group: Any) -> None:
    """Whether there are kernels for a table on a GPU, if there is one."""
    if device is None:
        return
    if kernel != "block" or collapsed:
        mode = "collapsed" if collapsed else "instantiated"
        raise ValueError(f"kernel must be block, and its mode instantiated, with X on {device}, got {kernel}, {mode}")
    if (columns.family == OWN).any():
        name = columns.names[int((columns.family == OWN).int().argmax())]
        raise ValueError(f"columns must be without Density with X on {device}, got one in column {name!r}")
    if group is not None:
        raise ValueError(f"group must be None with X on {device}, got one")


class Resident:
    """One sweep after the other, for all chains of a fit; nothing but statistics and laws comes and goes.

    A row that is there several times draws as often: of equal rows the CPU makes one, and other chains of the same law.
    """

    def __init__(self, network: Network, rows: Tensor, device: torch.device) -> None:
        kernels: Any = importlib.import_module("pyfast.kernels.spn")
        self.device = device
        self._gibbs = kernels.Gibbs(
            rows.to(device), network.graph, network.leaf_prior, int(network.columns.width.sum())
        )

    def sweep(self, counts: Counts, law: Law, seed: int, drawing: int, choosing: int) -> Counts:
        """Parameters given statistics (anywhere), and choices given them; the choices' statistics, on the GPU.

        ``drawing`` and ``choosing`` are the middle parts of the random numbers' names.
        """
        return Counts(*self._gibbs.sweep(*counts, *law, seed, drawing, choosing))

    def choose(self, parameters: Parameters, seed: int, choosing: int) -> Counts:
        """The same with parameters given."""
        return Counts(*self._gibbs.choose(*parameters[:2], seed, choosing))

    @property
    def parameters(self) -> Parameters:
        """Of the last sweep, on the GPU; the next one writes others there."""
        return Parameters(self._gibbs.room.weights, self._gibbs.room.leaves)

    @property
    def log_likelihoods(self) -> Tensor:
        """(N,), float64, of the rows in the last sweep, on the GPU."""
        out: Tensor = self._gibbs.room.out
        return out
