import copy
import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyfast import prune
from pyfast.prune import _operators
from pyfast.reference import prune as reference

nan, inf = math.nan, math.inf


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 10))


def weights(model):
    return [m.weight.detach() for m in model if hasattr(m, "weight")]


# ---- what falls


def test_agrees_with_the_reference_and_with_torch():
    model, peer = network(), network()
    result = prune.global_magnitude_(model, 0.7)
    layers = [(m, "weight") for m in peer if hasattr(m, "weight")]
    nn.utils.prune.global_unstructured(layers, nn.utils.prune.L1Unstructured, amount=0.7)
    masks = reference.global_magnitude_mask(weights(network()), result.pruned)
    for (layer, _), w, mask in zip(layers, weights(model), masks, strict=True):
        assert torch.equal(w, layer.weight.detach())
        assert torch.equal(w != 0, mask)
    assert result.pruned == result.amount == round(0.7 * result.mask.size)


def test_the_mask_changes_nothing_and_does_the_same():
    model = network()
    before = copy.deepcopy(weights(model))
    versions = [w._version for w in weights(model)]
    found = prune.global_magnitude_mask(model, 0.7, min_keep=20)
    assert all(map(torch.equal, before, weights(model)))
    assert versions == [w._version for w in weights(model)]
    other = network()
    result = prune.global_magnitude_(other, 0.7, min_keep=20)
    assert found.mask == result.mask
    assert str(found) == str(result)
    found.mask.apply_(model)
    assert all(map(torch.equal, weights(model), weights(other)))


def test_biases_and_normalisation_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    prune.global_magnitude_(model, 1.0)
    assert not model[0].weight.any()
    assert model[0].bias.all()
    assert model[1].weight.all()


@pytest.mark.parametrize("amount", [0, 0.0, 1.0, 10, np.int64(10), np.float32(1), np.float64(0.5)])
def test_amounts_at_the_ends_and_from_numpy(amount):
    w = torch.arange(1.0, 11)
    result = prune.global_magnitude_(w, amount)
    expected = int(amount) if not isinstance(amount, (float, np.floating)) else round(float(amount) * 10)
    assert result.pruned == int((w == 0).sum()) == expected
    assert result.sparsity == expected / 10
    assert result.threshold == (expected + 1 if expected < 10 else inf)


def test_fractions_round_like_torch():
    for n in range(1, 40):
        for amount in (0.1, 0.25, 0.5, 0.9, 1 / 3):
            w = torch.arange(1.0, n + 1)
            assert prune.global_magnitude_mask(w, amount).pruned == round(amount * n)


BAD_AMOUNTS = [
    (True, TypeError, r"amount must be an int \(weights\) or a float \(fraction\), got bool"),
    (np.True_, TypeError, r"amount must be an int \(weights\) or a float \(fraction\), got bool"),
    ("0.5", TypeError, r"amount must be an int \(weights\) or a float \(fraction\), got str"),
    (torch.tensor(1), TypeError, r"amount must be .*, got Tensor"),
    (nan, ValueError, r"amount must be between 0 and 1 as a float, got nan"),
    (-0.1, ValueError, r"amount must be between 0 and 1 as a float, got -0\.1"),
    (1.5, ValueError, r"amount must be between 0 and 1 as a float, got 1\.5"),
    (-1, ValueError, r"amount must be between 0 and the 10 weights of the targets, got -1"),
    (11, ValueError, r"amount must be between 0 and the 10 weights of the targets, got 11"),
]


@pytest.mark.parametrize(("amount", "error", "message"), BAD_AMOUNTS)
def test_bad_amounts(amount, error, message):
    w = torch.arange(1.0, 11)
    with pytest.raises(error, match=message):
        prune.global_magnitude_(w, amount)
    assert w.tolist() == list(range(1, 11))


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match=r"ties must be one of first, keep_all, prune_all, got 'last'"):
        prune.global_magnitude_(torch.ones(2), 1, ties="last")
    with pytest.raises(ValueError, match=r"nan must be one of raise, keep, prune, got 'zero'"):
        prune.global_magnitude_(torch.ones(2), 1, nan="zero")


# ---- minima


def kept(targets, amount, **options):
    return [layer.kept for layer in prune.global_magnitude_mask(targets, amount, **options).layers]


def test_every_form_of_min_keep():
    layers = {"small": torch.full((10,), 0.1), "large": torch.arange(1.0, 991)}
    assert kept(layers, 0.9) == [0, 100]
    assert kept(layers, 0.9, min_keep=7) == [7, 93]
    assert kept(layers, 0.9, min_keep=np.int32(7)) == [7, 93]
    assert kept(layers, 0.9, min_keep=70) == [10, 90]
    assert kept(layers, 0.9, min_keep="0.2%") == [2, 98]
    assert kept(layers, 0.9, min_keep="0.29%") == [2, 98]
    assert kept(layers, 0.9, min_keep=0.1) == [1, 99]
    assert kept(layers, 0.9, min_keep=0.05) == [1, 99]
    assert kept(layers, 0.9, min_keep={"small": 3}) == [3, 97]
    assert kept(layers, 0.9, min_keep={"small": "0.5%", "large": 0.01}) == [5, 95]


def test_max_sparsity_is_exact():
    layers = {"small": torch.full((10,), 0.1), "large": torch.arange(1.0, 991)}
    assert kept(layers, 0.9, max_sparsity=0.9) == [1, 99]
    assert kept(layers, 0.9, max_sparsity={"small": 0.7}) == [3, 97]
    assert kept(layers, 0.9, max_sparsity={"small": 0.71}) == [3, 97]
    assert kept(layers, 0.9, max_sparsity={"small": 0.69}) == [4, 96]
    assert kept(layers, 0.9, max_sparsity={"small": 0.7}, min_keep=5) == [5, 95]
    assert kept(layers, 0.9, max_sparsity={"small": 0.3}, min_keep=5) == [7, 93]
    assert kept(layers, 0.9, max_sparsity=np.float32(0.9)) == [1, 99]


BAD_MINIMA = [
    ({"min_keep": -1}, ValueError, r"min_keep must not be negative, got -1"),
    ({"min_keep": True}, TypeError, r"min_keep must be a number, got bool"),
    ({"min_keep": 1.5}, ValueError, r"min_keep must be between 0 and 1, got 1\.5"),
    ({"min_keep": nan}, ValueError, r"min_keep must be between 0 and 1, got nan"),
    ({"min_keep": "5"}, ValueError, r"min_keep must be a percentage such as '0\.2%' when it is a string, got '5'"),
    ({"min_keep": "x%"}, ValueError, r"min_keep must be a percentage .*, got 'x%'"),
    ({"min_keep": "101%"}, ValueError, r"min_keep must be a percentage .*, got '101%'"),
    ({"min_keep": {"2": 1}}, ValueError, r"min_keep must name layers in the targets \('0'\), got '2'"),
    ({"min_keep": {"1": 1}}, ValueError, r"min_keep must name layers that count, got '1', which is counted as '0'"),
    ({"max_sparsity": 1.01}, ValueError, r"max_sparsity must be between 0 and 1, got 1\.01"),
    ({"max_sparsity": "90%"}, TypeError, r"max_sparsity must be a number, got str"),
    ({"max_sparsity": {"w": 0.5}}, ValueError, r"max_sparsity must name layers in the targets \(.*\), got 'w'"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_MINIMA)
def test_bad_minima(options, error, message):
    w = torch.ones(4)
    with pytest.raises(error, match=message):
        prune.global_magnitude_([w, w.view(2, 2)], 1, **options)
    assert w.all()


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.integers(0, 9),
    st.sampled_from([None, 0.5, 0.75]),
    st.data(),
)
@settings(deadline=None, max_examples=200)
def test_infeasible_minima_are_refused_with_what_would_fit(sizes, sigma, cap, data):
    total = sum(sizes)
    amount = data.draw(st.integers(0, total))
    layers = [torch.arange(1.0, n + 1) for n in sizes]

    def least(s):
        return sum(max(min(s, n), math.ceil((1 - cap) * n) if cap else 0) for n in sizes)

    if least(sigma) <= total - amount:
        assert prune.global_magnitude_mask(layers, amount, min_keep=sigma, max_sparsity=cap).pruned == amount
        return
    with pytest.raises(ValueError, match="must leave enough weights to prune") as error:
        prune.global_magnitude_(layers, amount, min_keep=sigma, max_sparsity=cap)
    assert f"the largest feasible amount is {total - least(sigma)}" in str(error.value)
    if least(0) > total - amount:
        assert str(error.value).startswith("max_sparsity must")
    else:
        largest = max(s for s in range(10) if least(s) <= total - amount)
        assert str(error.value).endswith(f"the largest feasible min_keep for every layer {largest}")
    assert all(w.all() for w in layers)


def test_the_result_names_the_layers_that_bind():
    result = prune.global_magnitude_mask([torch.tensor([1.0, 2.0, 3.0]), torch.arange(10.0, 20.0)], 10, min_keep=1)
    first, second = result.layers
    assert (first.kept, first.binds, first.threshold, first.minimum) == (1, True, 3.0, 1)
    assert (second.kept, second.binds, second.threshold, second.minimum) == (2, False, 18.0, 1)
    assert first.sparsity == 2 / 3
    assert result.threshold == 18.0


# ---- ties and numbers that are not


def test_ties():
    w = torch.tensor([2.0, 1.0, -1.0, 1.0, 0.5])
    assert prune.global_magnitude_mask(w, 3).mask.to_bool()["0"].tolist() == [True, True, False, False, False]
    assert kept([w], 3, ties="keep_all") == [4]
    assert kept([w], 3, ties="prune_all") == [1]
    assert kept([w], 3, ties="prune_all", min_keep=2) == [2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_nan_is_refused_by_name_before_anything_changes(dtype):
    first, second = torch.ones(3, dtype=dtype), torch.ones(2, 3).to(dtype)
    second[1, 0] = nan
    second[1, 2] = nan
    with pytest.raises(ValueError, match=r"targets must not hold NaN, got 2 in 'b', the first at \(1, 0\); nan='keep'"):
        prune.global_magnitude_({"a": first, "b": second}, 4)
    assert first.float().eq(1).all()
    assert second.float().eq(1).sum() == 4


def test_nan_kept_or_pruned():
    values = [nan, inf, -inf, 1.0, -nan]
    w = torch.tensor(values)
    result = prune.global_magnitude_(w, 3, nan="keep")
    assert [math.isnan(x) for x in w.tolist()] == [True, False, False, False, True]
    assert w[1:4].tolist() == [0, 0, 0]
    assert math.isnan(result.threshold)
    w = torch.tensor(values)
    assert prune.global_magnitude_(w, 3, nan="prune").threshold == inf
    assert w.tolist() == [0, inf, -inf, 0, 0]


def test_infinities_that_fall_become_zero_not_nan():
    w = torch.tensor([inf, -inf, inf, 1.0])
    prune.global_magnitude_(w, 3)
    assert w.tolist() == [inf, 0, 0, 0]
    assert not torch.signbit(w).any()


def test_all_zero_denormal_and_int8_extremes():
    assert kept([torch.zeros(5)], 2) == [3]
    w = torch.tensor([1e-45, 0.0, -0.0, -3e-45])
    prune.global_magnitude_(w, 3)
    assert w.tolist() == [0, 0, 0, pytest.approx(-3e-45, rel=0.1)]
    q = torch.tensor([127, -128, 0, -127], dtype=torch.int8)
    result = prune.global_magnitude_(q, 3)
    assert q.tolist() == [0, -128, 0, 0]
    assert result.threshold == 128


def test_mixed_dtypes_are_ranked_exactly():
    layers = [
        torch.tensor([1 + 2**-40], dtype=torch.float64),
        torch.tensor([1.0]),
        torch.tensor([1.0078125], dtype=torch.bfloat16),
        torch.tensor([1], dtype=torch.int8),
        torch.tensor([1.125]).to(torch.float8_e4m3fn),
    ]
    assert kept(layers, 2) == [1, 0, 1, 0, 1]
    assert prune.global_magnitude_(layers, 2).threshold == 1 + 2**-40


# ---- what must not go wrong on the way


def test_leaves_that_require_grad_and_autograd_notices():
    w = nn.Parameter(torch.arange(1.0, 5))
    loss = (w * w).sum()
    prune.global_magnitude_(w, 2)
    assert w.is_leaf
    assert w.requires_grad
    assert w.tolist() == [0, 0, 3, 4]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_masks_of_tied_data_bump_every_listed_tensor():
    w = torch.arange(1.0, 5)
    other = w.data  # same memory, its own version counter
    prune.global_magnitude_([w, other], 2)
    assert w._version > 0
    assert other._version > 0


def test_a_change_during_the_call_is_noticed(monkeypatch):
    model = network()
    before = copy.deepcopy(weights(model))
    select = _operators.select

    def disturbed(tensors, *rest):
        out = select(tensors, *rest)
        worker = threading.Thread(target=lambda: model[2].weight.detach().add_(0))
        worker.start()
        worker.join()
        return out

    monkeypatch.setattr(_operators, "select", disturbed)
    for call in (prune.global_magnitude_, prune.global_magnitude_mask):
        with pytest.raises(RuntimeError, match=r"targets must not change during the call, but '2\.weight' did"):
            call(model, 0.5)
    assert all(map(torch.equal, before, weights(model)))


def test_an_interrupt_between_the_passes_leaves_everything(monkeypatch):
    model = network()
    before = copy.deepcopy(weights(model))
    select = _operators.select

    def interrupted(*args):
        select(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(_operators, "select", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune.global_magnitude_(model, 0.5)
    assert all(map(torch.equal, before, weights(model)))


def test_threads_prune_their_own_models_alike():
    models = [network() for _ in range(4)]
    workers = [threading.Thread(target=prune.global_magnitude_, args=(m, 0.6)) for m in models]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for model in models[1:]:
        assert all(map(torch.equal, weights(model), weights(models[0])))
    assert sum(int((w == 0).sum()) for w in weights(models[0])) == prune.global_magnitude_mask(network(), 0.6).pruned


def test_pruning_twice_counts_zeros_that_are_there():
    model = network()
    first = prune.global_magnitude_(model, 0.5)
    second = prune.global_magnitude_(model, 0.5)
    assert first.mask == second.mask


# ---- the report


def test_the_table():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(2.0, 14).view(3, 4))
        model[1].weight.copy_(torch.tensor([[1.0, 0.5, 0.25]]))
    result = prune.global_magnitude_(model, 0.6, min_keep=1)
    assert str(result).splitlines() == [
        "pruned 9 of 15 weights (60.00%), threshold 9",
        "layer     shape  weights  kept  sparsity  threshold  minimum",
        "0.weight  3x4         12     5    58.33%          9        1",
        "1.weight  1x3          3     1    66.67%          1  1 binds",
    ]
    assert repr(result) == "PruneResult(amount=9, mask=BitMask(2 tensors, 15 weights, 16 bytes, cpu))"
    assert result.passes >= 1
    assert "scalar" in str(prune.global_magnitude_(torch.tensor(1.0), 1))


def test_an_empty_tensor_reports_no_sparsity():
    result = prune.global_magnitude_(torch.empty(0), 0)
    assert (result.kept, result.pruned, result.sparsity, result.threshold) == (0, 0, 0.0, inf)
    assert result.layers[0].sparsity == 0.0


def test_results_are_frozen():
    with pytest.raises(AttributeError):
        prune.global_magnitude_(torch.ones(2), 1).amount = 3


def test_multiplications_are_counted():
    model = network().train()
    model[0].eval()
    x = torch.zeros(2, 3, 8, 8)
    result = prune.global_magnitude_(model, 0.5, flops=x)
    assert [m.training for m in model] == [False, True, True, True, True]
    positions = [6 * 6, 4 * 4, 1]
    dense = sum(p * layer.size for p, layer in zip(positions, result.layers, strict=True))
    left = sum(p * layer.kept for p, layer in zip(positions, result.layers, strict=True))
    assert result.flops_sparsity == 1 - left / dense
    assert f"{result.flops_sparsity:.2%} of multiplications" in str(result)
    assert prune.global_magnitude_mask(model, 0.5).flops_sparsity is None


def test_multiplications_of_layers_left_out_count_as_dense():
    model = nn.Sequential(nn.Linear(4, 4), nn.ConvTranspose1d(4, 2, 3))
    x = torch.zeros(5, 4, 4)
    result = prune.global_magnitude_(model, 1.0, exclude=nn.ConvTranspose1d, flops=(x,))
    linear, transposed = 20 * 16, 20 * 24
    assert result.flops_sparsity == 1 - transposed / (linear + transposed)


def test_multiplications_need_a_module_that_runs():
    with pytest.raises(TypeError, match=r"flops must come with a module as targets, got list"):
        prune.global_magnitude_([torch.ones(2)], 1, flops=torch.ones(2))
    model = network()
    before = copy.deepcopy(weights(model))
    with pytest.raises(RuntimeError):
        prune.global_magnitude_(model, 0.5, flops=torch.zeros(2, 5))
    assert all(map(torch.equal, before, weights(model)))
    assert model.training
    assert not model[0]._forward_hooks
    with pytest.warns(UserWarning, match=r"flops: the example never called the layer of 'out_proj\.weight'"):
        prune.global_magnitude_mask(nn.MultiheadAttention(4, 2), 1, flops=(torch.zeros(3, 1, 4),) * 3)
