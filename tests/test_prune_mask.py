import copy
import json
import pickle
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from pyfast import prune
from pyfast.prune import BitMask


def example(seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"a": (7, 3), "empty": (0, 2), "scalar": (), "word": (64,), "more": (5, 13), "last": (65,)}
    return {name: torch.randint(2, shape, generator=g).bool() for name, shape in shapes.items()}


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[n], other[n]) for n in one)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=4), st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_bools_come_back(sizes, seed):
    g = torch.Generator().manual_seed(seed)
    masks = {str(i): torch.randint(2, (n,), generator=g).bool() for i, n in enumerate(sizes)}
    mask = BitMask.from_bool(masks)
    assert same(mask.to_bool(), masks)
    assert mask.kept == sum(int(m.sum()) for m in masks.values())
    assert mask.nbytes == 8 * sum(-(-n // 64) for n in sizes)


def test_bits_lie_as_documented():
    mask = BitMask.from_bool({"a": torch.arange(70) % 69 == 0, "b": torch.arange(64) == 63})
    assert mask.bits.tolist() == [1, 1 << 5, -(1 << 63)]
    assert BitMask.from_bool({"t": torch.tensor([[True, False], [True, True]]).T}).bits.tolist() == [0b1011]


def test_counts():
    mask = BitMask.from_bool({"a": torch.arange(10) < 3})
    assert (mask.size, mask.kept, mask.sparsity) == (10, 3, 0.7)
    assert BitMask.from_bool({"a": torch.zeros(0, dtype=torch.bool)}).sparsity == 0.0
    assert repr(mask) == "BitMask(1 tensors, 10 weights, 8 bytes, cpu)"


def test_from_bool_refuses():
    with pytest.raises(ValueError, match=r"masks must hold at least one tensor, got none"):
        BitMask.from_bool({})
    with pytest.raises(TypeError, match=r"masks must be bool tensors, got torch.float32 for 'a'"):
        BitMask.from_bool({"a": torch.ones(2)})
    with pytest.raises(TypeError, match=r"masks must be on one device, got cpu and meta for 'b'"):
        BitMask.from_bool({"a": torch.ones(2).bool(), "b": torch.ones(2, device="meta").bool()})


def test_the_parts_must_fit():
    bits = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"bits must be an int64 tensor, got torch\.int32"):
        BitMask(bits.int(), ("a",), ((100,),))
    with pytest.raises(ValueError, match=r"bits must have shape \(1,\) to match shapes, got \(2,\)"):
        BitMask(bits, ("a",), ((64,),))
    for names in (("a",), ("a", "a")):
        with pytest.raises(ValueError, match=r"names must be 2 different ones, one per shape, got"):
            BitMask(bits, names, ((64,), (64,)))


def test_and_or_equal():
    a, b = BitMask.from_bool(example(1)), BitMask.from_bool(example(2))
    assert same((a & b).to_bool(), {n: m & b.to_bool()[n] for n, m in a.to_bool().items()})
    assert same((a | b).to_bool(), {n: m | b.to_bool()[n] for n, m in a.to_bool().items()})
    assert a == BitMask.from_bool(example(1))
    assert a != b
    assert a != BitMask(a.bits, tuple(reversed(a.names)), a.shapes)
    assert a != 3
    with pytest.raises(TypeError, match="unhashable"):
        hash(a)
    with pytest.raises(ValueError, match=r"other must have the same names and shapes, got a difference in 'x'"):
        BitMask.from_bool({"x": torch.ones(3).bool()}) & BitMask.from_bool({"y": torch.ones(3).bool()})
    with pytest.raises(TypeError, match=r"other must be a BitMask, got int"):
        a | 3


def test_pickle_deepcopy_and_device():
    mask = BitMask.from_bool(example())
    assert pickle.loads(pickle.dumps(mask)) == mask
    twin = copy.deepcopy(mask)
    assert twin == mask
    assert twin.bits.data_ptr() != mask.bits.data_ptr()
    assert mask.to("cpu") == mask
    assert mask.to("meta").bits.device.type == "meta"
    result = prune.global_magnitude_mask(torch.ones(5), 2)
    assert str(pickle.loads(pickle.dumps(result))) == str(copy.deepcopy(result)) == str(result)


# ---- apply


def test_apply_takes_every_form():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    mask = prune.global_magnitude_mask(model, 0.5).mask
    dense = copy.deepcopy(model.state_dict())
    expected = {n: dense[n].where(m, 0) for n, m in mask.to_bool().items()}

    state = copy.deepcopy(dense)
    mask.apply_(state)
    assert same({n: state[n] for n in expected}, expected)
    assert torch.equal(state["0.bias"], dense["0.bias"])
    momenta = [dense["0.weight"].clone(), dense["1.weight"].clone()]
    mask.apply_(iter(momenta))
    assert all(map(torch.equal, momenta, expected.values()))
    mask.apply_(torch.compile(model, backend="eager"))
    assert same({n: model.state_dict()[n] for n in expected}, expected)
    alone = prune.global_magnitude_mask(dense["0.weight"], 10).mask
    alone.apply_(dense["0.weight"])
    assert int((dense["0.weight"] == 0).sum()) == 10


def test_apply_finds_whatever_the_mask_was_made_of():
    layer = nn.Linear(4, 4)
    prune.global_magnitude_mask(layer, 1.0, include="bias").mask.apply_(layer)
    assert not layer.bias.any()
    assert layer.weight.all()


def test_apply_selects():
    w = torch.tensor([torch.inf, -torch.inf, torch.nan, -1.0])
    mask = BitMask.from_bool({"w": torch.tensor([True, False, False, False])})
    before = w._version
    mask.apply_(w)
    assert w.tolist() == [torch.inf, 0, 0, 0]
    assert not torch.signbit(w).any()
    assert w._version > before


def test_apply_refuses_before_anything_changes():
    mask = BitMask.from_bool({"a": torch.zeros(2).bool(), "b": torch.zeros(3).bool()})
    a, b = torch.ones(2), torch.ones(3)
    with pytest.raises(ValueError, match=r"targets must hold every name of the mask, got none called 'b'"):
        mask.apply_({"a": a})
    with pytest.raises(ValueError, match=r"targets must have shape \(3,\) for 'b', got \(4,\)"):
        mask.apply_({"a": a, "b": torch.ones(4)})
    with pytest.raises(ValueError, match=r"targets must hold 2 tensors to match the mask, got 1"):
        mask.apply_([a])
    with pytest.raises(TypeError, match=r"targets must be one of .*, got torch\.int64 for 'b'"):
        mask.apply_([a, b.long()])
    with pytest.raises(ValueError, match=r"targets must not share memory, got 'a' inside 'b'"):
        mask.apply_([b[:2], b])
    with pytest.raises(TypeError, match=r"targets must be a module, a dict or tensors, got int"):
        mask.apply_(3)
    assert a.all()
    assert b.all()


# ---- files


def test_files_come_back(tmp_path):
    mask = BitMask.from_bool(example())
    mask.save(tmp_path / "m.safetensors")
    assert BitMask.load(str(tmp_path / "m.safetensors")) == mask
    BitMask.from_bool(example(1)).save(tmp_path / "m.safetensors")
    assert BitMask.load(tmp_path / "m.safetensors") == BitMask.from_bool(example(1))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    mask = BitMask.from_bool(example())
    mask.save(path)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        BitMask.from_bool(example(1)).save(path)
    assert BitMask.load(path) == mask
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_foreign_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    refused = r"path must be a mask written by BitMask\.save, got '.*m\.safetensors', which "
    with pytest.raises(FileNotFoundError):
        BitMask.load(path)
    path.write_bytes(b"not at all")
    with pytest.raises(ValueError, match=refused + "is damaged or no safetensors file"):
        BitMask.load(path)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=refused + "holds something else"):
        BitMask.load(path)
    mask = BitMask.from_bool({"a": torch.ones(70).bool()})
    mask.save(path)
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=refused):
            BitMask.load(path)


def test_contents_are_checked(tmp_path):
    path = tmp_path / "m.safetensors"
    bits = torch.tensor([-1, 63])

    def written(bits=bits, names=("a",), shapes=((70,),), **other):
        names = names if isinstance(names, str) else json.dumps(names)
        about = {
            "format": "pyfast.prune.BitMask",
            "names": names,
            "shapes": shapes if isinstance(shapes, str) else json.dumps(shapes),
        } | other
        save_file({"bits": bits}, path, about)
        return BitMask.load(path)

    assert written().kept == 70
    wrong = {
        r"bits set behind a tensor's last weight": {"bits": torch.tensor([-1, 64])},
        r"bits must have shape \(2,\)": {"bits": torch.tensor([-1])},
        r"bits must be an int64 tensor, got torch.int32": {"bits": bits.int()},
        r"names must be 1 different ones": {"names": ("a", "b")},
        r"names must be strings": {"names": (1,)},
        r"none negative": {"shapes": ((-70,),)},
        r"at most 64 sizes": {"shapes": ((1,) * 65,)},
        r"fewer than 2\^63": {"shapes": ((0, 2**63),)},
        r"names and shapes must be lists": {"shapes": "{}"},
        r"recursion": {"names": "[" * 200_000},
        r"is damaged": {"shapes": "{"},
        r"shapes must be lists": {"shapes": (70,)},
    }
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=message):
            written(**change)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    mask = BitMask.from_bool(example())
    for call in (mask.save, BitMask.load):
        with pytest.raises(ImportError, match=r"pip install 'pyfast-kernels\[cli\]'"):
            call(tmp_path / "m")


# ---- torch.nn.utils.prune


def test_masks_cross_over_to_torch_and_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    mask = prune.global_magnitude_mask(model, 0.5).mask
    expected = {n: model.state_dict()[n].where(m, 0) for n, m in mask.to_bool().items()}
    mask.to_torch_prune(model)
    assert nn.utils.prune.is_pruned(model)
    assert torch.equal(model[0].weight, expected["0.weight"])
    assert torch.equal(model[2].weight, expected["2.weight"])
    assert BitMask.from_torch_prune(model) == mask
    for i in (0, 2):
        nn.utils.prune.remove(model[i], "weight")
    assert torch.equal(model[0].weight, expected["0.weight"])


def test_tied_weights_cross_over_together():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    mask = prune.global_magnitude_mask(model, 0.5).mask
    mask.to_torch_prune(model)
    assert torch.equal(model[0].weight, model[1].weight)
    assert BitMask.from_torch_prune(model) == mask
    model[1].weight_mask.fill_(1)
    with pytest.raises(
        ValueError, match=r"module must have one mask per weight, got two for '0\.weight' and '1\.weight'"
    ):
        BitMask.from_torch_prune(model)


def test_torch_prune_needs_a_mask_that_fits():
    with pytest.raises(ValueError, match=r"module must be pruned by torch\.nn\.utils\.prune, got no mask in it"):
        BitMask.from_torch_prune(nn.Linear(2, 2))
    model = nn.Sequential(nn.Linear(2, 2))
    mask = BitMask.from_bool({"0.weight": torch.ones(2, 2).bool(), "1.weight": torch.ones(2, 2).bool()})
    with pytest.raises(ValueError, match=r"got none called '1\.weight'"):
        mask.to_torch_prune(model)
    assert not nn.utils.prune.is_pruned(model)
