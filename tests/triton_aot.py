"""Compiles a family's Triton kernels for one GPU that need not be there, and prints what each one takes, as JSON.

Usage: python triton_aot.py COMPUTE_CAPABILITY FAMILY, in its own process: Triton must not have been told to interpret.
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

import torch
import triton
from pyfast.kernels import crystal, prune, spn
from pyfast.kernels import linear_attention as attention
from pyfast.kernels.spn import _blocks as blocks
from pyfast.kernels.spn import _draws as draws
from pyfast.kernels.spn import _nodes as nodes
from pyfast.kernels.spn import _regions as regions
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


NARROW = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.float64: "*fp64"}


def linear_attention(capability):
    """The launcher's own block sizes; tokens whose last stride is 1 and whose other strides are multiples of 16."""
    none, scalar, rows, columns = range(4)
    bf16, fp16, fp32, fp64 = torch.bfloat16, torch.float16, torch.float32, torch.float64

    def variant(kernel, how, known, **constants):
        how = dict(how)
        options = {n: how.pop(n) for n in ("num_warps", "num_stages") if n in how}
        constants |= how
        ones = "q_k", "k_k", "v_v", "out_v", "decay_d", "state_v", "last_v", "x_d", "out_d"
        constants |= {n: 1 for n in ones if n in kernel.arg_names}
        scales = dict.fromkeys(["read", "write", "eps", "scale"], "fp64")
        known = {"ends": "*i64", "total": "*fp64"} | scales | known
        names = [n for n in kernel.arg_names if n not in constants]
        types = [known.get(n, "i32" if len(n) == 2 or n == "T" else "i32:16") for n in names]
        return " ".join(types), constants, options

    def attend(qkv, K, decay=none, solve=False, normalize=False, packed=False, double=False, part=False):
        """Backwards in time, with a state that comes and goes; `packed` with all else that a launch may have; `part`
        of a sequence, of which only the state is wanted."""
        q, k, v = qkv if isinstance(qkv, tuple) else 3 * (qkv,)
        flags = {"SOLVE": solve, "STRICT": packed or solve, "NORMALIZE": normalize, "REVERSE": True, "DECAY": decay}
        absent = dict.fromkeys(["q", "out", "state"] if part else ["total"])
        absent |= ({} if normalize else {"denominator": None}) | ({} if packed else {"ends": None})
        absent |= {"decay": None} if decay == none else {}
        if not packed and not part:  # Triton makes constants of these
            absent |= dict.fromkeys(["P", "Gq", "Gk", "Gv", "Gd", "Gs"], 1)
        types = attention.numbers(q, k, v)
        how = attention.blocks(capability, types, K, K, decay, solve, normalize, double)
        wide = "*fp64" if fp64 in (q, k, v) else "*fp32"
        known = dict.fromkeys(["decay_t", "denominator_t", "shift", "P", "H"], "i32")
        known |= {"q": NARROW[q], "k": NARROW[k], "v": NARROW[v], "out": NARROW[v], "decay": wide, "denominator": wide}
        known |= dict.fromkeys(["state", "last"], "*fp64" if double else wide)
        found = variant(attention._attend, how, known, DOUBLE=double, LONG=packed, **flags, **absent, **types)
        found[2]["wgmma"] = q == k == v == bf16 and decay <= scalar and not solve and not part
        return found

    def read(dtype):
        types = attention.numbers(dtype)
        how = attention.blocks(capability, types, 128, 128)
        types.pop("ADDED")
        known = {"q": NARROW[dtype], "out": NARROW[dtype], "state": "*fp32", "P": "i32", "H": "i32"}
        return variant(attention._read, how, known, ends=None, **types)

    mixed = bf16, bf16, fp32  # the delta rule's values, and the gradients of decays
    sizes = 64, 128, 256
    attends = [
        attend(bf16, 128),
        attend(bf16, 256),
        *(attend(bf16, K, scalar) for K in sizes),
        *(attend(bf16, K, scalar, normalize=True) for K in sizes[1:]),
        attend(mixed, 128, scalar, normalize=True),
        *(attend(mixed, K, scalar, solve=True) for K in sizes[1:]),
        *(attend(mixed, K, scalar) for K in sizes[1:]),
        *(attend(bf16, K, rows) for K in sizes[1:]),
        attend(mixed, 128, rows, solve=True),
        attend(bf16, 256, columns),
        attend(mixed, 128, columns),
        attend(bf16, 128, scalar, packed=True),
        attend(bf16, 128, scalar, part=True),
        attend(bf16, 128, rows, normalize=True, part=True),
        attend(bf16, 128, scalar, double=True),
        attend(fp16, 128, scalar),
        attend(fp32, 128, scalar),
        attend(fp32, 64, rows),
        attend(fp64, 64),
    ]
    join = variant(
        attention._join,
        {"BLOCK": 1024, "num_warps": 4},
        dict.fromkeys(["parts", "state", "last"], "*fp32") | dict.fromkeys([*"HPD", "total_k", "total_v"], "i32"),
    )
    sums = variant(
        attention._cumulate,
        {"BT": 32, "BD": 32, "num_warps": 4},
        dict.fromkeys(["x", "start", "out", "total"], "*fp32") | {"shift": "i32", "H": "i32"},
        ends=None,
        REVERSE=True,
    )
    return {"_attend": attends, "_join": [join], "_read": [read(bf16), read(fp32)], "_cumulate": [sums]}


def sum_product(_):
    """The launchers' own block sizes, for networks of few components and many; rows padded to a multiple of 16."""
    floats = ["x", "weights", "leaves", "values", "sums", "flow", "factor", "partial"]
    short = ["exponents", "tops", "weak", "state"]
    scalars = ["begin", "end", "root", "rows", "num_leaves", "parameters", "most", "num_weights", "total"]
    scalars += ["groups", "curves"]

    def variant(kernel, float, options, **constants):
        options, known = dict(options), {"stride": "i32:16", "chunk": "i32:16"}
        known |= dict.fromkeys(floats, float) | dict.fromkeys(short, "*i32") | dict.fromkeys(scalars, "i32")
        known |= dict.fromkeys(["quantum", "leaf_quantum", "alpha", "prior", "gammas"], "*fp64") | {"reached": "*i8"}
        if kernel.__name__.endswith("_nodes"):
            known["exponents"] = "*fp64"
        if "tasks" in kernel.arg_names or "edge_sum" in kernel.arg_names:
            known["weights"] = "i32"  # their number
        warps = {"num_warps": options.pop("num_warps", 4)}
        names = [n for n in kernel.arg_names if n in constants or n not in options]
        constants |= {n: value for n, value in options.items() if n in kernel.arg_names}
        types = [known.get(n, "*i64") for n in names if n not in constants]
        return " ".join(types), constants, warps

    found = {"_gammas": [variant(draws._gammas, "*fp64", blocks.GAMMAS)]}
    for float in ("*fp32", "*fp64"):
        for most in (12, 32, 64, 128):
            how = blocks.blocks(most, float == "*fp64")
            add = found.setdefault
            add("_up", []).extend(variant(regions._up, float, how, KEEP=keep) for keep in (False, True))
            add("_flow", []).append(variant(spn._flow, float, how))
            how = blocks.slope_blocks(most, float == "*fp64")
            add("_weight_slopes", []).append(variant(spn._weight_slopes, float, how))
        add("_draw", []).append(variant(regions._draw, float, blocks.DRAWS))
        add("_normals", []).append(variant(draws._normals, float, blocks.NORMALS))
        add("_curves", []).append(variant(draws._curves, float, blocks.GAMMAS))
        add("_leaf_slopes", []).append(variant(spn._leaf_slopes, float, blocks.LEAVES))
        for kind in range(3):
            add("_up_nodes", []).append(variant(nodes._up_nodes, float, blocks.NODES, KIND=kind, PREDICTIVE=False))
            add("_draw_nodes", []).append(variant(nodes._draw_nodes, float, blocks.NODE_DRAWS, KIND=kind))
        add("_up_nodes", []).append(variant(nodes._up_nodes, float, blocks.leaf_blocks(True), KIND=0, PREDICTIVE=True))
        add("_flow_nodes", []).append(variant(spn._flow_nodes, float, blocks.NODES))
        add("_weight_slopes_nodes", []).append(variant(spn._weight_slopes_nodes, float, blocks.NODES))
    return found


def crystal_messages(add, dtype, wide):
    """The launchers' own blocks for many channels; edges that are positions, and edges that are not."""
    number, index = f"*{dtype}", "*i64"
    rows, how = f"{index} {index} {index}", crystal.blocks(128)
    for moved in (False, True):
        add("_conv", f"{number} {number} {rows} {number} i32", how | {"MOVED": moved})
    add("_product", f"{number} {number} {rows} {number} i32", how | {"MOVED": True})
    rest = f"{number} i32 i32 fp64 fp64"
    for order in (0, 1, 3):
        how = crystal.table_blocks(64, wide) | {"MOVED": True, "ORDER": order}
        add("_table_conv", f"{4 * (number + ' ')}{rows} {rest}", how)
        add("_table_dot", f"{4 * (number + ' ')}{rows} {rest}", how)
        add("_table_sums", f"{4 * (number + ' ')}{index} {index} {rows} {rest}", how)


def crystal_neighbors(add, dtype):
    """Counting, and writing to indices of 32 and 64 bits."""
    how, real, i64 = dict(crystal.NEIGHBORS), f"*{dtype}", "*i64"
    options = {n: how.pop(n) for n in ("num_warps", "enable_fp_fusion")}
    given = f"{real} {i64} {i64} {i64} *fp64 *fp64 *i32 *fp64"
    for half, by_kind in ((False, False), (True, True)):
        flags = how | {"HALF": half, "BY_KIND": by_kind}
        none = f"{i64} {i64} *i32 {i64} {i64} {i64} *fp64 i32"
        add("_neighbors", f"{given} {none}", flags | {"WRITE": False}, options)
        for index in ("*i32", i64):
            out = f"{index} {index} {index} {index} {index} *i32 {real} i32"
            add("_neighbors", f"{given} {out}", flags | {"WRITE": True}, options)
    for index in ("*i32", i64):
        add("_reverse", f"{index} {index} *i32 {index} {index} i32 i32", how, options)
    add("_corners", f"{real} {i64} *fp64", {"BLOCK": 256}, options)


def crystal_nearest(add):
    how = dict(crystal.NEAREST)
    options = {n: how.pop(n) for n in ("num_warps", "enable_fp_fusion")}
    for ties in range(3):
        given = "*i64 *i32 *fp64 *i64 *fp64 *fp64 *i64 *i1 i32 fp64 fp64"
        add("_choose", given, how | {"TIES": ties}, options)


def crystal_geometry(add, dtype):
    number, index, flag = f"*{dtype}", "*i64", {"MOVED": True}
    places = f"*i32 {index} {index} {index} {index} {index} {number} i32"
    add("_vectors", f"{number} {number} {places}", flag | {"BE": 128})
    add("_pull", f"{number} {index} {index} {index} {index} {number}", {"MOVED": False, "MOVED_T": True, "BE": 32})
    add("_strain", f"{number} *i32 {index} {number}", {"BE": 128})
    tiles = f"{number} {number} {4 * (index + ' ')}{number} i32 i32"
    for kernel in ("_pair_sum", "_pair_back", "_pair_dot"):
        add(kernel, tiles, crystal.pair_blocks(64) | flag)
    places = f"{number} {number} {4 * (index + ' ')}*i1"
    how = crystal.angular_blocks(16, 64) | flag
    for through in (False, True):
        how["THROUGH"] = through
        add("_angular", f"{number} {places} {number} i32 i32 i32", dict(how))
        add("_angular_pull", f"{number} {places} {number} i32 i32 i32", dict(how), crystal.PULLING)
        for rows in (False, True):
            turn = f"{number} {number} {places} {number} {number} i32 i32 i32 i32"
            add("_angular_turn", turn, how | {"ROWS": rows, "BL": 8})
    add("_segment_sum", f"{number} {index} {number} i32", {"BE": 8, "BF": 128})
    add("_segment_max", f"{number} {index} {number} {index} i32", {"BF": 128})
    add("_segment_softmax", f"{number} {index} {number} i32", {"BF": 128})


def crystals(_):
    """The kernels of every room, with its launchers' own block sizes."""
    found = {}

    def add(kernel, types, constants, warps=4):
        found.setdefault(kernel, []).append((types, constants, warps))

    for dtype, wide in (("fp32", False), ("fp64", True)):
        crystal_messages(add, dtype, wide)
        crystal_neighbors(add, dtype)
        crystal_geometry(add, dtype)
    crystal_nearest(add)
    add("_nearest", "*fp64 *i64 *i64 *fp64 *i64 *i32", {})
    add("_reduce", "*fp64", {}, 1)
    return found


# Per kernel: the types of its arguments in order (i32:16: a multiple of 16), its constants, and its warps, as launched,
# or Triton's options and whether Hopper must multiply by warp groups; or a function that returns it for a capability.
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
    "linear_attention": linear_attention,
    "spn": sum_product,
    "crystal": crystals,
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


def measure(kernel, types, constants, options, capability):
    names, types = kernel.arg_names, iter(types.split())
    signature = {n: "constexpr" if n in constants else next(types) for n in names}
    multiples = [i for i, n in enumerate(names) if signature[n].startswith("*") or signature[n].endswith(":16")]
    signature = {n: t.removesuffix(":16") for n, t in signature.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i in multiples}
    values = {(names.index(n),): v for n, v in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        sass = subprocess.run([cuobjdump, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    operations = [w.split(".")[0] for line in sass.splitlines() for w in line.split()[1:3]]
    return {
        "instructions": sass.count(";"),
        "spills": operations.count("STL"),
        "wgmma": operations.count("HGMMA"),
        "shared": compiled.metadata.shared,
    }


def main(capability, family):
    known, listed = kernels(family), LAUNCHED.get(family, {})
    listed = listed(capability) if callable(listed) else listed
    compiled = []
    for name, variants in ((n, v) for n, v in listed.items() if n in known):
        for types, constants, options in variants:
            options = dict(options) if isinstance(options, dict) else {"num_warps": options}
            wgmma = options.pop("wgmma", False) and capability >= 90
            about = {"kernel": name, "types": types, "constants": constants, "needs_wgmma": wgmma}
            compiled.append(about | measure(known[name], types, constants, options, capability))
    missing = [name for name in listed if name not in known]
    print(json.dumps({"unlisted": unlisted(known, listed), "missing": missing, "compiled": compiled}, default=str))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
