import subprocess
import sys

import pytest
import torch

from pyfast import _C
from pyfast.reference import random as reference

# From kat_vectors of Random123, philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
STREAMS = [(0, 0), (1, 0), (2**63 - 1, 0), (12345678901234567, 3), (7, 2**40 + 5)]
INDICES = torch.cat([torch.arange(1000), 2**32 + torch.arange(-3, 3), torch.tensor([2**62 + 1, 2**63 - 1])])


def signed(x):
    return x - (1 << 64) if x >> 63 else x


def bits(seed, what, index):
    out = torch.empty(len(index), 4, dtype=torch.int64)
    _C.random.bits(seed, what, index, out)
    return out


def uniform(seed, what, index):
    out = torch.empty(len(index))
    _C.random.uniform(seed, what, index, out)
    return out


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter, key, result):
    assert reference.philox(tuple(key), torch.tensor(counter)).tolist() == result
    index, what = signed(counter[0] | counter[1] << 32), counter[2] | counter[3] << 32
    assert bits(key[0] | key[1] << 32, what, torch.tensor([index])).tolist() == [result]


@pytest.mark.parametrize(("seed", "what"), STREAMS)
def test_matches_reference(seed, what):
    assert torch.equal(bits(seed, what, INDICES), reference.bits(seed, what, INDICES))
    assert torch.equal(uniform(seed, what, INDICES), reference.uniform(seed, what, INDICES))


def test_no_index_no_numbers():
    assert bits(1, 2, INDICES[:0]).shape == (0, 4)
    assert uniform(1, 2, INDICES[:0]).shape == (0,)


def test_same_bits_on_any_number_of_threads(threads):
    index = torch.arange(100_003)
    threads(lambda: uniform(5, 0, index))


def test_uniform_reaches_both_ends_and_not_one():
    u = uniform(0, 0, torch.arange(1_000_000))
    assert 0 <= u.min() < 1e-5
    assert 1 - 1e-5 < u.max() < 1
    assert u.double().mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / 1_000_000) ** 0.5)


TRITON = """
import sys, torch, triton, triton.language as tl

@triton.jit
def kernel(seed, what, index, words, floats, plain, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.load(index + i, mask=i < n, other=0)
    lo, hi = j.to(tl.uint32), (j >> 32).to(tl.uint32)
    s, w = tl.load(seed), tl.load(what)
    a, b, c, d = tl.philox(s, lo, hi, lo * 0 + w.to(tl.uint32), lo * 0 + (w >> 32).to(tl.uint32))
    tl.store(words + 4 * i, a.to(tl.int64), mask=i < n)
    tl.store(words + 4 * i + 1, b.to(tl.int64), mask=i < n)
    tl.store(words + 4 * i + 2, c.to(tl.int64), mask=i < n)
    tl.store(words + 4 * i + 3, d.to(tl.int64), mask=i < n)
    tl.store(floats + i, tl.rand(s, j), mask=i < n)
    a, b, c, d = tl.randint4x(s, j)
    tl.store(plain + 4 * i, a.to(tl.uint32).to(tl.int64), mask=i < n)
    tl.store(plain + 4 * i + 1, b.to(tl.uint32).to(tl.int64), mask=i < n)
    tl.store(plain + 4 * i + 2, c.to(tl.uint32).to(tl.int64), mask=i < n)
    tl.store(plain + 4 * i + 3, d.to(tl.uint32).to(tl.int64), mask=i < n)

streams, index = torch.load(sys.argv[1])
results = []
for stream in streams:
    words, plain = (torch.zeros(len(index), 4, dtype=torch.int64) for _ in range(2))
    floats = torch.zeros(len(index))
    kernel[(4,)](stream[:1].clone(), stream[1:].clone(), index, words, floats, plain, len(index), BLOCK=256)
    results.append((words, floats, plain))
torch.save(results, sys.argv[2])
"""


def test_matches_triton(tmp_path):
    pytest.importorskip("triton")
    index = INDICES[-1024:]
    (tmp_path / "kernel.py").write_text(TRITON)
    torch.save((torch.tensor(STREAMS), index), tmp_path / "in.pt")
    command = [sys.executable, "kernel.py", "in.pt", "out.pt"]
    environment = {"TRITON_INTERPRET": "1", "PATH": "/usr/bin:/bin"}  # not in this process, where triton may be loaded
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    for (seed, what), (words, floats, plain) in zip(STREAMS, torch.load(tmp_path / "out.pt"), strict=True):
        assert torch.equal(words, bits(seed, what, index))
        assert torch.equal(plain, bits(seed, 0, index))
        assert torch.equal(floats, uniform(seed, 0, index))
