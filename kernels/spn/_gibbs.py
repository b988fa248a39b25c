"""Sweeps of the instantiated Gibbs sampler over rows that stay on a device: launched, then captured and replayed."""

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
from pyfast.kernels.spn import _slabs
from pyfast.kernels.spn._draws import draw_all
from pyfast.kernels.spn._plan import plan


def words_of(*words):
    """64-bit words as int64 holds them."""
    return torch.tensor([word - (word >> 63 << 64) for word in words])


class Part(NamedTuple):
    """A slab of rows, the numbers that randomness knows them by, and what is written of them."""

    up: _slabs.Slab
    numbers: torch.Tensor
    below: torch.Tensor
    out: torch.Tensor


class Room(NamedTuple):
    """All that a sweep reads and writes, on the device; what changes between sweeps is copied in.

    drawing, choosing (2): seed and purpose of the random numbers of parameters, and of choices.
    """

    weight_counts: torch.Tensor
    leaf_counts: torch.Tensor
    alpha: torch.Tensor
    prior: torch.Tensor
    leaf_prior: torch.Tensor
    drawing: torch.Tensor
    choosing: torch.Tensor
    gammas: torch.Tensor
    weights: torch.Tensor
    leaves: torch.Tensor
    out: torch.Tensor
    weak: torch.Tensor  # whether there are any, after a sweep
    parts: list[Part]


def launch(p, room, draw):
    """A sweep: nothing here waits for the device, or depends on what is there."""
    if draw:
        draw_all(
            p, room.weight_counts, room.leaf_counts, room.alpha, room.prior, room.leaf_prior, room.drawing, room.gammas,
            room.weights, room.leaves,
        )  # fmt: skip
    room.weight_counts.zero_()
    room.leaf_counts.zero_()
    room.weak.zero_()
    for part in room.parts:
        up = part.up
        if up.weak is not None:
            up.weak.zero_()
        _slabs.rise(p, up)
        part.out.copy_(up.log_value())
        drawn = part.out > -math.inf
        if up.weak is not None:
            drawn = drawn & (up.weak == 0)
            room.weak.logical_or_((up.weak > 0).any())
        _slabs.choose(
            p, up, drawn, part.numbers, room.weight_counts, room.leaf_counts, room.choosing, part.below
        )  # fmt: skip


class Gibbs:
    """Sweeps over rows x (rows, variables), which are different or draw apart, for any number of chains.

    The same bits as `draw` and `sweep` of this device. On a GPU the second sweep that draws parameters is captured as
    a graph, those after it replay that.
    """

    def __init__(self, x, graph, leaf_prior, priors):
        device = x.device
        self.plan = p = plan(graph, device)

        def new(n, dtype):
            return torch.empty(n, dtype=dtype, device=device)

        weights, leaves, out = new(p.num_weights, x.dtype), new(p.parameters, x.dtype), new(len(x), torch.float64)
        numbers, parts, dense = torch.arange(len(x), device=device), [], p.dense is not None
        for at in _slabs.slabs(p, len(x), x.shape[1], x.element_size(), dense):
            old = parts[0] if parts else None  # the largest, whose memory all share
            up = _slabs.slab(p, x[at], weights, leaves, dense, old=old and old.up)
            parts.append(Part(up, numbers[at], up.below(p, old and old.below), out[at]))
        self.room = Room(
            weight_counts=new(p.num_weights, torch.int64),
            leaf_counts=new(p.parameters, torch.int64),
            alpha=new(p.num_nodes, torch.float64),
            prior=new(priors, torch.float64),
            leaf_prior=leaf_prior.to(device),
            drawing=new(2, torch.int64),
            choosing=new(2, torch.int64),
            gammas=new(p.num_weights + p.parameters, torch.float64),
            weights=weights,
            leaves=leaves,
            out=out,
            weak=torch.zeros((), dtype=torch.bool, device=device),
            parts=parts,
        )
        self._graph, self._launched = None, False

    def sweep(self, weight_counts, leaf_counts, alpha, prior, seed, drawing, choosing):
        """Parameters given statistics, then the statistics of choices given them, which are returned."""
        given = (weight_counts, leaf_counts, alpha, prior, words_of(seed, drawing), words_of(seed, choosing))
        return self._after(given, self.room[:4] + self.room[5:7], True)

    def choose(self, weights, leaves, seed, choosing):
        """Statistics of choices given parameters."""
        given = (weights, leaves, words_of(seed, choosing))
        return self._after(given, (self.room.weights, self.room.leaves, self.room.choosing), False)

    def _after(self, given, places, draw):
        device = self.room.out.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            for place, x in zip(places, given, strict=True):
                place.copy_(x)
            self._run(draw)
            if self.room.weak:
                self._again()
        return self.room.weight_counts.clone(), self.room.leaf_counts.clone()

    def _run(self, draw):
        captures = draw and self._launched and self.room.out.is_cuda  # a graph can only be made of what is compiled
        if not captures:
            launch(self.plan, self.room, draw)
            self._launched = self._launched or draw
            return
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                launch(self.plan, self.room, True)
            self._graph = graph
        self._graph.replay()

    def _again(self):
        """Rows that the dense form is too narrow for, node by node."""
        room, p = self.room, self.plan
        for part in room.parts:
            where = torch.nonzero(part.up.weak).flatten()
            x = part.up.x[:, where].t().double()
            for places, up in _slabs.passes(p._replace(dense=None), x, room.weights.double(), room.leaves.double()):
                log = up.log_value()
                part.out[where[places]] = log
                numbers = part.numbers[where[places]]
                counts = room.weight_counts, room.leaf_counts
                _slabs.choose(p, up, log > -math.inf, numbers, *counts, room.choosing, up.below(p))
