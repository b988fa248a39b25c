"""The dense form of a graph downwards: how much of a row's likelihood flows through each component.

The flow of a component is the derivative of log p(x) in the logarithm of its value, times a factor of the row. A sum
hands its flow to its children in the shares w_k v_k / v, and the derivative in w_k is flow * v_k / v; so what the sums
leave behind is flow / v. Columns of the tables: _plan.py.
"""

import triton
import triton.language as tl
from pyfast.kernels.spn._numbers import _power
from pyfast.kernels.spn._regions import REGION, TERM, _add_product, _given

USE, TASK = tl.constexpr(10), tl.constexpr(10)


@triton.jit(do_not_specialize=["begin", "root", "rows"])
def _flow(
    factor, weights, order, regions, terms, uses, values, exponents, sums, tops, flow,
    begin, root, rows, stride, BK: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The flow of a region, gathered from the terms that read it; its own sums v become flow / v."""
    F: tl.constexpr = weights.dtype.element_ty
    n = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    inside = n < rows
    number = tl.load(order + begin + tl.program_id(0))
    region = regions + number * REGION
    K = tl.load(region + 1)
    k = tl.arange(0, BK).to(tl.int64)
    mask = (k < K)[:, None] & inside[None, :]
    e = tl.load(exponents + number * stride + n, inside, 0)
    gain = tl.zeros((BK, BN), F)  # times the value: the flow
    for u in range(tl.load(region + 6), tl.load(region + 7)):
        use = uses + u * USE
        outputs, other = tl.load(use + 1), tl.load(use + 7)
        w = weights + tl.load(use + 2) + k[:, None] * tl.load(use + 5)
        beside = tl.load(exponents + other * stride + n, _given(other, inside), 0)
        scale = _power(e + beside - tl.load(tops + tl.load(use + 4) * stride + n, inside, 0), F)
        for i in range(tl.load(use + 9)):
            v = tl.load(values + (tl.load(use + 8) + i) * stride + n, _given(other, inside), 1.0) * scale
            for start in range(0, outputs, BJ):
                j = start + tl.arange(0, BJ).to(tl.int64)
                at = w + (i * tl.load(use + 6) + j * tl.load(use + 3))[None, :]
                a = tl.load(at, (k < K)[:, None] & (j < outputs)[None, :], 0.0)
                b = tl.load(
                    sums + (tl.load(use) + j)[:, None] * stride + n[None, :],
                    (j < outputs)[:, None] & inside[None, :],
                    0.0,
                )
                gain = _add_product(a, b * v[None, :], gain)
    place = (tl.load(region) + k)[:, None] * stride + n[None, :]
    value = tl.load(values + place, mask, 0.0)
    given = tl.load(factor + n, inside & (n * 0 + number == root), 0.0)
    total = tl.where(value > 0, given[None, :] + gain * value, 0)
    tl.store(flow + place, total, mask)
    for t in range(tl.load(region + 4), tl.load(region + 5)):
        at = sums + (tl.load(terms + t * TERM) + k)[:, None] * stride + n[None, :]
        sum = tl.load(at, mask, 0.0)
        tl.store(at, tl.where(sum > 0, total / tl.where(sum > 0, sum, 1), 0), mask)


@triton.jit(do_not_specialize=["rows", "weights"])
def _weight_slopes(
    tasks, values, exponents, sums, tops, partial, rows, stride, chunk, weights,
    BK: tl.constexpr, BJ: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Derivatives in the weights of one component on the left, summed over a chunk of rows: (chunks, weights)."""
    F: tl.constexpr = values.dtype.element_ty
    task = tasks + tl.program_id(0).to(tl.int64) * TASK
    part = tl.program_id(1).to(tl.int64)
    K, left, J = tl.load(task + 1), tl.load(task + 5), tl.load(task + 9)
    k = tl.arange(0, BK).to(tl.int64)
    end = tl.minimum((part + 1) * chunk, rows)
    for begin in range(0, J, BJ):
        j = begin + tl.arange(0, BJ).to(tl.int64)
        sum = tl.zeros((BK, BJ), F)
        for start in range(part * chunk, end, BN):
            n = start + tl.arange(0, BN).to(tl.int64)
            inside = n < end
            e = tl.load(exponents + tl.load(task + 7) * stride + n, inside, 0)
            e += tl.load(exponents + left * stride + n, _given(left, inside), 0)
            scale = _power(e - tl.load(tops + tl.load(task + 4) * stride + n, inside, 0), F)
            v = tl.load(values + tl.load(task + 6) * stride + n, _given(left, inside), 1.0) * scale
            at = sums + (tl.load(task) + k)[:, None] * stride + n[None, :]
            a = tl.load(at, (k < K)[:, None] & inside[None, :], 0.0)
            at = values + (tl.load(task + 8) + j)[None, :] * stride + n[:, None]
            b = tl.load(at, (j < J)[None, :] & inside[:, None], 0.0)
            sum = _add_product(a, b * v[:, None], sum)
        at = partial + part * weights + tl.load(task + 2) + k[:, None] * tl.load(task + 3) + j[None, :]
        tl.store(at, sum, (k < K)[:, None] & (j < J)[None, :])
