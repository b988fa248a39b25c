"""Periodic graphs by brute force: every image that can be near is measured, every corner of a cell tried."""

from pyfast.reference.crystal._nearest import knn_graph
from pyfast.reference.crystal._neighbors import neighbors, radius_graph
from pyfast.reference.crystal._voronoi import choose, crystal_nn, faces

__all__ = ["choose", "crystal_nn", "faces", "knn_graph", "neighbors", "radius_graph"]
