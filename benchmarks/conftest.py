"""Every benchmark is a test: it is checked first, then timed. A wrong answer has no time.

    pytest benchmarks --benchmark-json=benchmarks/results/cpu/all.json     run all
    pytest benchmarks -k "prune and cuda"                                  run some
    pytest benchmarks --benchmark-disable                                  check all once on small inputs, time none

Times are wall-clock; the device is waited for. Reports quote the best of many rounds, the figure that a busy machine
distorts least. Caches are not flushed between rounds.
"""

import ctypes
import importlib.metadata
import math
import platform
import time
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from pyfast import _C

CPU_BYTES, CUDA_BYTES = 2**27, 2**30  # what bandwidth is measured on: far beyond any cache


def now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def pytest_addoption(parser):
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.addoption("--data", type=Path, default=shared if shared.is_dir() else None, help="directory of data sets")
    parser.addoption("--seconds", type=float, default=2.0, help="time to spend on the rounds of one race")


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=now))
        item.add_marker(pytest.mark.filterwarnings("default"))  # peers may warn


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["processor"] = _processor()
    machine_info["level"] = _C.level
    machine_info["threads"] = torch.get_num_threads()
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine_info["versions"] = {
        name: _version(name) for name in ("pyfast-kernels", "torch", "numpy", "triton", "neural-compressor")
    }


def pytest_benchmark_update_json(config, benchmarks, output_json):
    output_json["machine_info"]["limits"] = dict(_limits)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.fixture
def quick(request):
    """True where nothing is timed: make the inputs small."""
    return request.config.getoption("benchmark_disable")


@pytest.fixture
def data(request):
    """The directory of --data; skips where there is none."""
    directory = request.config.getoption("--data")
    if directory is None:
        pytest.skip("no --data directory")
    return directory


@pytest.fixture
def race(benchmark, request, quick):
    """A function that checks the answer, then times it: ``race(function, *args, like=reference)``.

    Args of the returned function:
        function: what to time.
        *args: its arguments, unless ``setup`` makes them.
        like: what the answer must be. A function is the reference: against it in float64, each tensor of the answer may
            err at most twice as much as it does itself in the same dtype, plus 4 eps of scale. A tensor, or anything
            else, must be equal.
        check: in place of ``like``, a function of the answer and the arguments that raises AssertionError.
        setup: makes fresh arguments, untimed, before every round: for functions that change theirs.
        read, write, copy: bytes that any method must read, read and write in place, copy (both directions counted);
        flops: floating point operations that it must do. At the machine's own measured rates they give the floor, the
            least time possible, that the report compares with.
    """

    def run(function, *args, like=None, check=None, setup=None, read=0, write=0, copy=0, flops=0):
        fresh = setup or (lambda: args)
        given = fresh()
        start = now()
        answer = function(*given)
        once = now() - start
        assert (like is None) != (check is None), "give a race one of like and check"
        check(answer, *given) if check else agree(answer, like, given)
        del answer, given
        if quick:  # its one untimed run
            return benchmark.pedantic(function, setup=lambda: (fresh(), {}), rounds=1)
        device = _device(fresh())
        benchmark.extra_info["extra_memory"] = extra_memory(function, fresh, device)
        work = {"read": read, "write": write, "copy": copy}
        if any(work.values()) or flops:
            limit = limits(device)
            floor = max(sum(b / limit[how] for how, b in work.items()), flops / limit["matmul"])
            benchmark.extra_info.update(work, flops=flops, floor=floor)
        least = 3 if once < 3 else 1  # what takes long is timed well enough by one
        rounds = min(max(math.ceil(request.config.getoption("--seconds") / max(once, 1e-5)), least), 200)
        benchmark.pedantic(function, setup=lambda: (fresh(), {}), rounds=rounds, warmup_rounds=2 if once < 0.2 else 0)
        if "floor" in benchmark.extra_info:
            benchmark.extra_info["share"] = floor / benchmark.stats.stats.min
        return None

    return run


def agree(answer, like, args):
    """Raise AssertionError unless the answer is right; see ``race``."""
    if not callable(like):
        same = torch.equal(answer, like) if torch.is_tensor(like) else answer == like
        assert same, "wrong answer: it differs from what it must be"
        return
    wide = [a.double() if torch.is_tensor(a) and a.is_floating_point() else a for a in args]
    answers, plains, truths = (tree_leaves(x) for x in (answer, like(*args), like(*wide)))
    assert len(answers) == len(plains), f"wrong answer: {len(answers)} tensors where {len(plains)} were due"
    for got, plain, truth in zip(answers, plains, truths, strict=True):
        if not plain.is_floating_point():
            assert torch.equal(got, plain), "wrong answer: it differs from the reference"
            continue
        assert got.dtype == plain.dtype, f"wrong answer: {got.dtype} where {plain.dtype} was due"
        assert got.shape == plain.shape, f"wrong answer: {got.shape} where {plain.shape} was due"
        if truth.numel():
            allowed = 2 * (plain - truth).abs().max() + 4 * torch.finfo(plain.dtype).eps * truth.abs().max()
            error = (got - truth).abs().max()
            assert error <= allowed, f"wrong answer: error {error:.3g} exceeds {allowed:.3g}"


def extra_memory(function, fresh, device):
    """Bytes that one call took at its peak beyond what was there before; None where the system does not say."""
    given = fresh()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(*given)
        return torch.cuda.max_memory_allocated() - before
    try:
        _C.memory.trim()
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed would hide what this one takes
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _status("VmRSS")
        function(*given)
        return _status("VmHWM") - before
    except (OSError, AttributeError, KeyError):
        return None


_limits: dict[str, dict[str, float]] = {}


def limits(device):
    """The machine's own limits, measured once: bytes per second read, written in place and copied; flops per second.

    Every one is the best of many rounds of several plain ways to do it.
    """
    if device not in _limits:
        n = (CUDA_BYTES if device == "cuda" else CPU_BYTES) // 8
        words, other = torch.ones(n, dtype=torch.int64, device=device), torch.ones(n, dtype=torch.int64, device=device)
        floats = words.view(torch.float32)
        size, side = words.nbytes, 8192 if device == "cuda" else 1536
        a = torch.rand(side, side, device=device)
        reads = (floats.sum, words.sum, floats.amax, lambda: torch.dot(floats, floats), words.any)
        writes = (floats.neg_, words.bitwise_not_, lambda: floats.mul_(1.0), lambda: words.bitwise_xor_(1))
        copies = (lambda: other.copy_(words), lambda: torch.neg(words, out=other))
        found = {"read": size / _best(reads), "write": 2 * size / _best(writes), "copy": 2 * size / _best(copies)}
        found["matmul"] = 2 * side**3 / _best((lambda: a @ a,))
        if device == "cuda":
            b = a.bfloat16()
            found["matmul bfloat16"] = 2 * side**3 / _best((lambda: b @ b,))
        _limits[device] = found
    return _limits[device]


def _best(ways, rounds=12):
    seconds = math.inf
    for _ in range(rounds):
        for way in ways:
            start = now()
            way()
            seconds = min(seconds, now() - start)
    return seconds


def _device(args):
    for a in args:
        if torch.is_tensor(a):
            return a.device.type
        if isinstance(a, (list, tuple)) and (inside := _device(a)):
            return inside
    return "cpu" if args else None


def _processor():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(dict(line.split(":", 1) for line in lines)[field].split()[0])


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
