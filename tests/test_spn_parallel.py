"""Chains whose rows are shared by many ranks. Run as a script, this file is one of the ranks."""

import datetime
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from pyfast.spn import BayesSPN, rat


def table():
    """Mixed columns, missing values, and rows of which many are equal."""
    g = torch.Generator().manual_seed(0)
    bits = (torch.rand(120, 4, generator=g) < 0.4).double()
    bits[bits[:, 0] == 1] = 1.0
    numbers = torch.cat([torch.randn(60, 2, generator=g).round().repeat(2, 1), bits[:, :1] * 3], 1).double()
    X = torch.cat([bits, numbers], 1)
    X[torch.rand(X.shape, generator=g) < 0.05] = torch.nan
    return X


def model(**settings):
    given = {"structure": rat(7, replicas=2, depth=2, sums=3, leaves=3), "sweeps": 12, "chains": 2, "seed": 3}
    return BayesSPN(**given | settings)


def equal(a, b):
    assert len(a.states_) == len(b.states_) > 0
    for x, y in zip(a.states_, b.states_, strict=True):
        assert (x.chain, x.sweep) == (y.chain, y.sweep)
        for mine, other in zip(x[2:], y[2:], strict=True):
            assert torch.equal(mine, other)
    assert a._trace == b._trace


def equals_one_process(group):
    X = table()
    for settings in ({}, {"hyper": "eb"}, {"structure": "hclt", "hidden": 3, "hyper": "fixed"}):
        equal(model(**settings).fit(X, group=group), model(**settings).fit(X))


def resumes_with_any_number(group):
    X = table()
    shared = model(sweeps=5).fit(X, group=group).resume(X, 7)
    equal(shared, model(sweeps=5).fit(X).resume(X, 7, group=group))
    equal(shared, model().fit(X))


def fewer_rows_than_ranks(group):
    X = table()[:1]
    equal(model().fit(X, group=group), model().fit(X))


def disagreement_is_named(group):
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    X = table()
    other = X.clone()
    other[0, 4] = 7.0

    def raises(what, odd, error=ValueError, **settings):
        fitted = model(**settings if rank == size - 1 else {})
        with pytest.raises(error if rank == size - 1 else ValueError) as found:
            fitted.fit(odd if rank == size - 1 else X, group=group)
        assert what in str(found.value) or (rank == size - 1 and error is not ValueError)

    others = f"must be the same on all ranks of group, got others on rank {size - 1}"
    raises(f"X {others}", other)
    raises(f"the estimator's arguments {others}", X, seed=4)
    raises(f"the estimator's arguments {others}", X, sweeps=13)
    raises(f"the estimator's arguments {others}", X, structure=rat(7, replicas=2, depth=2, sums=3, leaves=3, seed=1))
    invalid = f"the call must be valid on all ranks of group, got an error on rank {size - 1}"
    raises(invalid, [["a", object()]], error=TypeError)
    for kernel in ("topdown", "isir"):
        with pytest.raises(ValueError, match=f"must be block, and its mode instantiated, with group, got {kernel}"):
            model(kernel=kernel).fit(X, group=group)
    with pytest.raises(TypeError, match=r"group must be a torch\.distributed process group"):
        model().fit(X, group="gloo")
    equal(model().fit(X, group=group), model().fit(X))


def all_stop_at_one_interrupt(group):
    """Ctrl-C on one rank: all keep the same sweeps, and can go on."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    X = table()
    fitted = model(sweeps=1).fit(X, group=group)
    chain = fitted._chains[0]
    sweep = chain.sweep

    def interrupted(*args):
        if rank == size - 1 and chain.sweeps == 4:
            os.kill(os.getpid(), signal.SIGINT)
        sweep(*args)

    chain.sweep = interrupted
    with pytest.warns(UserWarning, match="stopped after 5 sweeps; what was sampled is kept"):
        fitted.resume(X, 11, group=group)
    del chain.sweep
    equal(fitted.resume(X, 7, group=group), model().fit(X))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def run(tmp_path, size, *checks):
    """Each rank is a process; when one fails the others, which may wait for it, are ended."""
    command = [sys.executable, "-P", "-W", "error", __file__, str(tmp_path / "store"), str(size)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    ranks = []
    try:
        for rank in range(size):
            arguments = command + [str(rank), *(check.__name__ for check in checks)]
            with (tmp_path / str(rank)).open("w") as log:
                ranks.append(subprocess.Popen(arguments, env=environment, stdout=log, stderr=log))
        end = time.monotonic() + 200
        while None in (codes := [process.poll() for process in ranks]) and not any(codes) and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    logs = [(tmp_path / str(rank)).read_text() for rank in range(size)]
    assert codes == [0] * size, "\n".join(logs)
    assert logs == [f"{checks[-1].__name__}\n"] * size


def test_two_ranks(tmp_path):
    run(tmp_path, 2, equals_one_process, resumes_with_any_number, fewer_rows_than_ranks)


def test_three_ranks(tmp_path):
    run(tmp_path, 3, equals_one_process, disagreement_is_named, all_stop_at_one_interrupt)


def test_four_ranks(tmp_path):
    run(tmp_path, 4, equals_one_process, fewer_rows_than_ranks)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, store, size, rank, *names = sys.argv
    wait = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(size), timeout=wait)
    for name in names:
        globals()[name](dist.group.WORLD)
    dist.barrier()
    print(names[-1], flush=True)
    os._exit(0)  # gloo's threads may still want the interpreter while it goes: PyTorch then ends the process by SIGABRT
