"""Periodic crystals: graphs, geometry and message passing."""

from pyfast.crystal import convert
from pyfast.crystal._arguments import Crystals
from pyfast.crystal._graph import PeriodicGraph, Status
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
    "torch_sim_neighbors",
    "triplet_indices",
    "triplet_tiles",
    "voronoi_graph",
]
