import pytest
import torch

from pyfast import prune


def layers(sizes, seed=0):
    """Weights whose scale falls with the layer's fan, as initialisation has it."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=g) / n**0.25 for n in sizes]


def released(weights, target, percent):
    """The steps of the released code, one after the other, with whole copies; None where it would not end."""
    every = torch.cat([w.abs() for w in weights])
    sizes, total = [len(w) for w in weights], len(every)
    cut = every.kthvalue(max(int(target * total), 1)).values
    shares = [float((w.abs() < cut).sum()) / n for w, n in zip(weights, sizes, strict=True)]
    sigma = int(total * percent / 100)
    shares = [0.0 if n < sigma else s for s, n in zip(shares, sizes, strict=True)]
    whole = sum(s * n for s, n in zip(shares, sizes, strict=True)) / total
    shares = [s * target / whole for s in shares]
    rounds = 0
    if any((1 - s) * n < sigma for s, n in zip(shares, sizes, strict=True)):
        while True:
            shares = [1 - sigma / n if n > sigma and (1 - s) * n < sigma else s for s, n in zip(shares, sizes, strict=True)]
            whole = sum(s * n for s, n in zip(shares, sizes, strict=True)) / total
            if whole >= target:
                break
            if rounds == 1000:
                return None
            rounds += 1
            shares = [s * target / whole for s in shares]
    if not all(0 <= s <= 1 for s in shares):
        return None
    cuts = [w.abs().kthvalue(max(int(s * n), 1)).values for w, s, n in zip(weights, shares, sizes, strict=True)]
    return [w.abs() >= c for w, c in zip(weights, cuts, strict=True)]


@pytest.mark.parametrize("seed", range(40))
def test_agrees_with_the_released_steps_wherever_these_end(seed):
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(3, 400, (6,), generator=g).tolist()
    weights = layers(sizes, seed)
    target = float(torch.rand((), generator=g)) * 0.6 + 0.39
    percent = float(torch.rand((), generator=g)) * 4
    masks = released(weights, target, percent)
    before = [w.clone() for w in weights]
    if masks is None:
        with pytest.raises(ValueError, match=r"min_keep_percent must .*global_magnitude_ meets every feasible minimum"):
            prune.rescaled_magnitude_(weights, target, min_keep_percent=percent)
        assert all(map(torch.equal, weights, before))
        return
    result = prune.rescaled_magnitude_(weights, target, min_keep_percent=percent)
    for w, b, m, layer in zip(weights, before, masks, result.layers, strict=True):
        assert torch.equal(w, b.where(m, 0))
        assert layer.kept == int(m.sum())
        assert layer.threshold == b[m].abs().min()
    assert result.kept == sum(int(m.sum()) for m in masks)


def test_it_nearly_agrees_with_the_exact_minimum_where_it_works():
    weights = layers([200, 1000, 5000, 20000])
    exact = prune.global_magnitude_mask(weights, 0.95, min_keep="0.5%")
    result = prune.rescaled_magnitude_([w.clone() for w in weights], 0.95, min_keep_percent=0.5)
    assert [layer.minimum for layer in result.layers] == [layer.minimum for layer in exact.layers]
    assert all(layer.kept >= layer.minimum for layer in result.layers)
    assert abs(result.kept - exact.kept) <= 2 * len(weights)

    def magnitude(mask):
        return sum(float(w.abs()[m].double().sum()) for w, m in zip(weights, mask.to_bool().values(), strict=True))

    per_weight = result.threshold  # nothing that is swapped at the margin weighs much more than this
    shortfall = magnitude(exact.mask) - magnitude(result.mask)
    assert -2 * len(weights) * 2 * per_weight <= shortfall <= 0.005 * magnitude(exact.mask)


def test_it_fails_where_the_exact_minimum_does_not():
    weights = [torch.tensor([20.0, 21.0, 22.0]), torch.arange(1.0, 11), torch.tensor([0.1, 0.2])]
    before = [w.clone() for w in weights]
    # The minimum is 2: the last layer is not smaller, so is not left dense; it falls whole, and is scaled beyond that.
    with pytest.raises(ValueError, match=r"let every layer's sparsity stay in \[0, 1\], got 1\.125; global_magnitude_ meets"):
        prune.rescaled_magnitude_(weights, 0.6, min_keep_percent=15)
    assert all(map(torch.equal, weights, before))
    result = prune.global_magnitude_(weights, 0.6, min_keep="15%")
    assert [layer.kept for layer in result.layers] == [2, 2, 2]


def test_it_need_not_end_where_the_exact_minimum_does():
    weights = [torch.arange(1.0, 6), torch.arange(1.0, 96)]
    # A layer of 5 stays dense and one of 95 keeps 10, so 85 can fall; 0.854 of 100 is 85.4, which rescaling never meets.
    assert prune.global_magnitude_mask(weights, 0.854, min_keep="10%").pruned == 85
    with pytest.raises(ValueError, match=r"let the rescaling end, got 0\.85 of sparsity 0\.854 after 1000 rounds"):
        prune.rescaled_magnitude_(weights, 0.854, min_keep_percent=10)


def test_nothing_to_rescale():
    weights = [torch.arange(1.0, 6), torch.arange(1.0, 6)]
    with pytest.raises(ValueError, match=r"min_keep_percent must leave something to rescale, got 0 weights pruned"):
        prune.rescaled_magnitude_(weights, 0.2, min_keep_percent=60)
    assert prune.global_magnitude_mask(weights, 0.0, min_keep="60%").kept == 10


@pytest.mark.parametrize(
    ("sparsity", "percent", "error", "message"),
    [
        (0.0, 0, ValueError, r"sparsity must be above 0 and at most 1, got 0\.0"),
        (1.1, 0, ValueError, r"sparsity must be above 0 and at most 1, got 1\.1"),
        (float("nan"), 0, ValueError, r"sparsity must be above 0 and at most 1, got nan"),
        (True, 0, TypeError, r"sparsity must be a number, got bool"),
        (0.5, -1, ValueError, r"min_keep_percent must be at least 0 and at most 100, got -1"),
        (0.5, "0.2%", TypeError, r"min_keep_percent must be a number, got str"),
    ],
)
def test_bad_arguments(sparsity, percent, error, message):
    with pytest.raises(error, match=message):
        prune.rescaled_magnitude_(torch.ones(9), sparsity, min_keep_percent=percent)


def test_nan_and_float64():
    with pytest.raises(ValueError, match=r"targets must not hold NaN, got 1 in '0'"):
        prune.rescaled_magnitude_(torch.tensor([1.0, torch.nan]), 0.5)
    w = torch.arange(1.0, 11, dtype=torch.float64)
    result = prune.rescaled_magnitude_([w, torch.ones(0)], 0.5)
    assert w.tolist() == [0, 0, 0, 0, 5, 6, 7, 8, 9, 10]  # the k-th smallest is kept, k = 5
    assert (result.amount, result.pruned, result.layers[0].threshold) == (5, 4, 5.0)
