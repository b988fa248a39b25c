"""Sum-product networks: structures, their data, and learning of their parameters, Bayesian or not.

Learning:
    BayesSPN: by Gibbs sampling, a table in and calibrated probabilities out; begin here.
    ImplicitTree: the same on a tree of 10^12 nodes, of which what rows use is built.
    EM: by expectation maximisation.
    SPN: a module with parameters, for any optimizer.
    Diagnostics: how well chains have mixed.

Data:
    Columns: what kind each column of a table is.
    Categorical: a column of codes, whether or not the data have them all.
    Density: a column with a density written in Python.
    unique_rows: equal rows grouped.
    UniqueRows: what that gives.

Structures:
    hclt: a hidden Chow-Liu tree.
    rat: random binary splits, a RAT-SPN.
    tree: sums and products in turn, down to single variables.
    Structure: any rooted graph of sums and products.
    chow_liu: the tree of columns with the largest mutual information.
    from_deeprob: a network of deeprob-kit.
    from_spflow: a network of SPFlow.

Programs that structures compile to:
    regions: those of a program, those below first.
    Region: nodes that are computed together.
    Leaves: components that are products of leaves.
    Mixture: components that are sums over one region.
    Pairs: components that are sums over products of two regions.

The page is docs/spn.md.
"""

from pyfast.spn._bayes import BayesSPN
from pyfast.spn._columns import Columns
from pyfast.spn._density import Density
from pyfast.spn._diagnostics import Diagnostics
from pyfast.spn._em import EM
from pyfast.spn._fit import Categorical
from pyfast.spn._hclt import chow_liu, hclt
from pyfast.spn._implicit import ImplicitTree
from pyfast.spn._imports import from_deeprob, from_spflow
from pyfast.spn._program import Leaves, Mixture, Pairs, Region, regions
from pyfast.spn._rat import rat
from pyfast.spn._rows import UniqueRows, unique_rows
from pyfast.spn._spn import SPN
from pyfast.spn._structure import Structure
from pyfast.spn._tree import tree

__all__ = [
    "EM",
    "SPN",
    "BayesSPN",
    "Categorical",
    "Columns",
    "Density",
    "Diagnostics",
    "ImplicitTree",
    "Leaves",
    "Mixture",
    "Pairs",
    "Region",
    "Structure",
    "UniqueRows",
    "chow_liu",
    "from_deeprob",
    "from_spflow",
    "hclt",
    "rat",
    "regions",
    "tree",
    "unique_rows",
]


def __dir__() -> list[str]:
    return sorted(__all__)
