"""The libraries that the field uses find the same edges, on the structure types that pymatgen ships and on real data.

Boundaries are conventions: pymatgen counts atoms at the cutoff in, the others out. In ideal crystals rounding makes
some of these a little farther and some a little nearer, differently everywhere, so edges within a billionth of the
cutoff may be absent from either list, and all others must be in both.
"""

import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.neighborlist import primitive_neighbor_list
from matscipy.neighbours import neighbour_list
from pymatgen.optimization.neighbors import find_points_in_spheres
from vesin import NeighborList

from pyfast import crystal

CUTOFFS = [3.0, 5.0, 6.0, 7.0, 8.0, 12.0]
PERIODIC = np.ones(3, dtype=bool)


def prototypes():
    """The structure types of AFLOW's encyclopedia."""
    folder = Path(importlib.util.find_spec("pymatgen.analysis.prototypes").origin).parent
    for entry in json.loads(gzip.decompress((folder / "aflow_prototypes.json.gz").read_bytes())):
        structure = entry["snl"]
        cell = np.array(structure["lattice"]["matrix"], dtype=np.float64)
        yield np.array([s["abc"] for s in structure["sites"]], dtype=np.float64) @ cell, cell


def stored(file):
    data = np.load(file)
    first = 0
    for n, cell in zip(data["natoms"], data["cell"].astype(np.float64), strict=True):
        yield data["frac"][first : first + n].astype(np.float64) @ cell, cell
        first += n


def pymatgen(x, cell, cutoff):
    i, j, shift, _ = find_points_in_spheres(x, x, r=cutoff, pbc=PERIODIC.astype(np.int64), lattice=cell, tol=1e-8)
    other = (i != j) | (shift != 0).any(1)
    return i[other], j[other], shift[other]


PEERS = {
    "pymatgen": pymatgen,
    "vesin": lambda x, cell, cutoff: NeighborList(cutoff=cutoff, full_list=True).compute(x, cell, True, "ijS"),
    "matscipy": lambda x, cell, cutoff: neighbour_list("ijS", cutoff=cutoff, positions=x, cell=cell, pbc=PERIODIC),
    "ASE": lambda x, cell, cutoff: primitive_neighbor_list("ijS", PERIODIC, cell, x, cutoff),
}


def compare(structures, peer, cutoffs=CUTOFFS):
    edges = 0
    for x, cell in structures:
        for cutoff in cutoffs:
            wide = crystal.neighbors(torch.tensor(x), torch.tensor(cell), cutoff * (1 + 1e-9))
            mine = torch.cat([wide.target[:, None], wide.source[:, None], wide.shift], 1).numpy()
            sure = (wide.distance < cutoff * (1 - 1e-9)).numpy()
            i, j, shift = PEERS[peer](x, cell, cutoff)
            theirs = np.concatenate([i[:, None], j[:, None], shift], 1).astype(np.int64)
            theirs = theirs[np.lexsort(theirs.T[::-1])]
            if len(theirs) == sure.sum() or len(theirs) == len(mine):
                assert np.array_equal(theirs, mine[sure] if len(theirs) == sure.sum() else mine)
            else:
                found = {*map(tuple, theirs.tolist())}
                assert {*map(tuple, mine[sure].tolist())} <= found <= {*map(tuple, mine.tolist())}
                assert len(found) == len(theirs)
            edges += len(theirs)
    assert edges > 0


@pytest.mark.parametrize("peer", [p for p in PEERS if p != "ASE"])
def test_structure_types(peer):
    compare(prototypes(), peer, CUTOFFS[:5])
    compare(list(prototypes())[::12], peer, CUTOFFS[5:])


def test_structure_types_with_ase():
    small = [(x, cell) for x, cell in prototypes() if len(x) <= 8]
    compare(small[::12], "ASE", CUTOFFS[:3])


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("file", ["mp20_64", "carbon_24_test", "perov_5_test"])
def test_published_crystals(request, file, peer):
    """A sample; with --every-crystal, all of them, which takes a while."""
    directory = request.config.getoption("--data")
    if directory is None or not (directory / "crystals" / f"{file}.npz").exists():
        pytest.skip("no --data directory; the sets are those of github.com/txie-93/cdvae and microsoft/mattergen")
    structures = list(stored(directory / "crystals" / f"{file}.npz"))
    step = 1 if request.config.getoption("--every-crystal") else -(-len(structures) // (4 if peer == "ASE" else 24))
    compare(structures[::step], peer, CUTOFFS if step == 1 or peer != "ASE" else CUTOFFS[:3])


def test_inclusive_is_what_pymatgen_means_and_exclusive_what_the_others_mean():
    x, cell = np.zeros((1, 3)), 3 * np.eye(3)
    for peer in PEERS:
        inclusive = crystal.neighbors(torch.tensor(x), torch.tensor(cell), 3.0, inclusive=peer == "pymatgen")
        assert len(PEERS[peer](x, cell, 3.0)[0]) == inclusive.num_edges == (6 if peer == "pymatgen" else 0)
