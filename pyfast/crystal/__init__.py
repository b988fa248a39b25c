"""Periodic crystals: graphs, geometry and message passing."""

from pyfast.crystal import convert
from pyfast.crystal._graph import PeriodicGraph, Status
from pyfast.crystal._nearest import knn_graph
from pyfast.crystal._neighbors import neighbors, radius_graph
from pyfast.crystal._verlet import NeighborList
from pyfast.crystal.dropin import neighbor_list, torch_sim_neighbors
from pyfast.crystal.messages import conv
from pyfast.crystal.table import RadialTable
from pyfast.crystal.voronoi import VoronoiGraph, crystal_nn_graph, voronoi_graph

__all__ = [
    "NeighborList",
    "PeriodicGraph",
    "RadialTable",
    "Status",
    "VoronoiGraph",
    "conv",
    "convert",
    "crystal_nn_graph",
    "knn_graph",
    "neighbor_list",
    "neighbors",
    "radius_graph",
    "torch_sim_neighbors",
    "voronoi_graph",
]
