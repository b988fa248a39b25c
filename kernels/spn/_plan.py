"""A graph as the kernels read it: its tables on the device, and which of its parts may run at once."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.weak import WeakIdKeyDictionary

from pyfast.spn._program import Leaves, Mixture, regions
from pyfast.spn._validity import LEAF, SUM, heights

TABLE = 0
EXPONENTIAL = 3  # the last family whose leaves have parameters; of those beyond, they are integrated out
WIDEST = 128  # outputs of a region that one program can hold


class Group(NamedTuple):
    """Places `first` up to `end` of the order may run at once; `kind` if they are nodes."""

    first: int
    end: int
    kind: int = -1


class Dense(NamedTuple):
    """The program of a graph, all tables int64. Columns are in the order in which _regions.py loads them.

    order (regions): by level. regions: first value, outputs; from, up to: leaves, terms, pairs that read the region.
    entries (leaves): variable, first parameter, width, family. terms: first of its sums among those kept, first weight,
    weights from one sum to the next, first pair, end of pairs, first sum node. pairs: left region or -1, its outputs,
    first value, right region, its first value, outputs, offset of weights. uses: of a region as a part of a pair.
    tasks: products of weights with one component on the left.
    """

    levels: list[Group]
    order: torch.Tensor
    regions: torch.Tensor
    entries: torch.Tensor
    terms: torch.Tensor
    pairs: torch.Tensor
    uses: torch.Tensor
    tasks: torch.Tensor
    flow_row: torch.Tensor  # of a leaf: its component
    values: int
    sums: int
    most: int  # outputs of a region


class Nodes(NamedTuple):
    """Any graph, node by node. order: nodes by height, leaves first and as they are numbered."""

    groups: list[Group]
    order: torch.Tensor
    first: torch.Tensor
    child: torch.Tensor
    first_weight: torch.Tensor  # of a sum
    parent_first: torch.Tensor
    parent: torch.Tensor
    parent_weight: torch.Tensor  # of the edge from a parent: -1 where that is a product
    edge_sum: torch.Tensor  # of a weight
    edge_child: torch.Tensor


class Draws(NamedTuple):
    """What shares its Gammas, and what is no table. Places are those of the weights, then of the leaves' numbers."""

    table_leaf: torch.Tensor  # of a number of a leaf: the leaf, -1 where that is no table
    group_first: torch.Tensor  # of sums, then of tables
    group_size: torch.Tensor
    curve: torch.Tensor  # the leaves that are no tables


class Plan(NamedTuple):
    """What all kernels need: leaf tables are in the order of the leaves, quantum is that of a leaf's variable."""

    dense: Dense | None
    nodes: Nodes
    draws: Draws
    num_nodes: int
    num_leaves: int
    num_weights: int
    parameters: int
    widest_leaf: int
    families: frozenset[int]
    leaf_first: torch.Tensor
    leaf_variable: torch.Tensor
    leaf_family: torch.Tensor
    leaf_quantum: torch.Tensor
    quantum: torch.Tensor


_plans = WeakIdKeyDictionary()


def plan(graph, device):
    """The plan of a graph on a device, made once for as long as its tensors live and do not change."""
    state = [(x, 0 if x.is_inference() else x._version) for x in graph]
    key, (_, version) = graph[5], state.pop(5)  # not among what is kept, which would keep it alive
    found = _plans.get(key)
    if found is not None:
        before, its_version, its_device, made = found
        same = all(a is b and v == w for (a, v), (b, w) in zip(before, state, strict=True))
        if same and its_version == version and its_device == device:
            return made
    made = _make([x.detach().cpu().numpy() for x in graph], device)
    _plans[key] = state, version, device, made
    return made


def _make(graph, device):
    kind, first, child, variable, leaf_first, family, quantum, program = graph
    leaves = np.flatnonzero(kind == LEAF)
    over = variable[leaves].astype(np.int64)
    count = np.diff(first)
    num_weights = int(count[kind == SUM].sum())

    def put(x, dtype=np.int64):
        return torch.from_numpy(np.ascontiguousarray(x, dtype=dtype)).to(device)

    return Plan(
        dense=_dense(program, leaf_first, over, family, num_weights, put),
        nodes=_nodes(kind, first.astype(np.int64), child.astype(np.int64), num_weights, put),
        draws=_draws(count[kind == SUM], leaf_first, family[over], num_weights, put),
        num_nodes=len(kind),
        num_leaves=len(leaves),
        num_weights=num_weights,
        parameters=int(leaf_first[-1]),
        widest_leaf=int(np.diff(leaf_first).max()),
        families=frozenset(family[over].tolist()),
        leaf_first=put(leaf_first),
        leaf_variable=put(over),
        leaf_family=put(family[over]),
        leaf_quantum=put(quantum[over], np.float64),
        quantum=put(quantum, np.float64),
    )


def _nodes(kind, first, child, num_weights, put):
    n, count = len(kind), np.diff(first)
    height = heights(first, child).astype(np.int64)
    order = np.argsort(height * 3 + kind, kind="stable")
    group = (height * 3 + kind)[order]
    ends = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), n]
    weighted = np.repeat(kind == SUM, count)  # of an edge
    edge_weight = np.where(weighted, np.cumsum(weighted) - 1, -1)
    first_weight = np.full(n, -1)
    sums = np.flatnonzero(kind == SUM)
    first_weight[sums] = np.cumsum(count[sums]) - count[sums]
    above = np.repeat(np.arange(n), count)  # of an edge
    by_child = np.argsort(child, kind="stable")
    return Nodes(
        groups=[Group(a, b, int(kind[order[a]])) for a, b in pairwise(ends)],
        order=put(order),
        first=put(first),
        child=put(child),
        first_weight=put(first_weight),
        parent_first=put(np.concatenate([[0], np.cumsum(np.bincount(child, minlength=n))])),
        parent=put(above[by_child]),
        parent_weight=put(edge_weight[by_child]),
        edge_sum=put(above[weighted]),
        edge_child=put(child[weighted]),
    )


def _draws(children, leaf_first, family, num_weights, put):
    width, tables = np.diff(leaf_first), family == TABLE
    return Draws(
        table_leaf=put(np.repeat(np.where(tables, np.arange(len(width)), -1), width)),
        group_first=put(np.concatenate([np.cumsum(children) - children, num_weights + leaf_first[:-1][tables]])),
        group_size=put(np.concatenate([children, width[tables]])),
        curve=put(np.flatnonzero(~tables)),
    )


def _dense(program, leaf_first, over, family, num_weights, put):
    """None where there is no program, or regions are too wide, leaves predictive, parameters not used once each."""
    found = regions(torch.from_numpy(program))
    if not found or max(r.outputs for r in found) > WIDEST or found[-1].outputs != 1 or family.max() > EXPONENTIAL:
        return None
    first_value = np.cumsum([0] + [r.outputs for r in found]).tolist()
    table, entries, terms, pairs, tasks, levels = [], [], [], [], [], []
    uses = [[] for _ in found]
    flow_row, weight_used = np.full(len(over), -1), np.zeros(num_weights, np.int64)
    sums = 0
    for region in found:
        here, below = first_value[len(table)], [-1]
        first_entry, first_term = len(entries), len(terms)
        for term in region.terms:
            if isinstance(term, Leaves):
                for v, leaf in zip(term.variables, term.first_leaves, strict=True):
                    width = int(leaf_first[leaf + 1] - leaf_first[leaf])
                    if (over[leaf : leaf + region.outputs] != v).any() or (
                        flow_row[leaf : leaf + region.outputs] >= 0
                    ).any():
                        return None
                    flow_row[leaf : leaf + region.outputs] = here + np.arange(region.outputs)
                    entries.append([v, int(leaf_first[leaf]), width, int(family[v])])
                continue
            mixed = isinstance(term, Mixture)
            both = [(-1, term.region)] if mixed else list(term.regions)
            sizes = [(found[a].outputs if a >= 0 else 1, found[b].outputs) for a, b in both]
            inputs = sum(i * j for i, j in sizes)
            row = term.row_stride if mixed else inputs
            first_sum = term.first_sum if mixed else region.first_node
            first_pair, offset = len(pairs), 0
            for (left, right), (I, J) in zip(both, sizes, strict=True):
                first_left = first_value[left] if left >= 0 else -1
                pairs.append([left, I, first_left, right, first_value[right], J, offset])
                weight, number = term.first_weight + offset, len(terms)
                shared = [sums, region.outputs, weight, row, number]
                uses[right].append([*shared, 1, J, left, first_left, I])
                if left >= 0:
                    uses[left].append([*shared, J, 1, right, first_value[right], J])
                tasks += [
                    [
                        sums,
                        region.outputs,
                        weight + i * J,
                        row,
                        number,
                        left,
                        first_left + i,
                        right,
                        first_value[right],
                        J,
                    ]
                    for i in range(I)
                ]
                below += [levels[r] for r in (left, right) if r >= 0]
                offset += I * J
            terms.append([sums, term.first_weight, row, first_pair, len(pairs), first_sum])
            np.add.at(
                weight_used, (term.first_weight + row * np.arange(region.outputs)[:, None] + np.arange(inputs)), 1
            )
            sums += region.outputs
        levels.append(1 + max(below))
        table.append([here, region.outputs, first_entry, len(entries), first_term, len(terms)])
    if (weight_used != 1).any() or (flow_row < 0).any():
        return None
    ends = np.cumsum([0] + [len(u) for u in uses]).tolist()
    for row, (a, b) in zip(table, pairwise(ends), strict=True):
        row += [a, b]
    counts = np.cumsum([0, *np.bincount(levels).tolist()]).tolist()

    def tabulate(rows, columns):
        return put(np.array(rows, dtype=np.int64).reshape(-1, columns))

    return Dense(
        levels=[Group(a, b) for a, b in pairwise(counts)],
        order=put(np.argsort(levels, kind="stable")),
        regions=tabulate(table, 8),
        entries=tabulate(entries, 4),
        terms=tabulate(terms, 6),
        pairs=tabulate(pairs, 7),
        uses=tabulate([use for of_region in uses for use in of_region], 10),
        tasks=tabulate(tasks, 10),
        flow_row=put(flow_row),
        values=first_value[-1],
        sums=sums,
        most=max(r.outputs for r in found),
    )
