from pyfast.prune import _operators  # noqa: F401
