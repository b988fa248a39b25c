"""Periodic crystals: graphs, geometry and message passing."""

from pyfast.crystal._graph import PeriodicGraph, Status
from pyfast.crystal.messages import conv
from pyfast.crystal.table import RadialTable

__all__ = ["PeriodicGraph", "RadialTable", "Status", "conv"]
