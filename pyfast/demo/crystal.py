"""Real structure types to graphs: neighbour lists and bonds, checked against brute force and raced against peers."""

import importlib
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from pyfast import crystal
from pyfast.reference import crystal as reference

CUTOFF = 6.0


def run(console: Console, plot: Path | None, quick: bool) -> dict[str, Any]:
    """Make graphs of all prototypes, hold them against the reference, race pymatgen and ASE, compare bonds."""
    structures, crystals = prototypes()
    console.rule("Periodic crystals: exact graphs")
    arguments = crystals.positions, crystals.cell, CUTOFF
    graph = crystal.radius_graph(*arguments, natoms=crystals.natoms)
    want = reference.radius_graph(*arguments, natoms=crystals.natoms)
    fields = ("edge_index", "shift", "distance", "reverse", "ptr", "edge_ptr")
    equal = all(torch.equal(getattr(graph, name), getattr(want, name)) for name in fields)
    console.print(
        f"pymatgen's AFLOW prototypes: {len(structures)} structure types, {graph.num_atoms:,} atoms, "
        f"{graph.num_edges:,} neighbours within {CUTOFF:g} Å; to the bit what brute force finds, equal: "
        f"{'yes' if equal else 'NO'}"
    )
    times = race(structures, crystals, 1 if quick else 5)
    table = Table(
        "neighbour lists of all", "time (ms)", "ratio", title=f"{torch.get_num_threads()} threads, best of a few"
    )
    ours = times["pyfast"]
    for name, seconds in times.items():
        table.add_row(name, f"{1e3 * seconds:,.1f}", f"{seconds / ours:,.{seconds < 10 * ours:d}f}x")
    console.print(table)
    bonds = crystal.crystal_nn_graph(crystals.positions, crystals.cell, natoms=crystals.natoms)
    asked = range(0, len(structures), 48 if quick else 12)
    same, speed = compare(structures, crystals, bonds, asked)
    numbers = torch.bincount(bonds.ptr.diff())
    console.print(
        f"CrystalNN: {bonds.num_edges:,} bonds, most often {int(numbers.argmax())} to an atom; of {len(asked)} "
        f"structures {same} have the bonds that pymatgen finds, {speed:,.0f} times as fast."
    )
    if plot is not None:
        draw(times, numbers, plot)
        console.print(f"plot: {plot}")
    agrees = equal and same == len(asked)
    return {
        "agrees": agrees,
        "structures": len(structures),
        "edges": graph.num_edges,
        "seconds": times,
        "asked_pymatgen": len(asked),
        "same_bonds": same,
        "crystal_nn_speed": speed,
        "coordination": numbers.tolist(),
    }


def prototypes() -> tuple[list[Any], crystal.convert.Crystals]:
    """The structure types that pymatgen ships."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about prototypes whose symmetry may be determined otherwise today
        library = importlib.import_module("pymatgen.analysis.prototypes").AFLOW_PROTOTYPE_LIBRARY
        structures = [entry["snl"].structure for entry in library]
    return structures, crystal.convert.from_pymatgen(structures)


def race(structures: list[Any], crystals: crystal.convert.Crystals, rounds: int) -> dict[str, float]:
    """Best times of each way to make all lists, in seconds."""
    from ase.neighborlist import neighbor_list
    from pymatgen.optimization.neighbors import find_points_in_spheres

    atoms = crystal.convert.to_ase(crystals)[:: 8 if rounds == 1 else 1]
    points = [(np.ascontiguousarray(s.cart_coords), np.ascontiguousarray(s.lattice.matrix)) for s in structures]
    every = np.ones(3, dtype=np.int64)

    def pymatgen() -> None:
        for x, h in points:
            find_points_in_spheres(x, x, CUTOFF, every, h)

    def ase() -> None:
        for a in atoms:
            neighbor_list("ijdDS", a, CUTOFF)

    def pyfast() -> None:
        crystal.radius_graph(crystals.positions, crystals.cell, CUTOFF, natoms=crystals.natoms, vectors=True)

    return {
        "pyfast": min(_seconds(pyfast) for _ in range(4 * rounds)),
        "pymatgen": min(_seconds(pymatgen) for _ in range(rounds)),
        "ASE": _seconds(ase) * len(structures) / len(atoms),
    }


def compare(
    structures: list[Any], crystals: crystal.convert.Crystals, bonds: crystal.PeriodicGraph, asked: range
) -> tuple[int, float]:
    """How many structures have pymatgen's bonds, and how much faster ours come for these."""
    same, theirs = 0, 0.0
    starts = bonds.edge_ptr.tolist()
    for k in asked:
        edges = slice(starts[k], starts[k + 1])
        ends = (bonds.edge_index[:, edges] - bonds.atom_ptr[k]).T.tolist()
        mine = {(j, i, *s) for (j, i), s in zip(ends, bonds.shift[edges].tolist(), strict=True)}
        start = time.perf_counter()
        found = pymatgen_bonds(structures[k])
        theirs += time.perf_counter() - start
        same += mine == found
    pick = torch.zeros(len(structures), dtype=torch.bool)
    pick[list(asked)] = True
    x, h, n = (
        crystals.positions[torch.repeat_interleave(pick, crystals.natoms)],
        crystals.cell[pick],
        crystals.natoms[pick],
    )
    ours = min(_seconds(lambda: crystal.crystal_nn_graph(x, h, natoms=n)) for _ in range(5))
    return same, theirs / ours


def pymatgen_bonds(structure: Any) -> set[tuple[int, ...]]:
    """{(j, i, *shift)} in both directions, as CDVAE asks pymatgen for them."""
    from pymatgen.analysis.local_env import CrystalNN

    finder = CrystalNN(distance_cutoffs=None, x_diff_weight=-1, porous_adjustment=False)
    found = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(len(structure)):
            for n in finder.get_nn_info(structure, i):
                j, shift = n["site_index"], [int(s) for s in n["image"]]
                found |= {(j, i, *shift), (i, j, *(-s for s in shift))}
    return found


def draw(times: dict[str, float], numbers: torch.Tensor, path: Path) -> None:
    """Times, and how many bonds atoms have."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.barh(list(times), [1e3 * t for t in times.values()])
    left.set(xscale="log", xlabel=f"neighbour lists of all prototypes within {CUTOFF:g} Å (ms)")
    left.invert_yaxis()
    right.bar(range(len(numbers)), numbers.tolist())
    right.set(xlabel="bonds of an atom (CrystalNN)", ylabel="atoms")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return max(time.perf_counter() - start, math.ulp(1.0))
