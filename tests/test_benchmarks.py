"""The benchmarks' machinery: a wrong answer has no time, and the report says what the files say."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

RACES = """
import time
import pytest, torch

def double(x):
    time.sleep(0.005)
    return x + x

def double_(x):
    x += x

PEERS = {
    "pyfast": double,
    "quick": lambda x: 2 * x,
    "imprecise": lambda x: 2.0001 * x,
    "narrow": lambda x: (2 * x).half(),
    "misshapen": lambda x: 2 * x[None],
    "nan": lambda x: 2 * x + float("nan"),
}

@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("n", [1000])
def bench_double(race, device, n, peer):
    x = torch.rand(n, device=device)
    race(PEERS[peer], x, like=lambda x: 2 * x, read=x.nbytes)

@pytest.mark.parametrize("peer", ["pyfast"])
def bench_in_place(race, device, peer):
    x = torch.ones(5, device=device)
    def check(_, y):
        assert torch.equal(y, 2 * x)
    race(double_, check=check, setup=lambda: (x.clone(),))

def bench_unchecked(race):
    race(double, 3)
"""


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    """Some races run by the machinery in a process of its own: what pytest said, and the file it wrote."""
    root = tmp_path_factory.mktemp("races")
    shutil.copy(BENCHMARKS / "conftest.py", root)
    (root / "bench_sample.py").write_text(RACES)
    (root / "pytest.ini").write_text("[pytest]\npython_files = bench_*.py\npython_functions = bench_*\n")
    path = root / "results" / "this machine" / "all.json"
    path.parent.mkdir(parents=True)
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-ra",
        "-k",
        "not cuda",
        "--seconds",
        "0.01",
        "--benchmark-json",
        str(path),
    ]
    # Within a worker of pytest-xdist nothing is timed, so the process must not believe to be one.
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"COLUMNS": "300"}
    run = subprocess.run([*command, "."], cwd=root, capture_output=True, text=True, check=False, env=env)
    return run.stdout, path


def test_a_wrong_answer_has_no_time(raced):
    said, path = raced
    timed = {b["name"] for b in json.loads(path.read_text())["benchmarks"]}
    assert timed == {"bench_double[cpu-1000-pyfast]", "bench_double[cpu-1000-quick]", "bench_in_place[cpu-pyfast]"}
    assert "3 passed" in said
    for peer in ("imprecise", "narrow", "misshapen", "nan"):
        assert f"FAILED bench_sample.py::bench_double[cpu-1000-{peer}] - AssertionError: wrong answer" in said
    assert "give a race one of like and check" in said


def test_every_row_knows_its_share_of_the_machines_limit(raced):
    content = json.loads(raced[1].read_text())
    limits = content["machine_info"]["limits"]["cpu"]
    assert all(limits[how] > 1e8 for how in ("read", "write", "copy", "matmul"))
    assert content["machine_info"]["level"] in ("v2", "v3", "v4", "native")
    for row in (b for b in content["benchmarks"] if b["name"].startswith("bench_double")):
        assert row["extra_info"]["floor"] == pytest.approx(4000 / limits["read"])
        assert row["extra_info"]["share"] == pytest.approx(row["extra_info"]["floor"] / row["stats"]["min"])


def test_report_prints_figures_and_losses(raced, tmp_path):
    report = load("report")
    docs, readme = tmp_path / "docs", tmp_path / "README.md"
    readme.write_text("before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n")
    paper = {
        "title": "T",
        "text": "about",
        "tables": [{"title": "t", "text": "u", "header": ["a", "b"], "rows": [["c", 1]]}],
    }
    (raced[1].parent / "paper_sample.json").write_text(json.dumps(paper))
    report.build(raced[1].parents[1], docs, readme)
    text = (docs / "benchmarks.md").read_text()
    assert "### sample `double`, 1000 (cpu)" in text
    best = min(
        b["stats"]["min"] for b in json.loads(raced[1].read_text())["benchmarks"] if b["name"].endswith("quick]")
    )
    assert f"| quick | {report.duration(best)} |" in text
    assert "Lost:\n\n- sample `double`, 1000 (cpu): quick takes 0.0" in text
    assert "imprecise" not in text
    assert (docs / "plots" / "this machine_all_sample.png").read_bytes().startswith(b"\x89PNG")
    filled = readme.read_text()
    assert filled.startswith("before\n<!-- figures -->\n|")
    assert filled.endswith("<!-- /figures -->\nafter\n")
    assert "old" not in filled
    assert f"quick, {report.duration(best)}" in filled
    assert "| a | b |\n| --- | ---: |\n| c | 1 |" in (docs / "paper_sample.md").read_text()


def test_report_leaves_a_readme_without_markers_alone(raced, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing to fill\n")
    load("report").build(raced[1].parents[1], tmp_path / "docs", readme)
    assert readme.read_text() == "nothing to fill\n"


@pytest.mark.parametrize(
    ("seconds", "said"), [(2.5, "2.5 s"), (0.00123, "1.23 ms"), (4.567e-6, "4.57 µs"), (3e-9, "3 ns")]
)
def test_durations_have_a_fitting_unit(seconds, said):
    assert load("report").duration(seconds) == said


def test_extra_memory_sees_what_a_call_takes():
    code = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import conftest
x = torch.ones(2**22)
print(conftest.extra_memory(lambda x: (x + 1).sum(), lambda: (x,), "cpu"))
"""
    run = subprocess.run(
        [sys.executable, "-P", "-c", code, str(BENCHMARKS)], capture_output=True, text=True, check=True
    )
    taken = run.stdout.strip()
    if taken != "None":  # a system without /proc/self/clear_refs does not say
        assert 2**24 <= int(taken) < 2**25


def test_pruning_experiment_runs(tmp_path):
    path = tmp_path / "paper_prune.json"
    command = [sys.executable, str(BENCHMARKS / "paper_prune.py"), "--quick", "--output", str(path), "--workers", "1"]
    subprocess.run(command, check=True, capture_output=True)
    content = json.loads(path.read_text())
    runs = {name: by["0.98"][0] for name, by in content["runs"].items()}
    assert set(runs) == {row[0] for row in content["tables"][0]["rows"]}
    assert len(runs) == 6
    kept = 201_088 - round(0.98 * 201_088)
    for name, (_, smallest) in runs.items():
        if "MT" in name:
            assert smallest >= kept // 28


@pytest.mark.parametrize(
    ("peer", "gradient"),
    [("pyfast", False), ("pyfast", True), ("torch chunked", False), ("torch chunked", True), ("idiap", False)],
)
def test_attention_gate_refuses_what_errs_more_than_it_may(peer, gradient):
    bench = load("bench_linear_attention")
    case = bench.Case((1, 64, 2, 8), "plain", torch.float32, "cpu", gradient)
    right = [truth.float() for truth in case.truths]
    noted = {}
    case.check(peer, right, noted)
    assert noted["relative_error"] < 1e-7
    for i, truth in enumerate(right):
        for wrong in (
            truth + 1e-5 * truth.abs().max(),
            truth.half(),
            truth[None],
            truth.index_fill(1, torch.tensor([3]), torch.nan),
        ):
            with pytest.raises(AssertionError, match="wrong answer"):
                case.check(peer, [*right[:i], wrong, *right[i + 1 :]], {})


def test_attention_peers_compute_the_same():
    bench = load("bench_linear_attention")
    for option in bench.OPTIONS:
        case = bench.Case((2, 128, 2, 8), option, torch.float64, "cpu", False)
        for name, way in bench.ways(case.torch_options, case.args[0]).items():
            torch.testing.assert_close(way(*case.args), case.truths[0], rtol=1e-10, atol=1e-10, msg=f"{option}, {name}")
    case = bench.Case((2, 128, 2, 8), "plain", torch.float64, "cpu", False)
    torch.testing.assert_close(bench.token_loop(*case.args), case.truths[0], rtol=1e-10, atol=1e-10)
