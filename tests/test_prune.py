"""The kernels of pruning against the stable sort: which weights stay is a matter of bits, never of tolerance."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast.prune import _operators as operators
from pyfast.reference import prune as reference

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int8,
]
SIZES = [0, 1, 2, 15, 16, 17, 63, 64, 65, 1000, 8192, 8193]
BRACKET, RADIX, HISTOGRAM_THEN_BRACKET = 1, 2, 3  # the paths that the last row of the table names


def unpack(bits, weights):
    """The mask of every tensor; bits beyond its last weight must be 0."""
    flags = torch.from_numpy(np.unpackbits(bits.numpy().view(np.uint8), bitorder="little")).bool()
    masks, start = [], 0
    for w in weights:
        stop = start + 64 * operators.words(w)
        assert not flags[start + w.numel() : stop].any()
        masks.append(flags[start : start + w.numel()].view(w.shape))
        start = stop
    assert start == len(flags)
    return masks


def example(dtype, n, kind="normal", seed=0):
    g = torch.Generator().manual_seed(seed)
    if kind == "grid":
        return torch.randint(-2, 3, (n,), generator=g).to(dtype)
    if dtype == torch.int8:
        return torch.randint(-128, 128, (n,), generator=g, dtype=torch.int8)
    x = torch.randn(n, generator=g, dtype=torch.float64)
    if kind == "tiny":
        x *= torch.finfo(dtype).tiny / 4 if dtype != torch.float8_e4m3fn else 2.0**-8
    if kind == "special":
        specials = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, 1e-40, -1e-310, torch.nan, -torch.nan])
        x = torch.where(torch.rand(n, generator=g) < 0.3, specials[torch.randint(8, (n,), generator=g)], x)
    return x.to(dtype)


def arrange(w, how):
    """The same weights, laid out otherwise in memory."""
    n = w.numel()
    if how == "every other":
        return torch.stack([w, w], -1)[:, 0]
    if how == "transposed" and n % 4 == 0:
        return w.view(4, n // 4).t()
    if how == "channels_last" and n and n % 8 == 0:
        return w.view(2, 4, n // 8, 1).contiguous(memory_format=torch.channels_last)
    if how == "sliced":
        return torch.cat([w, w])[n // 3 : n // 3 + n]
    return w


def agree(weights, prune, min_keep=(), ties="first", nan_as_zero=False):
    """Kernel and reference give the same masks and the same report; applying changes what the mask says and no more."""
    floor = list(min_keep)
    bits, table = operators.select(weights, prune, floor, ties, nan_as_zero)
    masks, rows, (kept, threshold) = reference.select(weights, prune, floor, ties, nan_as_zero)
    got = unpack(bits, weights)
    for mask, expected in zip(got, masks, strict=True):
        assert torch.equal(mask, expected)
    assert [(kept, key, bool(binds)) for kept, key, binds, _ in table[:-1].tolist()] == rows
    assert table[-1, :2].tolist() == [kept, threshold]
    assert table[:-1, 3].tolist() == [int(w.double().isnan().sum()) for w in weights]
    pruned = [w.clone() for w in weights]
    operators.apply(pruned, bits)
    for new, old, mask in zip(pruned, weights, masks, strict=True):
        a, b = new.double(), old.double()
        assert torch.equal(torch.where(mask, a, 1.0).nan_to_num(3e300), torch.where(mask, b, 1.0).nan_to_num(3e300))
        assert not (a[~mask] != 0).any()
        assert not torch.signbit(a[~mask]).any()
    return table[-1].tolist()


def amounts(n):
    return st.sampled_from(sorted({0, 1, n - 1, n, n // 2, n * 9 // 10} & set(range(n + 1)))) | st.integers(0, n)


@st.composite
def cases(draw, sizes=SIZES, most=6):
    mixed = draw(st.booleans())
    dtypes = st.sampled_from(DTYPES)
    one = draw(dtypes)
    weights = []
    for i in range(draw(st.integers(1, most))):
        kind = draw(st.sampled_from(["normal", "normal", "grid", "special", "tiny"]))
        w = example(
            draw(dtypes) if mixed else one, draw(st.sampled_from(sizes)), kind, seed=draw(st.integers(0, 99)) + i
        )
        weights.append(
            arrange(w, draw(st.sampled_from(["plain", "every other", "transposed", "channels_last", "sliced"])))
        )
    n = sum(w.numel() for w in weights)
    prune = draw(amounts(n))
    floor = draw(st.none() | st.sampled_from([0, 1, 3, 64, n // 20]))
    min_keep = [] if floor is None else [min(floor, w.numel()) for w in weights]
    if sum(min_keep) > n - prune:
        min_keep = []
    return weights, prune, min_keep, draw(st.sampled_from(["first", "keep_all", "prune_all"])), draw(st.booleans())


@given(cases(), st.integers(1, 4))
@settings(deadline=None, max_examples=150)
def test_matches_stable_sort(case, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        agree(*case)
    finally:
        torch.set_num_threads(before)


@given(cases(sizes=[1, 9000, 65535, 65536, 65537, 100_003], most=3), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_matches_stable_sort_in_many_blocks(case, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        agree(*case)
    finally:
        torch.set_num_threads(before)


def test_reference_is_the_sort_of_the_whole():
    weights = [example(torch.float32, n, "grid", n) for n in (5, 0, 33)]
    flat = np.abs(torch.cat(weights).numpy())
    for prune in range(len(flat) + 1):
        order = np.lexsort((-np.arange(len(flat)), flat))  # ascending; of equals the last first
        keep = np.ones(len(flat), bool)
        keep[order[:prune]] = False
        masks = reference.global_magnitude_mask(weights, prune)
        assert np.array_equal(torch.cat([m.flatten() for m in masks]).numpy(), keep)
        selected, _, _ = reference.select(weights, prune, [])
        assert all(torch.equal(a, b) for a, b in zip(masks, selected, strict=True))


def brute_force(weights, keep, floor):
    """Minimum first, then the largest of the rest, one by one."""
    kept = [np.zeros(len(w), bool) for w in weights]
    rest = []
    for layer, (w, mask) in enumerate(zip(weights, kept, strict=True)):
        order = np.lexsort((np.arange(len(w)), -np.abs(w)))
        mask[order[: floor[layer]]] = True
        rest += [(-abs(w[i]), layer, i) for i in order[floor[layer] :]]
    for _, layer, i in sorted(rest)[: keep - sum(floor)]:
        kept[layer][i] = True
    return kept


@pytest.mark.parametrize("seed", range(300))
def test_minimum_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=rng.integers(1, 400)) * rng.choice([0.01, 0.1, 1]) for _ in range(rng.integers(1, 9))]
    if seed % 3 == 0:
        weights = [w.round(1 + seed % 2) for w in weights]
    floor = [min(int(rng.integers(0, 30)), len(w)) for w in weights]
    keep = int(rng.integers(sum(floor), sum(map(len, weights)) + 1))
    tensors = [torch.from_numpy(w) for w in weights]
    bits, table = operators.select(tensors, sum(map(len, weights)) - keep, floor, "first", False)
    for got, expected in zip(unpack(bits, tensors), brute_force(weights, keep, floor), strict=True):
        assert np.array_equal(got.numpy(), expected)
    assert table[-1, 0] == keep


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_minimum_in_many_blocks(dtype, threads):
    weights = [example(dtype, n, seed=n) for n in (70_000, 1, 200_001, 3000)]
    weights[2] = (weights[2].float() * 0.25).to(dtype)
    n = sum(w.numel() for w in weights)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for floor in ([20_000] * 4, [0, 1, 9000, 3000], [100, 0, 0, 100]):
            floor = [min(f, w.numel()) for f, w in zip(floor, weights, strict=True)]
            for prune in (n - sum(floor), n // 2, n * 9 // 10 if sum(floor) <= n // 10 else n // 3):
                agree(weights, prune, floor)
    finally:
        torch.set_num_threads(before)


def test_splitting_a_tensor_changes_nothing():
    w = example(torch.float32, 100_000, "grid") * example(torch.float32, 100_000).round(decimals=1)
    whole, _ = operators.select([w], 77_777, [], "first", False)
    pieces = list(w.split([1, 63, 64, 65, 1000, 98_807]))
    bits, _ = operators.select(pieces, 77_777, [], "first", False)
    assert torch.equal(torch.cat(unpack(bits, pieces)), unpack(whole, [w])[0])


def test_masks_are_nested():
    w = [example(torch.bfloat16, 20_000), example(torch.float32, 20_000, "grid")]
    before = None
    for prune in range(0, 40_001, 1600):
        mask = torch.cat(unpack(operators.select(w, prune, [], "first", False)[0], w))
        assert before is None or not (mask & ~before).any()
        before = mask


def test_usual_weights_take_one_pass():
    w = [torch.randn(300_000, generator=torch.Generator().manual_seed(s)) * 0.02 * (s + 1) for s in range(5)]
    assert agree(w, 1_350_000)[2:] == [BRACKET, 1]


def test_pruning_again_takes_one_pass():
    w = [example(torch.float32, 300_000)]
    bits, _ = operators.select(w, 270_000, [], "first", False)
    operators.apply(w, bits)
    assert agree(w, 270_000)[2:] == [BRACKET, 1]
    assert agree(w, 285_000)[2:] == [BRACKET, 1]


def test_a_sample_that_misleads_costs_only_time():
    # The sample is drawn at fixed places: fill those with large weights, so that the bracket lies far too high.
    n = 1 << 20
    w = torch.rand(n, generator=torch.Generator().manual_seed(0)) * 0.001
    groups, word = 65536 // 16, 2**64 - 1
    for g in range(groups):
        h = g * 0x9E3779B97F4A7C15 & word
        h = (h ^ h >> 32) * 0xD6E8FEB86659FD93 & word
        at = (g * (n // groups) + ((h >> 32) * (n // groups) >> 32)) // 16 * 16
        w[at : at + 16] += 1
    path, passes = agree([w], n * 9 // 10)[2:]
    assert path != BRACKET
    assert passes > 1  # the bracket was tried, and found wrong


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_equal(dtype):
    for n, prune in ((7, 3), (100_000, 12_345)):
        assert agree([torch.ones(n, dtype=torch.float32).to(dtype)] * 1, prune)[0] == n - prune


@pytest.mark.parametrize("ties", ["first", "keep_all", "prune_all"])
def test_ties_across_tensors_and_threads(ties):
    w = [torch.ones(50_000), torch.full((30_000,), -1.0), torch.cat([torch.ones(20_000), torch.full((7,), 2.0)])]
    for floor in ([], [10, 20_000, 0]):
        for prune in (0, 1, 49_999, 60_000, 79_990):
            agree(w, prune, floor, ties)


def test_large_bins_and_minima_fall_back_to_radix():
    w = [example(torch.float32, 3_000_000, "grid"), example(torch.float32, 1000)]
    assert agree(w, 1_500_000, [1000, 1000])[2] == RADIX


def test_flushing_denormals_changes_nothing():
    w = [example(d, 5000, "tiny", i) for i, d in enumerate(DTYPES)]
    plain, table = operators.select(w, 20_000, [], "first", False)
    torch.set_flush_denormal(True)
    try:
        flushed, again = operators.select(w, 20_000, [], "first", False)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(plain, flushed)
    assert torch.equal(table, again)


def test_every_float16_and_float8_ranks_as_its_value():
    for dtype, bits in ((torch.float16, torch.int16), (torch.bfloat16, torch.int16)):
        w = torch.arange(-(2**15), 2**15).to(bits).view(dtype)
        agree([w, torch.randn(100)], 30_000)
        agree([w, torch.randn(100, dtype=torch.float64)], 30_000, nan_as_zero=True)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8):
        w = torch.arange(-128, 128).to(torch.int8).view(dtype)
        for prune in range(0, 357, 7):
            agree([w, torch.randn(100)], prune)
            agree([w, torch.randn(100, dtype=torch.float64)], prune, nan_as_zero=True)


def test_more_than_two_to_the_31_weights():
    n = 2**31 + 200
    w = torch.ones(n, dtype=torch.int8)
    w[-3:] = torch.tensor([-128, 2, 0])
    bits, table = operators.select([w], n - 66, [], "first", False)
    assert table[-1, 0] == 66
    (words,) = bits.nonzero(as_tuple=True)
    assert words.tolist() == [0, (n - 3) // 64]
    assert bits[0] == -1  # the first 64 of the ones
    assert bits[-1] == 3 << ((n - 3) % 64)
    operators.apply([w], bits)
    assert torch.count_nonzero(w) == 66


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda w: operators.select(w, 201, [], "first", False),
            "prune must lie between 0 and .*, got 201",
        ),
        (lambda w: operators.select(w, -5, [], "first", False), "prune must lie between 0 and .*, got -5"),
        (
            lambda w: operators.select(w, 50, [1], "first", False),
            "min_keep must be empty or hold a number for",
        ),
        (
            lambda w: operators.select(w, 50, [101, 0], "first", False),
            r"min_keep\[0\] must lie between .*, got 101",
        ),
        (
            lambda w: operators.select(w, 50, [0, -7], "first", False),
            r"min_keep\[1\] must lie between .*, got -7",
        ),
        (lambda w: operators.select(w, 150, [30, 30], "first", False), "min_keep must sum to at most the 50 weights"),
        (lambda w: operators.select(w, 50, [], "bogus", False), "ties must be first, keep_all or prune_all, got bogus"),
        (lambda w: operators.apply(w, torch.zeros(1, dtype=torch.int64)), "bits must hold 4 words, got 1"),
    ],
)
def test_the_raw_operators_read_nothing_out_of_bounds(call, message):
    with pytest.raises(ValueError, match=message):
        call([torch.ones(100), torch.ones(100)])


def test_weights_that_change_during_the_call_do_no_harm():
    weights = [torch.randn(4000) for _ in range(4)]
    stop = threading.Event()

    def disturb():
        while not stop.is_set():
            for w in weights:
                w.fill_(3)
                w.normal_()
                w.zero_()

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(500):
            bits, _ = operators.select(weights, 8000, [500] * 4, "first", False)
            unpack(bits, weights)
    finally:
        stop.set()
        thread.join()


def test_more_than_two_to_the_32_weights_on_one_thread():
    n = 2**32 + 2**26  # beyond what 32 bits count from a thread's first weight
    w = torch.zeros(n, dtype=torch.int8)
    w[:4000], w[-4000:-2000], w[-2000:] = 5, 7, 5
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        bits, table = operators.select([w], n - 5000, [], "first", False)
    finally:
        torch.set_num_threads(before)
    assert table[-1, 0] == 5000
    (kept,) = np.unpackbits(bits[:100].numpy().view(np.uint8), bitorder="little").nonzero()
    assert kept.tolist() == list(range(3000))
    (kept,) = np.unpackbits(bits[-100:].numpy().view(np.uint8), bitorder="little").nonzero()
    assert (n // 64 * 64 - 6400 + kept).tolist() == list(range(n - 4000, n - 2000))


def test_operator_contract():
    w = [example(torch.float32, 100), example(torch.bfloat16, 65)]
    torch.library.opcheck(torch.ops.pyfast.prune_select.default, (w, 50, [], "first", False))
    bits, _ = operators.select(w, 50, [], "first", False)
    torch.library.opcheck(torch.ops.pyfast.prune_apply.default, (w, bits))


def test_compiles_whole():
    def prune(a, b):
        bits, table = torch.ops.pyfast.prune_select([a, b], 50, [], "first", False)
        torch.ops.pyfast.prune_apply([a, b], bits)
        return a + 1, table

    w = [example(torch.float32, 100), example(torch.float32, 65)]
    expected, table = prune(*[x.clone() for x in w])
    got, again = torch.compile(prune, fullgraph=True, backend="aot_eager")(*w)
    assert torch.equal(got, expected)
    assert torch.equal(table, again)
