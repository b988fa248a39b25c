"""Demonstrations on real weights, images, text and crystals, one section per family: what `pyfast demo` shows.

A section is a module with ``run(console, plot, quick)``, which prints what it finds and returns it as a dict; its
``"agrees"`` says whether the compiled kernels gave what ``pyfast.reference`` gives.
"""

SECTIONS = ("prune", "linear_attention", "spn", "crystal")
