"""Neighbour lists: a batch of crystals, a supercell, and the 20 nearest, against the libraries that the field uses.

Every answer is the list (i, j, shift, distance) of all edges, with memory of its own; pyfast's is sorted and carries
pointers and reverse edges besides. Peers that take one crystal at a time take them in a loop. All run in one thread, as
most of them do; pyfast once more in two.
"""

import functools

import numpy as np
import pytest
import torch

from pyfast import crystal
from pyfast.reference import crystal as reference


def crystals(directory, quick):
    """1,000 crystals like those of MP-20: positions, cells and numbers of atoms."""
    file = np.load(directory / "crystals" / "mp20like_1000.npz")
    natoms, cell = torch.tensor(file["natoms"]).long(), torch.tensor(file["cell"]).double()
    x = torch.einsum("ni,nij->nj", torch.tensor(file["frac"]).double(), cell.repeat_interleave(natoms, 0)).contiguous()
    count = 20 if quick else len(natoms)
    return x[: int(natoms[:count].sum())], cell[:count], natoms[:count]


def supercell(side):
    """Rock salt of side^3 atoms, strained, shaken, and in no order."""
    rng = np.random.default_rng(0)
    strain = np.array([[1, 0, 0], [0.1, 1, 0], [0.05, -0.1, 1]])
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3) * 2.76
    x = rng.permutation(grid + rng.normal(size=grid.shape) * 0.1) @ strain
    return torch.tensor(x), torch.tensor(side * 2.76 * strain)[None], torch.tensor([len(x)])


def pyfast_(x, cell, natoms, cutoff):
    graph = crystal.radius_graph(x, cell, cutoff, natoms=natoms)
    return graph.target, graph.source, graph.shift, graph.distance


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_two_threads(function):
    def run(*args):
        torch.set_num_threads(2)
        try:
            return function(*args)
        finally:
            torch.set_num_threads(1)

    return run


def each(x, cell, natoms):
    return zip(np.split(x.numpy(), np.cumsum(natoms.numpy())[:-1]), cell.numpy(), strict=True)


def joined(parts, natoms):
    """Lists of single crystals, numbered through: part of every loop, as a batch must be."""
    first = np.concatenate([[0], np.cumsum(natoms.numpy())[:-1]])
    i, j = (np.concatenate([p[k] + f for p, f in zip(parts, first, strict=True)]) for k in (0, 1))
    return i, j, np.concatenate([p[2] for p in parts]), np.concatenate([p[3] for p in parts])


def pymatgen(x, cell, natoms, cutoff):
    from pymatgen.optimization.neighbors import find_points_in_spheres

    pbc = np.ones(3, dtype=np.int64)
    parts = []
    for a, c in each(x, cell, natoms):
        i, j, shift, d = find_points_in_spheres(a, a, r=cutoff, pbc=pbc, lattice=np.ascontiguousarray(c), tol=1e-8)
        other = (i != j) | (d > 1e-8)
        parts.append((i[other], j[other], shift[other], d[other]))
    return joined(parts, natoms)


def vesin(x, cell, natoms, cutoff):
    from vesin import NeighborList

    lists = NeighborList(cutoff=cutoff, full_list=True)
    return joined([lists.compute(a, c, True, "ijSd") for a, c in each(x, cell, natoms)], natoms)


def matscipy(x, cell, natoms, cutoff):
    from matscipy.neighbours import neighbour_list

    pbc = np.ones(3, dtype=bool)
    parts = [neighbour_list("ijSd", cutoff=cutoff, positions=a, cell=c, pbc=pbc) for a, c in each(x, cell, natoms)]
    return joined(parts, natoms)


def nvalchemi(x, cell, natoms, cutoff):
    from nvalchemiops.torch.neighbors import neighbor_list

    B = len(natoms)
    ptr = torch.nn.functional.pad(natoms.cumsum(0), (1, 0)).int()
    index, _, shift, distance = neighbor_list(
        x, cutoff, cell=cell, pbc=torch.ones(B, 3, dtype=torch.bool), batch_ptr=ptr,
        batch_idx=torch.repeat_interleave(natoms).int(), return_neighbor_list=True, return_distances=True,
        max_neighbors=_most(x, cell, natoms, cutoff), method="batch_naive" if B > 1 else "cell_list",
    )  # fmt: skip
    return index[0], index[1], shift, distance


@functools.cache
def _largest(key):
    x, cell, natoms, cutoff = key.arguments
    return int(crystal.radius_graph(x, cell, cutoff, natoms=natoms).ptr.diff().max())


class _Key:
    """Arguments by identity: the peer is told its room, which it would have to guess, outside of its time."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __eq__(self, other):
        return all(a is b for a, b in zip(self.arguments, other.arguments, strict=True))

    def __hash__(self):
        return hash(tuple(map(id, self.arguments)))


def _most(*arguments):
    return _largest(_Key(*arguments))


PEERS = {
    "pyfast": pyfast_,
    "pyfast, two threads": in_two_threads(pyfast_),
    "pymatgen": pymatgen,
    "vesin": vesin,
    "matscipy": matscipy,
    "nvalchemi-toolkit-ops": nvalchemi,
}
PACKAGES = {"vesin": "vesin", "matscipy": "matscipy", "nvalchemi-toolkit-ops": "nvalchemiops", "pymatgen": "pymatgen"}


def keys(answer):
    """(E, 5) of i, j, shift, sorted."""
    i, j, shift, _ = (np.asarray(a) for a in answer)
    rows = np.concatenate([i[:, None], j[:, None], shift], 1).astype(np.int64)
    return rows[np.lexsort(rows.T[::-1])]


def _whole(rows):
    return np.ascontiguousarray(rows).view([("", np.int64)] * 5).ravel()


def right(cutoff):
    """A check: all edges, but those at the very cutoff, which libraries treat differently."""

    def check(answer, x, cell, natoms, _):
        want = crystal.radius_graph(x, cell, cutoff * (1 + 1e-9), natoms=natoms)
        sure = want.distance < cutoff * (1 - 1e-9)
        edges = torch.cat([want.target[:, None], want.source[:, None], want.shift], 1)
        rows, every = keys(answer), edges.numpy()
        assert sure.sum() <= len(rows) <= len(every)
        if len(rows) < len(every):
            every = np.concatenate(
                [
                    every[sure.numpy()],
                    np.intersect1d(*map(_whole, (rows, every[~sure.numpy()]))).view(np.int64).reshape(-1, 5),
                ]
            )
            every = every[np.lexsort(every.T[::-1])]
        assert np.array_equal(rows, every)

    return check


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("cutoff", [5.0, 6.0, 8.0])
def bench_crystals(race, data, quick, cutoff, peer):
    pytest.importorskip(PACKAGES.get(peer, "torch"))
    race(PEERS[peer], *crystals(data, quick), cutoff, check=right(cutoff))


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("atoms", [10_648, 97_336])
def bench_supercell(race, quick, atoms, peer):
    pytest.importorskip(PACKAGES.get(peer, "torch"))
    race(PEERS[peer], *supercell(8 if quick else round(atoms ** (1 / 3))), 5.0, check=right(5.0))


def nearest(x, cell, natoms, k, cutoff):
    graph = crystal.knn_graph(x, cell, k, cutoff=cutoff, natoms=natoms, inclusive=True)
    return graph.target, graph.source, graph.shift, graph.distance


def nearest_27_images(x, cell, natoms, k, cutoff):
    """As CDVAE and OCP do it: all pairs in 27 images, what is too far struck out, and each atom's nearest kept."""
    x, cell = x.float(), cell.float()
    square = natoms * natoms
    first = (natoms.cumsum(0) - natoms).repeat_interleave(square)
    of_pair = torch.arange(int(square.sum())) - (square.cumsum(0) - square).repeat_interleave(square)
    each_n = natoms.repeat_interleave(square)
    i, j = of_pair // each_n + first, of_pair % each_n + first
    images = torch.cartesian_prod(*[torch.tensor([-1, 0, 1])] * 3).float()
    offset = (images @ cell).repeat_interleave(square, 0)  # (pairs, 27, 3)
    square_distance = ((x[j] - x[i])[:, None] + offset).square().sum(-1)
    near = (square_distance <= cutoff * cutoff) & (square_distance > 1e-4)
    pair, image = near.nonzero(as_tuple=True)
    distance = square_distance[near]
    count = torch.bincount(i[pair], minlength=len(x))
    table = torch.full((len(x), int(count.max())), torch.inf)
    place = torch.arange(len(pair)) - (count.cumsum(0) - count)[i[pair]]
    table[i[pair], place] = distance
    order = table.sort(1)
    kept = order.values[:, :k].isfinite()
    edges = ((count.cumsum(0) - count)[:, None] + order.indices[:, :k])[kept]
    return i[pair[edges]], j[pair[edges]], images[image[edges]].long(), distance[edges].sqrt()


NEAREST = {"pyfast": nearest, "pyfast, two threads": in_two_threads(nearest), "torch, 27 images": nearest_27_images}


@pytest.mark.parametrize("peer", NEAREST)
def bench_nearest(race, data, quick, peer):
    def check(answer, x, cell, natoms, k, cutoff):
        count = np.bincount(np.asarray(answer[0]), minlength=len(x))
        assert count.max() <= k
        few = natoms[:20]
        n = int(few.sum())
        want = reference.knn_graph(x[:n], cell[:20], k, cutoff=cutoff, natoms=few, inclusive=True)
        if peer.startswith("pyfast"):
            assert np.array_equal(keys(answer)[: want.num_edges], keys((want.target, want.source, want.shift, 0)))

    race(NEAREST[peer], *crystals(data, quick), 20, 7.0, check=check)
