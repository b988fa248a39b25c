"""Triton kernels for pyfast.spn: levels of regions, or of nodes, one after the other; blocks of rows beside each other.

A graph with a program goes through its dense form. Rows that this is too narrow for are done again node by node, in
float64; to know whether there are any is the one thing that the host waits for. Values are not checked here: a code
that its table lacks makes a likelihood NaN.
"""

import math
from typing import NamedTuple

import torch
from pyfast.kernels.spn._blocks import DRAWS, LEAVES, NODES, blocks, leaf_blocks, slope_blocks
from pyfast.kernels.spn._flows import _flow, _weight_slopes
from pyfast.kernels.spn._leaves import _leaf_slopes
from pyfast.kernels.spn._nodes import _draw_nodes, _flow_nodes, _up_nodes, _weight_slopes_nodes
from pyfast.kernels.spn._plan import EXPONENTIAL, plan
from pyfast.kernels.spn._regions import _draw, _up
from triton import cdiv

ROOM = 1 << 29  # bytes for the values of a slab of rows
ROWS = 1 << 19  # of a slab at most: blocks of rows are the second number of a grid, which ends at 65,535
CHUNK = 512  # rows whose derivatives are summed by one program


class Pass(NamedTuple):
    """Some rows after their upward pass; rows lie side by side, `stride` to a component or node."""

    x: torch.Tensor
    weights: torch.Tensor
    leaves: torch.Tensor
    values: torch.Tensor
    exponents: torch.Tensor
    rows: int
    sums: torch.Tensor | None = None
    tops: torch.Tensor | None = None
    weak: torch.Tensor | None = None  # rows that the dense form is too narrow for

    @property
    def stride(self):
        """From one component to the next."""
        return self.x.shape[1]

    def log_value(self):
        """Log likelihoods (rows), float64."""
        value, exponent = self.values[-1, : self.rows].double(), self.exponents[-1, : self.rows].double()
        return value.log() + exponent * math.log(2)

    def new(self, n, dtype=None):
        """Unwritten (n, rows)."""
        return torch.empty(n, self.stride, dtype=dtype or self.weights.dtype, device=self.x.device)


def _prepare(x, weights, leaves):
    stride = cdiv(len(x), 64) * 64
    turned = x.new_empty(x.shape[1], stride)
    turned[:, : len(x)] = x.t()
    return Pass(turned, weights, leaves, None, None, len(x))


def _up_dense(p, x, weights, leaves, keep):
    up, d, how = _prepare(x, weights, leaves), p.dense, blocks(p.dense.most, weights.dtype == torch.float64)
    up = up._replace(
        values=up.new(d.values),
        exponents=up.new(len(d.regions), torch.int32),
        sums=up.new(d.sums) if keep else None,
        tops=up.new(len(d.terms), torch.int32) if keep else None,
        weak=torch.zeros(up.rows, dtype=torch.int32, device=x.device),
    )
    for level in d.levels:
        _up[level.end - level.first, cdiv(up.rows, how["BN"])](
            up.x, weights, leaves, d.order, d.regions, d.entries, d.terms, d.pairs, up.values, up.exponents, up.sums,
            up.tops, up.weak, level.first, up.rows, up.stride, KEEP=keep, **how,
        )  # fmt: skip
    return up


def _up_sparse(p, x, weights, leaves):
    up, g = _prepare(x, weights, leaves), p.nodes
    up = up._replace(values=up.new(p.num_nodes), exponents=up.new(p.num_nodes, torch.int32))
    for group in g.groups:
        how = leaf_blocks(_predictive(p)) if group.kind == 0 else NODES
        _up_nodes[_grid(up, group, how)](
            up.x, weights, leaves, g.order, g.first, g.child, g.first_weight, p.leaf_variable, p.leaf_first,
            p.leaf_family, up.values, up.exponents, group.first, group.end, up.rows, up.stride,
            KIND=group.kind, PREDICTIVE=_predictive(p), **how,
        )  # fmt: skip
    return up


def _grid(up, group, how=NODES):
    return cdiv(group.end - group.first, how["BM"]), cdiv(up.rows, how["BN"])


def _predictive(p):
    return max(p.families) > EXPONENTIAL


def _slabs(rows, row_bytes):
    step = max(CHUNK, min(ROOM // row_bytes, ROWS) // CHUNK * CHUNK)
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]


def _passes(p, x, weights, leaves, keep=False):
    """Slabs of rows after their upward pass, and their places in x; weak ones come once more, node by node."""
    size = x.element_size()
    everywhere = torch.arange(len(x), device=x.device)
    if p.dense is not None:
        weak = torch.zeros(len(x), dtype=torch.int32, device=x.device)
        values = p.dense.values + keep * (p.dense.values + p.dense.sums) + x.shape[1]
        for part in _slabs(len(x), values * size + len(p.dense.regions) * 8):
            up = _up_dense(p, x[part], weights, leaves, keep)
            weak[part] = up.weak
            yield everywhere[part], up
        everywhere = torch.nonzero(weak).flatten()
        x, weights, leaves = x[everywhere].double(), weights.double(), leaves.double()
    for part in _slabs(len(x), p.num_nodes * (3 * size + 4)):
        yield everywhere[part], _up_sparse(p, x[part], weights, leaves)


def log_prob(x, weights, leaves, graph, out):
    for places, up in _passes(plan(graph, x.device), x, weights, leaves):
        out[places] = up.log_value()


def _slopes(p, up, factor):
    """Derivatives in weights and leaves, float64: sums over chunks of rows, in order."""
    chunks = cdiv(up.rows, CHUNK)
    weights = up.values.new_empty(chunks, p.num_weights)
    leaves = up.values.new_empty(chunks, p.parameters)
    d, g = p.dense, p.nodes
    if up.weak is not None:
        flow, flow_row, how = up.new(d.values), d.flow_row, blocks(d.most, up.weights.dtype == torch.float64)
        for level in reversed(d.levels):
            _flow[level.end - level.first, cdiv(up.rows, how["BN"])](
                factor, up.weights, d.order, d.regions, d.terms, d.uses, up.values, up.exponents, up.sums, up.tops,
                flow, level.first, len(d.regions) - 1, up.rows, up.stride, **how,
            )  # fmt: skip
        if p.num_weights:
            _weight_slopes[(len(d.tasks), chunks)](
                d.tasks, up.values, up.exponents, up.sums, up.tops, weights, up.rows, up.stride, CHUNK, p.num_weights,
                **slope_blocks(d.most, up.weights.dtype == torch.float64),
            )  # fmt: skip
    else:
        flow, flow_row = up.new(p.num_nodes), g.order
        for group in reversed(g.groups):
            _flow_nodes[_grid(up, group)](
                factor, up.weights, g.order, g.parent_first, g.parent, g.parent_weight, up.values, up.exponents, flow,
                group.first, group.end, p.num_nodes - 1, up.rows, up.stride, **NODES,
            )  # fmt: skip
        if p.num_weights:
            _weight_slopes_nodes[(cdiv(p.num_weights, NODES["BM"]), chunks)](
                g.edge_sum, g.edge_child, up.values, up.exponents, flow, weights, p.num_weights, up.rows, up.stride,
                CHUNK, **NODES,
            )  # fmt: skip
    _leaf_slopes[(cdiv(p.num_leaves, LEAVES["BL"]), chunks)](
        up.x, up.leaves, flow, flow_row, p.leaf_variable, p.leaf_first, p.leaf_family, leaves, p.num_leaves, up.rows,
        up.stride, CHUNK, p.parameters, p.widest_leaf, **LEAVES,
    )  # fmt: skip
    return weights.sum(0, dtype=torch.float64), leaves.sum(0, dtype=torch.float64)


def log_prob_backward(grad, x, weights, leaves, graph, dweights, dleaves):
    p = plan(graph, x.device)
    if _predictive(p):
        raise NotImplementedError(
            "predictive leaves have derivatives on the CPU only; move x, weights and leaves there"
        )
    # The largest factor in [1/2, 1), so that what flows stays in float32; a power of two rounds nothing.
    most = grad.abs().amax() if len(grad) else grad.new_zeros(())
    scale = torch.where(most.isfinite() & (most > 0), most / torch.frexp(most).mantissa, 1)
    factor = grad / scale
    total = [x.new_zeros(n, dtype=torch.float64) for n in (p.num_weights, p.parameters)]
    for places, up in _passes(p, x, weights, leaves, keep=True):
        here = factor[places]
        here = here if up.weak is None else here.masked_fill(up.weak > 0, 0)
        for sum, added in zip(total, _slopes(p, up, here.to(up.weights.dtype)), strict=True):
            sum += added
    for to, sum in zip((dweights, dleaves), total, strict=True):
        to.copy_(sum * scale)


def sweep(x, times, weights, leaves, seed, what, first_row, graph, weight_counts, leaf_counts, out):
    if len(times) and not bool(((times == 0) | (times == 1)).all()):
        raise NotImplementedError(
            f"times must be 0 or 1 on {x.device.type}, got {int(times.min())} to {int(times.max())}: rows that "
            "stand for several equal ones are for the CPU"
        )
    p = plan(graph, x.device)
    seed, what = (word - (word >> 63 << 64) for word in (seed, what))  # as signed words
    for places, up in _passes(p, x, weights, leaves):
        log = up.log_value()
        out[places] = log
        drawn = (times[places] == 1) & (log > -math.inf)
        if up.weak is not None:
            drawn &= up.weak == 0
        _sample(p, up, drawn, places + first_row, weight_counts, leaf_counts, seed, what)


def _sample(p, up, drawn, numbers, weight_counts, leaf_counts, seed, what):
    d, g = p.dense, p.nodes
    if up.weak is not None:
        state = torch.full((len(d.regions), up.stride), -1, dtype=torch.int32, device=up.x.device)
        state[-1, : up.rows] = drawn.to(torch.int32) - 1
        for level in reversed(d.levels):
            _draw[level.end - level.first, cdiv(up.rows, DRAWS["BN"])](
                up.x, numbers, up.weights, d.order, d.regions, d.entries, d.terms, d.pairs, p.quantum, up.values,
                up.exponents, state, weight_counts, leaf_counts, seed, what, level.first, up.rows, up.stride,
                **DRAWS,
            )  # fmt: skip
        return
    reached = torch.zeros(p.num_nodes, up.stride, dtype=torch.int8, device=up.x.device)
    reached[-1, : up.rows] = drawn
    for group in reversed(g.groups):
        _draw_nodes[_grid(up, group)](
            up.x, numbers, up.weights, g.order, g.first, g.child, g.first_weight, p.leaf_variable, p.leaf_first,
            p.leaf_family, p.leaf_quantum, up.values, up.exponents, reached, weight_counts, leaf_counts, seed, what,
            group.first, group.end, up.rows, up.stride, KIND=group.kind, **NODES,
        )  # fmt: skip
