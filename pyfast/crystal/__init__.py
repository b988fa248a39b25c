"""Periodic crystals: graphs, geometry and message passing."""

from pyfast.crystal._graph import PeriodicGraph, Status
from pyfast.crystal._nearest import knn_graph
from pyfast.crystal._neighbors import neighbors, radius_graph
from pyfast.crystal._verlet import NeighborList
from pyfast.crystal.messages import conv
from pyfast.crystal.table import RadialTable

__all__ = ["NeighborList", "PeriodicGraph", "RadialTable", "Status", "conv", "knn_graph", "neighbors", "radius_graph"]
