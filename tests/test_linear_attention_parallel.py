"""One sequence over many ranks. Run as a script, this file is one of the ranks."""

import datetime
import itertools
import os
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import logsigmoid, normalize
from torch.utils._pytree import tree_map

from pyfast import linear_attention
from pyfast.reference import linear_attention as reference

LENGTHS = {2: (3, 5), 3: (0, 5, 2), 4: (2, 3, 0, 4)}  # tokens of each rank
CASES = (
    {},
    {"normalize": True},
    {"normalize": True, "decay": "head", "start": False, "heads": (4, 2, 2, 4)},
    {"decay": "token", "reverse": True},
    {"decay": "vector", "heads": (4, 1, 2, 2)},
    {"decay": "vector", "normalize": True, "reverse": True},
    {"delta": True, "reverse": True, "start": False},
    {"delta": True, "decay": "token", "heads": (4, 2, 2, 1)},
    {"delta": True, "decay": "vector"},
    {"delta": True, "decay": "vector", "reverse": True, "times": 10},
    {"decay": "token", "times": 10},
    {"causal": False},
    {"causal": False, "normalize": True, "start": False, "heads": (2, 2, 1, 2)},
)


def example(dtype, t, t_k, case):
    """Tokens, options, and weights of a loss."""
    g = torch.Generator().manual_seed(t)
    b, k, v = 2, 5, 3
    h, hk, hv, hd = case.get("heads", (2, 2, 2, 2))

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tokens = {"q": normal(b, t, h, k), "k": normal(b, t_k, hk, k), "v": normal(b, t_k, hv, v)}
    if case.get("normalize"):
        tokens |= {name: tokens[name].exp() for name in "qk"}
    if case.get("delta"):
        tokens["k"] = normalize(tokens["k"], dim=-1)
        tokens["beta"] = 2 * normal(b, t, hd).sigmoid()
    decay = case.get("decay")
    if decay in ("token", "vector"):
        tokens["decay"] = logsigmoid(normal(b, t, hd, k) if decay == "vector" else normal(b, t, hd)) / 4
    shared = {"decay": -normal(hd).exp() / 8} if decay == "head" else {}
    states = h if case.get("causal", True) else max(hk, hv)
    columns = v + bool(case.get("normalize"))
    if case.get("start", True):
        shared["initial_state"] = normal(b, states, k, columns)
        shared["initial_state"][..., -1].abs_()
    weights = normal(b, t, h, v).to(dtype), normal(b, states, k, columns)
    options = {name: case[name] for name in ("normalize", "causal", "reverse") if name in case}
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tokens = {name: x.to(wide if name == "decay" else dtype) for name, x in tokens.items()}
    return tokens, {name: x.to(wide) for name, x in shared.items()}, options, weights


def gradients(attention, tokens, shared, options, weights, share=1.0, order=1):
    """The result, the last state, and the gradients of a loss: of the tokens, of what is shared."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in (tokens | shared).items()}
    out, last = attention(**leaves, **options)
    loss = (out * weights[0].to(out.dtype)).sum() + share * (last * weights[1].to(last.dtype)).sum()
    if order == 2:
        loss = loss + (out**2).sum() + share * (last**2).sum()
        first = torch.autograd.grad(loss, tuple(leaves.values()), create_graph=True)
        loss = sum((x.detach().cos() * dx).sum() for x, dx in zip(leaves.values(), first, strict=True))
    found = dict(zip(leaves, torch.autograd.grad(loss, tuple(leaves.values())), strict=True))
    return out.detach(), last.detach(), {n: found[n] for n in tokens}, {n: found[n] for n in shared}


def wide(x):
    return x.double() if torch.is_tensor(x) else x


def same(x):
    return x


def whole(*args, **kwargs):
    return linear_attention.attention(*args, **kwargs, output_final_state=True)


def part(group):
    return lambda *args, **kwargs: whole(*args, **kwargs, group=group)


def close(got, plain, truth, cut, what):
    """A part errs at most twice as much as the whole does; 4 eps of the largest truth are allowed on top."""
    assert got.dtype == plain.dtype
    assert got.shape == cut(plain).shape, what
    if got.numel():
        slack = 4 * torch.finfo(got.dtype).eps * truth.abs().max().item()
        error, allowed = (got - cut(truth)).abs().max().item(), 2 * (plain - truth).abs().max().item() + slack
        assert error <= allowed, f"{what}: error {error:.3g} exceeds {allowed:.3g}"


def compare(group, case, dtype, order=1):
    """This rank's part of the tokens gives this rank's part of the results."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    lengths = [t * case.get("times", 1) for t in LENGTHS[size]]
    lengths_k = lengths if case.get("causal", True) else lengths[::-1]
    everything = example(dtype, sum(lengths), sum(lengths_k), case)
    tokens, shared, options, weights = everything
    cuts = {name: lambda x: x.split(lengths, 1)[rank] for name in ("q", "beta", "decay")}
    cuts |= {name: lambda x: x.split(lengths_k, 1)[rank] for name in ("k", "v")}
    mine = {name: cuts[name](x) for name, x in tokens.items()}, shared, options, (cuts["q"](weights[0]), weights[1])
    truths = gradients(reference.attention, *tree_map(wide, everything), order=order)
    plains = gradients(whole, *everything, order=order)
    out, last, parts, common = gradients(part(group), *mine, share=1 / size, order=order)
    common = {name: x.contiguous() for name, x in common.items()}
    for x in common.values():
        dist.all_reduce(x, group=group)
    what = f"{case} in {dtype} on rank {rank} of {size}"
    close(out, plains[0], truths[0], cuts["q"], f"result of {what}")
    close(last, plains[1], truths[1], same, f"last state of {what}")
    for name, x in parts.items():
        close(x, plains[2][name], truths[2][name], cuts[name], f"gradient of {name} of {what}")
    for name, x in common.items():
        close(x, plains[3][name], truths[3][name], same, f"gradient of {name} of {what}")


def equals_one_process(group):
    for case in CASES:
        for dtype in (torch.float64, torch.float32):
            compare(group, case, dtype)


def second_derivatives(group):
    for case in CASES:
        if "times" not in case:
            compare(group, case, torch.float64, order=2)


def bfloat16(group):
    for case in CASES:
        compare(group, case, torch.bfloat16)


def parts_of_the_ranks(group):
    rank = dist.get_rank(group)
    pairs = [dist.new_group(ranks) for ranks in ([0, 2], [1, 3])]
    compare(pairs[rank % 2], CASES[6], torch.float64)
    compare(group, CASES[3], torch.float64)
    q = torch.ones(1, 1, 1, 1)
    with pytest.raises(TypeError, match=r"group must be a torch\.distributed process group with this process in it"):
        linear_attention.attention(q, q, q, group=pairs[1 - rank % 2])


def some_want_gradients(group):
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    tokens, *_ = example(torch.float64, 4 * size, 4 * size, {})
    tokens["k"].requires_grad_()
    (want,) = torch.autograd.grad(linear_attention.attention(**tokens).square().sum(), tokens["k"])
    mine = {n: x.detach().split(4, 1)[rank] for n, x in tokens.items()}
    mine["k"].requires_grad_(rank == 1)
    linear_attention.attention(**mine, group=group).square().sum().backward()
    if rank == 1:
        torch.testing.assert_close(mine["k"].grad, want.split(4, 1)[1])
    with torch.no_grad():
        assert not linear_attention.attention(**mine, group=group).requires_grad


def transforms(group):
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    g = torch.Generator().manual_seed(0)
    rows = [torch.randn(3, 1, 4 * size, 2, 5, generator=g, dtype=torch.float64) for _ in range(6)]
    decay = -torch.rand(3, 1, 4 * size, 2, generator=g, dtype=torch.float64)
    mine = [x.split(4, 2)[rank] for x in (*rows, decay)]

    def loss(q, k, v, decay, **kwargs):
        return linear_attention.attention(q, k, v, decay=decay, **kwargs).square().sum()

    def tangent(q, k, v, dq, dk, dv, decay, **kwargs):
        def f(*args):
            return linear_attention.attention(*args, decay=decay, **kwargs)

        return torch.func.jvp(f, (q, k, v), (dq, dk, dv))[1]

    gradient = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2, 3)))
    want = gradient(*rows[:3], decay)
    got = gradient(*mine[:3], mine[-1], group=group)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y.split(4, 2)[rank])
    one = tangent(*(x[0] for x in rows), decay[0])
    torch.testing.assert_close(tangent(*(x[0] for x in mine), group=group), one.split(4, 1)[rank])


def nan_is_not_seen_before(group):
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    for reverse, delta in itertools.product((False, True), repeat=2):
        x = torch.ones(1, 4, 1, 2)
        beta = torch.ones(1, 4, 1) if delta else None
        v = x.clone()
        v[0, 2] += torch.nan if rank == 1 else 0
        out = linear_attention.attention(x, x, v, beta=beta, reverse=reverse, group=group).isnan().any((2, 3))[0]
        early, late = ((0, 1), range(2, size)) if not reverse else (range(2, size), (0, 1))
        seen = [False] * 4 if rank != 1 else [reverse, reverse, True, not reverse]
        seen = [True] * 4 if rank != 1 and rank in late else seen
        assert out.tolist() == seen, (rank, reverse, delta, early)


def disagreement_is_named(group):
    rank = dist.get_rank(group)
    x, beta = torch.ones(1, 4, 2, 3), torch.ones(1, 4, 2)
    vector = torch.zeros(1, 4, 2, 3)

    def all_raise(message, others=None, error=ValueError, **odd):
        call = {"q": x, "k": x, "v": x, "group": group} | (others or {})
        with pytest.raises(error if rank == 1 else ValueError) as found:
            linear_attention.attention(**call | (odd if rank == 1 else {}))
        if rank != 1 or error is ValueError:
            assert str(found.value) == message

    same = "must be the same on all ranks of group, got"
    all_raise(f"the size V of v {same} 3 on ranks 0, 2, 5 on rank 1", v=torch.ones(1, 4, 2, 5))
    all_raise(f"the batch of q {same} 1 on ranks 0, 2, 2 on rank 1", q=x.repeat(2, 1, 1, 1), k=x.repeat(2, 1, 1, 1),
              v=x.repeat(2, 1, 1, 1))  # fmt: skip
    all_raise(f"the heads of q {same} 2 on ranks 0, 2, 4 on rank 1", q=torch.ones(1, 4, 4, 3))
    all_raise(f"the dtype of q {same} torch.float32 on ranks 0, 2, torch.float64 on rank 1",
              **{name: x.double() for name in "qkv"})  # fmt: skip
    all_raise(f"beta {same} None on ranks 0, 2, a tensor on rank 1", beta=beta)
    all_raise(f"decay {same} one per head and token on ranks 0, 2, one per head, token and dimension on rank 1",
              {"decay": torch.zeros(2)}, decay=vector)  # fmt: skip
    all_raise(f"normalize {same} False on ranks 0, 2, True on rank 1", normalize=True)
    all_raise(f"causal {same} True on ranks 0, 2, False on rank 1", causal=False)
    all_raise(f"reverse {same} True on ranks 0, 2, False on rank 1", {"reverse": True}, reverse=False)
    all_raise(f"the dtype of initial_state {same} torch.float32 on ranks 0, 2, None on rank 1",
              {"initial_state": torch.ones(1, 2, 3, 3)}, initial_state=None)  # fmt: skip
    invalid = "the call must be valid on all ranks of group, got an error on rank 1"
    all_raise(invalid, error=TypeError, k=x.double())
    with pytest.raises(ValueError, match=invalid if rank != 1 else "cu_seqlens must be None with group, got a tensor"):
        linear_attention.attention(x, x, x, group=group, cu_seqlens=torch.tensor([0, 4]) if rank == 1 else None)
    with torch.set_grad_enabled(rank != 1), pytest.raises(ValueError, match=r"got torch.no_grad\(\) on rank 1"):
        linear_attention.attention(x, x.clone().requires_grad_(), x, group=group)
    compare(group, {}, torch.float32)


def empty_sizes(group):
    rank = dist.get_rank(group)
    for b, h, k, v in ((0, 2, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)):
        q = torch.ones(b, rank, h, k, requires_grad=True)
        out, last = part(group)(q, q, torch.ones(b, rank, h, v), decay=torch.zeros(b, rank, h, k))
        assert out.shape == (b, rank, h, v)
        assert last.shape == (b, h, k, v)
        assert not out.any()


def run(tmp_path, size, *checks):
    """Each rank is a process; when one fails the others, which may wait for it, are ended."""
    noise = "ignore:`torch.jit.script` is deprecated:DeprecationWarning"  # PyTorch's own, on the way to forward mode
    command = [sys.executable, "-P", "-W", "error", "-W", noise, __file__, str(tmp_path / "store"), str(size)]
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
    run(tmp_path, 2, equals_one_process, second_derivatives, transforms)


def test_three_ranks(tmp_path):
    checks = nan_is_not_seen_before, some_want_gradients, empty_sizes, disagreement_is_named
    run(tmp_path, 3, second_derivatives, *checks)


def test_four_ranks(tmp_path):
    run(tmp_path, 4, equals_one_process, bfloat16, parts_of_the_ranks)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")  # fresh memory is NaN
    _, store, size, rank, *names = sys.argv
    wait = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(size), timeout=wait)
    for name in names:
        globals()[name](dist.group.WORLD)
    dist.barrier()
    print(names[-1], flush=True)
    os._exit(0)  # gloo's threads may still want the interpreter while it goes: PyTorch then ends the process by SIGABRT
