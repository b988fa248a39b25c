"""Messages along edges on the GPU's kernels, against those of the CPU; a graph turned has edges out of order."""

import pytest
import torch
from pyfast.kernels import crystal

from pyfast.crystal import _operators as ops

PIECES = 3.0 / 8


def rows(n, e, padding, turned):
    g = torch.Generator().manual_seed(0)
    target = torch.randint(n, (e,), generator=g).sort().values if n else torch.zeros(0, dtype=torch.int64)
    source = torch.cat([torch.randint(max(n, 1), (e,), generator=g), torch.zeros(padding, dtype=torch.int64)])
    ptr = torch.searchsorted(target, torch.arange(n + 1))
    target = torch.cat([target, torch.zeros(padding, dtype=torch.int64)])
    found = ops.sort_rows(source, target, ptr, n)
    mine = [torch.empty_like(x) for x in found[3:]]
    crystal.transpose(source, target, ptr, n, *mine)
    assert all(map(torch.equal, mine, found[3:]))
    return found.turned if turned else found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("n", "e", "columns", "padding"), [(0, 0, 3, 0), (1, 40, 6, 0), (5, 60, 70, 3)])
def test_agrees_with_cpp(n, e, columns, padding, turned, dtype):
    """Against C++ in float64, at most twice the error of C++; in float64 both may round every term of a sum."""
    views, gen = rows(n, e, padding, turned), torch.Generator().manual_seed(1)
    total, knots = e + padding, 9

    def make(*size):
        return torch.randn(*size, generator=gen, dtype=torch.float64).to(dtype)

    x, g, filter, scale, table = (
        make(n, columns),
        make(n, columns),
        make(total, columns),
        make(total),
        make(knots, 2, columns),
    )
    r = (torch.rand(total, generator=gen, dtype=torch.float64) * 3).to(dtype)
    r[:3] = torch.tensor([0.0, 3.0, PIECES])[: r[:3].shape[0]]
    cases = [("conv", (x, filter, *views)), ("product", (x, g, *views))]
    for order in (0, 1, 2, 3, 4) if n == 1 else (1,):
        piece = 0.0, PIECES, order
        cases.append(("table_conv", (x, scale, r, table, *views, *piece)))
        cases.append(("table_dot", (x, g, r, table, *views, *piece)))
        cases.append(("table_sums", (x, g, scale, r, *views, knots, *piece)))
    roundings = 4 + (e + columns if dtype == torch.float64 else 0)
    for name, inputs in cases:
        operator = getattr(ops, name)
        truth = operator(*(a.double() if torch.is_tensor(a) and a.is_floating_point() else a for a in inputs))
        plain = operator(*inputs)
        got = torch.full_like(plain, torch.nan)
        getattr(crystal, name)(*inputs, got)
        if got.numel():
            allowed = 2 * (plain - truth).abs().max() + roundings * torch.finfo(dtype).eps * truth.abs().max()
            assert (got - truth).abs().max() <= allowed, name
