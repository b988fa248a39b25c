"""Logit-adjusted cross-entropy against plain PyTorch and torch.compile of it."""

import functools

import pytest
import torch

from pyfast import longtail
from pyfast.reference import longtail as reference


@functools.cache
def compiled():
    return torch.compile(reference.loss, dynamic=False)


PEERS = {"pyfast": longtail.loss, "torch": reference.loss, "torch.compile": lambda *args: compiled()(*args)}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(("n", "c"), [(256, 1000), (4096, 100), (4096, 8142)])
def bench_loss(race, device, quick, n, c, peer):
    n = n // 16 if quick else n
    g = torch.Generator().manual_seed(0)
    logits, target = torch.randn(n, c, generator=g).to(device), torch.randint(c, (n,), generator=g).to(device)
    prior = (torch.rand(c, generator=g) + 0.01).to(device)
    race(PEERS[peer], logits, target, prior, like=reference.loss, read=logits.nbytes)
