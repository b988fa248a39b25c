"""Hidden Chow-Liu trees."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyfast.spn._arguments import check_count, check_size
from pyfast.spn._builder import Builder
from pyfast.spn._chow_liu import BINS, discrete_information, gaussian_information, quantile_codes, spanning_tree
from pyfast.spn._columns import Columns
from pyfast.spn._fit import GAUSSIAN, TABLE, Kind
from pyfast.spn._structure import Structure
from pyfast.spn._validity import Integers


def hclt(
    X: Any,
    hidden: int,
    columns: Columns | Kind | Sequence[Kind] = "auto",
    smoothing: float = 1.0,
) -> Structure:
    """A hidden Chow-Liu tree: the tree of columns that keeps most mutual information, made of hidden states.

    Every column gets a hidden variable of ``hidden`` states with a leaf for each state; the hidden variables form the
    Chow-Liu tree of the columns, rooted at its centre so that it is shallow. In the network, state k of a column is the
    product of its leaf and of one sum for each child of the column, over the child's states.

    Args:
        X: (N, D) table of numpy, torch or pandas, or a list of rows; what is missing is left out pair by pair.
        hidden: K, at least 1.
        columns: fitted :class:`Columns`, or the kinds of columns as :meth:`Columns.fit_encoding` takes them.
        smoothing: see :func:`chow_liu`.

    Returns:
        The structure, with its ``program``.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if ``hidden`` or ``smoothing`` is too small, the network would have 2^31 weights and leaves or more,
            or a value of ``X`` does not suit its column.

    Source: Liu and Van den Broeck, "Tractable regularization of probabilistic circuits", NeurIPS 2021,
        https://arxiv.org/abs/2106.02264, section 5, for HCLTs; Chow and Liu, 1968, for the tree.

    Example:
        >>> import torch, pyfast
        >>> bit = (torch.arange(64)[:, None] >> torch.arange(6)) & 1
        >>> X = torch.cat([bit, bit], 1)  # column j and column j + 6 are equal
        >>> pyfast.spn.hclt(X, hidden=4)
        Structure(117 nodes, 12 variables, 48 leaves, 45 sums, 180 weights, height 5)
    """
    check_count("hidden", hidden, 1)
    columns = columns if isinstance(columns, Columns) else Columns.fit_encoding(X, columns)
    k = int(hidden)
    check_size("hidden", (len(columns) - 1) * k * k + k + len(columns) * k)
    return hidden_tree(chow_liu(X, columns, smoothing).numpy(), k)


def chow_liu(X: Any, columns: Columns | Kind | Sequence[Kind] = "auto", smoothing: float = 1.0) -> Tensor:
    """The Chow-Liu tree of a table: the spanning tree with the largest sum of mutual information.

    Tables' mutual information is that of their counts, Gaussian columns' that of their correlation. Where kinds are
    mixed, other columns than tables are first cut into 8 quantile bins, so that all are on one scale. Each pair uses
    the rows that have both. Ties go to the smaller column number, with information rounded to 2^-40 nats.

    Args:
        X: (N, D) table of numpy, torch or pandas, or a list of rows.
        columns: fitted :class:`Columns`, or the kinds of columns as :meth:`Columns.fit_encoding` takes them.
        smoothing: as many rows of evenly spread, independent values are added to each pair.

    Returns:
        (D,), int64: the parent of each column, -1 at the root, which is the centre of the tree.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if ``smoothing`` is negative or not finite, or a value of ``X`` does not suit its column.

    Source: Chow and Liu, "Approximating discrete probability distributions with dependence trees", IEEE Transactions on
        Information Theory, 1968.

    Example:
        >>> import torch, pyfast
        >>> a, b = torch.tensor([0, 0, 1, 1] * 8), torch.tensor([0, 1] * 16)
        >>> pyfast.spn.chow_liu(torch.stack([a, b, a & b], 1))
        tensor([ 2,  2, -1])
    """
    if not 0 <= smoothing < float("inf"):
        raise ValueError(f"smoothing must be finite and not negative, got {smoothing}")
    columns = columns if isinstance(columns, Columns) else Columns.fit_encoding(X, columns)
    x = columns.encode(X, torch.float64)
    table = columns.family == TABLE
    if (columns.family == GAUSSIAN).all():
        return torch.from_numpy(spanning_tree(gaussian_information(x, smoothing)))
    for j in torch.nonzero(~table).flatten().tolist():
        x[:, j] = quantile_codes(x[:, j])
    width = torch.where(table, columns.width, BINS).numpy()
    return torch.from_numpy(spanning_tree(discrete_information(x, width, smoothing)))


def hidden_tree(parent: Integers, hidden: int) -> Structure:
    """The network of a tree of hidden variables, each with ``hidden`` states and one visible variable below.

    Args:
        parent: (variables,), the tree: the parent of each variable, -1 at the root.
        hidden: number of states.
    """
    build = Builder(len(parent))
    below: list[list[int]] = [[] for _ in parent]
    for v, p in enumerate(parent.tolist()):
        if p >= 0:
            below[p].append(v)
    order: list[int] = np.flatnonzero(parent < 0).tolist()
    for v in order:  # grows as it is read: parents before children
        order += below[v]
    region: dict[int, int] = {}
    for v in reversed(order):
        region[v] = build.leaf_and_mixtures(v, [region[c] for c in below[v]], hidden)
    build.mixture(region[order[0]], 1)
    return build.structure()
