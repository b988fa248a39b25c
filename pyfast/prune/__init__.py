"""Global magnitude pruning: one threshold for a whole network, exact, with a minimum per layer."""

from pyfast.prune.gradual import GradualPruner
from pyfast.prune.magnitude import global_magnitude_, global_magnitude_mask
from pyfast.prune.mask import BitMask
from pyfast.prune.rescaling import rescaled_magnitude_
from pyfast.prune.result import LayerReport, PruneResult

__all__ = [
    "BitMask",
    "GradualPruner",
    "LayerReport",
    "PruneResult",
    "global_magnitude_",
    "global_magnitude_mask",
    "rescaled_magnitude_",
]
