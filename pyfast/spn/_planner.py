"""How large a network a table is worth, and how many sweeps."""

import math
from typing import Any

from pyfast.spn._columns import Columns
from pyfast.spn._hclt import hclt
from pyfast.spn._rat import rat
from pyfast.spn._structure import Structure
from pyfast.spn._tree import tree

_WORK = 2.4e11  # multiplications that a fit may take by default: about 50 s on two cores with AVX2
_CHOICE = 300  # multiplications that take as long as one choice of a row
_FEWEST = 24  # sweeps of the larger network rather than more of a smaller one
_MOST, _WARM = 400, 10  # sweeps, and passes of EM before them
_EM = 2.5  # sweeps that take as long as a pass of EM


def structure_for(asked: Structure | str, X: Any, columns: Columns, hidden: int | None, rows: int) -> Structure:
    """The structure of a name, its size by that of the table where none is given; ``rows`` times chains differ."""
    d = len(columns)
    if isinstance(asked, Structure):
        if asked.num_variables != d:
            raise ValueError(f"X must have {asked.num_variables} columns, got {d}")
        return asked
    if asked == "tree":
        return tree(d, sum_children=2, product_children=2)
    if asked == "rat":
        size = hidden or 12
        return rat(d, replicas=8, depth=max(1, min(3, int(math.log2(max(d, 2))))), sums=size, leaves=size)
    sizes = [k for k in (64, 32, 16) if (_FEWEST + _WARM * _EM) * rows * d * (k * k + k + _CHOICE) <= _WORK]
    return hclt(X, hidden or (sizes or [8])[0], columns)


def sweeps_for(structure: Structure, rows: int) -> int:
    """How many sweeps of ``rows`` times chains are worth their time."""
    cost = rows * (structure.num_weights + structure.num_leaves + _CHOICE * structure.num_variables)
    return max(_FEWEST, min(_MOST, int(_WORK / cost - _WARM * _EM)))


def warm_for(structure: Structure, rows: int) -> int:
    """How many passes of EM come before them: more would learn what is in these rows alone."""
    return min(_WARM, sweeps_for(structure, rows))
