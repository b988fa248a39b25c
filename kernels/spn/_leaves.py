"""Leaves: their log densities, their statistics, and derivatives in their parameters. As csrc/spn/leaves.h has it."""

import triton
import triton.language as tl

TABLE, GAUSSIAN, EXPONENTIAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(3)
STUDENT, NEGATIVE_BINOMIAL = tl.constexpr(4), tl.constexpr(5)


@triton.jit
def _log1p(x):
    y = 1 + x
    return tl.where(y == 1, x, tl.log(y) * (x / tl.where(y == 1, 1, y - 1)))


@triton.jit
def _log_gamma(x):
    """Of x > 0 in float64: recurrence up to 10, then Stirling's series, whose error is below 1e-16 there."""
    product = tl.full(x.shape, 1.0, tl.float64)
    for _ in tl.static_range(10):
        small = x < 10
        product = tl.where(small, product * x, product)
        x = tl.where(small, x + 1, x)
    u = 1 / (x * x)
    rest = 1 / 1260.0 - u * (1 / 1680.0 - u * (1 / 1188.0 - u * (691 / 360360.0 - u / 156.0)))
    series = (1 / 12.0 - u * (1 / 360.0 - u * rest)) / x
    return (x - 0.5) * tl.log(x) - x + 0.9189385332046727418 + series - tl.log(product)


@triton.jit
def _log_density(leaves, first, width, family, x, inside, PREDICTIVE: tl.constexpr):
    """Log f(x) (leaves, rows), less what a column's leaves share; 0 where x is missing, NaN where it is no code.

    first, width and family are (leaves, 1), or one for all; x is (1, rows) or (leaves, rows).
    """
    seen = x == x
    here = inside & seen
    curve = here & (family != TABLE)
    c0 = tl.load(leaves + first, curve, 0.0)
    c1 = tl.load(leaves + first + 1, curve, 0.0)
    c2 = tl.load(leaves + first + 2, curve, 0.0)
    away = x - tl.load(leaves + first + 3, curve, 0.0)
    log = c0 + c1 * x + c2 * away * away
    if PREDICTIVE:
        square = tl.where(family == STUDENT, away * away, x)
        log = tl.where(family > EXPONENTIAL, c0 + c1 * _log1p(tl.where(curve, c2 * square, 0)), log)
        wide = x.to(tl.float64)
        binomial = curve & (family == NEGATIVE_BINOMIAL)
        whole = _log_gamma(tl.where(binomial, wide + c1.to(tl.float64), 1.0))
        whole += c0.to(tl.float64) + c2.to(tl.float64) * wide
        log = tl.where(family == NEGATIVE_BINOMIAL, whole.to(log.dtype), log)
    valid = (x >= 0) & (x < width) & (tl.floor(x) == x)
    code = tl.where(valid, x, 0).to(tl.int64)
    table = tl.load(leaves + first + code, here & valid & (family == TABLE), 0.0)
    table = tl.where(valid, table, float("nan"))
    return tl.where(here, tl.where(family == TABLE, table, log), 0)


@triton.jit
def _observe(counts, first, family, x, quantum, inside):
    """Adds an observation of x to the statistics of a leaf, wherever `inside`: integers, whose sum knows no order."""
    here = inside & (x == x)
    one = tl.full(here.shape, 1, tl.int64)
    table = here & (family == TABLE)
    code = tl.where(table, x, 0).to(tl.int64)
    first += code * 0  # of one shape with the rest
    tl.atomic_add(counts + first + code, one, table, sem="relaxed")
    curve = here & (family != TABLE)
    q = tl.where(curve, x, 0).to(tl.float64) * quantum
    q = ((q + 6755399441055744.0) - 6755399441055744.0).to(tl.int64)  # 1.5 * 2^52: to the nearest, ties to even
    square = q * q
    tl.atomic_add(counts + first, one, curve, sem="relaxed")
    tl.atomic_add(counts + first + 1, q, curve, sem="relaxed")
    tl.atomic_add(counts + first + 2, square & ((1 << 30) - 1), curve, sem="relaxed")
    tl.atomic_add(counts + first + 3, square >> 30, curve, sem="relaxed")


@triton.jit(do_not_specialize=["num_leaves", "rows", "parameters", "most"])
def _leaf_slopes(
    x, leaves, flow, flow_row, leaf_variable, leaf_first, leaf_family, partial,
    num_leaves, rows, stride, chunk, parameters, most, BL: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Sums over a chunk of rows of flow times the derivative of a leaf's log density: partial (chunks, parameters).

    `most` is the largest number of parameters of a leaf.
    """
    F: tl.constexpr = leaves.dtype.element_ty
    leaf = tl.program_id(0).to(tl.int64) * BL + tl.arange(0, BL)
    part = tl.program_id(1).to(tl.int64)
    there = leaf < num_leaves
    first = tl.load(leaf_first + leaf, there, 0)
    width = tl.load(leaf_first + leaf + 1, there, 0) - first
    family = tl.load(leaf_family + leaf, there, 0)[:, None]
    place = flow + tl.load(flow_row + leaf, there, 0)[:, None] * stride
    value = x + tl.load(leaf_variable + leaf, there, 0)[:, None] * stride
    curve = there & (tl.load(leaf_family + leaf, there, 0) != TABLE)
    c2 = tl.load(leaves + first + 2, curve, 0.0)[:, None]
    m = tl.load(leaves + first + 3, curve, 0.0)[:, None]
    end = tl.minimum((part + 1) * chunk, rows)
    for c in range(most):
        sum = tl.zeros((BL,), F)
        for start in range(part * chunk, end, BN):
            n = start + tl.arange(0, BN).to(tl.int64)[None, :]
            mask = there[:, None] & (n < end)
            f = tl.load(place + n, mask, 0.0)
            v = tl.load(value + n, mask, 0.0)
            away = v - m
            slope = tl.where(c == 0, 1, tl.where(c == 1, v, tl.where(c == 2, away * away, -2 * c2 * away)))
            slope = tl.where(family == TABLE, (v == c).to(F), slope)
            sum += tl.sum(tl.where((v == v) & mask, f * slope, 0), 1)
        tl.store(partial + part * parameters + first + c, sum, there & (c < width))
