"""Compiles every Triton kernel for one GPU that need not be there, and prints what each one takes, as JSON.

Usage: python triton_aot.py COMPUTE_CAPABILITY. Runs in its own process: Triton must not have been told to interpret.
"""

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyfast.kernels
import triton
from pyfast.kernels import prune
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

KEYS = [
    {"FORMAT": f, "WIDE": wide, "ALIGNED": aligned}
    for f, wide, aligned in [
        ("float64", True, True),
        ("bfloat16", True, True),
        ("float32", False, True),
        ("float32", False, False),
        ("float16", False, True),
        ("float8_e4m3fn", False, True),
        ("float8_e5m2", False, True),
        ("int8", False, True),
    ]
]
TILE, BINS = {"TILE": prune.TILE}, {"BINS": 1 << prune.WIDTH}
COUNT = [  # wide and narrow, the first digit and the others
    {**KEYS[i], "FIRST": first, **BINS, **TILE}
    for i, first in [(0, True), (0, False), (2, True), (2, False), (5, True)]
]
FLOATS = ["*fp64", "*fp32", "*bf16", "*fp16"]


def longtail(before, after):
    """Every float type: x is that of the tensors, w that of bias and norm."""
    types = [(x, "*fp64" if x == "*fp64" else "*fp32") for x in FLOATS]
    return [(f"{before} *i64 {after} i32".replace("x", x).replace("w", w), {"BLOCK": 2048}, 4) for x, w in types]


# Per kernel: the types of its arguments in order, its constants, and its warps, as launched.
LAUNCHED = {
    "prune": {
        "_count": [("*i64 *i64 *i32 *i64 *i64 *i64 i32 i32 i32 i32 i32", c, prune.WARPS) for c in COUNT],
        "_enter_own": [("*i64 *i64", BINS, 4)],
        "_enter_pool": [("*i64 *i64 i32 i32", {"CHUNK": 1024, **BINS}, 4)],
        "_mark": [("*i64 *i64 *i32 *i64 *i64 *i64 *i64 i32 i32 i32", k | TILE, prune.WARPS) for k in KEYS],
        "_share": [
            (
                "*i64 *i64 *i64 *i64 *i64 i32 i32 i32",
                {"ALL": a, "NONE": n, "PATH": 3, "WIDE": n, "CHUNK": 1024, **TILE},
                4,
            )
            for a, n in [(False, True), (True, False)]
        ],
        "_settle": [("*i64 *i64 *i32 *i64 *i64 *i64 *i64 i32 i32 i32", KEYS[i] | TILE, prune.WARPS) for i in (0, 2, 5)],
        "_zero": [("*i64 *i64 *i32 *i64 i32", {"WIDTH": w, **TILE}, prune.WARPS) for w in (1, 2, 4, 8)],
    },
    "longtail": {
        "_loss": longtail("x", "w x w"),
        "_loss_backward": longtail("x x", "w w x"),
        "_curvature": longtail("x x x", "w w x x"),
    },
}


def kernels(family):
    """By name, from the family's module, or from all the modules of its folder."""
    module = importlib.import_module(f"pyfast.kernels.{family}")
    parts = pkgutil.iter_modules(getattr(module, "__path__", []))
    modules = [module, *(importlib.import_module(f"{module.__name__}.{part.name}") for part in parts)]
    return {name: f for m in modules for name, f in vars(m).items() if isinstance(f, JITFunction)}


def unlisted(known, listed):
    """Kernels that are neither listed nor called, however deep, by one that is."""
    todo, found = [name for name in listed if name in known], set()
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            tree = ast.parse(inspect.getsource(known[name].fn))
            todo += {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} & known.keys()
    return sorted(known.keys() - found)


def measure(kernel, types, constants, warps, capability):
    names, types = kernel.arg_names, iter(types.split())
    signature = {n: "constexpr" if n in constants else next(types) for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n].startswith("*")}
    values = {(names.index(n),): v for n, v in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        sass = subprocess.run([cuobjdump, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    operations = [w.split(".")[0] for line in sass.splitlines() for w in line.split()[1:3]]
    return {"instructions": sass.count(";"), "spills": operations.count("STL"), "shared": compiled.metadata.shared}


def main(capability):
    report = {"unlisted": [], "missing": [], "compiled": []}
    for family in (info.name for info in pkgutil.iter_modules(pyfast.kernels.__path__)):
        known, listed = kernels(family), LAUNCHED.get(family, {})
        report["unlisted"] += [f"{family}.{name}" for name in unlisted(known, listed)]
        report["missing"] += [f"{family}.{name}" for name in listed if name not in known]
        for name, variants in ((n, v) for n, v in listed.items() if n in known):
            for types, constants, warps in variants:
                resources = measure(known[name], types, constants, warps, capability)
                report["compiled"].append(
                    {"kernel": f"{family}.{name}", "types": types, "constants": constants} | resources
                )
    print(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]))
