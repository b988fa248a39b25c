"""Kernels of every instruction set that runs here: integers are the same; draws differ where rounding decides."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from pyfast import _C

LEVELS = [level for level in _C.levels() if level == "native" or find_spec(f"pyfast._C.{level}")]

SCRIPT = """
import sys
import numpy as np
import torch
import pyfast
from pyfast.reference import spn as reference
from pyfast.spn import Columns, unique_rows
from pyfast.spn._hyper import Hyper
from pyfast.spn._network import Network
from pyfast.spn._start import clustered

g = np.random.default_rng(0)
X = (g.random((3000, 24)) < g.beta(0.5, 0.5, (6, 24))[g.integers(6, size=3000)]).astype(float)
columns = Columns.fit_encoding(X)
rows, times = columns.encode(X), torch.ones(3000, dtype=torch.int64)
out = {"tree": pyfast.spn.chow_liu(X, columns)}
for name, structure in (("hclt", pyfast.spn.hclt(X, 9, columns)), ("rat", pyfast.spn.rat(24, replicas=2, depth=2))):
    net = Network(structure, columns)
    hyper = Hyper(net, columns, 1.0, 2.0)
    law = net.law(hyper.mass, hyper.prior())
    p = net.draw(net.no_counts(), law, 1, 0)
    given = torch.load(sys.argv[2] + name) if len(sys.argv) > 2 else (p.weights, p.leaves)
    torch.save(given, sys.argv[1] + name)
    p = p._replace(weights=given[0], leaves=given[1])  # the same parameters to the last bit
    counts, log = net.sweep(rows, times, p, 3, 4)
    out |= {name + " weights": counts.weights, name + " leaves": counts.leaves, name + " log": log.double()}
    s = net.structure
    ref = reference.Network(s.kind, s.first, s.child, s.variable, net.leaf_first, columns.family)
    out[name + " plain"] = reference.log_likelihood(ref, *given, rows).double()
    out[name + " truth"] = reference.log_likelihood(ref, *(x.double() for x in given), rows.double())
    if name == "hclt":
        out["start"] = torch.cat(clustered(net, unique_rows(rows), 5, 6))
torch.save(out, sys.argv[1])
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels")
    found, before = {}, []
    for level in LEVELS:
        path = str(folder / level)
        subprocess.run(
            [sys.executable, "-P", "-c", SCRIPT, path, *before], check=True, env=os.environ | {"PYFAST_CPU": level}
        )
        found[level], before = torch.load(path), before or [path]
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_levels_agree(results, level):
    first, here = results[LEVELS[0]], results[level]
    for name in ("tree", "start"):
        assert torch.equal(here[name], first[name])
    for name in ("hclt", "rat"):
        for part in ("weights", "leaves"):
            a, b = here[f"{name} {part}"], first[f"{name} {part}"]
            assert int(a.sum()) == int(b.sum())
            # of all choices of a sweep at most one in ten thousand falls within rounding of another
            assert int((a - b).abs().sum()) <= 2 + int(a.sum()) / 10_000
        truth, plain = here[f"{name} truth"], here[f"{name} plain"]
        allowed = 2 * (plain - truth).abs().max() + 4 * torch.finfo(torch.float32).eps * truth.abs().max()
        assert (here[f"{name} log"] - truth).abs().max() <= allowed  # as ``check`` has it
