"""Any graph, node by node: a program is some nodes of one height and a block of rows.

value (nodes, rows) = number * 2^exponent with an exponent of its own for every node and row, the number in [1, 2):
nothing leaves the range of a float. Exponents are doubles, as a row far from every leaf has a log likelihood far beyond
2^31. Shares and flows: _flows.py.
"""

import triton
import triton.language as tl
from pyfast.kernels.spn._leaves import _log_density, _observe
from pyfast.kernels.spn._numbers import IMPOSSIBLE, _exponent, _power, _split, _uniform

LEAF, PRODUCT, SUM = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
NONE = tl.constexpr(-1e300)  # below all exponents


@triton.jit
def _tile(order, begin, end, rows, BM: tl.constexpr, BN: tl.constexpr):
    """Of a program: places in the order, nodes, which are there (BM, 1); rows (1, BN); which of all are there."""
    i = begin + tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    there = (i < end)[:, None]
    n = (tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN))[None, :]
    return i, tl.load(order + i, i < end, 0)[:, None], there, n, there & (n < rows)


@triton.jit
def _share(w, value, e, F: tl.constexpr):
    """Of w * value * 2^e: number and exponent."""
    power = _exponent(w)
    share = w * _power(-power, F) * value
    return share, e + power


@triton.jit(do_not_specialize=["begin", "end", "rows"])
def _up_nodes(
    x, weights, leaves, order, first, child, first_weight, leaf_variable, leaf_first, leaf_family, values, exponents,
    begin, end, rows, stride, KIND: tl.constexpr, PREDICTIVE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Values of nodes of one kind. x (variables, rows)."""
    F: tl.constexpr = weights.dtype.element_ty
    i, node, there, n, mask = _tile(order, begin, end, rows, BM, BN)
    value = tl.full((BM, BN), 1, F)
    e = tl.zeros((BM, BN), tl.float64)
    if KIND == LEAF:  # the i-th node is the i-th leaf
        at = tl.load(leaf_first + i, i < end, 0)[:, None]
        width = tl.load(leaf_first + i + 1, i < end, 0)[:, None] - at
        family = tl.load(leaf_family + i, i < end, 0)[:, None]
        seen = tl.load(x + tl.load(leaf_variable + i, i < end, 0)[:, None] * stride + n, mask, 0.0)
        log = _log_density(leaves, at, width, family, seen, mask, PREDICTIVE).to(tl.float64)
        power, rest = _split(log)
        e = tl.where(log > IMPOSSIBLE, power, 0)
        value = tl.where(log > IMPOSSIBLE, tl.exp(rest), tl.where(log <= IMPOSSIBLE, 0, log)).to(F)  # NaN stays
    else:
        at = tl.load(first + node, there, 0)
        count = tl.load(first + node + 1, there, 0) - at
        most = tl.max(count)
        if KIND == PRODUCT:
            for c in range(most):
                here = mask & (c < count)
                place = tl.load(child + at + c, there & (c < count), 0) * stride + n
                value *= tl.load(values + place, here, 1.0)
                up = _exponent(value)
                e += tl.load(exponents + place, here, 0) + up
                value *= _power(-up, F)
        else:
            weight = weights + tl.load(first_weight + node, there, 0)
            top = tl.full((BM, BN), NONE, tl.float64)
            for c in range(most):
                here = mask & (c < count)
                place = tl.load(child + at + c, there & (c < count), 0) * stride + n
                w = tl.load(weight + c, there & (c < count), 0.0)
                share, power = _share(w, tl.load(values + place, here, 0.0), tl.load(exponents + place, here, 0), F)
                top = tl.where(share > 0, tl.maximum(top, power), top)
            value = tl.zeros((BM, BN), F)
            for c in range(most):
                here = mask & (c < count)
                place = tl.load(child + at + c, there & (c < count), 0) * stride + n
                w = tl.load(weight + c, there & (c < count), 0.0)
                share, power = _share(w, tl.load(values + place, here, 0.0), tl.load(exponents + place, here, 0), F)
                value += tl.where(share == 0, 0, share * _power(power - top, F))
            e = tl.where(value > 0, top, 0)
    up = _exponent(value)
    tl.store(values + node * stride + n, value * _power(-up, F), mask)
    tl.store(exponents + node * stride + n, e + up, mask)


@triton.jit(do_not_specialize=["begin", "end", "root", "rows"])
def _flow_nodes(
    factor, weights, order, parent_first, parent, parent_weight, values, exponents, flow,
    begin, end, root, rows, stride, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The flow of nodes, gathered from their parents."""
    F: tl.constexpr = weights.dtype.element_ty
    _, node, there, n, mask = _tile(order, begin, end, rows, BM, BN)
    value = tl.load(values + node * stride + n, mask, 0.0)
    e = tl.load(exponents + node * stride + n, mask, 0)
    given = tl.load(factor + n, mask & (node == root), 0.0)
    total = tl.where(value > 0, given, 0).to(F)
    at = tl.load(parent_first + node, there, 0)
    count = tl.load(parent_first + node + 1, there, 0) - at
    for c in range(tl.max(count)):
        known = there & (c < count)
        here = mask & (c < count)
        place = tl.load(parent + at + c, known, 0) * stride + n
        edge = tl.load(parent_weight + at + c, known, -1)
        above = tl.load(flow + place, here, 0.0)
        below = tl.load(values + place, here & (edge >= 0), 1.0)
        share, power = _share(tl.load(weights + edge, known & (edge >= 0), 1.0), value, e, F)
        power -= tl.load(exponents + place, here & (edge >= 0), 0)
        passed = above * (share / tl.where(below > 0, below, 1)) * _power(power, F)
        total += tl.where(edge < 0, above, tl.where((below > 0) & (share > 0), passed, 0))
    tl.store(flow + node * stride + n, total, mask)


@triton.jit(do_not_specialize=["weights", "rows"])
def _weight_slopes_nodes(
    edge_sum, edge_child, values, exponents, flow, partial, weights, rows, stride, chunk,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Derivatives in weights, summed over a chunk of rows: partial (chunks, weights)."""
    F: tl.constexpr = values.dtype.element_ty
    w = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    part = tl.program_id(1).to(tl.int64)
    above = tl.load(edge_sum + w, w < weights, 0)[:, None] * stride
    below = tl.load(edge_child + w, w < weights, 0)[:, None] * stride
    end = tl.minimum((part + 1) * chunk, rows)
    sum = tl.zeros((BM,), F)
    for start in range(part * chunk, end, BN):
        n = start + tl.arange(0, BN).to(tl.int64)[None, :]
        mask = (w < weights)[:, None] & (n < end)
        value = tl.load(values + above + n, mask, 0.0)
        e = tl.load(exponents + below + n, mask, 0) - tl.load(exponents + above + n, mask, 0)
        ratio = tl.load(values + below + n, mask, 0.0) / tl.where(value > 0, value, 1)
        # flow first: what it lacks, the power may have too much
        half = tl.floor(e * 0.5)
        slope = tl.load(flow + above + n, mask, 0.0) * ratio * _power(half, F) * _power(e - half, F)
        sum += tl.sum(tl.where(value > 0, slope, 0), 1)
    tl.store(partial + part * weights + w, sum, w < weights)


@triton.jit(do_not_specialize=["begin", "end", "rows"])
def _draw_nodes(
    x, numbers, weights, order, first, child, first_weight, leaf_variable, leaf_first, leaf_family, leaf_quantum,
    values, exponents, reached, weight_counts, leaf_counts, words,
    begin, end, rows, stride, KIND: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """What the trees of rows hold below nodes of one kind. reached (nodes, rows): 1 where a row's tree holds it."""
    F: tl.constexpr = weights.dtype.element_ty
    i, node, there, n, mask = _tile(order, begin, end, rows, BM, BN)
    mask = tl.load(reached + node * stride + n, mask, 0) > 0
    if tl.max(mask.to(tl.int32)) > 0:
        if KIND == LEAF:
            seen = tl.load(x + tl.load(leaf_variable + i, i < end, 0)[:, None] * stride + n, mask, 0.0)
            family = tl.load(leaf_family + i, i < end, 0)[:, None]
            quantum = tl.load(leaf_quantum + i, i < end, 0.0)[:, None]
            _observe(leaf_counts, tl.load(leaf_first + i, i < end, 0)[:, None], family, seen, quantum, mask)
        else:
            at = tl.load(first + node, there, 0)
            count = tl.load(first + node + 1, there, 0) - at
            most = tl.max(count)
            yes = tl.full((BM, BN), 1, tl.int8)
            if KIND == PRODUCT:
                for c in range(most):
                    place = tl.load(child + at + c, there & (c < count), 0) * stride + n
                    tl.store(reached + place, yes, mask & (c < count))
            else:
                weight = tl.load(first_weight + node, there, 0)
                top = tl.full((BM, BN), NONE, tl.float64)
                index = (tl.load(numbers + n, n < rows, 0) << 28) | node
                bound = tl.zeros((BM, BN), tl.float64)
                chosen = tl.full((BM, BN), -1, tl.int64)
                last = tl.full((BM, BN), 0, tl.int64)  # gets what rounding leaves over
                running = tl.zeros((BM, BN), tl.float64)
                for turn in range(3):  # the largest exponent, the whole, the first whose running sum exceeds its share
                    running = tl.zeros((BM, BN), tl.float64)
                    for c in range(most):
                        here = mask & (c < count)
                        place = tl.load(child + at + c, there & (c < count), 0) * stride + n
                        w = tl.load(weights + weight + c, there & (c < count), 0.0)
                        value, e = tl.load(values + place, here, 0.0), tl.load(exponents + place, here, 0)
                        share, power = _share(w, value, e, F)
                        if turn == 0:
                            top = tl.where(share > 0, tl.maximum(top, power), top)
                        else:
                            running += tl.where(share == 0, 0, share * _power(power - top, F)).to(tl.float64)
                        if turn == 2:
                            hit = (share > 0) & (running > bound)
                            chosen = tl.where(hit & (chosen < 0), c, chosen)
                            last = tl.where(share > 0, c, last)
                    if turn == 1:
                        bound = _uniform(tl.load(words), tl.load(words + 1), index) * running
                chosen = tl.where(chosen < 0, last, chosen)
                place = tl.load(child + at + chosen, mask, 0) * stride + n
                tl.store(reached + place, yes, mask)
                one = tl.full((BM, BN), 1, tl.int64)
                tl.atomic_add(weight_counts + weight + chosen, one, mask, sem="relaxed")
