"""The graph of a sum-product network, as every kernel of the family reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyfast.spn import _validity
from pyfast.spn._arguments import check_count
from pyfast.spn._program import regions
from pyfast.spn._validity import LEAF, SUM

_DTYPES = {
    "kind": torch.uint8,
    "first": torch.int64,
    "child": torch.int32,
    "variable": torch.int32,
    "program": torch.int64,
    "origin": torch.int64,
}


@dataclass(frozen=True, eq=False, repr=False)
class Structure:
    """A sum-product network without its parameters: a rooted graph, children before parents, the root last.

    Made by :func:`tree`, :func:`rat` or :func:`hclt`, valid by construction, or by :meth:`from_csr`, which proves it;
    the class itself only looks at types and shapes. Leaves are numbered 0, 1, ... in the order of nodes. So are the
    edges below sums, and the number of an edge is the place of its weight: one vector holds the weights of a network,
    those of a sum side by side.

    Args:
        kind: (nodes,), uint8: 0 leaf, 1 product, 2 sum.
        first: (nodes + 1,), int64: the children of node i are ``child[first[i]:first[i + 1]]``.
        child: (edges,), int32.
        variable: (nodes,), int32: the variable of a leaf, -1 elsewhere.
        num_variables: how many variables there are.
        program: int64: the same graph over the same parameters as dense layers; empty where there is none.
        origin: (nodes,), int64: the number that each node had before :meth:`from_csr` renumbered it.

    Raises:
        TypeError: if a tensor has another dtype or is not on the CPU.
        ValueError: if the shapes do not match.

    Example:
        >>> import pyfast
        >>> pyfast.spn.tree(69, sum_children=2, product_children=2)
        Structure(10,111 nodes, 69 variables, 5,056 leaves, 1,685 sums, 3,370 weights, height 14)
    """

    kind: Tensor
    first: Tensor
    child: Tensor
    variable: Tensor
    num_variables: int
    program: Tensor
    origin: Tensor

    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        n = len(self.kind)
        shapes = {"kind": (n,), "first": (n + 1,), "child": (len(self.child),), "variable": (n,), "origin": (n,)}
        for name, dtype in _DTYPES.items():
            x = getattr(self, name)
            if x.dtype != dtype or x.device.type != "cpu":
                raise TypeError(f"{name} must be {dtype} on cpu, got {x.dtype} on {x.device}")
            if x.shape != shapes.get(name, (x.numel(),)):
                raise ValueError(f"{name} must have shape {shapes.get(name, '(n,)')}, got {tuple(x.shape)}")
            object.__setattr__(self, name, x.contiguous())

    def __repr__(self) -> str:
        return (
            f"Structure({self.num_nodes:,} nodes, {self.num_variables:,} variables, {self.num_leaves:,} leaves, "
            f"{self.num_sums:,} sums, {self.num_weights:,} weights, height {self.height})"
        )

    def __eq__(self, other: object) -> bool:
        """The same graph with the same program; where the numbers of nodes came from does not count."""
        if not isinstance(other, Structure):
            return NotImplemented
        mine, its = self.state_dict(), other.state_dict()
        return all(torch.equal(mine[name], its[name]) for name in mine if name != "origin")

    @property
    def num_nodes(self) -> int:
        """Number of leaves, products and sums."""
        return len(self.kind)

    @cached_property
    def num_leaves(self) -> int:
        """Number of leaves."""
        return int((self.kind == LEAF).sum())

    @cached_property
    def num_sums(self) -> int:
        """Number of sums."""
        return int((self.kind == SUM).sum())

    @cached_property
    def num_weights(self) -> int:
        """Number of edges below sums."""
        return int(self.first.diff()[self.kind == SUM].sum())

    @cached_property
    def height(self) -> int:
        """Number of edges on the longest path from the root to a leaf."""
        return int(_validity.heights(self.first.numpy(), self.child.numpy())[-1])

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as tensors under the names of the arguments; :meth:`from_state_dict` takes it back."""
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        return state | {"num_variables": torch.tensor(self.num_variables)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "Structure":
        """The structure that gave this state.

        Args:
            state: what :meth:`state_dict` returned; it is not trusted, but proved valid again.

        Raises:
            KeyError: if a tensor is missing.
            TypeError, ValueError, IndexError: if the state is not that of a structure.
        """
        state = {f.name: state[f.name] for f in fields(cls)}
        made = cls(**state | {"num_variables": int(state["num_variables"])})  # type: ignore[arg-type]
        again = cls.from_csr(made.kind, made.first, made.child, made.variable, made.num_variables)
        if not torch.equal(again.origin, torch.arange(made.num_nodes)):
            raise ValueError("child must name children that come before their parents, got others")
        regions(made.program)
        return made

    @classmethod
    def from_csr(
        cls,
        kind: Tensor | np.ndarray | Sequence[int],
        first: Tensor | np.ndarray | Sequence[int],
        child: Tensor | np.ndarray | Sequence[int],
        variable: Tensor | np.ndarray | Sequence[int],
        num_variables: int | None = None,
    ) -> "Structure":
        """A structure of your own, with its validity proved.

        Every sum must be complete (its children have one scope), every product decomposable (the scopes of its
        children are disjoint), the graph acyclic, without childless sums or products and without an edge twice; exactly
        one node, the root, has no parents, and all variables are in its scope. The proof is exact, not probable, and
        takes seconds for a million nodes.

        Numbers of nodes are free. Where children already come before their parents, they stay; otherwise nodes are
        renumbered by height (leaves first), those of one height in your order, and ``origin`` of the result tells the
        number that each node had. Children keep their order, so the weights of one sum do too.

        Args:
            kind: (nodes,) integers: 0 leaf, 1 product, 2 sum.
            first: (nodes + 1,) integers: the children of node i are ``child[first[i]:first[i + 1]]``.
            child: (edges,) integers.
            variable: (nodes,) integers: the variable of a leaf, -1 elsewhere.
            num_variables: by default one more than the largest variable.

        Returns:
            The structure. Its ``program`` is empty.

        Raises:
            TypeError: if something is not of integers.
            ValueError: if shapes do not match or the graph is not a valid network: the message names the node, in your
                numbers.
            IndexError: if a kind, child or variable is out of range.

        Source: Poon and Domingos, "Sum-product networks: a new deep architecture", UAI 2011, for
            completeness; decomposability is its stronger, usual form of consistency.

        Example:
            A mixture of two products over two variables.

            >>> from pyfast.spn import Structure
            >>> Structure.from_csr([2, 1, 1, 0, 0, 0, 0], [0, 2, 4, 6, 6, 6, 6, 6], [1, 2, 3, 4, 5, 6],
            ...                    [-1, -1, -1, 0, 1, 0, 1])
            Structure(7 nodes, 2 variables, 4 leaves, 1 sums, 2 weights, height 2)
        """
        given = {"kind": kind, "first": first, "child": child, "variable": variable}
        k, f, c, v = (_integers(name, x) for name, x in given.items())
        n = len(k)
        if n == 0:
            raise ValueError("kind must name at least one node, got none")
        if n >= 2**31:
            raise ValueError(f"kind must have fewer than 2^31 nodes, got {n}")
        if len(v) != n or len(f) != n + 1:
            raise ValueError(f"first and variable must have {n + 1} and {n} elements, got {len(f)} and {len(v)}")
        if f[0] != 0 or f[-1] != len(c) or (f[1:] < f[:-1]).any():
            raise ValueError(f"first must rise from 0 to the {len(c)} elements of child, got [{f[0]}, ..., {f[-1]}]")
        for name, x, least, end in (("kind", k, 0, 3), ("child", c, 0, n), ("variable", v, -1, 2**31 - 1)):
            if (bad := np.flatnonzero((x < least) | (x >= end))).size:
                raise IndexError(f"{name} must be in [{least}, {end}), got {x[bad[0]]} at {bad[0]}")
        variables = max(int(v.max()) + 1, 1) if num_variables is None else num_variables
        check_count("num_variables", variables, 1)
        height = _validity.check(k.astype(np.uint8), f, c, v, variables)
        count = np.diff(f)
        if (c < np.repeat(np.arange(n), count)).all():
            origin, new = np.arange(n), np.arange(n)
        else:
            origin = np.argsort(height, kind="stable")
            new = np.argsort(origin)
        return cls(
            kind=torch.from_numpy(k[origin].astype(np.uint8)),
            first=torch.from_numpy(np.concatenate([[0], np.cumsum(count[origin])])),
            child=torch.from_numpy(new[c[_validity.spans(f[origin], count[origin])]].astype(np.int32)),
            variable=torch.from_numpy(v[origin].astype(np.int32)),
            num_variables=variables,
            program=torch.empty(0, dtype=torch.int64),
            origin=torch.from_numpy(origin),
        )


def _integers(name: str, x: Any) -> np.ndarray:
    a = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if a.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {a.shape}")
    if a.size and a.dtype.kind not in "iu":
        raise TypeError(f"{name} must be of integers, got {a.dtype}")
    if a.dtype.kind == "u" and a.size and a.max() >= 2**63:
        raise IndexError(f"{name} must be below 2^63, got {a.max()}")
    return a.astype(np.int64)
