"""Slabs of rows on their way up through a graph, and down again: what is launched, over which memory."""

import math
from typing import NamedTuple

import torch
from pyfast.kernels.spn._blocks import DRAWS, NODE_DRAWS, NODES, blocks, leaf_blocks
from pyfast.kernels.spn._nodes import _draw_nodes, _up_nodes
from pyfast.kernels.spn._plan import EXPONENTIAL
from pyfast.kernels.spn._regions import _draw, _up
from triton import cdiv

ROOM = 1 << 29  # bytes for the values of a slab of rows
ROWS = 1 << 19  # of a slab at most: blocks of rows are the second number of a grid, which ends at 65,535
CHUNK = 512  # rows whose derivatives are summed by one program


class Slab(NamedTuple):
    """Some rows, which lie side by side, `stride` from a component or node to the next; and what is written of them.

    A dense one has `weak`: rows that the dense form is too narrow for.
    """

    x: torch.Tensor
    weights: torch.Tensor
    leaves: torch.Tensor
    values: torch.Tensor | None
    exponents: torch.Tensor | None
    rows: int
    sums: torch.Tensor | None = None
    tops: torch.Tensor | None = None
    weak: torch.Tensor | None = None

    @property
    def stride(self):
        """From one component to the next."""
        return self.x.shape[1]

    def log_value(self):
        """Log likelihoods (rows), float64."""
        value, exponent = self.values[-1, : self.rows].double(), self.exponents[-1, : self.rows].double()
        return value.log() + exponent * math.log(2)

    def new(self, n, dtype=None, old=None):
        """Unwritten (n, rows), in the memory of an old one that is as large, if given."""
        if old is not None:
            return old.flatten()[: n * self.stride].view(n, self.stride)
        return torch.empty(n, self.stride, dtype=dtype or self.weights.dtype, device=self.x.device)

    def below(self, p, old=None):
        """Unwritten: what `choose` keeps of each region, or node."""
        if self.weak is None:
            return self.new(p.num_nodes, torch.int8, old)
        return self.new(len(p.dense.regions), torch.int32, old)


def slab(p, x, weights, leaves, dense, keep=False, old=None):
    """Memory for rows x; without that of the terms' sums unless they are kept. An old one's is used again."""
    stride = cdiv(len(x), 64) * 64
    turned = x.new_empty(x.shape[1], stride)
    turned[:, : len(x)] = x.t()
    up, d = Slab(turned, weights, leaves, None, None, len(x)), p.dense
    both = (None, None) if old is None else (old.values, old.exponents)
    up = up._replace(
        values=up.new(d.values if dense else p.num_nodes, None, both[0]),
        exponents=up.new(*((len(d.regions), torch.int32) if dense else (p.num_nodes, torch.float64)), both[1]),
    )
    if not dense:
        return up
    return up._replace(
        sums=up.new(d.sums) if keep else None,
        tops=up.new(len(d.terms), torch.int32) if keep else None,
        weak=torch.zeros(up.rows, dtype=torch.int32, device=x.device),
    )


def rise(p, up):
    """The upward pass. Weak rows are marked, others left as they are."""
    if up.weak is not None:
        d, how = p.dense, blocks(p.dense.most, up.weights.dtype == torch.float64)
        for level in d.levels:
            _up[level.end - level.first, cdiv(up.rows, how["BN"])](
                up.x, up.weights, up.leaves, d.order, d.regions, d.entries, d.terms, d.pairs, up.values, up.exponents,
                up.sums, up.tops, up.weak, level.first, up.rows, up.stride, KEEP=up.sums is not None, **how,
            )  # fmt: skip
        return up
    g = p.nodes
    for group in g.groups:
        how = leaf_blocks(predictive(p)) if group.kind == 0 else NODES
        _up_nodes[grid(up, group, how)](
            up.x, up.weights, up.leaves, g.order, g.first, g.child, g.first_weight, p.leaf_variable, p.leaf_first,
            p.leaf_family, up.values, up.exponents, group.first, group.end, up.rows, up.stride,
            KIND=group.kind, PREDICTIVE=predictive(p), **how,
        )  # fmt: skip
    return up


def choose(p, up, drawn, numbers, weight_counts, leaf_counts, words, below):
    """An induced tree for every row that is drawn, and has a number that randomness knows it by; adds to statistics.

    words (2): the seed and what random numbers are for, as signed words on the device.
    """
    d, g = p.dense, p.nodes
    if up.weak is not None:
        below.fill_(-1)
        below[-1, : up.rows] = drawn.to(torch.int32) - 1
        for level in reversed(d.levels):
            _draw[level.end - level.first, cdiv(up.rows, DRAWS["BN"])](
                up.x, numbers, up.weights, d.order, d.regions, d.entries, d.terms, d.pairs, p.quantum, up.values,
                up.exponents, below, weight_counts, leaf_counts, words, level.first, up.rows, up.stride, **DRAWS,
            )  # fmt: skip
        return
    below.zero_()
    below[-1, : up.rows] = drawn
    for group in reversed(g.groups):
        _draw_nodes[grid(up, group, NODE_DRAWS)](
            up.x, numbers, up.weights, g.order, g.first, g.child, g.first_weight, p.leaf_variable, p.leaf_first,
            p.leaf_family, p.leaf_quantum, up.values, up.exponents, below, weight_counts, leaf_counts, words,
            group.first, group.end, up.rows, up.stride, KIND=group.kind, **NODE_DRAWS,
        )  # fmt: skip


def grid(up, group, how=NODES):
    """Programs for the nodes of a group and blocks of rows."""
    return cdiv(group.end - group.first, how["BM"]), cdiv(up.rows, how["BN"])


def predictive(p):
    """Whether some leaves have their parameters integrated out."""
    return max(p.families) > EXPONENTIAL


def slabs(p, rows, variables, size, dense, keep=False):
    """Parts of all rows, such that what is written of one, in numbers of so many bytes, has room."""
    if dense:
        each = (p.dense.values + keep * (p.dense.values + p.dense.sums) + variables) * size + len(p.dense.regions) * 8
    else:
        each = p.num_nodes * (3 * size + 8)
    step = max(CHUNK, min(ROOM // each, ROWS) // CHUNK * CHUNK)
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]


def passes(p, x, weights, leaves, keep=False):
    """Slabs of rows after their upward pass, and their places in x; weak ones come once more, node by node."""
    everywhere = torch.arange(len(x), device=x.device)
    if p.dense is not None:
        weak = torch.zeros(len(x), dtype=torch.int32, device=x.device)
        for part in slabs(p, len(x), x.shape[1], x.element_size(), True, keep):
            up = rise(p, slab(p, x[part], weights, leaves, True, keep))
            weak[part] = up.weak
            yield everywhere[part], up
        everywhere = torch.nonzero(weak).flatten()
        x, weights, leaves = x[everywhere].double(), weights.double(), leaves.double()
    for part in slabs(p, len(x), x.shape[1], x.element_size(), False):
        yield everywhere[part], rise(p, slab(p, x[part], weights, leaves, False))
