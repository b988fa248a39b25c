"""Periodic crystals: graphs, geometry and message passing.

Structures:
    Crystals: a batch of them; what makes graphs takes it for its first arguments.
    convert: Crystals from and to ASE, pymatgen, PyTorch Geometric, files.
    join: batches of Crystals and of graphs made one by one; a collate_fn.
    split: the structures of a batch or graph one by one.
    lattice_from_parameters: cells from lengths and angles.

Graphs:
    radius_graph: all neighbours within a cutoff, of a batch.
    neighbors: the same, of one structure.
    knn_graph: the k nearest.
    crystal_nn_graph: bonds, as CrystalNN finds them.
    voronoi_graph: neighbours that share a face of their Voronoi cells.
    NeighborList: neighbours of atoms that move a little at a time.
    neighbor_list: a stand-in for that of ASE and matscipy.
    torch_sim_neighbors: a neighbour list function for TorchSim.
    PeriodicGraph: what a graph is.
    VoronoiGraph: a graph with the faces of its edges.
    Status: bits that say what is wrong with a structure.

Geometry, differentiable:
    edge_vectors: the vector of every edge.
    lengths: of vectors, with a derivative at 0.
    angles: between vectors, exact near 0 and pi.
    minimum_image: the shortest image of every vector.
    forces_and_stress: from an energy of edge vectors.

Messages:
    conv: continuous-filter convolution.
    RadialTable: a network of distance, read from a table.
    segment_sum: sums over the edges of an atom or structure.
    segment_mean: means.
    segment_max: maxima.
    segment_softmax: attention over edges.

Triplets:
    triplet_tiles: pairs of edges that meet, one tile for each atom.
    Tiles: what those are.
    triplet_indices: triplets as two arrays of edges.
    quadruplet_indices: chains of four atoms as three arrays of edges.
    cosines: of the angle of every triplet.
    legendre: Legendre polynomials of them.
    angular_sum: sums over triplets with weights by angle, as in GemNet and DimeNet++.
    gemnet_triplets: GemNet's triplet interaction whole.
    pair_sum: sums over triplets with weights of your own.

Lengths are in Å. The page is docs/crystal.md.
"""

from pyfast.crystal import convert
from pyfast.crystal._arguments import Crystals
from pyfast.crystal._graph import PeriodicGraph, Status
from pyfast.crystal._join import join, split
from pyfast.crystal._nearest import knn_graph
from pyfast.crystal._neighbors import neighbors, radius_graph
from pyfast.crystal._verlet import NeighborList
from pyfast.crystal.angular import angular_sum, gemnet_triplets
from pyfast.crystal.dropin import neighbor_list, torch_sim_neighbors
from pyfast.crystal.geometry import (
    angles,
    edge_vectors,
    forces_and_stress,
    lattice_from_parameters,
    lengths,
    minimum_image,
)
from pyfast.crystal.messages import conv
from pyfast.crystal.segments import segment_max, segment_mean, segment_softmax, segment_sum
from pyfast.crystal.table import RadialTable
from pyfast.crystal.triplets import (
    Tiles,
    cosines,
    legendre,
    pair_sum,
    quadruplet_indices,
    triplet_indices,
    triplet_tiles,
)
from pyfast.crystal.voronoi import VoronoiGraph, crystal_nn_graph, voronoi_graph

__all__ = [
    "Crystals",
    "NeighborList",
    "PeriodicGraph",
    "RadialTable",
    "Status",
    "Tiles",
    "VoronoiGraph",
    "angles",
    "angular_sum",
    "conv",
    "convert",
    "cosines",
    "crystal_nn_graph",
    "edge_vectors",
    "forces_and_stress",
    "gemnet_triplets",
    "join",
    "knn_graph",
    "lattice_from_parameters",
    "legendre",
    "lengths",
    "minimum_image",
    "neighbor_list",
    "neighbors",
    "pair_sum",
    "quadruplet_indices",
    "radius_graph",
    "segment_max",
    "segment_mean",
    "segment_softmax",
    "segment_sum",
    "split",
    "torch_sim_neighbors",
    "triplet_indices",
    "triplet_tiles",
    "voronoi_graph",
]


def __dir__() -> list[str]:
    return sorted(__all__)
