"""Triton kernels for pyfast.spn: levels of regions, or of nodes, one after the other; blocks of rows beside each other.

A graph with a program goes through its dense form. Rows that this is too narrow for are done again node by node, in
float64; to know whether there are any is the one thing that the host waits for. Values are not checked here: a code
that its table lacks makes a likelihood NaN.
"""

import math

import torch
from pyfast.kernels.spn import _slabs
from pyfast.kernels.spn._blocks import LEAVES, NODES, blocks, slope_blocks
from pyfast.kernels.spn._draws import draw_all
from pyfast.kernels.spn._flows import _flow, _weight_slopes
from pyfast.kernels.spn._gibbs import Gibbs as Gibbs
from pyfast.kernels.spn._gibbs import words_of
from pyfast.kernels.spn._leaves import _leaf_slopes
from pyfast.kernels.spn._nodes import _flow_nodes, _weight_slopes_nodes
from pyfast.kernels.spn._plan import plan
from triton import cdiv


def log_prob(x, weights, leaves, graph, out):
    for places, up in _slabs.passes(plan(graph, x.device), x, weights, leaves):
        out[places] = up.log_value()


def _slopes(p, up, factor):
    """Derivatives in weights and leaves, float64: sums over chunks of rows, in order."""
    chunks = cdiv(up.rows, _slabs.CHUNK)
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
                d.tasks, up.values, up.exponents, up.sums, up.tops, weights, up.rows, up.stride, _slabs.CHUNK,
                p.num_weights, **slope_blocks(d.most, up.weights.dtype == torch.float64),
            )  # fmt: skip
    else:
        flow, flow_row = up.new(p.num_nodes), g.order
        for group in reversed(g.groups):
            _flow_nodes[_slabs.grid(up, group)](
                factor, up.weights, g.order, g.parent_first, g.parent, g.parent_weight, up.values, up.exponents, flow,
                group.first, group.end, p.num_nodes - 1, up.rows, up.stride, **NODES,
            )  # fmt: skip
        if p.num_weights:
            _weight_slopes_nodes[(cdiv(p.num_weights, NODES["BM"]), chunks)](
                g.edge_sum, g.edge_child, up.values, up.exponents, flow, weights, p.num_weights, up.rows, up.stride,
                _slabs.CHUNK, **NODES,
            )  # fmt: skip
    _leaf_slopes[(cdiv(p.num_leaves, LEAVES["BL"]), chunks)](
        up.x, up.leaves, flow, flow_row, p.leaf_variable, p.leaf_first, p.leaf_family, leaves, p.num_leaves, up.rows,
        up.stride, _slabs.CHUNK, p.parameters, p.widest_leaf, **LEAVES,
    )  # fmt: skip
    return weights.sum(0, dtype=torch.float64), leaves.sum(0, dtype=torch.float64)


def log_prob_backward(grad, x, weights, leaves, graph, dweights, dleaves):
    p = plan(graph, x.device)
    if _slabs.predictive(p):
        raise NotImplementedError(
            "predictive leaves have derivatives on the CPU only; move x, weights and leaves there"
        )
    # The largest factor in [1/2, 1), so that what flows stays in float32; a power of two rounds nothing.
    most = grad.abs().amax() if len(grad) else grad.new_zeros(())
    scale = torch.where(most.isfinite() & (most > 0), most / torch.frexp(most).mantissa, 1)
    factor = grad / scale
    total = [x.new_zeros(n, dtype=torch.float64) for n in (p.num_weights, p.parameters)]
    for places, up in _slabs.passes(p, x, weights, leaves, keep=True):
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
    p, words = plan(graph, x.device), words_of(seed, what).to(x.device)
    for places, up in _slabs.passes(p, x, weights, leaves):
        log = up.log_value()
        out[places] = log
        drawn = (times[places] == 1) & (log > -math.inf)
        if up.weak is not None:
            drawn &= up.weak == 0
        _slabs.choose(p, up, drawn, places + first_row, weight_counts, leaf_counts, words, up.below(p))


def draw(graph, weight_counts, leaf_counts, alpha, prior, leaf_prior, seed, what, weights, leaves):
    p, words = plan(graph, weights.device), words_of(seed, what).to(weights.device)
    gammas = torch.empty(p.num_weights + p.parameters, dtype=torch.float64, device=weights.device)
    draw_all(p, weight_counts, leaf_counts, alpha, prior, leaf_prior, words, gammas, weights, leaves)
