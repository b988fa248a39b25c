"""Triton kernels for pyfast.linear_attention: one program per head and tile of its state, which stays in registers.

Every token is read once and nothing but the result is written. Where heads are too few to fill the GPU and the sequence
is long, it is cut into parts: what each adds to the state, the states between them, and then the results.
"""

import torch
import triton
import triton.language as tl
from pyfast.kernels.linear_attention._blocks import blocks, capability, numbers, processors
from pyfast.kernels.linear_attention._chunks import COLUMNS, NONE, ROWS, SCALAR, _attend
from pyfast.kernels.linear_attention._sums import _cumulate, _join, _read


def _strides(x, size):
    return (0,) * size if x is None else x.stride()


def _parts(programs, tokens, block, device):
    """Into how many parts sequences are cut, where there are too few programs to fill the GPU."""
    enough = processors(device) * 3 // 2
    return 1 if programs >= enough else max(1, min(enough // max(programs, 1), tokens // (8 * block)))


def _launch(
    q, k, v, decay, state, ends, out, last, denominator, read, write, eps, reverse, late, strict, columns, solve
):
    """The state alone if there is no `out`; `denominator` means that results are divided."""
    B, T, Hk, K = k.shape
    V, Hv = v.shape[3], v.shape[2]
    Hq = Hk if q is None else q.shape[2]
    H = max(Hq, Hk, Hv)
    Hd = H if decay is None else decay.shape[2]
    N = B if ends is None else ends.shape[0] - 1
    normalize = denominator is not None
    if not N or not H or (not V and not normalize):
        return
    kind = (NONE if decay is None else SCALAR if decay.dim() == 3 else COLUMNS if columns else ROWS).value
    types = numbers(*(x.dtype for x in (q, k, v) if x is not None))
    wide = torch.float64 if types["WIDE"] == tl.float64 else torch.float32
    double = any(x is not None and x.dtype == torch.float64 for x in (state, last))
    how = blocks(capability(k.device), types, K, V, kind, solve, normalize, double)
    tiles = max(1, triton.cdiv(V, how["BV"]))
    tokens = 0 if solve else triton.cdiv(T * B, max(N, 1))  # a delta rule's part would be a matrix, not a factor
    P = _parts(N * H * tiles, tokens, how["BT"], k.device)
    stride = max(x.stride(3) for x in (q, k, v, decay, out) if x is not None and x.dim() == 4)
    long = (how["BK"] + tiles * how["BV"]) * stride >= 1 << 31

    def run(q, state, state_strides, Hs, out, last, last_strides, total):
        _attend[(N * H * tiles * P,)](
            q, k, v, decay, state, ends, out, last, denominator, total,
            *_strides(q, 4), *k.stride(), *v.stride(), *(*_strides(decay, 4), 0)[:4],
            *state_strides, *_strides(ends, 1), *_strides(out, 4), *last_strides, *_strides(denominator, 3),
            T, H, *(H // n for n in (Hq, Hk, Hv, Hd, Hs)), K, V, P, int(late), read, write, eps,
            DECAY=kind, SOLVE=solve, STRICT=strict, REVERSE=reverse, NORMALIZE=normalize,
            DOUBLE=double, LONG=long, **types, **how,
        )  # fmt: skip

    def with_parts(x):
        n, *rest = _strides(x, 4)
        return n, 0, *rest

    Hs = H if state is None else state.shape[1]
    if P == 1:
        run(q, state, with_parts(state), Hs, out, last, with_parts(last), None)
        return
    parts = torch.empty(N, H, P, K, V + normalize, dtype=torch.float64 if double else wide, device=k.device)
    D = K if kind == ROWS.value else V if kind == COLUMNS.value else 1
    total = torch.empty(N, H, P, D, dtype=torch.float64, device=k.device)
    n, h, p, *cell = parts.stride()
    run(None, None, (0,) * 5, H, None, parts, (n, p, h, *cell), total)
    _join[(N * H, triton.cdiv(K * (V + normalize), 1024))](
        parts, total, state, last, *_strides(state, 4), *_strides(last, 4), D, int(kind == ROWS.value),
        int(kind == COLUMNS.value), H, Hs, K, V + normalize, P, BLOCK=1024,
    )  # fmt: skip
    if out is not None:
        run(q, parts, (n, p, h, *cell), H, out, None, (0,) * 5, None)


def attend(
    q, k, v, decay, state, cu_seqlens, read, write, last_wanted, reverse, late, strict, columns, out, last
):  # fmt: skip
    last = last if last_wanted else None
    _launch(q, k, v, decay, state, cu_seqlens, out, last, None, read, write, 0.0, reverse, late, strict, columns, False)


def attend_normalized(q, k, v, decay, state, cu_seqlens, read, eps, last_wanted, reverse, out, last, denominator):
    last = last if last_wanted else None
    _launch(
        q, k, v, decay, state, cu_seqlens, out, last, denominator, read, 1.0, eps, reverse, False, False, False, False
    )


attend_into, attend_normalized_into = attend, attend_normalized


def solve(p, k, v, decay, state, cu_seqlens, last_wanted, reverse, late, x, last):
    last = last if last_wanted else None
    _launch(p, k, v, decay, state, cu_seqlens, x, last, None, 1.0, 1.0, 0.0, reverse, late, True, False, True)


def collect(k, v, state, cu_seqlens, out):
    _launch(None, k, v, None, state, cu_seqlens, None, out, None, 1.0, 1.0, 0.0, False, False, False, False, False)


def read(q, state, cu_seqlens, scale, out):
    B, T, Hq, K = q.shape
    N, Hs, _, V = state.shape
    H = out.shape[2]
    if not N or not H or not V:
        return
    types = numbers(q.dtype)
    how = blocks(capability(q.device), types, K, V)
    types.pop("ADDED")
    tiles = triton.cdiv(V, how["BV"])
    P = _parts(N * H * tiles, triton.cdiv(T * B, N) * 8, how["BT"], q.device)
    _read[(N * H * tiles * P,)](
        q, state, cu_seqlens, out, *q.stride(), *state.stride(), *_strides(cu_seqlens, 1), *out.stride(),
        T, H, Hq, Hs, K, V, P, scale, **types, **how,
    )  # fmt: skip


def cumulate(x, start, cu_seqlens, reverse, strict, out, total):
    if x.dim() == 3:  # heads are dimensions of one head, side by side in memory
        x, out, total = x.unsqueeze(2), out.unsqueeze(2), total.unsqueeze(1)
        start = None if start is None else start.unsqueeze(1)
    _, T, H, D = x.shape
    N = total.shape[0]
    if not N or not H or not D:
        return
    BD = min(32, triton.next_power_of_2(D))
    BT = 1024 // BD
    _cumulate[(N * H * triton.cdiv(D, BD),)](
        x, start, cu_seqlens, out, total, *x.stride(), *_strides(start, 3), *_strides(cu_seqlens, 1), *out.stride(),
        *total.stride(), T, H, D, int(strict), REVERSE=reverse, BT=BT, BD=BD,
    )  # fmt: skip
