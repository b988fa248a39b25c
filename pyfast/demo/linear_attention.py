"""Linear attention over 16,384 words of a real text, raced, streamed, and as a memory that predicts the next word."""

import collections
import itertools
import math
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from pyfast import linear_attention
from pyfast.reference import linear_attention as reference

TOKENS, HEADS, SIZE = 2**14, 8, 64
SHORT, STEPS, WINDOW = 64, 64, 4
CHUNKS = (32, 64, 128, 256)
EPS = 1e-6


def run(console: Console, plot: Path | None, quick: bool) -> dict[str, Any]:
    """Embed a text, send it through causal attention, check, race and stream it, and ask a memory for the next word."""
    ids, vocabulary, codes = embed(words())
    console.rule("Linear attention: time and memory linear in the number of tokens")
    console.print(
        f"Python's own help texts, {len(ids):,} words of which {len(vocabulary):,} differ. Each is embedded by the "
        f"words around it (co-occurrence, PPMI), in {HEADS} heads of {SIZE} dimensions; features elu + 1, normalized."
    )
    x = codes[ids[:TOKENS]][None] * math.sqrt(SIZE)
    q = k = linear_attention.elu_plus_one(x)
    truth = chunked(q.double(), k.double(), x.double())
    checked, errors = check(q, k, x, truth)
    lengths = [n for n in (2**i for i in range(10, 20, 2 if quick else 1)) if n <= TOKENS]
    races = [race(q[:, :n], k[:, :n], x[:, :n], softmax=not quick or n <= 2**11) for n in lengths]
    console.print(_times(races))
    state = HEADS * SIZE * (SIZE + 1) * 4
    console.print(
        f"Largest error against float64: pyfast {errors['pyfast']:.2g}, chunked PyTorch {errors['torch']:.2g}. After "
        f"any number of tokens the state takes {state / 1000:,.0f} kB; keys and values of all would take "
        f"{2 * TOKENS * HEADS * SIZE * 4 / 1e6:,.0f} MB."
    )
    streamed, difference = stream(q, k, x, truth, errors["allowed"])
    console.print(
        f"Streamed, as in decoding, {TOKENS - STEPS:,} tokens in one call and {STEPS} by single steps from its state: "
        f"largest error {difference:.2g}."
    )
    remembered, guesses = remember(ids[: TOKENS + 1], codes)
    console.print(_memory(guesses))
    console.print(
        "Every word is written under the word before it, and read under the present one: an induction head. A sum "
        "mixes all that was ever written; the delta rule first takes out what the state holds there."
    )
    agrees = checked and streamed and remembered
    console.print(f"equal to the reference in rounding: {'yes' if agrees else 'NO'}")
    if plot is not None:
        draw(races, plot)
        console.print(f"plot: {plot}")
    sizes = {"tokens": TOKENS, "heads": HEADS, "size": SIZE, "words": len(ids), "vocabulary": len(vocabulary)}
    return {"agrees": agrees} | sizes | {"races": races, "errors": errors, "streamed": difference, "memory": guesses}


def words() -> list[str]:
    """The words of Python's help on its language, which come with every Python."""
    from pydoc_data import topics

    return re.findall(r"[a-z][a-z_']*", "\n".join(topics.topics.values()).lower())


def embed(text: list[str], contexts: int = 1024) -> tuple[Tensor, list[str], Tensor]:
    """Word numbers, most frequent first, the words, and a code of (heads, size) for each, of length 1 in every head.

    A word is its positive pointwise mutual information with the most frequent words around it, seen by each head
    through a random projection of its own.
    """
    vocabulary = [word for word, _ in collections.Counter(text).most_common()]
    number = {word: i for i, word in enumerate(vocabulary)}
    ids = torch.tensor([number[word] for word in text])
    counts = torch.zeros(len(vocabulary) * contexts)
    for distance in range(1, WINDOW + 1):
        for word, near in ((ids[distance:], ids[:-distance]), (ids[:-distance], ids[distance:])):
            pairs = (word * contexts + near)[near < contexts]
            counts += pairs.bincount(minlength=len(counts)) / distance
    counts = counts.view(len(vocabulary), contexts)
    chance = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    information = (counts / chance.clamp(min=1e-9)).log().clamp(min=0)
    projection = torch.randn(contexts, HEADS * SIZE, generator=torch.Generator().manual_seed(0))
    return ids, vocabulary, F.normalize((information @ projection).unflatten(1, (HEADS, SIZE)), dim=-1)


def chunked(q: Tensor, k: Tensor, v: Tensor, chunk: int = 64) -> Tensor:
    """Normalized causal attention as one writes it in PyTorch: matrix products in chunks, then a sum over chunks."""
    v = torch.cat([v, v.new_ones(*v.shape[:-1], 1)], -1)  # sums the keys
    a, b, c = (x.unflatten(1, (-1, chunk)).movedim(3, 1) for x in (q * q.shape[-1] ** -0.5, k, v))
    added = b.mT @ c
    states = itertools.accumulate(added.unbind(2)[:-1], torch.add, initial=torch.zeros_like(added[:, :, 0]))
    out = ((a @ b.mT).tril_() @ c + a @ torch.stack(list(states), 2)).movedim(1, 3).flatten(1, 2)
    return out[..., :-1] / (out[..., -1:] + EPS)


def check(q: Tensor, k: Tensor, v: Tensor, truth: Tensor) -> tuple[bool, dict[str, float]]:
    """Whether pyfast errs at most twice as much as chunked PyTorch, and, on the first tokens, as the reference does."""
    ours = linear_attention.attention(q, k, v, normalize=True, eps=EPS)
    plain = chunked(q, k, v)
    allowed = _allowed(plain, truth)
    errors = {"pyfast": _error(ours, truth), "torch": _error(plain, truth), "allowed": allowed}
    start = [x[:, :SHORT] for x in (q, k, v)]
    right = _agrees(ours[:, :SHORT], partial(reference.attention, normalize=True, eps=EPS), *start)
    return right and errors["pyfast"] <= allowed, errors


def race(q: Tensor, k: Tensor, v: Tensor, softmax: bool) -> dict[str, Any]:
    """Best times of pyfast, of chunked PyTorch with the best of four chunk sizes, and of softmax attention."""
    peers: dict[str, Callable[[], object]] = {
        "pyfast": lambda: linear_attention.attention(q, k, v, normalize=True, eps=EPS)
    }
    peers |= {f"torch {size}": partial(chunked, q, k, v, size) for size in CHUNKS}
    if softmax:
        a, b, c = (x.transpose(1, 2) for x in (q, k, v))
        peers["softmax"] = lambda: F.scaled_dot_product_attention(a, b, c, is_causal=True)
    best = dict.fromkeys(peers, math.inf)
    for i in range(3):
        for name, call in peers.items():
            if i == 0 or best[name] < 0.2:
                start = time.perf_counter()
                call()
                best[name] = min(best[name], time.perf_counter() - start)
    chunk = min(CHUNKS, key=lambda size: best[f"torch {size}"])
    times = {"pyfast": best["pyfast"], "torch": best[f"torch {chunk}"], "softmax": best.get("softmax")}
    return {"tokens": q.shape[1], "chunk": chunk} | times


def stream(q: Tensor, k: Tensor, v: Tensor, truth: Tensor, allowed: float) -> tuple[bool, float]:
    """Most tokens in one call, the last by single steps: whether that is right too, and its largest error."""
    state = torch.zeros(1, HEADS, SIZE, SIZE + 1, dtype=torch.float64)
    cut = q.shape[1] - STEPS
    options: dict[str, Any] = {"normalize": True, "eps": EPS}
    head = [x[:, :cut] for x in (q, k, v)]
    _, state = linear_attention.attention(*head, initial_state=state, output_final_state=True, **options)
    outs = []
    for t in range(cut, q.shape[1]):
        out, state = linear_attention.step(q[:, t], k[:, t], v[:, t], state, **options)
        outs.append(out)
    error = _error(torch.stack(outs, 1), truth[:, cut:])
    return error <= allowed, error


def remember(ids: Tensor, codes: Tensor) -> tuple[bool, dict[str, float]]:
    """Predict each word from what followed the present word before; shares that are right, and whether all agrees."""
    x = codes[ids[:-1]][None]
    keys, values, queries = x[:, :-1], x[:, 1:], x[:, 1:]
    half = torch.full((1, keys.shape[1], HEADS), 0.5)
    ways: dict[str, dict[str, Any]] = {
        "sum": {},
        "sum, decay 1% a word": {"decay": torch.full((HEADS,), math.log(0.99))},
        "delta rule": {"beta": 2 * half},
        "delta rule, half of each word": {"beta": half},
    }
    following, asked = ids[2:], slice(3, None, 4)  # a quarter of the words are asked for
    agrees, right = True, {}
    for name, options in ways.items():
        out = linear_attention.attention(queries, keys, values, scale=1.0, **options)
        short = {n: o if o.dim() == 1 else o[:, :SHORT] for n, o in options.items()}
        start = [y[:, :SHORT] for y in (queries, keys, values)]
        agrees &= _agrees(out[:, :SHORT], partial(reference.attention, scale=1.0), *start, **short)
        guess = (out[0, asked].flatten(1) @ codes.flatten(1).T).argmax(1)
        right[name] = (guess == following[asked]).float().mean().item()
    right["always the most frequent word"] = (following[asked] == 0).float().mean().item()
    return agrees, right


def draw(races: list[dict[str, Any]], path: Path) -> None:
    """Draw times against the number of tokens. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for name, label in (("pyfast", "pyfast"), ("torch", "chunked PyTorch"), ("softmax", "softmax attention")):
        timed = [(r["tokens"], 1e3 * r[name]) for r in races if r[name] is not None]
        axes.plot(*zip(*timed, strict=True), "o-", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens")
    axes.set_ylabel("time, ms")
    axes.set_title(f"Causal attention, {HEADS} heads of {SIZE}, {torch.get_num_threads()} threads", fontsize=10)
    axes.legend()
    figure.savefig(path, dpi=120)


def _error(got: Tensor, truth: Tensor) -> float:
    return (got.double() - truth).abs().max().item()


def _allowed(plain: Tensor, truth: Tensor) -> float:
    return 2 * _error(plain, truth) + 4 * torch.finfo(plain.dtype).eps * truth.abs().max().item()


def _agrees(got: Tensor, slow: Callable[..., Any], *args: Tensor, **options: Tensor) -> bool:
    """The project's rule: at most twice the error of the reference in the same dtype, plus 4 eps of scale."""
    plain = slow(*args, **options)[0]
    truth = slow(*(x.double() for x in args), **{name: x.double() for name, x in options.items()})[0]
    return _error(got, truth) <= _allowed(plain, truth)


def _times(races: list[dict[str, Any]]) -> Table:
    title = f"causal attention, best of up to three, {torch.get_num_threads()} threads"
    table = Table(title=title, box=None, padding=(0, 2, 0, 0))
    for heading in ("tokens", "pyfast", "chunked PyTorch", "ratio", "softmax (another function)", "ratio"):
        table.add_column(heading, justify="right")
    for r in races:
        row = [f"{r['tokens']:,}", f"{1e3 * r['pyfast']:,.2f} ms"]
        for name in ("torch", "softmax"):
            seconds = r[name]
            row += ["", ""] if seconds is None else [f"{1e3 * seconds:,.1f} ms", f"{seconds / r['pyfast']:,.1f}x"]
        table.add_row(*row)
    return table


def _memory(guesses: dict[str, float]) -> Table:
    table = Table(title="the next word, guessed from the state alone", box=None, padding=(0, 2, 0, 0))
    table.add_column("what the state keeps")
    table.add_column("right", justify="right")
    for name, share in guesses.items():
        table.add_row(name, f"{100 * share:.1f}%")
    return table
