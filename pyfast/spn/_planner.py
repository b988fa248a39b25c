"""How large a network a table is worth, and how many sweeps."""

import math
from typing import Any

from pyfast.spn._columns import Columns
from pyfast.spn._hclt import hclt
from pyfast.spn._rat import rat
from pyfast.spn._structure import Structure
from pyfast.spn._tree import tree

# Times are in those of one multiplication of a sweep, of which two cores with AVX2 do some 15 billion a second.
_WORK = 6.5e11  # that a fit may take by default: about 45 s
_CHOICE = 300  # of a row's choice in one variable
_EM, _EM_CHOICE = 3.4, 100  # of a weight in a pass of EM, and how many weights a variable is worth there
_FEWEST, _MOST, _WARM = 12, 400, 10  # sweeps, and passes of EM before them
_SIZES = (128, 96, 64, 48, 32, 24, 16, 12, 8)
_SEEN = 4  # rows for each pair of states of two hidden variables: with fewer, larger networks learn less


def structure_for(
    asked: Structure | str, X: Any, columns: Columns, hidden: int | None, rows: int, different: int
) -> Structure:
    """The structure of a name, its size by that of the table where none is given.

    Args:
        asked: a name or a structure.
        X: the table.
        columns: the fitted ones.
        hidden: the size, if given.
        rows: of the table.
        different: rows times chains.
    """
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
    sizes = [
        k
        for k in _SIZES
        if rows >= _SEEN * k * k
        and different >= k
        and different * (_warm(d, d * k * k) + _FEWEST * _sweep(d, d * (k * k + k))) <= _WORK
    ]
    return hclt(X, hidden or (sizes or _SIZES[-1:])[0], columns)


def sweeps_for(structure: Structure, different: int) -> int:
    """How many sweeps of rows times chains are worth their time."""
    d = structure.num_variables
    left = _WORK / different - _warm(d, structure.num_weights)
    return max(_FEWEST, min(_MOST, int(left / _sweep(d, structure.num_weights + structure.num_leaves))))


def warm_for(structure: Structure, different: int) -> int:
    """How many passes of EM come before them: more would learn what is in these rows alone."""
    return min(_WARM, sweeps_for(structure, different))


def _sweep(variables: int, parameters: int) -> float:
    """What a row costs."""
    return parameters + _CHOICE * variables


def _warm(variables: int, weights: int) -> float:
    return _WARM * _EM * (weights + _EM_CHOICE * variables)
