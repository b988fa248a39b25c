"""Networks of other libraries as ours; these libraries are never imported here, only their objects looked at."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyfast.spn._columns import Columns
from pyfast.spn._fit import Categorical
from pyfast.spn._spn import SPN
from pyfast.spn._structure import Structure
from pyfast.spn._validity import LEAF, PRODUCT, SUM

_Ids = NDArray[np.int64]  # (features, channels, repetitions): the node of each output of a layer


class _Node(NamedTuple):
    kind: int
    children: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()  # a sum's weights; a leaf's numbers as the kernels take them
    variable: int = -1
    family: str = ""


class _Graph:
    """Nodes as they are found, children first."""

    def __init__(self) -> None:
        self.nodes: list[_Node] = []

    def table(self, variable: int, probabilities: Any) -> int:
        p = np.asarray(probabilities, np.float64)
        with np.errstate(divide="ignore"):
            numbers = np.log(p / p.sum())
        return self._add(_Node(LEAF, (), tuple(numbers.tolist()), int(variable), "table"))

    def gaussian(self, variable: int, mean: float, deviation: float) -> int:
        _check_positive(deviation, "deviations", variable)
        c0 = -math.log(deviation) - 0.5 * math.log(2 * math.pi)
        return self._add(_Node(LEAF, (), (c0, 0.0, -0.5 / deviation**2, mean), int(variable), "gaussian"))

    def poisson(self, variable: int, rate: float) -> int:
        _check_positive(rate, "rates", variable)
        return self._add(_Node(LEAF, (), (-rate, math.log(rate), 0.0, 0.0), int(variable), "poisson"))

    def exponential(self, variable: int, rate: float) -> int:
        _check_positive(rate, "rates", variable)
        return self._add(_Node(LEAF, (), (math.log(rate), -rate, 0.0, 0.0), int(variable), "exponential"))

    def product(self, children: Any) -> int:
        found = tuple(int(c) for c in children)
        return found[0] if len(found) == 1 else self._add(_Node(PRODUCT, found))

    def sum(self, children: Any, weights: Any) -> int:
        """A child that comes twice, as broadcasting makes it, counts once with both weights."""
        total: dict[int, float] = {}
        for child, weight in zip(children, np.asarray(weights, np.float64).tolist(), strict=True):
            total[int(child)] = total.get(int(child), 0.0) + weight
        if len(total) == 1:
            return next(iter(total))
        whole = sum(total.values())
        return self._add(_Node(SUM, tuple(total), tuple(w / whole for w in total.values())))

    def _add(self, node: _Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def network(self, root: int) -> SPN:
        """What the root is made of: layers of others may have outputs that nothing reads."""
        used = {root}
        for i in range(root, -1, -1):
            if i in used:
                used.update(self.nodes[i].children)
        old = sorted(used)
        new = {o: i for i, o in enumerate(old)}
        nodes = [self.nodes[o] for o in old]
        structure = Structure.from_csr(
            [n.kind for n in nodes],
            np.concatenate([[0], np.cumsum([len(n.children) for n in nodes])]),
            np.array([new[c] for n in nodes for c in n.children], dtype=np.int64),
            [n.variable for n in nodes],
        )
        leaves = [n for n in nodes if n.kind == LEAF]
        kinds = [_kind([n for n in leaves if n.variable == v], v) for v in range(structure.num_variables)]
        columns = Columns.fit_encoding(np.empty((0, len(kinds))), kinds)
        width = columns.width.tolist()
        numbers = [x for n in leaves for x in (*n.numbers, *[-math.inf] * (width[n.variable] - len(n.numbers)))]
        return SPN(
            structure,
            columns,
            torch.tensor([w for n in nodes if n.kind == SUM for w in n.numbers], dtype=torch.float64),
            torch.tensor(numbers, dtype=torch.float64),
            dtype=torch.float64,
        )


def _check_positive(x: float, what: str, variable: int) -> None:
    if not 0 < x < math.inf:
        raise ValueError(f"root must have positive and finite {what}, got {x} for variable {variable}")


def _kind(leaves: list[_Node], variable: int) -> str | Categorical:
    families = sorted({n.family for n in leaves})
    if len(families) > 1:
        raise ValueError(f"root must have leaves of one family for each variable, got {families} for {variable}")
    return Categorical(max(len(n.numbers) for n in leaves)) if families == ["table"] else families[0]


def from_deeprob(root: Any) -> SPN:
    """A network of deeprob-kit, as LearnSPN returns it, as a module that gives its log likelihoods.

    Args:
        root: a ``deeprob.spn.structure`` node over the variables 0, 1, ...: sums and products of Bernoulli, categorical
            (codes from 0 on) and Gaussian leaves.

    Returns:
        An :class:`SPN` of float64 over columns that are taken as they are; ``BayesSPN(spn.structure)`` learns anew.
        Weights and tables are normalised, which theirs in float32 are to seven digits.

    Raises:
        TypeError: if a node is of another class; the message names it.
        ValueError: if the network is not valid, or a variable has leaves of several families.

    Source: deeprob-kit 1.1.0, ``deeprob.spn.structure``.

    Example:
        >>> import pyfast
        >>> class Gaussian:  # stands for deeprob.spn.structure.leaf.Gaussian(0, 1.0, 2.0)
        ...     scope, children, mean, stddev = [0], [], 1.0, 2.0
        >>> round(float(pyfast.spn.from_deeprob(Gaussian()).log_prob([[1.0]]).detach()), 4)
        -1.6121
    """
    graph, made = _Graph(), dict[int, int]()
    stack = [(root, False)]
    under_way: set[int] = set()
    while stack:
        node, ready = stack.pop()
        if id(node) in made:
            continue
        if not ready:
            if id(node) in under_way:
                raise ValueError(f"root must be of a graph without cycles, got one through {_name(node)}")
            under_way.add(id(node))
            stack.append((node, True))
            stack += [(c, False) for c in getattr(node, "children", ()) if id(c) not in made]
            continue
        children = [made[id(c)] for c in getattr(node, "children", ())]
        made[id(node)] = _deeprob_node(graph, node, children)
    return graph.network(made[id(root)])


def _deeprob_node(graph: _Graph, node: Any, children: list[int]) -> int:
    match type(node).__name__:
        case "Sum" if node.weights is None:
            raise ValueError(f"root must have weights at every sum, got none at {_name(node)}")
        case "Sum":
            return graph.sum(children, node.weights)
        case "Product":
            return graph.product(children)
        case "Bernoulli":
            return graph.table(node.scope[0], [1 - float(node.p), float(node.p)])
        case "Gaussian":
            return graph.gaussian(node.scope[0], float(node.mean), float(node.stddev))
        case "Categorical":
            codes = np.asarray(node.categories)
            if codes.min() < 0:
                raise ValueError(f"root must have categories from 0 on, got {codes.min()} in {_name(node)}")
            table = np.zeros(int(codes.max()) + 1)
            table[codes] = node.probabilities
            return graph.table(node.scope[0], table)
    raise TypeError(
        f"root must be of Sum, Product, Bernoulli, Categorical and Gaussian nodes of deeprob-kit, got {_name(node)}"
    )


def _name(node: Any) -> str:
    of = f" of variables {list(node.scope)}" if hasattr(node, "scope") and isinstance(node.scope, list) else ""
    return f"{type(node).__name__}{of}" + (f", id {node.id}" if hasattr(node, "id") else "")


def from_spflow(root: Any) -> SPN:
    """A network of SPFlow 1.x, layers of torch, as a module that gives its log likelihoods.

    Args:
        root: a module with one output over the variables 0, 1, ...: ``RatSPN`` or one of ``Sum``, ``ElementwiseSum``,
            ``RepetitionMixingLayer``, ``Product``, ``ElementwiseProduct``, ``OuterProduct``, ``Factorize``, ``Cat`` and
            splits, over ``Normal``, ``Bernoulli``, ``Categorical``, ``Poisson`` and ``Exponential``.

    Returns:
        An :class:`SPN` of float64 over columns that are taken as they are; ``BayesSPN(spn.structure)`` learns anew.

    Raises:
        TypeError: if a module is of another class or its leaves are conditional; the message names it.
        ValueError: if there is not one output, the network is not valid, or a variable has leaves of several families.

    Source: SPFlow 1.1.0, ``spflow.modules``.

    Example:
        >>> import pyfast, torch
        >>> class Scope:
        ...     query = [0]
        >>> class Normal:  # stands for spflow.modules.leaves.Normal(0, loc=[1.0], scale=[2.0])
        ...     scope, parameter_fn, out_shape = Scope(), None, (1, 1, 1)
        ...     def params(self):
        ...         return {"loc": torch.ones(1, 1, 1), "scale": 2 * torch.ones(1, 1, 1)}
        >>> round(float(pyfast.spn.from_spflow(Normal()).log_prob([[1.0]]).detach()), 4)
        -1.6121
    """
    made: dict[int, _Ids | list[_Ids]] = {}
    graph = _Graph()

    def outputs(module: Any) -> Any:
        if id(module) not in made:
            made[id(module)] = _layer(graph, module, outputs)
        return made[id(module)]

    top = outputs(root)
    if not isinstance(top, np.ndarray) or top.size != 1:
        shape = top.shape if isinstance(top, np.ndarray) else f"{len(top)} splits"
        raise ValueError(f"root must have one output, got {shape} of {type(root).__name__}")
    return graph.network(int(top.ravel()[0]))


def _layer(graph: _Graph, module: Any, outputs: Callable[[Any], Any]) -> "_Ids | list[_Ids]":
    name = type(module).__name__
    match name:
        case "RatSPN":
            return outputs(module.root_node)
        case "Sum":  # weights (features, in, out, repetitions)
            return _mixed(graph, outputs(module.inputs)[:, :, None], _weights(module), 1)
        case "RepetitionMixingLayer":  # weights (features, channels, repetitions)
            return _mixed(graph, outputs(module.inputs), _weights(module), 2)[:, :, None]
        case "ElementwiseSum":  # weights (features, in, out, inputs, repetitions)
            below = np.stack(np.broadcast_arrays(*[outputs(m) for m in module.inputs]), 2)[:, :, None]
            found = _mixed(graph, below, _weights(module), 3)
            return found.reshape(len(found), -1, found.shape[-1])
        case "Product":
            return _products(graph, outputs(module.inputs), 0)[None]
        case "ElementwiseProduct":
            return _products(graph, np.stack(np.broadcast_arrays(*_inputs(module, outputs))), 0)
        case "OuterProduct":
            first, *rest = _inputs(module, outputs)
            rows = first[None]  # (factors, features, channels, repetitions)
            for other in rest:
                left, right = np.broadcast_arrays(rows[:, :, :, None], other[None, :, None])
                both = np.concatenate([left, right[:1]])
                rows = both.reshape(len(both), both.shape[1], -1, both.shape[-1])
            return _products(graph, rows, 0)
        case "Factorize":  # indices (in, out, repetitions)
            below, at = outputs(module.inputs[0]), module.indices.detach().cpu().numpy() > 0
            below = np.broadcast_to(below, (*below.shape[:2], at.shape[2]))
            shape = at.shape[1], below.shape[1], at.shape[2]
            products = [graph.product(below[at[:, o, r], c, r]) for o, c, r in np.ndindex(shape)]
            return np.array(products).reshape(shape)
        case "Cat":
            return np.concatenate([outputs(m) for m in module.inputs], module.dim - 1)
        case "SplitConsecutive" | "SplitInterleaved" | "SplitByIndex":
            return _split(module, outputs(module.inputs), name)
    return _leaves(graph, module, name)


def _weights(module: Any) -> NDArray[np.float64]:
    return module.log_weights.detach().cpu().double().exp().numpy()


def _inputs(module: Any, outputs: Callable[[Any], Any]) -> list[_Ids]:
    found = [outputs(m) for m in module.inputs]
    return found[0] if isinstance(found[0], list) else found


def _mixed(graph: _Graph, below: _Ids, weights: NDArray[np.float64], axis: int) -> _Ids:
    """Sums along an axis."""
    below, weights = (np.moveaxis(x, axis, -1) for x in np.broadcast_arrays(below, weights))
    found = [graph.sum(below[i], weights[i]) for i in np.ndindex(below.shape[:-1])]
    return np.array(found).reshape(below.shape[:-1])


def _products(graph: _Graph, below: _Ids, axis: int) -> _Ids:
    below = np.moveaxis(below, axis, -1)
    return np.array([graph.product(below[i]) for i in np.ndindex(below.shape[:-1])]).reshape(below.shape[:-1])


def _split(module: Any, below: _Ids, name: str) -> list[_Ids]:
    if name == "SplitByIndex":
        return [below[list(i)] for i in module._indices]
    n, axis = module.num_splits, module.dim - 1
    if name == "SplitInterleaved":
        return [below[i::n] for i in range(n)]
    size = below.shape[axis] // n
    return np.split(below, range(size, below.shape[axis], size), axis)


def _leaves(graph: _Graph, module: Any, name: str) -> _Ids:
    if name not in ("Normal", "Bernoulli", "Categorical", "Poisson", "Exponential"):
        raise TypeError(f"root must be of modules of SPFlow that from_spflow lists, got {name}")
    if module.parameter_fn is not None:
        raise TypeError(f"root must have leaves with parameters of their own, got a conditional {name}")
    shape = tuple(module.out_shape)
    numbers = {k: v.detach().cpu().double() for k, v in module.params().items()}
    out = np.empty(shape, np.int64)
    if name in ("Bernoulli", "Categorical"):
        logits = numbers["logits"]
        if name == "Bernoulli":
            logits = torch.stack([torch.zeros_like(logits), logits], -1)
        values = logits.softmax(-1).reshape(*shape, -1).numpy()
        make: Callable[..., int] = graph.table
    elif name == "Normal":
        values = torch.stack([numbers["loc"], numbers["scale"]], -1).reshape(*shape, 2).numpy()
        make = lambda v, x: graph.gaussian(v, *x.tolist())  # noqa: E731
    else:
        values = numbers["rate"].reshape(shape).numpy()
        rate = graph.poisson if name == "Poisson" else graph.exponential
        make = lambda v, x: rate(v, float(x))  # noqa: E731
    for i in np.ndindex(shape):
        out[i] = make(module.scope.query[i[0]], values[i])
    return out
