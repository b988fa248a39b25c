"""What the atoms of a structure share: its cell in triangular form, how far rounding may reach, what is wrong with it.

The same as csrc/crystal/lattice.h, for all structures at once, in PyTorch's operators: nothing is read back.
"""

import torch
import triton
import triton.language as tl

NOT_FINITE, SINGULAR_CELL, TOO_FAR, TOO_MANY = 1, 2, 4, 8
EPS = torch.finfo(torch.float64).eps


@triton.jit
def _corners(positions, atom_ptr, corners, BLOCK: tl.constexpr):
    """The least and the greatest coordinates of a structure, and whether all are finite: seven numbers."""
    b = tl.program_id(0).to(tl.int64)
    first, last = tl.load(atom_ptr + b), tl.load(atom_ptr + b + 1)
    good = tl.zeros([BLOCK], tl.int32) + 1
    for c in tl.static_range(3):
        low = tl.full([BLOCK], float("inf"), tl.float64)
        high = -low
        for start in range(first, last, BLOCK):
            at = start + tl.arange(0, BLOCK).to(tl.int64)
            inside = at < last
            x = tl.load(positions + 3 * at + c, mask=inside, other=0.0).to(tl.float64)
            good = tl.where(inside & ~(tl.abs(x) < float("inf")), 0, good)
            low = tl.where(inside & (x < low), x, low)
            high = tl.where(inside & (x > high), x, high)
        tl.store(corners + 7 * b + c, tl.min(low, 0))
        tl.store(corners + 7 * b + 3 + c, tl.max(high, 0))
    tl.store(corners + 7 * b + 6, tl.min(good, 0).to(tl.float64))


def rows(positions, cell, pbc, atom_ptr, cutoff, kinds, inclusive, max_edges):
    """(B, 27) of axes (9), the cell in them (6), images per Å (3), the cell (9); and reach, slack, status.

    The cell in its axes is triangular: aa ab ac bb bc cc. (B, 2) of reach and slack, (B,) of the status.
    """
    B = len(cell)
    corners = positions.new_empty(B, 7, dtype=torch.float64)
    if B:
        _corners[(B,)](positions, atom_ptr, corners, BLOCK=256, num_warps=4)
    natoms = atom_ptr.diff()
    low, high = (torch.where((natoms > 0)[:, None], c, 0.0) for c in (corners[:, :3], corners[:, 3:6]))
    radius = cutoff.amax().expand(B) if kinds.numel() else cutoff
    good = (corners[:, 6] > 0) | (natoms == 0)
    status = torch.where(good & radius.isfinite() & (radius >= 0), 0, NOT_FINITE)
    cell = torch.where(pbc[..., None], cell, 0.0)

    def norm(v):
        return (v * v).sum(-1).sqrt()

    def without(v, axes):
        for _ in range(2):  # twice is enough
            for a in axes:
                v = v - (v * a).sum(-1, keepdim=True) * a
        return v

    length = norm(cell)
    status = torch.where(status == 0, ((~(length <= 1e150)) & pbc).any(1) * NOT_FINITE, status)
    axes, heights = [None] * 3, torch.ones_like(radius)
    for k in (2, 1, 0):
        left = without(cell[:, k] / length[:, k, None], [a for a in axes if a is not None])
        height = norm(left)
        heights = torch.where(pbc[:, k], heights * height, heights)
        axes[k] = torch.where(pbc[:, k, None], left / height[:, None], 0.0)
    singular = ~(heights > 1e-10) | ((length <= 1e-150) & pbc).any(1)
    status = torch.where(status == 0, singular * SINGULAR_CELL, status)
    units = torch.eye(3, dtype=cell.dtype, device=cell.device)
    for k in range(3):  # along axes that do not repeat, what is left
        best = torch.zeros_like(axes[k])
        for unit in units:
            left = without(unit.expand(B, 3), axes)
            best = torch.where((norm(left) > norm(best) + 0.1)[:, None], left, best)
        axes[k] = torch.where(pbc[:, k, None], axes[k], best / norm(best)[:, None])
    axis = torch.stack(axes, 1)
    step = cell @ axis.mT
    whole = torch.where(pbc[..., None], step, torch.eye(3, dtype=cell.dtype, device=cell.device)).triu()
    usable = (status == 0)[:, None, None]
    inverse = torch.linalg.inv_ex(torch.where(usable, whole, units)).inverse
    spacing = 1 / norm(inverse.mT)
    per = torch.where(pbc, 1 / torch.where(pbc, step.diagonal(dim1=1, dim2=2), 1.0), 0.0)
    across, size = norm(high - low), norm(torch.maximum(low.abs(), high.abs()))
    steps = ((across + radius)[:, None] / spacing + 1) * length
    slack = 64 * EPS * (size + across + radius + torch.where(pbc, steps, 0.0).sum(1))
    reach = radius + slack
    corner = torch.maximum(norm(low), norm(high)) * 1.7320508
    farther = torch.where(pbc, (2 * corner + reach)[:, None] / spacing, 0.0).amax(1)
    far = ~(farther < 2**30) | ~slack.isfinite()
    status = torch.where(status == 0, far * TOO_FAR, status)
    extent = (axis.abs() * (high - low)[:, None]).sum(2)  # at most
    share = torch.where(extent > 2 * radius[:, None], 2 * radius[:, None] / extent, 1.0)
    images = torch.where(pbc, radius[:, None] * per, share).prod(1)
    ball = torch.tensor([1.0, 2.0, torch.pi, 4.18879020478639], dtype=cell.dtype, device=cell.device)[pbc.sum(1)]
    many = natoms.double().square() * images * ball > 2 * max_edges + 1e6
    status = torch.where(status == 0, many * TOO_MANY, status)
    i, k = torch.triu_indices(3, 3, device=cell.device)
    table = torch.cat([axis.flatten(1), step[:, i, k], per, cell.flatten(1)], 1)
    return table.contiguous(), torch.stack([reach, slack], 1), status.to(torch.int32)


def limits(cutoff, inclusive):
    """Squares below these are near."""
    square = cutoff * cutoff
    if inclusive:
        square = torch.where(square > 0, square.nextafter(torch.full_like(square, torch.inf)), square)
    return square
