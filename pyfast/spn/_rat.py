"""Random and tensorised networks: random binary splits, dense layers."""

import numpy as np

from pyfast.spn._arguments import check_count, check_seed, check_size
from pyfast.spn._builder import Builder
from pyfast.spn._random import keys
from pyfast.spn._structure import Structure


def rat(
    num_variables: int, replicas: int = 8, depth: int = 3, sums: int = 12, leaves: int = 12, seed: int = 0
) -> Structure:
    """A RAT-SPN: ``replicas`` random binary splits of all variables, mixed at the root.

    Each replica halves the variables at random ``depth`` times. Its last parts hold ``leaves`` products of one leaf per
    variable, the parts between hold ``sums`` sums over all products of a component on the left and one on the right,
    and the root is one sum over those products of all replicas. A part of one variable is not split further.

    Args:
        num_variables: D, at least 1. A single variable makes one mixture of ``leaves`` leaves.
        replicas: R, at least 1.
        depth: at least 1.
        sums: K, sums per inner part, at least 1.
        leaves: I, components per last part, at least 1.
        seed: of the splits, in [0, 2^64); the same network on every machine.

    Returns:
        The structure, with its ``program``.

    Raises:
        TypeError: if an argument is not an int.
        ValueError: if an argument is too small, or the network would have 2^31 weights and leaves or more.

    Source: Peharz et al., "Random sum-product networks: a simple and effective approach to probabilistic deep
        learning", UAI 2019, algorithms 1 and 2 with two parts to a split.

    Example:
        >>> import pyfast
        >>> structure = pyfast.spn.rat(69)
        >>> structure
        Structure(16,033 nodes, 69 variables, 6,624 leaves, 577 sums, 84,096 weights, height 7)
    """
    counts = {"num_variables": num_variables, "replicas": replicas, "depth": depth, "sums": sums, "leaves": leaves}
    for name, value in counts.items():
        check_count(name, value, 1)
    check_seed(seed)
    check_size("num_variables, replicas, sums and leaves", _size(*map(int, counts.values())))
    build = Builder(int(num_variables))

    def region(scope: list[int], depth: int) -> int:
        if depth == 0 or len(scope) == 1:
            return build.leaves(scope, leaves)
        return build.pairs([halves(scope, depth)], sums)

    def halves(scope: list[int], depth: int) -> tuple[int, int]:
        middle = -(-len(scope) // 2)
        return region(scope[:middle], depth - 1), region(scope[middle:], depth - 1)

    if num_variables == 1:
        build.mixture(build.leaves([0], leaves), 1)
        return build.structure()
    # Halves of a permuted scope are random halves, and each is in random order itself.
    scopes = [np.argsort(keys(seed, r * num_variables, num_variables), kind="stable").tolist() for r in range(replicas)]
    build.pairs([halves(scope, depth) for scope in scopes], 1)
    return build.structure()


def _size(num_variables: int, replicas: int, depth: int, sums: int, leaves: int) -> int:
    """Number of weights and leaves, in closed form level by level: parts of a level have at most two sizes."""
    if num_variables == 1:
        return 2 * leaves
    weights, level, parts = 0, 0, {num_variables: replicas}
    while parts:
        below: dict[int, int] = {}
        for size, times in parts.items():
            halves = size - size // 2, size // 2
            left, right = (leaves if half == 1 or level + 1 == depth else sums for half in halves)
            weights += times * left * right * (1 if level == 0 else sums)
            for half in halves:
                if half > 1 and level + 1 < depth:
                    below[half] = below.get(half, 0) + times
        parts, level = below, level + 1
    return weights + replicas * num_variables * leaves
