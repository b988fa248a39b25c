import math

import pytest
import torch

from pyfast import linear_attention

attention = linear_attention.attention


def tokens(b):
    """The tensors of a call that is right."""
    return {"q": torch.ones(b, 5, 2, 3), "k": torch.ones(b, 5, 2, 3), "v": torch.ones(b, 5, 2, 4)}


def wrong(**changes):
    return {**tokens(2), "initial_state": torch.zeros(2, 2, 3, 4), **changes}


I64 = torch.int64
REFUSED = [
    ({"causal": None}, TypeError, "causal must be a bool, got None"),
    ({"reverse": "no"}, TypeError, "reverse must be a bool, got 'no'"),
    ({"normalize": 2}, TypeError, "normalize must be a bool, got 2"),
    ({"output_final_state": 1}, TypeError, "output_final_state must be a bool, got 1"),
    ({"scale": 1e300}, ValueError, r"scale must be finite in torch\.float32, got 1e\+300"),
    ({"scale": 10**400}, ValueError, "scale must be finite in"),
    ({"q": torch.zeros(2, 5, 2, 3).to_sparse()}, TypeError, r"q must be a dense tensor, got torch\.sparse_coo"),
    ({"q": torch.zeros(2, 5, 2)}, ValueError, r"q must have shape \(B, T, H, K\), got \(2, 5, 2\)"),
    ({"v": torch.zeros(2, 5, 2)}, ValueError, r"v must have shape \(B, T, H, V\), got"),
    ({"q": torch.zeros(2, 5, 2, 3, dtype=I64)}, TypeError, "q must be float16, .* got torch.int64"),
    ({"k": torch.zeros(2, 5, 2, 3).double()}, TypeError, "k and v must have the dtype of q, torch.float32, got"),
    ({"k": torch.zeros(2, 4, 2, 3)}, ValueError, r"k must have shape \(2, 5, H, 3\) .* got \(2, 4, 2, 3\)"),
    ({"k": torch.zeros(2, 5, 2, 4)}, ValueError, r"k must have shape \(2, 5, H, 3\)"),
    ({"v": torch.zeros(2, 4, 2, 3)}, ValueError, r"v must have shape \(2, 5, H, V\)"),
    ({"k": torch.zeros(2, 5, 3, 3)}, ValueError, "q must have a divisor of 3 heads, .* got 2"),
    ({"k": torch.zeros(2, 5, 0, 3)}, ValueError, "k must have a divisor of 2 heads, .* got 0"),
    ({"decay": torch.zeros(2, 5)}, ValueError, "decay must have shape"),
    ({"decay": torch.zeros(3)}, ValueError, "decay must have a divisor of 2 heads, .* got 3"),
    ({"decay": torch.zeros(2, 5, 2, 4)}, ValueError, "decay must have shape"),
    ({"decay": torch.zeros(2, dtype=I64)}, TypeError, "decay must be float16"),
    ({"beta": torch.zeros(2, 5)}, ValueError, "beta must have shape"),
    ({"beta": torch.zeros(2, 5, 2, dtype=I64)}, TypeError, "beta must be float16"),
    ({"beta": torch.zeros(2, 5, 2), "normalize": True}, ValueError, "normalize must be False with beta"),
    ({"causal": False, "beta": torch.zeros(2, 5, 2)}, ValueError, "beta must be None if causal is False"),
    ({"causal": False, "decay": torch.zeros(2)}, ValueError, "decay must be None if causal is False"),
    ({"causal": False, "reverse": True}, ValueError, "reverse must be False if causal is False"),
    ({"initial_state": torch.zeros(2, 2, 4, 3)}, ValueError, r"initial_state must have shape \(2, 2, 3, 4\), got"),
    ({"normalize": True}, ValueError, r"initial_state must have shape \(2, 2, 3, 5\), with the column"),
    ({"initial_state": torch.zeros(2, 2, 3, 4).half()}, TypeError, "initial_state must be float32 or float64, got"),
    ({"cu_seqlens": torch.tensor([0, 5])}, ValueError, "q must have a batch of 1 where cu_seqlens is given, got 2"),
    ({"cu_seqlens": torch.zeros(2, 2, dtype=I64)}, ValueError, r"cu_seqlens must have shape \(N \+ 1,\), got"),
    ({"cu_seqlens": torch.tensor([0.0, 5.0])}, TypeError, "cu_seqlens must be torch.int64, got torch.float32"),
    ({"cu_seqlens_k": torch.tensor([0, 5])}, ValueError, "cu_seqlens_k must be None unless"),
    ({"q": [1.0]}, TypeError, "q must be a torch.Tensor, got list"),
    ({"q": [1.0], "out": torch.zeros(1)}, TypeError, "q must be a torch.Tensor, got list"),
    ({"out": [1.0]}, TypeError, "out must be a torch.Tensor, got list"),
    ({"v": None}, TypeError, "v must be a torch.Tensor, got NoneType"),
    ({"decay": -0.1}, TypeError, "decay must be a torch.Tensor, got float"),
    ({"cu_seqlens": [0, 5]}, TypeError, "cu_seqlens must be a torch.Tensor, got list"),
    ({"initial_state": (1, 2)}, TypeError, "initial_state must be a torch.Tensor, got tuple"),
    ({"scale": "a"}, TypeError, "scale must be a number, got str"),
    ({"scale": torch.tensor(1.0)}, TypeError, "scale must be a number, got Tensor"),
    ({"eps": None}, TypeError, "eps must be a number, got NoneType"),
    ({"scale": math.nan}, ValueError, r"scale must be finite in torch\.float32, got nan"),
    ({"eps": -1.0, "scale": 1.0}, ValueError, "eps must be at least 0 and finite, got -1.0"),
    ({"eps": math.nan}, ValueError, "eps must be at least 0 and finite, got nan"),
    ({"k": torch.zeros(2, 5, 2, 3, device="meta")}, TypeError, "k must be on the device of q, cpu, got meta"),
    ({"out": torch.zeros(2, 5, 2, 3)}, ValueError, r"out must have shape \(2, 5, 2, 4\), got"),
    ({"out": torch.zeros(2, 5, 1, 4).expand(2, 5, 2, 4)}, ValueError, "out must have a place of its own for every"),
    ({"out": torch.zeros(99).as_strided((2, 5, 2, 4), (40, 4, 4, 1))}, ValueError, "out must have a place of its own"),
    (
        {"out": torch.empty(2, 5, 2, 4, dtype=torch.complex64).conj().imag},
        ValueError,
        "out must not be a negative view",
    ),
    ({"out": torch.zeros(2, 5, 2, 4).double()}, TypeError, "out must be torch.float32 on cpu as q, got"),
    ({"out": torch.zeros(2, 5, 2, 4, requires_grad=True)}, ValueError, "out must be None where a gradient is wanted"),
]


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED)
def test_refuses_bad_input_by_name(changes, error, message):
    with pytest.raises(error, match=message):
        attention(**wrong(**changes))


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([1, 5], "got 1 at 0"),
        ([0, 4], "got 4 at 1"),
        ([0, 6], "got 6 at 1"),
        ([0, 3, 2, 5], "got 2 at 2"),
        ([0, -1, 5], "got -1 at 1"),
        ([0], "got one number"),
    ],
)
def test_refuses_lengths_that_do_not_fit(ends, message):
    for options in ({}, {"causal": False}, {"normalize": True}, {"beta": torch.ones(1, 5, 2)}):
        with pytest.raises(ValueError, match=f"cu_seqlens must rise from 0 to the 5 tokens, {message}"):
            attention(**tokens(1), cu_seqlens=torch.tensor(ends), **options)
    if len(ends) > 1:
        good = torch.tensor([0] * (len(ends) - 1) + [5])
        with pytest.raises(ValueError, match=f"cu_seqlens_k must rise from 0 to the 5 tokens, {message}"):
            attention(**tokens(1), causal=False, cu_seqlens=good, cu_seqlens_k=torch.tensor(ends))


def test_refuses_to_write_over_its_input():
    x = torch.randn(1, 5, 2, 4)
    with pytest.raises(ValueError, match="out must not share memory with an input"):
        attention(x, x, x, out=x)


def test_steps_refuse_what_they_cannot_take():
    q = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"v must have shape \(B, H, V\), got \(2, 3\)"):
        linear_attention.step(q, q.clone(), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"decay must have shape \(H,\), \(2, H\) or \(2, H, 4\), got \(1, 2, 3, 4\)"):
        linear_attention.step(q, q.clone(), q.clone(), decay=torch.zeros(1, 2, 3, 4))
    with pytest.raises(ValueError, match=r"decay must have shape \(H,\), \(2, H\) or \(2, H, 4\), got \(2, 3, 5\)"):
        linear_attention.step(q, q.clone(), q.clone(), decay=torch.zeros(2, 3, 5))
    with pytest.raises(TypeError, match=r"state must be a torch.Tensor, got tuple"):
        linear_attention.step(q, q.clone(), q.clone(), (q, q))
    with pytest.raises(ValueError, match=r"beta must have shape \(2, H\), got \(2, 3, 1\)"):
        linear_attention.step(q, q.clone(), q.clone(), beta=torch.zeros(2, 3, 1))


def test_step_names_its_own_arguments():
    q, k, v = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)
    with pytest.raises(ValueError, match=r"v must have shape \(2, H, V\) to match q \(2, 3, 4\), got \(1, 3, 5\)"):
        linear_attention.step(q, k, v[:1])
    with pytest.raises(ValueError, match=r"^state must have shape \(2, 3, 4, 5\), got \(2, 3, 4, 4\)"):
        linear_attention.step(q, k, v, torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"^state must have shape \(2, 3, 4, 5\), got \(2, 3, 4, 6\)"):
        linear_attention.step(q, k, v, torch.zeros(2, 3, 4, 6))
    with pytest.raises(ValueError, match=r"^state must have shape \(2, 3, 4, 6\), with .*, got \(2, 3, 4, 5\)"):
        linear_attention.step(q, k, v, torch.zeros(2, 3, 4, 5), normalize=True)
    with pytest.raises(ValueError, match=r"^state must have shape \(2, 3, 4, 5\), got \(\)"):
        linear_attention.step(q, k, v, torch.zeros(()))
    for state in (None, torch.zeros(2, 3, 4, 6)):
        with pytest.raises(ValueError, match="normalize must be False with beta"):
            linear_attention.step(q, k, v, state, beta=torch.zeros(2, 3), normalize=True)


def test_out_shares_nothing_with_the_ends_of_sequences():
    memory = torch.zeros(8 * 2 * 4, dtype=torch.float64)
    ends = memory[-3:].view(torch.int64)
    ends.copy_(torch.tensor([0, 4, 8]))
    q = torch.zeros(1, 8, 2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="out must not share memory with an input"):
        attention(q, q, q, cu_seqlens=ends, out=memory.view(1, 8, 2, 4))


def test_more_than_can_be_counted_in_32_bits():
    many = torch.zeros(1).expand(2**33, 0, 1, 4)
    assert attention(many, many, many).shape == many.shape
    large = torch.zeros(1).expand(1, 1, 1, 2**61)
    with pytest.raises(ValueError, match=r"q and k must have at most 2\^31 dimensions, got 2305843009213693952"):
        attention(large, large, torch.zeros(1, 1, 1, 1))
    empty = torch.zeros(1).expand(1, 2**40, 1, 0)  # is over at once
    assert attention(empty, empty, empty).shape == empty.shape
    strides = torch.empty(1, 0, 2, 4).expand(2, 0, 2, 4)
    assert attention(strides, strides, strides, out=torch.empty_like(strides)).shape == strides.shape
