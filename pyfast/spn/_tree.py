"""The largest tree of alternating sums and products, and nothing shared."""

import numpy as np
import torch

from pyfast.spn._arguments import check_count, check_seed
from pyfast.spn._random import keys
from pyfast.spn._structure import Structure
from pyfast.spn._validity import LEAF, PRODUCT, SUM, Integers, spans


def tree(num_variables: int, sum_children: int, product_children: int = 2, seed: int = 0) -> Structure:
    """A tree in which every sum has its own products and every product its own sums, down to single variables.

    The root is a sum over all variables. Every child of a sum is a product, which splits the sum's variables at random
    into parts of near equal size, independently of the sum's other children; a part of one variable is a leaf, a larger
    one a sum again. With D variables there are D C_s^h leaves or fewer, h = ceil(log(D) / log(C_p)): network size grows
    fast with ``sum_children``, which is what top-down sampling is for. A single variable makes a single leaf.

    Args:
        num_variables: D, at least 1.
        sum_children: C_s, at least 1.
        product_children: C_p, at least 2; a product over fewer variables has one child for each.
        seed: of the splits, in [0, 2^64); the same tree on every machine.

    Returns:
        The structure, with nodes numbered level by level and an empty ``program``.

    Raises:
        TypeError: if an argument is not an int.
        ValueError: if an argument is too small, or if the tree would have 2^31 nodes or more.

    Source: Yokoi and Sato, "Top-down Bayesian posterior sampling for sum-product networks", 2024,
        https://arxiv.org/abs/2406.12353, for the tree of C_s and C_p children.

    Example:
        >>> import pyfast
        >>> pyfast.spn.tree(69, sum_children=3, product_children=2)
        Structure(116,785 nodes, 69 variables, 64,881 leaves, 12,976 sums, 38,928 weights, height 14)
    """
    check_count("num_variables", num_variables, 1)
    check_count("sum_children", sum_children, 1)
    check_count("product_children", product_children, 2)
    check_seed(seed)
    if (nodes := _size(num_variables, sum_children, product_children)) >= 2**31:
        raise ValueError(f"sum_children must make a tree of fewer than 2^31 nodes, got {nodes}")

    # From the top, level by level: then every node but the root is the next child of the next parent that wants one.
    kind, count, variable = [], [], []

    def add(kinds: Integers, counts: Integers, variables: Integers) -> None:
        kind.append(kinds.astype(np.uint8))
        count.append(counts)
        variable.append(variables.astype(np.int32))

    size, scope, used = np.array([num_variables]), np.arange(num_variables), 0  # of this level's parts, side by side
    while len(size):
        leaf = size == 1
        first = np.cumsum(size) - size
        add(np.where(leaf, LEAF, SUM), np.where(leaf, 0, sum_children), np.where(leaf, scope[first], -1))
        first, size = np.repeat(first[~leaf], sum_children), np.repeat(size[~leaf], sum_children)
        parts = np.minimum(size, product_children)
        add(np.full(len(size), PRODUCT), parts, np.full(len(size), -1))
        scope = scope[spans(first, size)]
        product = np.repeat(np.arange(len(size)), size)
        scope = scope[np.lexsort((keys(seed, used, len(scope)), product))]
        used += len(scope)
        part = spans(np.zeros_like(parts), parts)
        size, parts = np.repeat(size, parts), np.repeat(parts, parts)
        size = size // parts + (part < size % parts)
    counts = np.concatenate(count)[::-1]
    n = len(counts)
    return Structure(
        kind=torch.from_numpy(np.concatenate(kind)[::-1].copy()),
        first=torch.from_numpy(np.concatenate([[0], np.cumsum(counts)])),
        child=torch.arange(n - 1, dtype=torch.int32),
        variable=torch.from_numpy(np.concatenate(variable)[::-1].copy()),
        num_variables=int(num_variables),
        program=torch.empty(0, dtype=torch.int64),
        origin=torch.arange(n),
    )


def _size(num_variables: int, sum_children: int, product_children: int) -> int:
    """Number of nodes, in closed form level by level: parts of a level have at most two sizes."""
    nodes, sizes = 0, {num_variables: 1}
    while sizes:
        below: dict[int, int] = {}
        for size, times in sizes.items():
            nodes += times
            if size > 1:
                nodes += times * sum_children
                parts = min(size, product_children)
                for part, number in ((size // parts, parts - size % parts), (size // parts + 1, size % parts)):
                    if number:
                        below[part] = below.get(part, 0) + times * sum_children * number
        sizes = below
    return nodes
