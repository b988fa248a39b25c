"""Sum-product networks: structures, their data, and learning of their parameters, Bayesian or not."""

from pyfast.spn._bayes import BayesSPN, Diagnostics
from pyfast.spn._columns import Columns
from pyfast.spn._density import Density
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
