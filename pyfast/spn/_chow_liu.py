"""The tree that keeps most of the mutual information between columns."""

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyfast.spn._validity import Integers, spans

BINS = 8
_CELLS = 1 << 24  # of a table of zeros and ones held at once
_BLOCK = 2048  # categories of columns counted against as many others
_NARROW = 16  # columns of at most as many categories are counted category by category

Floats: TypeAlias = NDArray[np.float64]


def discrete_information(codes: Tensor, width: Integers, smoothing: float) -> Floats:
    """(D, D) mutual information, in nats, of columns of codes.

    Each pair of columns is counted over the rows that have both; ``smoothing`` rows are added, spread evenly over the
    pair's cells, so that what is estimated is never infinite or negative.

    Args:
        codes: (N, D), NaN where missing.
        width: (D,) categories.
        smoothing: not negative.
    """
    narrow, wide = np.flatnonzero(width <= _NARROW), np.flatnonzero(width > _NARROW)
    groups = [narrow[width[narrow] == w] for w in np.unique(width[narrow])]
    blocks = np.split(wide, np.flatnonzero(np.diff(np.cumsum(width[wide]) // _BLOCK)) + 1) if len(wide) else []
    out = np.zeros((len(width), len(width)))
    for i, left in enumerate(groups):
        for right in groups[i:]:
            _store(out, left, right, _by_category(codes, left, right, width, smoothing))
    for i, left in enumerate(blocks):
        for right in [*blocks[i:], *(g for all_of in groups for g in np.array_split(all_of, -(-len(all_of) // 128)))]:
            _store(out, left, right, _by_cell(_counts(codes, left, right, width), width[left], width[right], smoothing))
    return (out + out.T) / 2  # sums within a block are rounded in another order above the diagonal than below


def _store(out: Floats, left: Integers, right: Integers, found: Floats) -> None:
    out[np.ix_(left, right)] = found
    out[np.ix_(right, left)] = found.T


def _by_category(codes: Tensor, left: Integers, right: Integers, width: Integers, smoothing: float) -> Floats:
    """Columns of one width against columns of one width: a matrix product for every two categories.

    A column's last category is what the others leave, so b categories take b - 1 products and one with ones.
    """
    a, b = int(width[left[0]]), int(width[right[0]])
    same = left is right
    x, y = codes[:, left], codes[:, right]
    seen = [(~z.isnan()).float() for z in (x, y)]
    us = [*((x == u).float() for u in range(a - 1)), seen[0]]
    vs = us if same else [*((y == v).float() for v in range(b - 1)), seen[1]]
    whole = all(bool(s.all()) for s in seen)  # then a product with ones is a sum
    n: dict[tuple[int, int], Tensor] = {}
    for u, v in np.ndindex(a, b):
        if whole and (u == a - 1 or v == b - 1):
            side = us[u].sum(0, dtype=torch.float64)[:, None] if v == b - 1 else vs[v].sum(0, dtype=torch.float64)
            n[u, v] = side.expand(len(left), len(right))
        else:
            n[u, v] = n[v, u].T if same and v < u else _product(us[u], vs[v])
    del us, vs
    total = n[a - 1, b - 1] + smoothing
    information = torch.zeros_like(total)

    def add(count: Tensor, cells: int, sign: int) -> None:
        p = (count + smoothing / cells) / total.clamp_min(1e-300)
        information.add_(torch.xlogy(p, p), alpha=sign)

    def left_category(u: int, v: int) -> Tensor:
        return n[u, v] if u < a - 1 else n[a - 1, v] - sum((n[w, v] for w in range(a - 1)), torch.zeros(()))

    for u in range(a):
        rest = left_category(u, b - 1)
        add(rest, a, -1)
        for v in range(b - 1):
            count = left_category(u, v)
            add(count, a * b, 1)
            rest = rest - count
        add(rest, a * b, 1)
    for v in range(b):
        last = n[a - 1, b - 1] - sum((n[a - 1, w] for w in range(b - 1)), torch.zeros(()))
        add(n[a - 1, v] if v < b - 1 else last, b, -1)
    return information.numpy()


def _product(x: Tensor, y: Tensor) -> Tensor:
    """x^T y of zeros and ones, in float64: exact, since float32 counts to 2^24."""
    parts = zip(x.split(1 << 24), y.split(1 << 24), strict=True)
    return sum((p.T.mm(q).double() for p, q in parts), torch.zeros((), dtype=torch.float64))


def _counts(codes: Tensor, left: Integers, right: Integers, width: Integers) -> Floats:
    """Rows with category u of a left and v of a right column, by a product of zeros and ones (exact below 2^24)."""
    cells = int(max(width[left].sum(), width[right].sum()))
    total = np.zeros((width[left].sum(), width[right].sum()))
    for rows in torch.split(codes, max(1, min(1 << 24, _CELLS // cells))):
        a = _one_hot(rows, left, width)
        b = a if left is right else _one_hot(rows, right, width)
        total += (a.T @ b).numpy()
    return total


def _one_hot(codes: Tensor, columns: Integers, width: Integers) -> Tensor:
    category = torch.from_numpy(spans(np.zeros(len(columns), np.int64), width[columns])).to(codes.dtype)
    column = torch.from_numpy(np.repeat(columns, width[columns]))
    return (codes[:, column] == category).float()


def _by_cell(counts: Floats, left: Integers, right: Integers, smoothing: float) -> Floats:
    at, to = np.cumsum(left) - left, np.cumsum(right) - right

    def over_left(x: Floats) -> Floats:
        return np.add.reduceat(x, at, axis=0)

    def over_right(x: Floats) -> Floats:
        return np.add.reduceat(x, to, axis=1)

    p = counts + smoothing / (np.repeat(left, left)[:, None] * np.repeat(right, right))
    rows = over_left(over_right(p))
    p /= np.maximum(np.repeat(np.repeat(rows, left, 0), right, 1), 1e-300)
    joint = over_left(over_right(_log_times(p)))
    return joint - over_left(_log_times(over_right(p))) - over_right(_log_times(over_left(p)))


def _log_times(p: Floats) -> Floats:
    """Values p log p, 0 at 0."""
    return p * np.log(np.where(p > 0, p, 1.0))


def gaussian_information(values: Tensor, smoothing: float) -> Floats:
    """(D, D) mutual information, in nats, of columns that are Gaussian in pairs: -log(1 - correlation^2) / 2.

    Args:
        values: (N, D), NaN where missing, each column of a moderate size.
        smoothing: rows of independent values that are added.
    """
    x = values.double()
    seen = (~x.isnan()).double()
    x = x.nan_to_num(0.0)
    n = seen.T @ seen
    one, two = x.T @ seen, (x * x).T @ seen  # sums of column i over the rows that column j has, too
    mean = one / n.clamp_min(1)
    spread = two / n.clamp_min(1) - mean * mean
    covariance = (x.T @ x) / n.clamp_min(1) - mean * mean.T
    some = 1e-12 * (two / n.clamp_min(1)).clamp_min(1e-300)
    sure = (spread > some) & (spread.T > some.T) & (n > 2)
    square = torch.where(sure, covariance**2 / (spread * spread.T).clamp_min(1e-300), 0.0)
    square = (square * (n / (n + smoothing).clamp_min(1)) ** 2).clamp(0, 1 - 1e-12)
    return np.asarray(-0.5 * torch.log1p(-square).numpy())


def quantile_codes(values: Tensor) -> Tensor:
    """(N,) the quantile bin of each value, NaN where missing; equal values share a bin."""
    x = values.double().numpy()
    seen = np.sort(x[~np.isnan(x)])
    edges = seen[(np.arange(1, BINS) * len(seen)) // BINS] if len(seen) else seen
    return torch.from_numpy(np.where(np.isnan(x), x, np.searchsorted(edges, x, side="right")))


def spanning_tree(information: Floats) -> Integers:
    """(D,) parent of each column in the maximum spanning tree, -1 at the root, which is the tree's centre.

    Information is compared after rounding to 2^-40, so that the last bits of logarithms do not choose; among equals the
    edge found first in the order of column numbers is taken.

    Args:
        information: (D, D), symmetric.
    """
    weight = np.round(information * 2.0**40)
    d = len(weight)
    parent = np.full(d, -1)
    best, inside = np.full(d, -np.inf), np.zeros(d, bool)
    new, neighbours = 0, [list[int]() for _ in range(d)]
    for _ in range(d - 1):  # Prim's algorithm
        inside[new] = True
        better = ~inside & (weight[new] > best)
        best[better], parent[better] = weight[new][better], new
        best[new] = -np.inf
        new = int(np.argmax(best))
        neighbours[new].append(int(parent[new]))
        neighbours[int(parent[new])].append(new)
    return _rooted(neighbours, _centre(neighbours))


def _rooted(neighbours: list[list[int]], root: int) -> Integers:
    parent = np.full(len(neighbours), -1)
    order = [root]
    for v in order:  # grows as it is read
        for w in neighbours[v]:
            if w != parent[v]:
                parent[w] = v
                order.append(w)
    return parent


def _centre(neighbours: list[list[int]]) -> int:
    """The node that is nearest to all; of two, the one with the smaller number."""

    def farthest(start: int) -> list[int]:
        """Path from the last node that is reached back to the start."""
        came, order = {start: -1}, [start]
        for v in order:
            for w in neighbours[v]:
                if w not in came:
                    came[w] = v
                    order.append(w)
        path = [order[-1]]
        while came[path[-1]] >= 0:
            path.append(came[path[-1]])
        return path

    longest = farthest(farthest(0)[0])
    return min(longest[(len(longest) - 1) // 2], longest[len(longest) // 2])
