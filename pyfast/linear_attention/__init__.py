"""Linear attention: a state of fixed size reads the tokens, so that time and memory are linear in their number."""

from pyfast.linear_attention._attention import attention, step
from pyfast.linear_attention._module import LinearAttention
from pyfast.linear_attention.features import elu_plus_one, identity, relu

__all__ = ["LinearAttention", "attention", "elu_plus_one", "identity", "relu", "step"]
