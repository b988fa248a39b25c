"""Linear attention: a state of fixed size reads the tokens, so that time and memory are linear in their number."""

from pyfast.linear_attention._attention import attention, step

__all__ = ["attention", "step"]
