"""A network as a module, for any optimizer of PyTorch."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pyfast.spn._arguments import check_count, check_seed
from pyfast.spn._columns import Columns
from pyfast.spn._network import Network, Parameters
from pyfast.spn._parameters import Free, start
from pyfast.spn._structure import Structure


class SPN(nn.Module):
    """A sum-product network with parameters to be learned, by any optimizer.

    Weights are a softmax of what is learned, tables too; Gaussians have a mean and the log of a deviation, Poissons and
    exponentials the log of a rate: all numbers are allowed. NaN is a missing value everywhere, summed out exactly.

    Args:
        structure: the network.
        columns: what its variables are: fitted :class:`Columns`.
        weights: (num_weights,): normalised; by default they are drawn.
        leaves: the parameters of all leaves, one after the other: log probabilities of tables, c0, c1, c2 and m of
            others, whose log density is c0 + c1 x + c2 (x - m)^2; by default drawn from priors that the columns give.
        seed: of the draws, in [0, 2^64).
        dtype: float32 or float64.

    Attributes:
        log_weights: (num_weights,), a parameter.
        leaf_parameters: a parameter.

    Source: Poon and Domingos, "Sum-product networks: a new deep architecture", UAI 2011, section 4, for learning by
        gradients; Peharz et al., UAI 2019, for doing so with random structures.

    Example:
        >>> import torch, pyfast
        >>> bit = (torch.arange(64)[:, None] >> torch.arange(3)) & 1
        >>> X = torch.cat([bit, bit], 1)  # column j and column j + 3 are equal
        >>> columns = pyfast.spn.Columns.fit_encoding(X)
        >>> model = pyfast.spn.SPN(pyfast.spn.hclt(X, hidden=4, columns=columns), columns)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     loss = -model.log_prob(X).mean()
        ...     loss.backward()
        ...     _ = optimizer.step()
        >>> bool(loss < 2.3)  # 6 log 2 = 4.2 before learning, 3 log 2 = 2.1 at best
        True
    """

    def __init__(
        self,
        structure: Structure,
        columns: Columns,
        weights: Tensor | None = None,
        leaves: Tensor | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype must be float32 or float64, got {dtype}")
        check_seed(seed)
        self.structure, self.columns, self.seed = structure, columns, seed
        self._network = Network(structure, columns)
        self._free = Free(self._network)
        drawn = start(self._network, columns, seed, torch.float64)
        given = Parameters(
            drawn.weights if weights is None else _given("weights", weights, drawn.weights),
            drawn.leaves if leaves is None else _given("leaves", leaves, drawn.leaves),
        )
        self._check(given)
        log_weights, leaf_parameters = self._free.free_from(given)
        self.log_weights = nn.Parameter(log_weights.to(dtype))
        self.leaf_parameters = nn.Parameter(leaf_parameters.to(dtype))

    def _check(self, given: Parameters) -> None:
        total = torch.zeros(self.structure.num_sums, dtype=torch.float64)
        total.index_add_(0, self._network.weight_sum, given.weights)
        if not (given.weights >= 0).all() or not (total - 1).abs().le(1e-3).all():
            raise ValueError("weights must be non-negative and sum to 1 at every sum, got others")
        found = self._free.parameters(*self._free.free_from(given)).leaves
        if not torch.allclose(found, given.leaves.clamp_min(-1e31), rtol=1e-3, atol=1e-3):
            raise ValueError("leaves must be the parameters of normalised leaves, got others")

    def extra_repr(self) -> str:
        return f"{self.structure!r}, {self.columns!r}"

    def network_parameters(self) -> Parameters:
        """Normalised weights and leaves as the kernels take them, differentiable."""
        return self._free.parameters(self.log_weights, self.leaf_parameters)

    def forward(self, X: Any) -> Tensor:
        """:meth:`log_prob`."""
        return self.log_prob(X)

    def encode(self, X: Any) -> Tensor:
        """A table as :meth:`log_prob` takes it with ``encoded=True``, so that each epoch need not encode it again."""
        return self.columns.encode(X, self.log_weights.dtype)

    def log_prob(self, X: Any, encoded: bool = False) -> Tensor:
        """Log density of rows, differentiable in the parameters.

        Args:
            X: (N, D) table; what is missing is summed out, so this is the log of a marginal, too.
            encoded: whether ``X`` is what :meth:`encode` returned, or rows of it.

        Returns:
            (N,), float64, in nats.

        Raises:
            ValueError: if a value does not suit its column.
        """
        rows = X if encoded else self.encode(X)
        return self._network.log_prob(rows, self.network_parameters()) + self.columns.log_base(rows)

    def conditional(self, X: Any, given: Any) -> Tensor:
        """Log density of the values of ``X`` given those of ``given``, row by row; differentiable.

        Args:
            X: (N, D) table; NaN where nothing is asked.
            given: (N, D) table; NaN where nothing is known. Where both have a value, they must be equal.

        Returns:
            (N,), float64; minus infinity where they differ, NaN where ``given`` is impossible.

        Raises:
            ValueError: if the shapes differ or a value does not suit its column.
        """
        asked, known = self.encode(X), self.encode(given)
        if asked.shape != known.shape:
            raise ValueError(f"given must have the shape of X, {tuple(asked.shape)}, got {tuple(known.shape)}")
        both = torch.where(asked.isnan(), known, asked)
        clash = (~known.isnan() & (both != known)).any(1)
        return torch.where(clash, -math.inf, self.log_prob(both, True) - self.log_prob(known, True))

    @torch.no_grad()
    def sample(self, n: int | None = None, evidence: Any = None, seed: int | None = None) -> Any:
        """Draws of rows, given what is known of each.

        Args:
            n: number of rows, where there is no evidence.
            evidence: (N, D) table: what is missing is drawn given the rest of its row, what is there stays.
            seed: of the draws; by default the network's.

        Returns:
            (n or N, D), a table of the form that the columns were fitted to.

        Raises:
            TypeError: if ``n`` or ``seed`` is not an int.
            ValueError: if not exactly one of ``n`` and ``evidence`` is given, an argument is out of range, a value does
                not suit its column, or a row is impossible.
        """
        if (n is None) == (evidence is None):
            raise ValueError(f"n or evidence must be given, not both, got n={n}")
        seed = self.seed if seed is None else seed
        check_seed(seed)
        if evidence is None:
            assert n is not None
            check_count("n", n, 0)
            rows = torch.full((n, len(self.columns)), math.nan)
        else:
            rows = self.encode(evidence)
        drawn = self._network.complete(rows, self.network_parameters(), seed, 0, 0, False)
        return self.columns.decode(drawn, evidence)

    @torch.no_grad()
    def mpe(self, X: Any) -> Any:
        """The most probable completion of each row and its latent choices.

        Args:
            X: (N, D) table with missing values.

        Returns:
            (N, D), a table of the form that the columns were fitted to; what was there stays.

        Raises:
            ValueError: if a value does not suit its column, or a row is impossible.
        """
        drawn = self._network.complete(self.encode(X), self.network_parameters(), 0, 0, 0, True)
        return self.columns.decode(drawn, X)


def _given(name: str, x: Tensor, like: Tensor) -> Tensor:
    if x.shape != like.shape:
        raise ValueError(f"{name} must have shape {tuple(like.shape)}, got {tuple(x.shape)}")
    return x.detach().double()
