"""Memory of large outputs: nobody else's while a tensor lives, whoever allocates, and given back after."""

import os
import threading
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from pyfast import _C, _ops

DTYPES = [torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
LIKE = torch.empty(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2**20,), (3, 700_001), (1, 1, 2**21 + 1)])
def test_is_like_any_new_tensor(dtype, shape):
    x = _ops.empty(LIKE, *shape, dtype=dtype)
    usual = torch.empty(shape, dtype=dtype)
    for told in ("shape", "dtype", "device", "is_leaf", "requires_grad", "_version", "nbytes"):
        assert getattr(x, told) == getattr(usual, told)
    for told in ("stride", "storage_offset", "_is_view", "is_contiguous"):
        assert getattr(x, told)() == getattr(usual, told)()
    assert x.untyped_storage().nbytes() == x.nbytes
    x.fill_(1)
    assert (x == 1).all()


def test_small_and_empty_ones_are_pytorchs():
    for shape in [(0,), (2**30, 0), (5,), ()]:
        assert _ops.empty(LIKE, *shape, dtype=torch.float64).shape == shape
    assert _ops.empty(LIKE, 2**20, dtype=torch.bool).dtype == torch.bool


def test_more_than_there_is_raises():
    with pytest.raises(RuntimeError, match=r"allocate|invalid|overflow"):
        _ops.empty(LIKE, 2**45, 2**10, dtype=torch.float64)


def test_fake_and_meta_tensors_hold_nothing():
    assert _ops.empty(torch.empty(1, device="meta"), 2**40).is_meta
    with FakeTensorMode():
        assert _ops.empty(torch.empty(1), 2**40).shape == (2**40,)


def test_what_is_kept_is_used_again_until_it_is_trimmed():
    def address():
        return _ops.empty(LIKE, 2**20).data_ptr()

    _C.memory.trim()
    if _C.memory.allocate((2**20,), 2, 32) is not None:  # a sanitizer's build keeps nothing
        _C.memory.trim()
        assert address() == address()
    alive = _ops.empty(LIKE, 2**20).fill_(1)
    _C.memory.trim()
    _C.memory.trim()
    assert (alive == 1).all()


def test_inference_tensors():
    with torch.inference_mode():
        assert _ops.empty(LIKE, 2**20).is_inference()


def swap(rounds, seed, wrong):
    """Makes, frees and makes again tensors of all sizes, each full of a number of its own."""
    sizes = torch.Generator().manual_seed(seed)
    alive = {}
    for number in range(rounds):
        n = int(torch.randint(2**18, 2**21, (), generator=sizes))
        alive[number] = _ops.empty(LIKE, n).fill_(seed * rounds + number)
        if len(alive) > 6:
            first = next(iter(alive))
            wrong.extend(k for k, x in alive.items() if not (x == seed * rounds + k).all())
            del alive[first]


def test_threads_share_no_memory():
    wrong = []
    threads = [threading.Thread(target=swap, args=(40, seed, wrong)) for seed in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_forked_process_allocates():
    kept = _ops.empty(LIKE, 2**20).fill_(3)
    _ops.empty(LIKE, 2**20)
    pid = os.fork()
    if pid == 0:
        wrong = []
        torch.set_num_threads(1)
        swap(8, 1, wrong)
        os._exit(bool(wrong) or not bool((kept == 3).all()))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (kept == 3).all()


def test_what_nobody_uses_is_given_back():
    def pages():
        return int(Path("/proc/self/statm").read_text().split()[0])

    before = pages()
    for _ in range(200):
        _C.memory.allocate((2**28,), 2, 32)  # 1 GiB, in a capsule that becomes no tensor
        _ops.empty(LIKE, 2**28)
        _ops.empty(LIKE, 2**22)
    assert (pages() - before) * os.sysconf("SC_PAGE_SIZE") < 2**28
