"""Periodic crystals: graphs, geometry and message passing."""

from pyfast.crystal._graph import PeriodicGraph, Status

__all__ = ["PeriodicGraph", "Status"]
