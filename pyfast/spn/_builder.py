"""Writes a dense network twice at once: node by node, and as a program of regions."""

import numpy as np
import torch

from pyfast.spn._program import Leaves, Mixture, Pairs, Region
from pyfast.spn._structure import Structure
from pyfast.spn._validity import LEAF, PRODUCT, SUM, Integers


class Builder:
    """Regions are added from the leaves up; each method returns the number of the region it made."""

    def __init__(self, num_variables: int) -> None:
        self._num_variables = num_variables
        self._kind: list[Integers] = []
        self._count: list[Integers] = []  # of children
        self._child: list[Integers] = []
        self._variable: list[Integers] = []
        self._program: list[int] = []
        self._regions: list[Region] = []
        self._num_nodes = self._num_leaves = self._num_weights = 0

    def leaves(self, variables: list[int], outputs: int) -> int:
        """Products of one leaf per variable; of a single variable, its leaves themselves."""
        nodes, term = self._leaves(variables, outputs)
        return self._region(outputs, self._products(nodes) if len(variables) > 1 else int(nodes[0, 0]), [term])

    def leaf_and_mixtures(self, variable: int, below: list[int], outputs: int) -> int:
        """Products of a leaf and one sum over each region below."""
        nodes, term = self._leaves([variable], outputs)
        terms: list[Leaves | Mixture | Pairs] = [term]
        columns = [nodes]
        for region in below:
            mixture = self._mixture(region, outputs)
            terms.append(mixture)
            columns.append(mixture.first_sum + np.arange(outputs)[:, None])
        return self._region(outputs, self._products(np.concatenate(columns, 1)) if below else int(nodes[0, 0]), terms)

    def mixture(self, region: int, outputs: int) -> int:
        """Sums over the components of one region."""
        term = self._mixture(region, outputs)
        return self._region(outputs, term.first_sum, [term])

    def pairs(self, below: list[tuple[int, int]], outputs: int) -> int:
        """Sums over the products of any component on the left and any on the right, of all pairs of regions."""
        products = []
        for left, right in below:
            i, j = np.meshgrid(self._components(left), self._components(right), indexing="ij")
            first = self._products(np.stack([i.ravel(), j.ravel()], 1))
            products.append(np.arange(first, first + i.size))
        first_weight = self._num_weights
        term = Pairs(first_weight, tuple(below))
        return self._region(outputs, self._sums(np.concatenate(products), outputs), [term])

    def structure(self) -> Structure:
        """What was written; the last region must be the root's."""
        return Structure(
            kind=torch.from_numpy(np.concatenate(self._kind).astype(np.uint8)),
            first=torch.from_numpy(np.concatenate([[0], np.cumsum(np.concatenate(self._count))])),
            child=torch.from_numpy(np.concatenate([*self._child, np.empty(0, np.int64)]).astype(np.int32)),
            variable=torch.from_numpy(np.concatenate(self._variable).astype(np.int32)),
            num_variables=self._num_variables,
            program=torch.tensor(self._program, dtype=torch.int64),
            origin=torch.arange(self._num_nodes),
        )

    def _components(self, region: int) -> Integers:
        return self._regions[region].first_node + np.arange(self._regions[region].outputs)

    def _leaves(self, variables: list[int], outputs: int) -> tuple[Integers, Leaves]:
        """Nodes (outputs, variables), numbered variable by variable, and their term."""
        size = len(variables) * outputs
        first_leaf = self._num_leaves + outputs * np.arange(len(variables))
        first = self._nodes(LEAF, np.zeros(size, np.int64), np.empty(0, np.int64), np.repeat(variables, outputs))
        self._num_leaves += size
        nodes = first + np.arange(size).reshape(len(variables), outputs).T
        return nodes, Leaves(tuple(variables), tuple(first_leaf.tolist()))

    def _mixture(self, region: int, outputs: int) -> Mixture:
        components, first_weight = self._components(region), self._num_weights
        return Mixture(region, first_weight, len(components), self._sums(components, outputs))

    def _products(self, children: Integers) -> int:
        n, c = children.shape
        return self._nodes(PRODUCT, np.full(n, c), children.ravel(), np.full(n, -1))

    def _sums(self, children: Integers, outputs: int) -> int:
        self._num_weights += outputs * len(children)
        count = np.full(outputs, len(children))
        return self._nodes(SUM, count, np.tile(children, outputs), np.full(outputs, -1))

    def _nodes(self, kind: int, count: Integers, child: Integers, variable: Integers) -> int:
        first = self._num_nodes
        self._num_nodes += len(count)
        self._kind.append(np.full(len(count), kind))
        self._count.append(count)
        self._child.append(child)
        self._variable.append(variable)
        return first

    def _region(self, outputs: int, first_node: int, terms: list[Leaves | Mixture | Pairs]) -> int:
        self._regions.append(Region(outputs, first_node, tuple(terms)))
        self._program += [outputs, first_node, len(terms)]
        for term in terms:
            match term:
                case Leaves(variables, first_leaves):
                    pairs = zip(variables, first_leaves, strict=True)
                    self._program += [0, len(variables), *(x for pair in pairs for x in pair)]
                case Mixture():
                    self._program += [1, *term]
                case Pairs(first_weight, below):
                    self._program += [2, len(below), first_weight, *(x for pair in below for x in pair)]
        return len(self._regions) - 1
