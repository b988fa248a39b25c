"""The house itself: every family has its rooms, imports are lean, docstrings whole, one OpenMP, a complete wheel."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyfast
from pyfast import _C

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = pyfast.__all__


def python(code, **env):
    """What a fresh interpreter prints, without the source tree on its path."""
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=env or None, timeout=300
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def public(family):
    module = importlib.import_module(f"pyfast.{family}")
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    found = [(n, getattr(module, n)) for n in names]
    return [(n, x) for n, x in found if callable(x) and getattr(x, "__module__", "").startswith(f"pyfast.{family}")]


@pytest.mark.parametrize("family", FAMILIES)
def test_family_has_its_rooms(family):
    importlib.import_module(f"pyfast.reference.{family}")
    assert any((ROOT / "csrc").glob(f"{family}*"))
    assert any((ROOT / "kernels").glob(f"{family}*"))
    assert (ROOT / "tests" / f"test_{family}.py").exists()
    assert (ROOT / "benchmarks" / f"bench_{family}.py").exists()
    assert f"`pyfast.{family}`" in (ROOT / "README.md").read_text()


def test_every_operator_has_both_kernels():
    operators = [name for name in dir(torch.ops.pyfast) if name.startswith(tuple(f"{f}_" for f in FAMILIES))]
    assert operators
    for operator in operators:
        family = next(f for f in FAMILIES if operator.startswith(f"{f}_"))
        name = operator.removeprefix(f"{family}_")
        assert callable(getattr(getattr(_C, family), name))
        source = "".join(p.read_text() for p in (ROOT / "kernels").rglob("*.py") if family in str(p))
        assert re.search(rf"^(def {name}\(|(\w+, )*{name}\b.* = )", source, re.MULTILINE), (
            f"no Triton launcher for {operator}"
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_public_functions_are_documented(family):
    assert public(family)
    for name, thing in public(family):
        text = inspect.getdoc(thing)
        assert text, name
        if inspect.isfunction(thing):
            for section in ("Args:", "Returns:", "Raises:", "Source:", ">>>"):
                assert section in text, f"{family}.{name} lacks {section}"
            for argument in inspect.signature(thing).parameters:
                assert f"{argument}:" in text, f"{family}.{name} does not explain {argument}"


@pytest.mark.parametrize("family", [f for f in FAMILIES if hasattr(getattr(pyfast, f), "__all__")])
def test_help_lists_what_there_is(family):
    module = getattr(pyfast, family)
    listed = re.findall(r"^    (\w+): \S", module.__doc__, re.MULTILINE)
    assert sorted(listed) == sorted(module.__all__) == dir(module)
    assert all(hasattr(module, name) for name in listed)


def test_dir_is_what_is_public():
    assert dir(pyfast) == sorted([*FAMILIES, "__version__"])


def test_docstring_examples_run():
    for file in sorted((ROOT / "pyfast").rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name != "pyfast._C":
            failed, _ = doctest.testmod(importlib.import_module(name))
            assert failed == 0, name


def test_readme_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(examples) >= len(FAMILIES)
    for code in examples:
        exec(compile(code, "README.md", "exec"), {})


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_import_is_lean():
    unwanted = [
        "triton",
        "numba",
        "typer",
        "rich",
        "matplotlib",
        "safetensors",
        "sklearn",
        "ase",
        "pymatgen",
        "torch_geometric",
        "pyfast.kernels",
        "pyfast.demo",
    ]
    loaded = python(
        "import sys, torch; before = set(sys.modules); import pyfast; print(*sorted(set(sys.modules) - before))"
    ).split()
    assert "pyfast.prune" in loaded
    assert not [m for m in loaded if m in unwanted or m.split(".")[0] in unwanted]


def test_import_is_quick():
    code = """
import time, torch
start = time.process_time()
import pyfast
print(time.process_time() - start)
"""
    assert min(float(python(code)) for _ in range(5)) < 0.05  # processor time, which other load does not stretch


def test_import_touches_no_gpu():
    assert python("import pyfast, torch; print(torch.cuda.is_initialized())").strip() == "False"


def test_one_openmp():
    libraries = python(
        "import pyfast, torch; torch.ones(10**6).sum(); pyfast.prune.global_magnitude_(torch.randn(10**6), 0.5)\n"
        "print({line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line.split('/')[-1]})"
    )
    assert len(eval(libraries)) == 1, libraries


def test_levels():
    assert _C.level in _C.levels()
    with pytest.raises(AssertionError, match="PYFAST_CPU must be one of"):
        python("import pyfast", PYFAST_CPU="v9", PATH="/usr/bin")


def test_version_is_the_distribution_s():
    assert importlib.metadata.version("pyfast-kernels") == pyfast.__version__


def test_installed_package_is_complete():
    files = {str(f) for f in importlib.metadata.files("pyfast-kernels")}
    if any(f.endswith(".pth") for f in files):
        pytest.skip("an editable install has no files of its own")
    for part in ("pyfast/py.typed", "pyfast/data/digits.safetensors", "pyfast/kernels/__init__.py"):
        assert part in files
    for level in _C.levels():
        assert any(re.match(rf"pyfast/_C/{level}\..*\.so", f) for f in files)
    assert not [f for f in files if f.startswith(("tests/", "benchmarks/", "csrc/"))]


def test_package_needs_only_torch_and_numpy():
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        optional = 'triton numba typer rich safetensors sklearn matplotlib tqdm pandas ase pymatgen torch_geometric'
        if name.split('.')[0] in optional.split():
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import torch, pyfast
model = torch.nn.Linear(30, 30)
print(pyfast.prune.global_magnitude_(model, 0.5, min_keep=3).pruned)
x = torch.randn(3, 4, requires_grad=True)
pyfast.longtail.loss(x, torch.tensor([0, 1, 2]), torch.ones(4)).sum().backward()
"""
    assert python(code).strip() == "450"
