import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from pyfast import prune
from pyfast.prune.memory import unique


def names(targets, **options):
    return list(prune.global_magnitude_mask(targets, 0, **options).mask.names)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose1d(2, 2, 3), nn.Embedding(5, 4), nn.Linear(4, 2)
    )


def test_modules_default_is_linear_and_conv_weights_in_order():
    assert names(network()) == ["0.weight", "2.weight", "4.weight"]
    assert names(nn.Linear(2, 2)) == ["weight"]


def test_include_and_exclude_take_classes_and_patterns():
    model = network()
    assert names(model, include=nn.Embedding) == ["3.weight"]
    assert names(model, include=[nn.Embedding, r"^4\."]) == ["3.weight", "4.weight", "4.bias"]
    assert names(model, exclude=nn.Conv2d) == ["2.weight", "4.weight"]
    assert names(model, exclude=[r"^0\.", nn.ConvTranspose1d]) == ["4.weight"]
    assert names(nn.MultiheadAttention(4, 2)) == ["out_proj.weight"]
    assert names(nn.MultiheadAttention(4, 2), include=r"proj_weight|proj\.weight") == ["in_proj_weight", "out_proj.weight"]


def test_a_pattern_that_matches_nothing_is_refused():
    for argument in ("include", "exclude"):
        with pytest.raises(ValueError, match=rf"{argument} must match a name in targets, got 'wieght', which matches none"):
            names(network(), **{argument: "wieght"})
    with pytest.raises(TypeError, match=r"include must hold module classes and regular expressions, got 3"):
        names(network(), include=[3])
    with pytest.raises(TypeError, match=r"include and exclude must come with a module or a dict, got list"):
        names([torch.ones(2)], include="w")
    with pytest.raises(TypeError, match=r"exclude must hold regular expressions for a dict, got Linear"):
        names({"w": torch.ones(2)}, exclude=nn.Linear)


def test_dicts_count_every_tensor_but_counters():
    state = network().state_dict()
    every = [n for n in state if "num_batches" not in n]
    assert "1.num_batches_tracked" in state
    assert names(state) == every
    assert names(state, include=r"^0\.", exclude="bias") == ["0.weight"]
    assert names({"q": torch.ones(3, dtype=torch.int8), "b": torch.ones(3, dtype=torch.bool)}) == ["q"]


def test_lists_and_lone_tensors_are_numbered():
    assert names([torch.ones(2), torch.ones(3)]) == ["0", "1"]
    assert names(torch.ones(2)) == ["0"]
    assert names(nn.Linear(2, 2).parameters()) == ["0", "1"]


def test_nothing_to_prune_is_refused():
    with pytest.raises(ValueError, match=r"targets must hold at least one tensor, got none"):
        prune.global_magnitude_([], 0)
    with pytest.raises(ValueError, match=r"at least one tensor, got none"):
        prune.global_magnitude_({"n": torch.ones(2, dtype=torch.int64)}, 0)
    with pytest.raises(ValueError, match=r"at least one module with a Linear or Conv layer \(or say include=\), got none"):
        prune.global_magnitude_(nn.ReLU(), 0)
    with pytest.raises(TypeError, match=r"targets must be a module, a tensor, a list or a dict of tensors, got int"):
        prune.global_magnitude_(3, 0)


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    result = prune.global_magnitude_(model, 8)
    assert result.mask.names == ("0.weight",)
    assert result.tied == {"1.weight": "0.weight"}
    assert int((model[0].weight == 0).sum()) == 8
    assert "1.weight is counted as 0.weight" in str(result)


def test_views_count_with_what_covers_them():
    qkv = torch.arange(1.0, 19).view(6, 3)
    result = prune.global_magnitude_({"k": qkv[2:4], "qkv": qkv, "t": qkv.T, "flat": qkv.view(-1)}, 9)
    assert result.tied == {"k": "qkv", "t": "qkv", "flat": "qkv"}
    assert int((qkv == 0).sum()) == 9
    holes = torch.arange(1.0, 41).view(4, 10)
    every, part = holes[:, ::2], holes[1:3, 2:6:2]
    assert prune.global_magnitude_({"part": part, "every": every}, 4).tied == {"part": "every"}
    assert holes[0].tolist() == [0, 2, 0, 4, 0, 6, 0, 8, 9, 10]


def test_interleaved_tensors_are_apart():
    w = torch.arange(1.0, 9).view(2, 4)
    result = prune.global_magnitude_({"even": w[:, ::2], "odd": w[:, 1::2], "none": w[:0]}, 3)
    assert result.mask.names == ("even", "odd", "none")
    assert w.tolist() == [[0, 0, 0, 4], [5, 6, 7, 8]]


def test_partial_overlap_is_refused_by_both_names():
    w = torch.arange(1.0, 11)
    with pytest.raises(ValueError, match=r"targets must not overlap in part, got 'a' and 'b'"):
        prune.global_magnitude_({"a": w[:6], "b": w[5:]}, 3)
    with pytest.raises(ValueError, match=r"must not overlap in part, got 'a' and 'c'"):
        prune.global_magnitude_({"a": w[::2], "b": w[1:4:2], "c": w[2:4]}, 3)
    with pytest.raises(ValueError, match=r"must not share memory under different dtypes, got 'a' and 'b'"):
        prune.global_magnitude_({"a": w, "b": w.view(torch.int8)}, 3)
    assert w.tolist() == list(range(1, 11))


def test_self_overlap_is_refused():
    for bad in (torch.ones(1, 3).expand(2, 3), torch.ones(9).as_strided((3, 4), (2, 1))):
        with pytest.raises(ValueError, match=r"targets must not overlap themselves, got strides .* for 'w'"):
            prune.global_magnitude_({"w": bad}, 1)
    odd = torch.ones(9).as_strided((2, 3), (3, 2))  # 0 2 4 3 5 7: crossing strides, but every place once
    assert prune.global_magnitude_(odd, 6).pruned == 6


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=200)
def test_memory_is_judged_as_sets_of_places(slices):
    memory = torch.zeros(40)
    tensors = [memory[a : a + s * n : s] for a, s, n in slices]
    places = [set(range(a, a + s * n, s)) for a, s, n in slices]
    whole = [p for i, p in enumerate(places) if not any(p < q or (p == q and j < i) for j, q in enumerate(places))]
    apart = sum(map(len, whole)) == len(set().union(*whole))
    if apart:
        assert prune.global_magnitude_mask(tensors, 0).mask.size == sum(map(len, whole))
    else:
        with pytest.raises(ValueError, match="overlap in part"):
            prune.global_magnitude_mask(tensors, 0)


REFUSED = {
    "torch.complex64": lambda: torch.ones(2, dtype=torch.complex64),
    "torch.int32": lambda: torch.ones(2, dtype=torch.int32),
    "torch.bool": lambda: torch.ones(2, dtype=torch.bool),
    "torch.float8_e4m3fnuz": lambda: torch.ones(2).to(torch.float8_e4m3fnuz),
    "torch.sparse_coo": lambda: torch.ones(2).to_sparse(),
    "a meta tensor": lambda: torch.ones(2, device="meta"),
    "a negated view": lambda: torch.ones(2, dtype=torch.complex64).conj().imag,
    "UninitializedParameter": lambda: nn.LazyLinear(2).weight,
    "ndarray": lambda: torch.ones(2).numpy(),
    "Mine": lambda: torch.ones(2).as_subclass(type("Mine", (torch.Tensor,), {})),
    "a pair": lambda: (nn.Linear(2, 2), "weight"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_tensors_without_a_place_or_a_magnitude_are_refused_by_name(what):
    good = torch.tensor([1.0, 2.0])
    with pytest.raises(TypeError, match=rf"targets must .*, got {what} for '1'"):
        prune.global_magnitude_([good, REFUSED[what]()], 1)
    assert good.tolist() == [1, 2]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantised_and_nested_tensors_are_refused():
    with pytest.raises(TypeError, match=r"targets must be one of float64.*, got torch.qint8 for 'w'"):
        prune.global_magnitude_({"w": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}, 1)
    with pytest.raises(TypeError, match=r"targets must be dense and strided, got a nested tensor for '0'"):
        prune.global_magnitude_([torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])], 1)


def test_fake_tensors_are_refused():
    with torch._subclasses.FakeTensorMode():
        fake = torch.ones(2)
    with pytest.raises(TypeError, match=r"targets must be plain tensors: .*, got FakeTensor for '0'"):
        prune.global_magnitude_([fake], 1)


def test_computed_weights_are_refused_with_what_to_call():
    masked = nn.Sequential(nn.Linear(2, 2), nn.utils.prune.l1_unstructured(nn.Linear(2, 2), "weight", 1))
    with pytest.raises(TypeError, match=r"'1\.weight' is under torch\.nn\.utils\.prune: call torch\.nn\.utils\.prune\.remove"):
        prune.global_magnitude_(masked, 1)
    assert names(masked, include="weight_orig") == ["1.weight_orig"]
    assert names(masked, exclude=r"^1\.") == ["0.weight"]
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match=r"'0\.weight' is parametrized: call .*remove_parametrizations"):
        prune.global_magnitude_(normed, 1)
    assert names(normed, include=r"parametrizations\.weight\.original1") == ["0.parametrizations.weight.original1"]
    assert names(nn.Sequential(normed, nn.Linear(2, 2)), exclude=r"^0\.") == ["1.weight"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_old_weight_norm_is_refused():
    with pytest.raises(TypeError, match=r"'weight' is computed from bias, weight_g, weight_v: undo that first"):
        prune.global_magnitude_(nn.utils.weight_norm(nn.Linear(2, 2)), 1)


def test_wrappers_are_looked_through():
    model = nn.Sequential(nn.Linear(3, 3), torch.compile(nn.Linear(3, 3), backend="eager"))
    for wrapped in (model, torch.compile(model, backend="eager"), nn.DataParallel(model)):
        assert names(wrapped) == ["0.weight", "1.weight"]
    prune.global_magnitude_(torch.compile(model, backend="eager"), 1.0)
    assert not model[0].weight.any()


@pytest.fixture
def one_rank(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rank", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_wrappers(one_rank):
    model = nn.Sequential(nn.Linear(3, 3))
    assert names(nn.parallel.DistributedDataParallel(model)) == ["0.weight"]
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    shard = torch.distributed.tensor.distribute_tensor(torch.ones(4), mesh)
    with pytest.raises(TypeError, match=r"prune before sharding, or gather with full_tensor\(\), got a DTensor for 'w'"):
        prune.global_magnitude_({"w": shard}, 1)


def test_mixed_devices_are_refused():
    mixed = [("a", torch.ones(2)), ("b", torch.ones(2, device="meta"))]  # meta stands for any other device
    with pytest.raises(TypeError, match=r"targets must be on one device, got 'a' on cpu, 'b' on meta"):
        unique(mixed)


def test_inference_tensors_need_inference_mode():
    with torch.inference_mode():
        w = torch.tensor([1.0, 2.0])
    with pytest.raises(RuntimeError, match=r"targets must be normal tensors outside torch\.inference_mode\(\).*'0'"):
        prune.global_magnitude_(w, 1)
    assert prune.global_magnitude_mask(w, 1).kept == 1
    with torch.inference_mode():
        prune.global_magnitude_(w, 1)
    assert w.tolist() == [0, 2]


def test_normal_tensors_in_inference_mode_count_the_change():
    w = torch.tensor([1.0, 2.0])
    before = w._version
    with torch.inference_mode():
        prune.global_magnitude_(w, 1)
    assert w.tolist() == [0, 2]
    assert w._version > before


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4, 5)])
def test_every_layout_is_pruned_in_logical_order(shape):
    n = math.prod(shape)
    plain = (1 + torch.randperm(n, generator=torch.Generator().manual_seed(1))).float().view(shape)
    order = tuple(reversed(range(len(shape))))
    turned = plain.permute(order).clone(memory_format=torch.contiguous_format).permute(order)
    layouts = [plain.clone(), torch.stack([plain, plain], -1)[..., 1], turned]
    if len(shape) == 4:
        layouts.append(plain.clone(memory_format=torch.channels_last))
    for w in layouts:
        other = torch.full((3,), 0.5)
        result = prune.global_magnitude_([other, w], 3 + n // 2)
        assert torch.equal(w, plain.where(plain > n // 2, 0))
        assert result.layers[1].kept == n - n // 2
