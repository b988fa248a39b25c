"""Parameters given statistics: the draws of csrc/spn/draws.cpp, from the same random words by the same steps.

All is float64 until it is stored. What differs from the CPU are last bits: of logarithms, of exponentials, of sums in
another order.
"""

import triton
import triton.language as tl
from pyfast.kernels.spn._blocks import GAMMAS, NORMALS
from pyfast.kernels.spn._leaves import GAUSSIAN
from pyfast.kernels.spn._numbers import _unit, _words
from triton import cdiv

POISSON = tl.constexpr(2)
LOG_TWO_PI = tl.constexpr(1.83787706640934548356)
OF_LEAF = tl.constexpr(1 << 47)  # names of random numbers
OF_CURVE = tl.constexpr(-(1 << 63))


@triton.jit
def _cos_of_turn(u):
    """Of 2 pi u, 0 <= u <= 1, as in csrc/spn/gammas.h: libdevice's has a slow path that needs memory."""
    a = 6.283185307179586477 * (tl.abs(u - 0.5) - 0.25)
    z = a * a
    p = z * (-1 / 121645100408832000.0) + 1 / 355687428096000.0
    p = p * z - 1 / 1307674368000.0
    p = p * z + 1 / 6227020800.0
    p = p * z - 1 / 39916800.0
    p = p * z + 1 / 362880.0
    p = p * z - 1 / 5040.0
    p = p * z + 1 / 120.0
    p = p * z - 1 / 6.0
    return a + a * z * p


@triton.jit
def _try(x, u, d):
    """An attempt of Marsaglia and Tsang, 2000, with a normal x and a uniform u: t, whether it is good, log Gamma."""
    t = 1 + x / tl.sqrt(9 * d)
    v = t * t * t
    log_v = 3 * tl.log(tl.where(t > 0, t, 1))
    good = (t > 0) & (tl.log(u) < 0.5 * x * x + d - d * v + d * log_v)
    return t, good, tl.log(d) + log_v


@triton.jit
def _able(shape):
    """Not NaN or infinite, which would be refused forever."""
    return (shape >= 0) & (shape < float("inf"))


@triton.jit(do_not_specialize=["num_weights", "total"])
def _gammas(
    words, weight_counts, leaf_counts, edge_sum, alpha, table_leaf, leaf_first, leaf_prior, prior, gammas,
    num_weights, total, BN: tl.constexpr,
):  # fmt: skip
    """Logarithms of the Gammas whose shares are weights and tables (total): NaN at other leaves' numbers."""
    i = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    of_sum = i < num_weights
    p = i - num_weights
    leaf = tl.load(table_leaf + p, (p >= 0) & (i < total), -1)
    of_table = leaf >= 0
    place = tl.load(leaf_prior + leaf, of_table, 0) + p - tl.load(leaf_first + leaf, of_table, 0)
    shape = tl.load(alpha + tl.load(edge_sum + i, of_sum, 0), of_sum, 0.0) + tl.load(prior + place, of_table, 0.0)
    shape += (tl.load(weight_counts + i, of_sum, 0) + tl.load(leaf_counts + p, of_table, 0)).to(tl.float64)
    name = tl.where(of_sum, i, p | OF_LEAF)
    seed, what = tl.load(words), tl.load(words + 1)
    small = shape < 1
    d = (shape - 1 / 3.0) + tl.where(small, 1.0, 0.0)
    drawn = tl.full((BN,), float("nan"), tl.float64)
    todo = ((of_sum | of_table) & _able(shape)).to(tl.int32)
    attempt = tl.full((), 0, tl.int64)
    while tl.max(todo) > 0:
        attempt += 1
        w0, w1, w2, w3 = _words(seed, what, name | (attempt << 48))
        radius = ((w0.to(tl.uint64) << 32 | w1.to(tl.uint64)) >> 12).to(tl.int64).to(tl.float64) * 2.0**-52
        x = tl.sqrt(-2 * tl.log(1 - radius)) * _cos_of_turn(w2.to(tl.int64).to(tl.float64) * 2.0**-32)
        u = ((w3.to(tl.int64) << 12 | (w1 & 0xFFF).to(tl.int64)) << 8 | 128).to(tl.float64) * 2.0**-52
        _, good, log = _try(x, u, d)
        drawn = tl.where((todo > 0) & good, log, drawn)
        todo = tl.where(good, 0, todo)
    w0, w1, _, _ = _words(seed, what, name)
    u = 1 - ((w0.to(tl.uint64) << 32 | w1.to(tl.uint64)) >> 12).to(tl.int64).to(tl.float64) * 2.0**-52
    drawn += tl.where(small, tl.log(u) / tl.where(small, shape, 1), 0)
    tl.store(gammas + i, drawn, i < total)


@triton.jit(do_not_specialize=["groups", "num_weights"])
def _normals(gammas, group_first, group_size, weights, leaves, groups, num_weights, BM: tl.constexpr, BK: tl.constexpr):
    """Shares of the Gammas of sums, and logarithms of those of tables."""
    F: tl.constexpr = weights.dtype.element_ty
    g = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    first = tl.load(group_first + g, g < groups, 0)[:, None]
    size = tl.load(group_size + g, g < groups, 0)[:, None]
    most = tl.max(size)
    top = tl.full((BM,), float("-inf"), tl.float64)
    for start in range(0, most, BK):
        k = start + tl.arange(0, BK).to(tl.int64)[None, :]
        top = tl.maximum(top, tl.max(tl.load(gammas + first + k, k < size, float("-inf")), 1))
    total = tl.zeros((BM,), tl.float64)
    for start in range(0, most, BK):
        k = start + tl.arange(0, BK).to(tl.int64)[None, :]
        log = tl.load(gammas + first + k, k < size, 0.0) - top[:, None]
        total += tl.sum(tl.where(k < size, tl.exp(log), 0), 1)
    log_total = tl.log(total)
    for start in range(0, most, BK):
        k = start + tl.arange(0, BK).to(tl.int64)[None, :]
        log = tl.load(gammas + first + k, k < size, 0.0) - top[:, None]
        of_sum = (k < size) & (first < num_weights)
        of_table = (k < size) & (first >= num_weights)
        tl.store(weights + first + k, (tl.exp(log) / total[:, None]).to(F), of_sum)
        tl.store(leaves + first + k - num_weights, (log - log_total[:, None]).to(F), of_table)


@triton.jit
def _normal(key, what, next):
    w0, w1, w2, w3 = _words(key, what, next)
    return tl.sqrt(-2 * tl.log(1 - _unit(w0, w1))) * _cos_of_turn(_unit(w2, w3))


@triton.jit(do_not_specialize=["curves"])
def _curves(
    words, curve, order, leaf_first, leaf_family, leaf_quantum, leaf_prior, prior, leaf_counts, leaves,
    curves, BN: tl.constexpr,
):  # fmt: skip
    """Leaves that are no tables; each has random words without end, by a key of its own."""
    F: tl.constexpr = leaves.dtype.element_ty
    i = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    there = i < curves
    leaf = tl.load(curve + i, there, 0)
    family = tl.load(leaf_family + leaf, there, 0)
    gaussian, poisson = family == GAUSSIAN, family == POISSON
    first = tl.load(leaf_first + leaf, there, 0)
    quantum = tl.load(leaf_quantum + leaf, there, 1.0)
    seen = leaf_counts + first
    n = tl.load(seen, there, 0).to(tl.float64)
    sum = tl.load(seen + 1, there, 0).to(tl.float64) / quantum
    squares = tl.load(seen + 3, there, 0).to(tl.float64) * 1073741824.0 + tl.load(seen + 2, there, 0).to(tl.float64)
    squares = squares / (quantum * quantum)
    given = prior + tl.load(leaf_prior + leaf, there, 0)
    p0, p1 = tl.load(given, there, 1.0), tl.load(given + 1, there, 1.0)
    p2, p3 = tl.load(given + 2, there & gaussian, 1.0), tl.load(given + 3, there & gaussian, 1.0)
    # normal-inverse-gamma, or Gamma
    mean = tl.where(n > 0, sum / tl.where(n > 0, n, 1), 0)
    spread = squares - sum * mean
    spread = tl.where(spread > 0, spread, 0)
    kappa = p1 + n
    away = mean - p0
    m = (p1 * p0 + sum) / kappa
    a = tl.where(gaussian, p2 + 0.5 * n, p0 + tl.where(poisson, sum, n))
    b = tl.where(gaussian, p3 + 0.5 * spread + 0.5 * p1 * n * away * away / kappa, p1 + tl.where(poisson, n, sum))

    k0, k1, k2, k3 = _words(tl.load(words), tl.load(words + 1), tl.load(order + leaf, there, 0) | OF_CURVE)
    key = k1.to(tl.uint64) << 32 | k0.to(tl.uint64)
    what = k3.to(tl.uint64) << 32 | k2.to(tl.uint64)
    next = tl.zeros((BN,), tl.int64)
    small = a < 1
    d = tl.where(small, a + 1, a) - 1 / 3.0
    log = tl.full((BN,), float("nan"), tl.float64)
    todo = (there & _able(a)).to(tl.int32)
    while tl.max(todo) > 0:
        w0, w1, _, _ = _words(key, what, next + 1)
        t, good, drawn = _try(_normal(key, what, next), 1 - _unit(w0, w1), d)
        log = tl.where((todo > 0) & good, drawn, log)
        next += tl.where(todo > 0, tl.where(t > 0, 2, 1), 0)
        todo = tl.where(good, 0, todo)
    w0, w1, _, _ = _words(key, what, next)
    log += tl.where(small, tl.log(1 - _unit(w0, w1)) / tl.where(small, a, 1), 0)
    next += small.to(tl.int64)

    precision = tl.exp(log) / b
    m += _normal(key, what, next) / tl.sqrt(kappa * precision)
    log_rate = log - tl.log(b)
    rate = tl.exp(log_rate)
    c0 = tl.where(gaussian, 0.5 * (tl.log(precision) - LOG_TWO_PI), tl.where(poisson, -rate, log_rate))
    c1 = tl.where(gaussian, 0, tl.where(poisson, log_rate, -rate))
    to = leaves + first
    tl.store(to, c0.to(F), there)
    tl.store(to + 1, c1.to(F), there)
    tl.store(to + 2, tl.where(gaussian, -0.5 * precision, 0).to(F), there)
    tl.store(to + 3, tl.where(gaussian, m, 0).to(F), there)


def draw_all(p, weight_counts, leaf_counts, alpha, prior, leaf_prior, words, gammas, weights, leaves):
    """Weights and leaves from their posteriors. words (2): as `_slabs.choose` has them; gammas: room for as many."""
    d, g = p.draws, p.nodes
    _gammas[(cdiv(len(gammas), GAMMAS["BN"]),)](
        words, weight_counts, leaf_counts, g.edge_sum, alpha, d.table_leaf, p.leaf_first, leaf_prior, prior, gammas,
        p.num_weights, len(gammas), **GAMMAS,
    )  # fmt: skip
    if len(d.group_first):
        _normals[(cdiv(len(d.group_first), NORMALS["BM"]),)](
            gammas, d.group_first, d.group_size, weights, leaves, len(d.group_first), p.num_weights, **NORMALS
        )
    if len(d.curve):
        _curves[(cdiv(len(d.curve), GAMMAS["BN"]),)](
            words, d.curve, g.order, p.leaf_first, p.leaf_family, p.leaf_quantum, leaf_prior, prior, leaf_counts,
            leaves, len(d.curve), **GAMMAS,
        )  # fmt: skip
