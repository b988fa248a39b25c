"""Linear attention: a state of fixed size reads the tokens, so that time and memory are linear in their number.

    attention: of whole sequences.
    step: of one token more, for decoding.
    LinearAttention: the layer around both.
    elu_plus_one: a feature map, positive.
    relu: a feature map.
    identity: no feature map.

The page is docs/linear_attention.md.
"""

from pyfast.linear_attention._attention import attention, step
from pyfast.linear_attention._module import LinearAttention
from pyfast.linear_attention.features import elu_plus_one, identity, relu

__all__ = ["LinearAttention", "attention", "elu_plus_one", "identity", "relu", "step"]


def __dir__() -> list[str]:
    return sorted(__all__)
