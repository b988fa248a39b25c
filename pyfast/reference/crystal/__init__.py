"""Periodic graphs by brute force: every image that can be near is measured."""

from pyfast.reference.crystal._nearest import knn_graph
from pyfast.reference.crystal._neighbors import neighbors, radius_graph

__all__ = ["knn_graph", "neighbors", "radius_graph"]
