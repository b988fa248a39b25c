"""CrystalNN graphs against pymatgen's, which is the definition: with the arguments of CDVAE, edges both ways."""

import warnings

import numpy as np
import pytest
import torch

from pyfast import crystal
from pyfast.crystal.convert import Crystals, from_pymatgen, to_pymatgen

OPTIONS = {"distance_cutoffs": None, "x_diff_weight": -1, "porous_adjustment": False}


def aflow(quick, _):
    """Structure types that pymatgen ships."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

        structures = [entry["snl"].structure for entry in AFLOW_PROTOTYPE_LIBRARY]
    return from_pymatgen([s for s in structures if len(s) <= 12][:: 40 if quick else 4])


def stored(name, count):
    """Every so many-th crystal of a file, from the --data directory."""

    def load(quick, data):
        file = np.load(data() / "crystals" / f"{name}.npz")
        natoms = torch.from_numpy(file["natoms"]).long()
        pick = torch.zeros(len(natoms), dtype=torch.bool)
        pick[:: len(natoms) // count] = True
        pick[pick.cumsum(0) > (count // 16 if quick else count)] = False
        atoms = torch.repeat_interleave(pick, natoms)
        cell = torch.from_numpy(file["cell"]).double()
        positions = torch.einsum(
            "ni,nij->nj", torch.from_numpy(file["frac"]).double(), torch.repeat_interleave(cell, natoms, 0)
        )
        numbers = torch.from_numpy(file["z"]).long()[atoms]
        return Crystals(positions[atoms], cell[pick], natoms[pick], numbers, torch.ones(int(pick.sum()), 3).bool())

    return load


def pyfast(crystals, structures):
    return crystal.crystal_nn_graph(crystals.positions, crystals.cell, natoms=crystals.natoms)


def pymatgen(crystals, structures):
    """{(j, i, *shift)} of each structure."""
    from pymatgen.analysis.local_env import CrystalNN

    finder, graphs = CrystalNN(**OPTIONS), []
    for structure in structures:
        edges = set()
        for i in range(len(structure)):
            for n in finder.get_nn_info(structure, i):
                j, shift = n["site_index"], [int(s) for s in n["image"]]
                edges |= {(j, i, *shift), (i, j, *(-s for s in shift))}
        graphs.append(edges)
    return graphs


PEERS = {"pyfast": pyfast, "pymatgen": pymatgen}
SETS = {"aflow": aflow, "mp20_64": stored("mp20_64", 64), "carbon_24": stored("carbon_24_test", 200)}
_theirs = {}


def sets(graph):
    ends = torch.cat([graph.edge_index, graph.shift.T]).T
    return [
        {(j - first, i - first, *s) for j, i, *s in ends[slice(*graph.edge_ptr[k : k + 2].tolist())].tolist()}
        for k, first in enumerate(graph.atom_ptr[:-1].tolist())
    ]


def tie(crystals, k):
    """Whether a weight of the k-th crystal is so near the edge between two thousandths that rounding decides."""
    first = int(crystals.natoms[:k].sum())
    graph, angle, _ = crystal.voronoi_graph(
        crystals.positions[first : first + int(crystals.natoms[k])], crystals.cell[k]
    )
    most = torch.zeros(graph.num_atoms, dtype=torch.float64).scatter_reduce(0, graph.target, angle, "amax")
    thousandths = 1000 * angle / most[graph.target]
    return bool(((thousandths % 1 - 0.5).abs() < 1e-6).any())


def agree(answer, want, crystals):
    """At least 95 % of the graphs are pymatgen's, and only ties make a difference."""
    got = sets(answer) if isinstance(answer, crystal.PeriodicGraph) else answer
    different = [k for k, (a, b) in enumerate(zip(got, want, strict=True)) if a != b]
    print(f"{len(got) - len(different)} of {len(got)} graphs are the same")
    assert len(different) <= 0.05 * len(got), f"wrong answer: {len(different)} of {len(got)} graphs differ"
    assert all(tie(crystals, k) for k in different), f"wrong answer: crystals {different} differ without a tie"


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("name", SETS)
def bench_crystal_nn(race, quick, request, name, peer):
    crystals = SETS[name](quick, lambda: request.getfixturevalue("data"))
    structures = to_pymatgen(crystals)
    if name not in _theirs:
        _theirs[name] = pymatgen(crystals, structures)
    race(PEERS[peer], crystals, structures, check=lambda answer, *_: agree(answer, _theirs[name], crystals))
