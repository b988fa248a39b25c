"""Periodic crystals on the GPU."""
