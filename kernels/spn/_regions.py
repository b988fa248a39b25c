"""The dense form of a graph upwards, and its draws: a program is a region and a block of rows.

value (components, rows) = number * 2^exponent with one exponent for each region and row, the largest number in [1, 2).
Rows that this is too narrow for are marked `weak`. Columns of the tables: _plan.py.
"""

import triton
import triton.language as tl
from pyfast.kernels.spn._leaves import _log_density, _observe
from pyfast.kernels.spn._numbers import FAR, IMPOSSIBLE, LOWEST, WEAK, WEAK_DOUBLE, _exponent, _power, _split, _uniform

REGION, ENTRY, TERM, PAIR = tl.constexpr(8), tl.constexpr(4), tl.constexpr(6), tl.constexpr(7)


@triton.jit
def _add_product(a, b, sum):
    """The sum (M, N) + a (M, P) b (P, N)."""
    if sum.dtype == tl.float64:
        sum += tl.dot(a, b, out_dtype=tl.float64)
    else:
        sum = tl.dot(a, b, acc=sum, input_precision="ieee")
    return sum


@triton.jit
def _rescale(value, e, weak):
    """Makes the largest number of each row one in [1, 2)."""
    most = tl.max(value, 0)
    up = _exponent(most)
    e = tl.maximum(e + up, LOWEST)
    least: tl.constexpr = WEAK_DOUBLE if value.dtype == tl.float64 else WEAK
    strong = (most >= tl.full((), least, value.dtype)).to(tl.int32)
    return value * _power(-up, value.dtype)[None, :], e, weak | (1 - strong)


@triton.jit
def _given(region, inside):
    """Rows inside if there is a region, none if it is -1. Triton's interpreter cannot join a mask and a scalar."""
    return inside & (inside.to(tl.int32) + region > 0)


@triton.jit
def _pair_exponent(pair, exponents, n, inside, stride):
    """Of the products of a pair's components; without a left one, of the right."""
    left = tl.load(pair)
    e = tl.load(exponents + tl.load(pair + 3) * stride + n, inside, 0)
    return e + tl.load(exponents + left * stride + n, _given(left, inside), 0)


@triton.jit
def _top(pairs, begin, end, exponents, n, inside, stride):
    """The largest exponent among pairs."""
    top = tl.full(n.shape, -(1 << 30), tl.int32)
    for p in range(begin, end):
        top = tl.maximum(top, _pair_exponent(pairs + p * PAIR, exponents, n, inside, stride))
    return top


@triton.jit(do_not_specialize=["begin", "rows"])
def _up(
    x, weights, leaves, order, regions, entries, terms, pairs, values, exponents, sums, tops, weak,
    begin, rows, stride, KEEP: tl.constexpr,
    BK: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Values of a region from those below. x (variables, rows). KEEP: the terms' sums too, and their exponents."""
    F: tl.constexpr = weights.dtype.element_ty
    n = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    inside = n < rows
    number = tl.load(order + begin + tl.program_id(0))
    region = regions + number * REGION
    K = tl.load(region + 1)
    k = tl.arange(0, BK).to(tl.int64)
    mask = (k < K)[:, None] & inside[None, :]

    log = tl.zeros((BK, BN), F)
    for entry in range(tl.load(region + 2), tl.load(region + 3)):
        leaf = entries + entry * ENTRY
        width = tl.load(leaf + 2)
        first = (tl.load(leaf + 1) + k * width)[:, None]
        seen = tl.load(x + tl.load(leaf) * stride + n, inside, 0.0)[None, :]
        here = _log_density(leaves, first, width, tl.load(leaf + 3) + k[:, None] * 0, seen, mask, False)
        log += tl.where(here < IMPOSSIBLE, IMPOSSIBLE, here)
    most = tl.max(tl.where(mask, log, float("-inf")), 0)
    power, rest = _split(most)
    possible = most > IMPOSSIBLE / 10
    power, rest = tl.where(possible, tl.maximum(power, LOWEST), 0), tl.where(possible, rest, most)
    value = tl.where(mask, tl.exp((log - most[None, :]) + rest[None, :]).to(F), 0)
    value, e, flag = _rescale(value, power.to(tl.int32), tl.zeros((BN,), tl.int32))

    for t in range(tl.load(region + 4), tl.load(region + 5)):
        term = terms + t * TERM
        w = weights + tl.load(term + 1) + k[:, None] * tl.load(term + 2)
        begin_pair, end_pair = tl.load(term + 3), tl.load(term + 4)
        top = _top(pairs, begin_pair, end_pair, exponents, n, inside, stride)
        sum = tl.zeros((BK, BN), F)
        for p in range(begin_pair, end_pair):
            pair = pairs + p * PAIR
            left, J, offset = tl.load(pair), tl.load(pair + 5), tl.load(pair + 6)
            scale = _power(_pair_exponent(pair, exponents, n, inside, stride) - top, F)
            for i in range(tl.load(pair + 1)):
                beside = tl.load(values + (tl.load(pair + 2) + i) * stride + n, _given(left, inside), 1.0) * scale
                for start in range(0, J, BJ):
                    j = start + tl.arange(0, BJ).to(tl.int64)
                    a = tl.load(w + (offset + i * J + j)[None, :], (k < K)[:, None] & (j < J)[None, :], 0.0)
                    place = values + (tl.load(pair + 4) + j)[:, None] * stride + n[None, :]
                    b = tl.load(place, (j < J)[:, None] & inside[None, :], 0.0)
                    sum = _add_product(a, b * beside[None, :], sum)
        if KEEP:
            tl.store(sums + (tl.load(term) + k)[:, None] * stride + n[None, :], sum, mask)
            tl.store(tops + t * stride + n, top, inside)
        value, e, flag = _rescale(value * sum, e + top, flag)

    tl.store(values + (tl.load(region) + k)[:, None] * stride + n[None, :], value, mask)
    tl.store(exponents + number * stride + n, e, inside)
    tl.store(weak + n, tl.full(n.shape, 1, tl.int32), inside & ((flag > 0) | (e < FAR)))


@triton.jit(do_not_specialize=["begin", "rows"])
def _draw(
    x, numbers, weights, order, regions, entries, terms, pairs, quantum, values, exponents, state, weight_counts,
    leaf_counts, words, begin, rows, stride, BJ: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """What the trees of rows hold below a region. state (regions, rows): the component in the row's tree, or -1.

    numbers (rows): by which randomness knows a row.
    """
    F: tl.constexpr = weights.dtype.element_ty
    n = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    number = tl.load(order + begin + tl.program_id(0))
    region = regions + number * REGION
    k = tl.load(state + number * stride + n, n < rows, -1).to(tl.int64)
    inside = k >= 0
    if tl.max(k) >= 0:  # most regions hold no tree's component
        for entry in range(tl.load(region + 2), tl.load(region + 3)):
            leaf = entries + entry * ENTRY
            v = tl.load(leaf)
            seen = tl.load(x + v * stride + n, inside, 0.0)
            first = tl.load(leaf + 1) + k * tl.load(leaf + 2)
            _observe(leaf_counts, first, tl.load(leaf + 3) + k * 0, seen, tl.load(quantum + v), inside)
        for t in range(tl.load(region + 4), tl.load(region + 5)):
            term = terms + t * TERM
            weight = tl.load(term + 1) + k * tl.load(term + 2)
            begin_pair, end_pair = tl.load(term + 3), tl.load(term + 4)
            top = _top(pairs, begin_pair, end_pair, exponents, n, inside, stride)
            index = (tl.load(numbers + n, inside, 0) << 28) | (tl.load(term + 5) + k)
            total = tl.zeros((BN,), tl.float64)
            bound = tl.zeros((BN,), tl.float64)
            chosen = tl.full((BN,), -1, tl.int64)
            last = tl.full((BN,), -1, tl.int64)  # gets what rounding leaves over
            for turn in range(2):  # the whole first, then the first index at which the running sum exceeds its share
                running = tl.zeros((BN,), tl.float64)
                for p in range(begin_pair, end_pair):
                    pair = pairs + p * PAIR
                    left, J, offset = tl.load(pair), tl.load(pair + 5), tl.load(pair + 6)
                    scale = _power(_pair_exponent(pair, exponents, n, inside, stride) - top, F)
                    for i in range(tl.load(pair + 1)):
                        place = values + (tl.load(pair + 2) + i) * stride + n
                        beside = tl.load(place, _given(left, inside), 1.0) * scale
                        for start in range(0, J, BJ):
                            j = start + tl.arange(0, BJ).to(tl.int64)
                            mask = (j < J)[:, None] & inside[None, :]
                            q = offset + i * J + j[:, None]
                            b = tl.load(values + (tl.load(pair + 4) + j)[:, None] * stride + n[None, :], mask, 0.0)
                            share = tl.load(weights + weight[None, :] + q, mask, 0.0) * (b * beside[None, :])
                            wide = share.to(tl.float64)
                            if turn == 1:
                                exceeds = (running[None, :] + tl.cumsum(wide, 0) > bound[None, :]) & (share > 0)
                                found = tl.min(tl.where(exceeds, q, 1 << 60), 0)
                                chosen = tl.where((chosen < 0) & (found < 1 << 60), found, chosen)
                                last = tl.maximum(last, tl.max(tl.where(share > 0, q, -1), 0))
                            running += tl.sum(wide, 0)
                if turn == 0:
                    total = running
                    bound = _uniform(tl.load(words), tl.load(words + 1), index) * total
            chosen = tl.where(chosen < 0, last, chosen)
            made = inside & (chosen >= 0)
            one = tl.full((BN,), 1, tl.int64)
            tl.atomic_add(weight_counts + weight + chosen, one, made, sem="relaxed")
            for p in range(begin_pair, end_pair):
                pair = pairs + p * PAIR
                left, J, rest = tl.load(pair), tl.load(pair + 5), chosen - tl.load(pair + 6)
                here = made & (rest >= 0) & (rest < tl.load(pair + 1) * J)
                tl.store(state + left * stride + n, (rest // J).to(tl.int32), _given(left, here))
                tl.store(state + tl.load(pair + 3) * stride + n, (rest % J).to(tl.int32), here)
