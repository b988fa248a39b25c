"""Periodic graphs by brute force: every image that can be near is measured."""

from pyfast.reference.crystal._neighbors import neighbors, radius_graph

__all__ = ["neighbors", "radius_graph"]
