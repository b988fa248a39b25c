"""Linear attention against chunked PyTorch, softmax attention, and the other packages that compute it.

An answer is held against float64: pyfast may err at most twice as much as chunked PyTorch in the same dtype, a peer
twice as much as the plainest way does that sums like it. Softmax attention is another function, quadratic in time, and
stands here for what linear attention saves: it is only asked for a finite answer. Every row records its relative error.
"""

import functools
import itertools
import math
import time

import pytest
import torch
from torch.nn import functional as F

from pyfast import linear_attention
from pyfast.reference import linear_attention as reference

CHUNKS = (32, 64, 128, 256)
EPS = 1e-6


def chunked(q, k, v, *, decay=None, beta=None, causal=True, normalize=False, chunk=64, walk=False):
    """What one writes in PyTorch: matrix products within chunks, for all chunks at once, then a sum over chunks.

    A decay per dimension divides by the decay within a chunk, which only mild ones survive. Without decays the sum is
    a ``cumsum``, or, to ``walk``, chunk by chunk, which is faster and a little less accurate.
    """
    if normalize:
        return divided(chunked(q, k, with_ones(v), decay=decay, beta=beta, causal=causal, chunk=chunk, walk=walk))
    scale = q.shape[-1] ** -0.5
    if not causal:
        state = k.permute(0, 2, 3, 1) @ v.transpose(1, 2)
        return ((q * scale).transpose(1, 2) @ state).transpose(1, 2)

    chunk = min(chunk, q.shape[1])

    def split(x):  # (B, T, H, ...) -> (B, H, N, C, ...)
        return x.unflatten(1, (-1, chunk)).movedim(3, 1)

    q, k, v = split(q * scale), split(k), split(v)
    read, write, factor = q, k, None
    if decay is not None and decay.dim() == 4:
        logs = split(decay).cumsum(-2)
        read, write = q * logs.exp(), k * (logs[..., -1:, :] - logs).exp()
        factor = logs[..., -1, :, None].exp()
        within = (read @ (k * (-logs).exp()).mT).tril_()
    elif decay is not None:
        logs = split(decay).cumsum(-1)
        read, write = q * logs.exp()[..., None], k * (logs[..., -1:] - logs).exp()[..., None]
        factor = logs[..., -1, None, None].exp()
        later = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).triu(1)
        within = (q @ k.mT) * (logs[..., :, None] - logs[..., None, :]).masked_fill_(later, -math.inf).exp()
    else:
        within = (q @ k.mT).tril_()
    if beta is not None:
        before, v = _delta(k, v, split(beta)[..., None])
    else:
        before = _states(write.mT @ v, factor, walk)
    return (within @ v + read @ before).movedim(1, 3).flatten(1, 2)


def with_ones(v):
    return torch.cat([v, v.new_ones(*v.shape[:-1], 1)], -1)


def divided(out):
    return out[..., :-1] / (out[..., -1:] + EPS)


def _states(added, factor, walk):
    """The state at the beginning of every chunk, from what each adds and the factor by which it decays the state."""
    if factor is None and walk:
        zero = torch.zeros_like(added[:, :, 0])
        return torch.stack(list(itertools.accumulate(added.unbind(2)[:-1], torch.add, initial=zero)), 2)
    if factor is None:
        return F.pad(added.cumsum(2)[:, :, :-1], (0, 0, 0, 0, 1, 0))
    states = [torch.zeros_like(added[:, :, 0])]
    for n in range(added.shape[2] - 1):
        states.append(factor[:, :, n] * states[-1] + added[:, :, n])
    return torch.stack(states, 2)


def _delta(k, v, beta):
    """The delta rule's states and what it writes: one triangular system a chunk, then a walk over the chunks."""
    system = (beta * k @ k.mT).tril(-1)
    erase, value = (torch.linalg.solve_triangular(system, beta * x, upper=False, unitriangular=True) for x in (k, v))
    states, written = [k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])], []
    for n in range(k.shape[2]):
        written.append(value[:, :, n] - erase[:, :, n] @ states[-1])
        states.append(states[-1] + k[:, :, n].mT @ written[-1])
    return torch.stack(states[:-1], 2), torch.stack(written, 2)


def looped(q, k, v, *, normalize=False, chunk=64):
    """The same without a decay, one chunk after the other: less memory, and with B = 1 no copies."""
    if normalize:
        return divided(looped(q, k, with_ones(v), chunk=chunk))
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v)]
    state, outs = q.new_zeros(q.shape[0] * q.shape[2], q.shape[3], v.shape[3]), []
    for a, b, c in zip(*(x.split(chunk, 1) for x in flat), strict=True):
        outs.append(torch.baddbmm((a @ b.mT).tril_() @ c, a, state))
        state = torch.baddbmm(state, b.mT, c)
    return torch.cat(outs, 1).unflatten(0, (q.shape[0], q.shape[2])).transpose(1, 2)


def token_loop(q, k, v):
    """The recurrence, token by token."""
    a, b, c = (x.transpose(1, 2).flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v))
    state, out = q.new_zeros(len(a), q.shape[3], v.shape[3]), torch.empty_like(c)
    for t in range(q.shape[1]):
        state.baddbmm_(b[:, t, :, None], c[:, t, None])
        torch.bmm(a[:, t : t + 1], state, out=out[:, t : t + 1])
    return out.unflatten(0, (q.shape[0], q.shape[2])).transpose(1, 2)


def softmax_attention(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def wide(way, q, k, v, **options):
    """16 bits on a processor that multiplies float32 faster."""
    return way(q.float(), k.float(), v.float(), **options).to(q.dtype)


def ways(options, q):
    """Every form of chunked PyTorch that computes this, by name."""
    if not options.get("causal", True):
        return {"whole": functools.partial(chunked, **options)}
    limit = min(q.shape[1], 64 if "decay" in options and options["decay"].dim() == 4 else q.shape[1])
    sizes = [c for c in CHUNKS if c <= limit] or [q.shape[1]]
    found = {f"parallel {c}": functools.partial(chunked, chunk=c, **options) for c in sizes}
    if set(options) <= {"normalize"}:
        found |= {f"walked {c}": functools.partial(chunked, chunk=c, walk=True, **options) for c in sizes}
        found |= {f"looped {c}": functools.partial(looped, chunk=c, **options) for c in sizes}
    if q.dtype == torch.bfloat16:
        found |= {f"{name}, in float32": functools.partial(wide, way) for name, way in found.items()}
    return found


def fastest(candidates, args):
    """The name of the candidate that takes least here; the hopeless are tried once."""

    def seconds(way):
        start = time.perf_counter()
        way(*args)
        if args[0].is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    least = {}
    for name, way in candidates.items():
        once = seconds(way)  # buys memory, warms caches
        least[name] = seconds(way) if once < 4 * min(least.values(), default=math.inf) else once
        if least[name] < 1.5 * min(least.values()):
            least[name] = min(least[name], *(seconds(way) for _ in range(2)))
    return min(least, key=least.__getitem__)


def with_gradient(way):
    return lambda q, k, v, dout: torch.autograd.grad(way(q, k, v), (q, k, v), dout)


def make_pyfast(options, args, wrap):
    return wrap(functools.partial(linear_attention.attention, **options)), None


def make_chunked(options, args, wrap):
    candidates = {name: wrap(way) for name, way in ways(options, args[0]).items()}
    name = fastest(candidates, args)
    return candidates[name], name


@functools.cache
def compiled(chunk):
    return torch.compile(functools.partial(chunked, chunk=chunk), dynamic=False)


def make_compiled(options, args, wrap):
    candidates = {n: wrap(way) for n, way in ways(options, args[0]).items() if n.startswith("parallel")}
    name = fastest(candidates, args)
    function = wrap(compiled(int(name.split()[1])))
    function(*args)  # compiles
    return function, name


def make_softmax(options, args, wrap):
    return wrap(softmax_attention), None


def make_idiap(options, args, wrap):
    """The causal product of fast-transformers, whose C++ must have been built by hand."""
    product = pytest.importorskip("fast_transformers.causal_product", reason="fast-transformers is not built")
    if args[0].is_cuda and product.causal_dot_product_cuda is None:
        pytest.skip("fast-transformers was built without CUDA")

    def attend(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
        return product.causal_dot_product(q, k, v).transpose(1, 2)

    return wrap(attend), None


def make_fla_naive(options, args, wrap):
    naive = pytest.importorskip("fla.ops.linear_attn.naive", reason="flash-linear-attention is not installed")
    return wrap(naive.naive_chunk_linear_attn), "parallel 64"


def make_fla(options, args, wrap):
    package = pytest.importorskip("fla.ops.linear_attn", reason="flash-linear-attention is not installed")
    return wrap(lambda q, k, v: package.chunk_linear_attn(q, k, v, normalize=False)[0]), None


def make_token_loop(options, args, wrap):
    return wrap(token_loop), None


PEERS = {
    "pyfast": make_pyfast,
    "torch chunked": make_chunked,
    "torch.compile chunked": make_compiled,
    "torch sdpa causal": make_softmax,
    "idiap": make_idiap,
    "fla naive": make_fla_naive,
    "fla": make_fla,
    "torch loop": make_token_loop,
}
FORWARD = [name for name in PEERS if name != "fla"]
BOTH = ["pyfast", "torch chunked", "torch sdpa causal"]
CHUNKED = ["pyfast", "torch chunked"]
OPTIONS = (
    "plain",
    "decay per head",
    "decay per token",
    "decay per dimension",
    "normalize",
    "delta rule",
    "non-causal",
    "bfloat16",
)


def inputs(shape, option, dtype, device):
    """q, k, v and the options of a call, drawn at random."""
    b, t, h, d = shape
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(b, t, h, d, generator=g).to(device, dtype) for _ in range(3))
    least = torch.float64 if dtype == torch.float64 else torch.float32
    options = {}
    if option == "decay per head":  # RetNet's
        options["decay"] = torch.log1p(-(2.0 ** (-5 - torch.arange(h)))).to(device, least)
    elif option == "decay per token":
        options["decay"] = F.logsigmoid(torch.randn(b, t, h, generator=g) + 3).to(device, least)
    elif option == "decay per dimension":
        options["decay"] = F.logsigmoid(torch.randn(b, t, h, d, generator=g) + 4).to(device, least)
    elif option == "normalize":
        q, k, options["normalize"], options["eps"] = F.elu(q) + 1, F.elu(k) + 1, True, EPS
    elif option == "delta rule":
        k, options["beta"] = F.normalize(k, dim=-1), torch.rand(b, t, h, generator=g).to(device, dtype)
    elif option == "non-causal":
        options["causal"] = False
    return q, k, v, options


def for_torch(options, q):
    """The options of ``attention`` as ``chunked`` takes them: a decay per token in place of one per head."""
    options = {name: value for name, value in options.items() if name != "eps"}
    if "decay" in options and options["decay"].dim() == 1:
        options["decay"] = options["decay"].expand(*q.shape[:3])
    return options


def double(x):
    return x.double() if torch.is_tensor(x) and x.is_floating_point() else x


def most(q, k, v, options):
    """What two ways of computing this in float64 may differ by, for every element.

    Each rounds the products of a sum of T K terms, in whatever order, at most T K times: together that is at most so
    many roundings of the sum of their sizes, which is the result of positive tensors, of a delta rule that adds.
    """
    signs = {"beta": -options["beta"]} if "beta" in options else {}
    sizes = reference.attention(q.abs(), k.abs(), -v.abs() if signs else v.abs(), **options | signs)[0]
    both = 4 if options.get("normalize") else 2  # ways; of a quotient, each has two such sums
    return both * k.shape[1] * k.shape[3] * torch.finfo(q.dtype).eps * sizes.abs()


@functools.cache
def prove():
    """The truth of the races, ``chunked`` in float64, is what ``pyfast.reference`` says, on short sequences."""
    for option in OPTIONS:
        q, k, v, options = inputs((2, 32, 3, 4), option, torch.float64, "cpu")
        truth, allowed = reference.attention(q, k, v, **options)[0], most(q, k, v, options)
        for chunk in (8, 32):
            ways = [chunked]
            if set(options) <= {"normalize", "eps"}:
                ways += [looped, functools.partial(chunked, walk=True)]
            for way in ways:
                answer = way(q, k, v, chunk=chunk, **for_torch(options, q))
                assert ((answer - truth).abs() <= allowed).all(), f"wrong truth: {option}"


class Case:
    """Inputs, what is true of them, and how much each kind of peer may err."""

    def __init__(self, shape, option, dtype, device, gradient):
        prove()
        q, k, v, self.options = inputs(shape, option, dtype, device)
        self.torch_options = for_torch(self.options, q)
        self.args = q, k, v
        self.wrap = (lambda way: way) if not gradient else with_gradient
        if gradient:
            g = torch.Generator().manual_seed(1)
            dout = torch.randn(v.shape, generator=g).to(device, dtype)
            self.args = *(x.requires_grad_() for x in (q, k, v)), dout
        options = {name: double(x) for name, x in self.torch_options.items()}
        wide_args = [x.detach().double().requires_grad_(x.requires_grad) for x in self.args]
        self.truths = _tuple(self.wrap(functools.partial(chunked, **options))(*wide_args))
        self.plain = self.allowed(functools.partial(chunked, **self.torch_options))

    def allowed(self, *plain_ways):
        """Twice the largest error of plain ways to compute it, and 4 eps of scale, for every tensor of the answer."""
        answers = [_tuple(self.wrap(way)(*self.args)) for way in plain_ways]
        eps = torch.finfo(self.args[0].dtype).eps
        return [
            2 * max((answer[i].double() - truth).abs().max() for answer in answers) + 4 * eps * truth.abs().max()
            for i, truth in enumerate(self.truths)
        ]

    @functools.cached_property
    def peers(self):
        """What chunked peers may err: twice the worse of the forms with most chunks."""
        first = {}
        for name, way in ways(self.torch_options, self.args[0]).items():
            first.setdefault(name.split()[0], way)  # in order of their chunks
        return self.allowed(*first.values())

    @functools.cached_property
    def sequential(self):
        """What peers may err that sum in float32 token by token."""
        return self.allowed(lambda q, k, v: reference.attention(q, k, v, **self.options)[0])

    def check(self, peer, answers, extra_info):
        """Raise AssertionError unless the answers are right; note their relative error."""
        if peer == "torch sdpa causal":  # another function
            assert all(a.isfinite().all() for a in answers), "wrong answer: not finite"
            return
        allowed = self.plain if peer == "pyfast" else self.sequential if peer in ("idiap", "torch loop") else self.peers
        for answer, truth, limit in zip(answers, self.truths, allowed, strict=True):
            assert answer.shape == truth.shape, f"wrong answer: {answer.shape} where {truth.shape} was due"
            assert answer.dtype == self.args[0].dtype, f"wrong answer: {answer.dtype}"
            error = (answer.double() - truth).abs().max()
            assert error <= limit, f"wrong answer: error {error:.3g} exceeds {limit:.3g}"
        extra_info["relative_error"] = max(
            ((answer.double() - truth).norm() / truth.norm()).item()
            for answer, truth in zip(answers, self.truths, strict=True)
        )

    def work(self):
        """What any method must read, write and compute: a state is updated and read once a token, and so its gradient.

        16 bits are multiplied at rates that the machine's measured float32 limit does not tell.
        """
        q, k, v, *dout = self.args
        flops = (12 if dout else 4) * q.numel() * v.shape[-1] if q.dtype == torch.float32 else 0
        if dout:
            return {"read": dout[0].nbytes, "copy": 2 * (q.nbytes + k.nbytes + v.nbytes), "flops": flops}
        return {"read": q.nbytes + k.nbytes, "copy": 2 * v.nbytes, "flops": flops}


def _tuple(x):
    return x if isinstance(x, tuple) else (x,)


@functools.lru_cache(maxsize=1)  # one at a time in memory
def case(*key):
    return Case(*key)


@pytest.fixture
def compete(race, benchmark, device):
    """A function that checks a peer's answer and times it: ``compete(peer, shape)``."""

    def run(peer, shape, option="plain", dtype=torch.float32, gradient=False):
        this = case(shape, option, dtype, device, gradient)
        options = this.options if peer == "pyfast" else this.torch_options
        function, form = PEERS[peer](options, this.args, this.wrap)
        if form is not None:
            benchmark.extra_info["form"] = form
        race(
            function,
            *this.args,
            check=lambda answer, *_: this.check(peer, _tuple(answer), benchmark.extra_info),
            **this.work(),
        )

    return run


def tokens(t, quick):
    return max(t // 128, 64) if quick else t


LENGTHS = pytest.mark.parametrize("t", [1024, 4096, 16384], ids="T{}".format)


@pytest.mark.parametrize("peer", FORWARD)
@LENGTHS
def bench_forward(compete, quick, t, peer):
    if peer == "torch loop" and t > 1024:
        pytest.skip("takes as long per token as at 1024")
    if quick and peer == "torch.compile chunked" and t > 1024:
        pytest.skip("compiles as at 1024")
    compete(peer, (1, tokens(t, quick), 8, 64))


@pytest.mark.parametrize("peer", BOTH)
@pytest.mark.parametrize("t", [1024, 16384], ids="T{}".format)
def bench_forward_backward(compete, quick, t, peer):
    compete(peer, (1, tokens(t, quick), 8, 64), gradient=True)


_plain_seconds = {}


@pytest.fixture
def compare(benchmark, capsys, device, quick):
    """A function that notes and prints the time of an option against that of the plain call, raced before it."""

    def run(peer, option, *case):
        if quick:
            return
        seconds = benchmark.stats.stats.min
        if option == "plain":
            _plain_seconds[device, peer, *case] = seconds
        if plain := _plain_seconds.get((device, peer, *case)):
            benchmark.extra_info["against_plain"] = seconds / plain
            with capsys.disabled():
                print(f"\n{device}, {peer}, {', '.join((option, *case))}: {seconds / plain:.2f} of the plain time")

    return run


@pytest.mark.parametrize("peer", CHUNKED)
@pytest.mark.parametrize("option", ["plain", "decay per head", "decay per token", "normalize"])
@pytest.mark.parametrize("d", [16, 32, 64, 128, 256], ids="D{}".format)
def bench_sizes(compete, compare, quick, d, option, peer):
    compete(peer, (1, tokens(1024 if d == 256 else 4096, quick), 8, d), option)
    compare(peer, option, f"D{d}")


@pytest.mark.parametrize("peer", CHUNKED)
@pytest.mark.parametrize("option", OPTIONS)
def bench_options(compete, compare, quick, option, peer):
    dtype = torch.bfloat16 if option == "bfloat16" else torch.float32
    compete(peer, (1, tokens(16384, quick), 8, 64), option, dtype)
    compare(peer, option)


@pytest.mark.parametrize("peer", CHUNKED)
def bench_million(compete, benchmark, quick, peer):
    """A sequence whose sums would lose their digits if they were formed in float32."""
    compete(peer, (1, 1024 if quick else 2**20, 1, 16))
    assert peer != "pyfast" or benchmark.extra_info["relative_error"] <= 5e-7


@pytest.mark.parametrize("peer", ["pyfast", "torch chunked", "torch sdpa causal", "torch loop"])
def bench_short(compete, peer):
    """Four tokens: what a call costs before it computes."""
    compete(peer, (1, 4, 8, 64))


def torch_step(q, k, v, state):
    state = torch.addcmul(state, k.unsqueeze(-1), v.unsqueeze(-2))
    return (q.unsqueeze(-2) @ state).squeeze(-2) * q.shape[-1] ** -0.5, state


STEPS = {"pyfast": linear_attention.step, "torch": torch_step}


@pytest.mark.parametrize("peer", STEPS)
def bench_step(race, device, peer):
    """One token decoded, with its state."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 8, 64, generator=g).to(device) for _ in range(3))
    state = torch.randn(1, 8, 64, 64, generator=g).to(device)

    def packed(function):
        return lambda *args: torch.cat([x.flatten() for x in function(*args)])

    def recurrence(q, k, v, state):
        out, last = reference.attention(q[:, None], k[:, None], v[:, None], initial_state=state)
        return out[:, 0], last

    def check(answer, *args):
        truth, plain = (packed(recurrence)(*given) for given in (map(double, args), args))
        allowed = 2 * (plain - truth).abs().max() + 4 * torch.finfo(plain.dtype).eps * truth.abs().max()
        error = (packed(lambda: answer)() - truth).abs().max()
        assert error <= allowed, f"wrong answer: error {error:.3g} exceeds {allowed:.3g}"

    race(STEPS[peer], q, k, v, state, check=check, copy=2 * state.nbytes)


# Those that flash-linear-attention publishes times of: batch, tokens, heads, dimensions.
SHAPES = [
    (1, 8192, 96, 128),
    (2, 16384, 16, 128),
    (4, 2048, 16, 128),
    (4, 4096, 64, 128),
    (8, 2048, 32, 256),
    (8, 1024, 8, 64),
]
PUBLISHED = pytest.mark.parametrize("shape", SHAPES, ids="B{0[0]}_T{0[1]}_H{0[2]}_D{0[3]}".format)


def small(shape, quick):
    return (min(shape[0], 2), 256, 2, shape[3]) if quick else shape


@pytest.mark.parametrize("peer", ["pyfast", "fla", "torch chunked"])
@PUBLISHED
def bench_published(compete, device, quick, shape, peer):
    if device == "cpu":
        pytest.skip("shapes for a GPU")
    compete(peer, small(shape, quick), dtype=torch.bfloat16)


@pytest.mark.parametrize("peer", ["pyfast", "fla", "torch chunked"])
@PUBLISHED
def bench_published_both(compete, device, quick, shape, peer):
    if device == "cpu":
        pytest.skip("shapes for a GPU")
    compete(peer, small(shape, quick), dtype=torch.bfloat16, gradient=True)
