import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyfast.kernels import prune

from pyfast.reference import prune as reference

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int8,
]
POISON = -0x0123456789ABCDEF


def pack(mask):
    """The mask as the kernels write it, 64 weights to a word."""
    words = torch.zeros(-(-mask.numel() // 64) * 64, dtype=torch.int64)
    words[: mask.numel()] = mask.flatten()
    return (words.view(-1, 64) << torch.arange(64)).sum(1)


def select(weights, k, min_keep=(), ties="first", nan_as_zero=False):
    bits = torch.full((sum(-(-w.numel() // 64) for w in weights),), POISON)
    table = torch.full((len(weights) + 1, 4), POISON)
    prune.select(weights, k, list(min_keep), ties, nan_as_zero, bits, table)
    return bits, table


def agree(weights, k, min_keep=(), ties="first", nan_as_zero=False):
    before = [w.clone() for w in weights]
    bits, table = select(weights, k, min_keep, ties, nan_as_zero)
    masks, rows, whole = reference.select(weights, k, list(min_keep), ties, nan_as_zero)
    expected = [[*row, int(w.double().isnan().sum())] for row, w in zip(rows, weights, strict=True)]
    assert bits.tolist() == torch.cat([pack(m) for m in masks]).tolist()
    assert table[:-1].tolist() == expected
    assert table[-1, :2].tolist() == list(whole)
    for w, b in zip(weights, before, strict=True):
        assert (
            torch.equal(w.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) if w.dim() else w.equal(b)
        )
    return masks


def hard(dtype):
    """Values that a format has at its edges."""
    if dtype == torch.int8:
        return [0, 1, -1, 127, -127, -128]
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps  # subnormal
    values = [0.0, -0.0, math.nan, -math.nan, least, -3 * least, info.smallest_normal, info.max, info.min, 1.0, -1.0]
    return values if dtype == torch.float8_e4m3fn else [*values, math.inf, -math.inf]


@st.composite
def tensors(draw, dtypes=DTYPES, sizes=(0, 1, 15, 16, 17, 63, 64, 65, 130)):
    dtype, n, seed = draw(st.sampled_from(dtypes)), draw(st.sampled_from(sizes)), draw(st.integers(0, 1 << 30))
    g = torch.Generator().manual_seed(seed)
    kind = draw(st.sampled_from(["normal", "grid", "hard", "constant"]))
    if kind == "hard":
        choices = torch.tensor(hard(dtype), dtype=torch.float64)
        return choices[torch.randint(len(choices), (n,), generator=g)].to(dtype)
    if kind == "constant":
        return torch.full((n,), float(draw(st.sampled_from([0, 1, 3]))), dtype=torch.float64).to(dtype)
    x = torch.randn(n, generator=g, dtype=torch.float64) * draw(st.sampled_from([0.02, 1.0, 20.0]))
    return (x if kind == "normal" else x.clamp(-3, 3).round()).to(dtype)


@st.composite
def problems(draw):
    dtypes = draw(st.one_of(st.sampled_from(DTYPES).map(lambda d: [d]), st.just(DTYPES[1:]), st.just(DTYPES)))
    weights = draw(st.lists(tensors(dtypes), min_size=1, max_size=4))
    n = sum(w.numel() for w in weights)
    k = draw(st.one_of(st.sampled_from([0, min(1, n), max(n - 1, 0), n]), st.integers(0, n)))
    floor, left = [], n - k
    if draw(st.booleans()):
        for w in draw(st.permutations(range(len(weights)))):
            floor.append((w, draw(st.integers(0, min(weights[w].numel(), left)))))
            left -= floor[-1][1]
    return weights, k, [m for _, m in sorted(floor)]


@given(
    problems(),
    st.sampled_from(["first", "keep_all", "prune_all"]),
    st.booleans(),
    st.sampled_from([64, 256]),
    st.sampled_from([8, 11]),
)
@settings(deadline=None, max_examples=35, suppress_health_check=[HealthCheck.too_slow])
def test_matches_reference(problem, ties, nan_as_zero, tile, width):
    """Small tiles put many tiles in a tensor; both widths of digit must give the same bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune, "TILE", tile)
        patch.setattr(prune, "WIDTH", width)
        agree(*problem, ties, nan_as_zero)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_key(monkeypatch, dtype):
    """All values of the small formats, the edges of the large ones, in the company of a larger type."""
    monkeypatch.setattr(prune, "TILE", 1 << 16)
    if dtype.itemsize <= 2:
        size = 1 << 8 * dtype.itemsize
        w = torch.arange(size).to(torch.uint8 if dtype.itemsize == 1 else torch.uint16).view(dtype)
    else:
        w = torch.tensor(hard(dtype), dtype=dtype)
    for company, part in ([], 3), ([torch.randn(9)], 2), ([torch.randn(9, dtype=torch.float64)], 1):
        key = reference.keys([w, *company])
        threshold = key[0].unique()[-1 - (part - 1) * len(key[0].unique()) // 4]  # the last is at the very top
        agree([w, *company], int((key[0] < threshold).sum()))


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tile_and_one_more(dtype, extra):
    w = torch.randn(prune.TILE + extra, generator=torch.Generator().manual_seed(0)).to(dtype)
    agree([w, w[:7]], len(w) // 2)


@pytest.mark.parametrize("ties", ["first", "keep_all", "prune_all"])
@pytest.mark.parametrize("k", [0, 1, 100, 299, 300])
def test_ties_in_every_tile_and_tensor(monkeypatch, ties, k):
    monkeypatch.setattr(prune, "TILE", 64)
    agree([torch.ones(130), -torch.ones(70), torch.ones(100)], k, [], ties)
    agree([torch.ones(130), torch.zeros(70), torch.ones(100)], k, [0, min(5, 300 - k), 0], ties)


def test_binding_and_following_minimums():
    """One tensor lies below the others, two are level and would keep more than they must."""
    g = torch.Generator().manual_seed(3)
    weights = [torch.randn(200, generator=g) * s for s in (1e-3, 1.0, 1.0)]
    agree(weights, 400, [17, 20, 31])
    _, table = select(weights, 400, [17, 20, 31])
    assert table[:3, 2].tolist() == [1, 0, 0]
    agree(weights, 400, [60, 70, 70])  # nothing is left for the pool
    agree([w.double() for w in weights], 400, [60, 70, 69])


def test_no_tensors_and_empty_tensors():
    bits, table = select([], 0)
    assert bits.numel() == 0
    assert table[0, :2].tolist() == [0, reference.LAST[torch.int32]]
    agree([torch.empty(0), torch.empty(0, 3, dtype=torch.bfloat16)], 0)


def test_any_shape_and_strides():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(12, 14, generator=g)
    agree(
        [
            x.T,
            x[::2, 1::3],
            torch.tensor(0.5),
            torch.randn(2, 3, 4, 5, generator=g).to(memory_format=torch.channels_last),
        ],
        100,
    )


def test_misaligned_storage():
    x = torch.randn(300, generator=torch.Generator().manual_seed(2))
    agree([x[1:], x[:5]], 150)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_apply_selects(dtype):
    """What stays keeps its bits, NaN included; what goes is +0, infinite or not; nothing beside it is touched."""
    g = torch.Generator().manual_seed(4)
    values = torch.tensor(hard(dtype), dtype=torch.float64)
    base = values[torch.randint(len(values), (40, 12), generator=g)].to(dtype)
    raw = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    untouched = base.clone()
    weights = [base[:10], base[10:20].T, base[20:30, ::2], base[30], base[31, 0], base[:0]]
    masks = [torch.rand(w.shape, generator=g) < 0.5 for w in weights]
    expected = [torch.where(m, w.clone().view(raw), 0) for w, m in zip(weights, masks, strict=True)]
    prune.apply(weights, torch.cat([pack(m) for m in masks]))
    for w, e in zip(weights, expected, strict=True):
        assert torch.equal(w.view(raw), e)
    assert torch.equal(base[20:30, 1::2].view(raw), untouched[20:30, 1::2].view(raw))
    assert torch.equal(base[32:].view(raw), untouched[32:].view(raw))


def test_apply_after_select(monkeypatch):
    monkeypatch.setattr(prune, "TILE", 64)
    weights = [
        torch.randn(n, generator=torch.Generator().manual_seed(n)).to(d)
        for n, d in zip((200, 65, 3), DTYPES, strict=False)
    ]
    masks = agree(weights, 150)
    expected = [w.where(m, 0) for w, m in zip(weights, masks, strict=True)]
    prune.apply(weights, select(weights, 150)[0])
    for w, e in zip(weights, expected, strict=True):
        assert torch.equal(w, e)
