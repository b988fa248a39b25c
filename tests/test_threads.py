"""Threads, forks and processors: none of them shows in an answer."""

import concurrent.futures
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyfast import _C, linear_attention, longtail
from pyfast.reference import longtail as reference

N, C = 256, 1000  # enough for threads


def example(seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, C, generator=g), torch.randint(C, (N,), generator=g), torch.rand(C, generator=g) + 0.01


def answer(seed):
    logits, target, prior = example(seed)
    logits.requires_grad_()
    loss = longtail.loss(logits, target, prior)
    tokens = logits.view(2, 32, 4, 1000)[..., :32]
    out = linear_attention.attention(tokens, tokens, tokens)
    return torch.cat([loss.detach(), out.detach().flatten()]), *torch.autograd.grad(loss.sum() + out.sum(), logits)


def python(script, **environment):
    """Run a script in a fresh process, and return what it prints."""
    command = [sys.executable, "-P", "-W", "error", "-c", script]
    run = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


class Losses(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, seed):
        return answer(seed)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on machines with one core
def test_forked_workers_after_threads():
    torch.set_num_threads(2)
    want = [answer(seed) for seed in range(8)]  # the parent's thread pool exists now, and will not in the workers
    loader = torch.utils.data.DataLoader(
        Losses(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for got, expected in zip(loader, want, strict=True):
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


def test_concurrent_python_threads():
    want = [answer(seed) for seed in range(16)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for got, expected in zip(pool.map(answer, range(16)), want, strict=True):
            assert torch.equal(got[0], expected[0])
            assert torch.equal(got[1], expected[1])


def test_a_new_python_thread_keeps_to_the_number_of_threads_that_torch_was_told():
    script = """
import os, threading, torch
torch.set_num_threads(1)
import pyfast
args = torch.randn(256, 1000), torch.zeros(256, dtype=torch.int64), torch.zeros(1000)
started = []
def work():
    before = len(os.listdir("/proc/self/task"))
    torch.ops.pyfast.longtail_loss(*args)
    started.append(len(os.listdir("/proc/self/task")) - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(started[0])
"""
    assert python(script, OMP_NUM_THREADS="4") == "0"


def test_one_openmp_runtime():
    script = """
import pyfast, torch
pyfast.longtail.loss(torch.randn(256, 1000), torch.zeros(256, dtype=torch.int64), torch.ones(1000))
print({line.split()[-1] for line in open("/proc/self/maps") if any(s in line for s in ("gomp", "iomp", "libomp"))})
"""
    (runtime,) = eval(python(script))
    assert Path(runtime).name.startswith("libgomp")


@pytest.mark.parametrize("level", _C.levels())
def test_every_level_of_this_processor(level):
    script = f"import pyfast; assert pyfast._C.level == {level!r} and pyfast._C._kernels.__name__.endswith({level!r})"
    python(script, PYFAST_CPU=level)
    tests = [Path(__file__).with_name(f"test_{family}.py") for family in ("longtail", "linear_attention")]
    chosen = "matches_reference or large_logits or not_finite or in_float64 or exp_is_accurate or any_strides"
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, tests), "-k", chosen]
    environment = os.environ | {"PYFAST_CPU": level}
    root = tests[0].parent.parent
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 30


def test_a_level_the_processor_lacks_is_refused():
    script = """
try:
    import pyfast
except ImportError as error:
    print(error)
"""
    message = python(script, PYFAST_CPU="v9")
    assert message == f"PYFAST_CPU must be one of {', '.join(_C.levels())} on this processor, got 'v9'"


def test_levels_agree_with_the_reference_here():
    logits, target, prior = example(0)
    torch.testing.assert_close(longtail.loss(logits, target, prior), reference.loss(logits, target, prior))
