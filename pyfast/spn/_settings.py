"""The arguments of :class:`BayesSPN`: what they must be, and how its chains move then."""

from typing import Any

from pyfast.spn._arguments import check_burn, check_candidates, check_count, check_positive, check_seed
from pyfast.spn._chain import Plan
from pyfast.spn._structure import Structure

_KERNELS = ("auto", "block", "topdown", "levels", "isir", "informed")


def check(asked: Any) -> None:
    """What :meth:`BayesSPN.fit` asks of the estimator's arguments."""
    if asked.kernel not in _KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(_KERNELS)}, got {asked.kernel!r}")
    if asked.mode not in ("auto", "instantiated", "collapsed"):
        raise ValueError(f"mode must be auto, instantiated or collapsed, got {asked.mode!r}")
    if asked.hyper not in ("slice", "eb", "fixed"):
        raise ValueError(f"hyper must be slice, eb or fixed, got {asked.hyper!r}")
    if not isinstance(asked.structure, Structure) and asked.structure not in ("hclt", "rat", "tree"):
        raise ValueError(f"structure must be a Structure, hclt, rat or tree, got {asked.structure!r}")
    for name, least in (("chains", 1), ("states", 1), ("lookahead", 0)):
        check_count(name, getattr(asked, name), least)
    for name, least in (("hidden", 1), ("sweeps", 1), ("warm", 0)):
        if getattr(asked, name) is not None:
            check_count(name, getattr(asked, name), least)
    if asked.lookahead >= 2**31:
        raise ValueError(f"lookahead must be below 2^31, got {asked.lookahead}")
    check_candidates(asked.candidates)
    check_burn(asked.burn)
    if asked.burn == 0 and asked.hyper == "eb":
        raise ValueError(f"burn must be in [0, 1), above 0 for hyper='eb', got {asked.burn}")
    check_positive("mass", asked.mass)
    check_positive("kappa", asked.kappa)
    check_seed(asked.seed)


def plan(asked: Any, structure: Structure, group: Any, warm: int, until: int) -> Plan:
    """How chains move, given the estimator's arguments."""
    huge = len(structure.program) == 0 and structure.num_weights > 100_000
    kernel = ("isir" if huge else "block") if asked.kernel == "auto" else asked.kernel
    collapsed = asked.mode == "collapsed" or (asked.mode == "auto" and kernel != "block")
    if group is not None and (kernel != "block" or collapsed):
        raise ValueError(f"kernel must be block, and its mode instantiated, with group, got {kernel}, {asked.mode}")
    return Plan(kernel, collapsed, asked.lookahead, asked.candidates, asked.hyper, warm * (kernel == "block"), until)
