"""What makes a graph a sum-product network: acyclic, one root, complete sums, decomposable products."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

LEAF, PRODUCT, SUM = 0, 1, 2
KINDS = ("leaf", "product", "sum")
_CHUNK = 1 << 20  # words of scopes looked at together


class _Collision(Exception):
    """Two different scopes have the same hash."""


def spans(start: NDArray[Any], count: NDArray[Any]) -> Integers:
    """Concatenation of arange(start_i, start_i + count_i)."""
    skip = np.cumsum(count) - count
    return np.repeat(start - skip, count) + np.arange(int(count.sum()))


def heights(first: Integers, child: NDArray[Any]) -> Integers:
    """(n,) longest path from each node down to a childless one; -1 at nodes that are on a cycle or above one."""
    n = len(first) - 1
    pending = np.diff(first)
    above = np.repeat(np.arange(n), pending)[np.argsort(child, kind="stable")]  # parents, grouped by child
    above_first = np.concatenate([[0], np.cumsum(np.bincount(child, minlength=n))])
    height = np.full(n, -1)
    ready, level = np.flatnonzero(pending == 0), 0
    while len(ready):
        height[ready] = level
        at = above_first[ready]
        parents, times = np.unique(above[spans(at, above_first[ready + 1] - at)], return_counts=True)
        pending[parents] -= times
        ready, level = parents[pending[parents] == 0], level + 1
    return height


def some(nodes: NDArray[Any], most: int = 8) -> str:
    """Numbers for an error message, not too many of them."""
    return ", ".join(map(str, nodes[:most].tolist())) + (", ..." if len(nodes) > most else "")


def check(
    kind: NDArray[np.uint8], first: Integers, child: Integers, variable: Integers, num_variables: int
) -> Integers:
    """Heights of the nodes of a valid network; what is not one is refused, naming the first offending node."""
    count = np.diff(first)
    _check_nodes(kind, count, variable, num_variables)
    _check_duplicates(count, child)
    height = heights(first, child)
    if (height < 0).any():
        raise ValueError(
            f"child must not lead back to its node, got a cycle through node {_on_cycle(first, child, height)}"
        )
    roots = np.flatnonzero(np.bincount(child, minlength=len(kind)) == 0)
    if len(roots) != 1:
        raise ValueError(f"child must leave exactly one node without parents, got {len(roots)}: nodes {some(roots)}")
    place = variable.copy()
    seen, place[kind == LEAF] = np.unique(variable[kind == LEAF], return_inverse=True)
    attempt = 0
    while True:
        try:
            _Scopes(seen, attempt).check(kind, first, child, place, height)
            break
        except _Collision:
            attempt += 1  # other random numbers
    if len(seen) < num_variables:
        missing = np.setdiff1d(np.arange(min(num_variables, len(seen) + 9)), seen)
        raise ValueError(
            f"variable must give the root, node {roots[0]}, all {num_variables} variables, got none of {some(missing)}"
        )
    return height


def _check_nodes(kind: NDArray[np.uint8], count: Integers, variable: Integers, num_variables: int) -> None:
    leaf = kind == LEAF
    if (bad := np.flatnonzero(leaf & (count > 0))).size:
        raise ValueError(f"first must give leaves no children, got {count[bad[0]]} of leaf {bad[0]}")
    if (bad := np.flatnonzero(~leaf & (count == 0))).size:
        raise ValueError(f"first must give sums and products children, got none of {KINDS[kind[bad[0]]]} {bad[0]}")
    if (bad := np.flatnonzero(leaf & ((variable < 0) | (variable >= num_variables)))).size:
        raise IndexError(f"variable must be in [0, {num_variables}) at leaves, got {variable[bad[0]]} at leaf {bad[0]}")
    if (bad := np.flatnonzero(~leaf & (variable != -1))).size:
        raise ValueError(
            f"variable must be -1 at sums and products, got {variable[bad[0]]} at {KINDS[kind[bad[0]]]} {bad[0]}"
        )


def _check_duplicates(count: Integers, child: Integers) -> None:
    node = np.repeat(np.arange(len(count)), count)
    order = np.lexsort((child, node))
    node, child = node[order], child[order]
    twice = np.flatnonzero((node[1:] == node[:-1]) & (child[1:] == child[:-1]))
    if len(twice):
        raise ValueError(f"child must name a child once, got child {child[twice[0]]} twice at node {node[twice[0]]}")


def _on_cycle(first: Integers, child: Integers, height: Integers) -> int:
    node, seen = int(np.flatnonzero(height < 0)[0]), set[int]()
    while node not in seen:  # each of these nodes has such a child: else it had got a height
        seen.add(node)
        below = child[first[node] : first[node + 1]]
        node = int(below[height[below] < 0][0])
    return node


class _Scopes:
    """The distinct scopes of a network, each with a number, so that equal numbers mean equal sets and nothing else.

    A scope is found again by a random 64-bit hash and then compared bit by bit with the one found: the numbers are
    exact, and two different scopes of one hash only cost another attempt. Memory is a bit per variable and distinct
    scope.
    """

    def __init__(self, names: Integers, attempt: int) -> None:
        num_variables, self._names = len(names), names
        v = np.arange(num_variables)
        self.bits: Words = np.zeros((2 * num_variables, -(-num_variables // 64)), np.uint64)
        self.bits[v, v // 64] = np.uint64(1) << (v % 64).astype(np.uint64)
        self.size: Integers = np.ones(2 * num_variables, np.int64)
        self.hash: Words = np.resize(_random_words(num_variables, attempt), 2 * num_variables)
        self.number = {h: i for i, h in enumerate(self.hash[:num_variables].tolist())}
        if len(self.number) < num_variables:
            raise _Collision

    def check(
        self, kind: NDArray[np.uint8], first: Integers, child: Integers, variable: Integers, height: Integers
    ) -> None:
        """Go through the nodes from the leaves up."""
        scope = variable.copy()  # the number of each node's scope; that of a single variable is its own
        order = np.argsort(height, kind="stable")
        levels = np.split(order, np.cumsum(np.bincount(height))[:-1])
        for nodes in levels[1:]:
            self._sums(nodes[kind[nodes] == SUM], first, child, scope)
            products = nodes[kind[nodes] == PRODUCT]
            work = np.cumsum(first[products + 1] - first[products]) * self.bits.shape[1] // _CHUNK
            for part in np.split(products, np.flatnonzero(np.diff(work)) + 1):
                self._products(part, first, child, scope)

    def _sums(self, nodes: Integers, first: Integers, child: Integers, scope: Integers) -> None:
        """Completeness: all children of a sum have one scope."""
        count = first[nodes + 1] - first[nodes]
        eldest = child[first[nodes]]
        children = child[spans(first[nodes], count)]
        wrong = np.flatnonzero(scope[children] != np.repeat(scope[eldest], count))
        if len(wrong):
            at = int(np.searchsorted(np.cumsum(count), wrong[0], side="right"))
            a, b = eldest[at], children[wrong[0]]
            odd = np.setxor1d(self._variables(scope[a]), self._variables(scope[b]))
            raise ValueError(
                f"child must give sum {nodes[at]} children of one scope, got children {a} and {b}, "
                f"of which only one has variable {odd[0]}"
            )
        scope[nodes] = scope[eldest]

    def _products(self, nodes: Integers, first: Integers, child: Integers, scope: Integers) -> None:
        """Decomposability: a union is as large as its parts together only if no two of them overlap."""
        if len(nodes) == 0:
            return
        count = first[nodes + 1] - first[nodes]
        start = np.cumsum(count) - count
        below = scope[child[spans(first[nodes], count)]]
        union = np.bitwise_or.reduceat(self.bits[below], start)
        size = np.add.reduceat(self.size[below], start)
        wrong = np.flatnonzero(_popcount(union) != size)
        if len(wrong):
            self._name_overlap(int(nodes[wrong[0]]), first, child, scope)
        hashes, at, inverse = np.unique(
            np.add.reduceat(self.hash[below], start), return_index=True, return_inverse=True
        )  # scopes are disjoint, so the hash of a union is the sum, modulo 2^64
        number = np.array([self.number.get(h, -1) for h in hashes.tolist()])
        new = np.flatnonzero(number < 0)
        number[new] = np.arange(len(self.number), len(self.number) + len(new))
        self._add(hashes[new], union[at[new]], size[at[new]])
        scope[nodes] = number[inverse]
        if (self.bits[scope[nodes]] != union).any():
            raise _Collision

    def _add(self, hashes: Words, bits: Words, size: Integers) -> None:
        have, need = len(self.number), len(self.number) + len(hashes)
        if need > len(self.bits):
            self.bits = np.concatenate([self.bits[:have], np.zeros((need, self.bits.shape[1]), np.uint64)])
            self.size = np.concatenate([self.size[:have], np.zeros(need, np.int64)])
            self.hash = np.concatenate([self.hash[:have], np.zeros(need, np.uint64)])
        self.bits[have:need], self.size[have:need], self.hash[have:need] = bits, size, hashes
        self.number.update(zip(hashes.tolist(), range(have, need), strict=True))

    def _variables(self, scope: int) -> Integers:
        bits = np.unpackbits(self.bits[scope].astype("<u8").view(np.uint8), bitorder="little")
        return self._names[np.flatnonzero(bits)]

    def _name_overlap(self, node: int, first: Integers, child: Integers, scope: Integers) -> None:
        owner: dict[int, int] = {}
        for c in child[first[node] : first[node + 1]].tolist():
            for v in self._variables(scope[c]).tolist():
                if v in owner:
                    raise ValueError(
                        f"child must give product {node} children of disjoint scopes, "
                        f"got children {owner[v]} and {c}, which share variable {v}"
                    )
                owner[v] = c


def _random_words(n: int, attempt: int) -> Words:
    return np.random.default_rng(attempt).integers(0, 2**64, n, np.uint64)


def _popcount(words: Words) -> Integers:
    """(n, w) words to (n,) numbers of ones, by adding ever wider neighbours."""
    x = words.copy()
    for shift, mask in ((1, 0x5555555555555555), (2, 0x3333333333333333), (4, 0x0F0F0F0F0F0F0F0F)):
        x = (x & np.uint64(mask)) + (x >> np.uint64(shift) & np.uint64(mask))
    return (x * np.uint64(0x0101010101010101) >> np.uint64(56)).sum(1, dtype=np.int64)
