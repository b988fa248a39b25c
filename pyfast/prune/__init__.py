"""Global magnitude pruning: one threshold for a whole network, exact, with a minimum per layer.

    global_magnitude_: prune in place.
    global_magnitude_mask: the mask alone.
    GradualPruner: prune on a schedule while training.
    rescaled_magnitude_: prune as the code released with the paper does.
    BitMask: which weights are kept, a bit each.
    PruneResult: what a pruning did.
    LayerReport: what it did to one tensor.

The page is docs/prune.md.
"""

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


def __dir__() -> list[str]:
    return sorted(__all__)
