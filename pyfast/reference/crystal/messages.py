"""Messages along edges: what a neighbour sends, times the edge's filter, summed where edges lead."""

from torch import Tensor


def conv(x: Tensor, filter: Tensor, source: Tensor, target: Tensor, num_targets: int) -> Tensor:
    """out_i = sum over edges e from j to i of filter_e * x_j."""
    return x.new_zeros(num_targets, x.shape[1]).index_add(0, target, filter * x[source])


def product(x: Tensor, g: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """x_j * g_i, one row per edge."""
    return x[source] * g[target]


def read(table: Tensor, r: Tensor, start: float, spacing: float, order: int = 0) -> Tensor:
    """The order-th derivative of the cubic Hermite interpolant of (knots, 2, F) values and slopes times spacing."""
    u = (r - start) / spacing
    k = u.detach().floor().long().clamp(0, len(table) - 2)
    t = (u - k)[:, None]
    f0, g0, f1, g1 = table[k, 0], table[k, 1], table[k + 1, 0], table[k + 1, 1]
    a, b = 2 * (f0 - f1) + g0 + g1, 3 * (f1 - f0) - 2 * g0 - g1  # f = f0 + g0 t + b t^2 + a t^3
    powers = {
        0: lambda: f0 + t * (g0 + t * (b + t * a)),
        1: lambda: g0 + t * (2 * b + t * 3 * a),
        2: lambda: 2 * b + 6 * t * a,
        3: lambda: 6 * a + 0 * t,
    }
    return powers[order]() / spacing**order if order in powers else 0 * (t + f0)


def table_conv(
    x: Tensor,
    scale: Tensor,
    r: Tensor,
    table: Tensor,
    source: Tensor,
    target: Tensor,
    num_targets: int,
    start: float,
    spacing: float,
) -> Tensor:
    """Sums with filter_e = scale_e * table(r_e)."""
    return conv(x, scale[:, None] * read(table, r, start, spacing), source, target, num_targets)
