"""The benchmarks' machinery: a wrong answer has no time, and the report says what the files say."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyfast import crystal

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
def bench_in_place(race, benchmark, device, peer):
    x = torch.ones(5, device=device)
    benchmark.extra_info["note"] = "in place"
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
    line = {"title": "p", "x": "s", "y": "nats", "lines": {"a": [[0.1, -3.0], [1.0, -2.0]]}}
    (raced[1].parent / "paper_sample.json").write_text(json.dumps(paper | {"plots": [line], "script": "made"}))
    report.build(raced[1].parents[1], docs, readme)
    text = (docs / "benchmarks.md").read_text()
    assert "### sample `double`, 1000 (cpu)" in text
    best = min(
        b["stats"]["min"] for b in json.loads(raced[1].read_text())["benchmarks"] if b["name"].endswith("quick]")
    )
    assert f"| quick | {report.duration(best)} |" in text
    assert "Lost:\n\n- sample `double`, 1000 (cpu): quick takes 0.0" in text
    assert "imprecise" not in text
    assert "| pyfast (in place) |" in text
    assert (docs / "plots" / "this machine_all_sample.png").read_bytes().startswith(b"\x89PNG")
    filled = readme.read_text()
    assert filled.startswith("before\n<!-- figures -->\n|")
    assert filled.endswith("<!-- /figures -->\nafter\n")
    assert "old" not in filled
    assert f"quick, {report.duration(best)}" in filled
    page = (docs / "paper_sample.md").read_text()
    assert "| a | b |\n| --- | ---: |\n| c | 1 |" in page
    assert "![T](plots/paper_sample.png)" in page
    assert page.endswith("Made by `benchmarks/made.py`.\n")
    assert (docs / "plots" / "paper_sample.png").read_bytes().startswith(b"\x89PNG")


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


def run_quick(script, *more):
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), "--quick", *more]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_top_down_experiment_runs(tmp_path):
    path = tmp_path / "paper_spn.json"
    run_quick("paper_spn", "--output", str(path))
    content = json.loads(path.read_text())
    rows = content["tables"][0]["rows"]
    assert len(rows) == len(content["runs"]) == 10
    runs = {tuple(name.split(", ", 1)): run for name, run in content["runs"].items()}
    for (children, kernel), run in runs.items():
        times, sweeps = [t for t, *_ in run["curve"]], [n for _, n, *_ in run["curve"]]
        assert times == sorted(times)
        assert sweeps == sorted(sweeps)
        assert sweeps[-1] == len(run["seconds"])
        assert times[-1] == pytest.approx(sum(run["seconds"]))
        assert -12 * 0.6932 < run["last"] < -3, f"{children} {kernel}"  # better than coins, worse than the entropy
        assert kernel in content["plots"][0]["lines"]
    for children in ("2", "3"):
        assert 0 < runs[children, "topdown"]["accepted"] < runs[children, "isir"]["accepted"] + 0.5 < 1.5


@pytest.mark.parametrize("quick", [True, False])
def test_a_quick_run_does_not_write_into_the_record(quick, tmp_path):
    (tmp_path / "debd").mkdir()
    (tmp_path / "debd" / "debd20.npz").touch()
    command = [sys.executable, str(BENCHMARKS / "densities_spn.py"), "nltcs", "--total", "0", "--data", str(tmp_path)]
    command[2:3] = ["--quick"] if quick else command[2:3]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    where = BENCHMARKS.parent / "build" if quick else BENCHMARKS / "results"
    assert f"{where / 'spn_densities.json'} written" in said


def test_density_experiment_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "spn_densities.json"
    assert "is left for another time" in run_quick("densities_spn", "--output", str(path), "--total", "0")
    assert not path.exists()
    assert "synthetic 12: " in run_quick("densities_spn", "synthetic 12", "--output", str(path))
    first = json.loads(path.read_text())["results"]
    said = run_quick("densities_spn", "--output", str(path))
    content = json.loads(path.read_text())
    assert "synthetic 12: " not in said
    assert content["results"]["synthetic 12"] == first["synthetic 12"]
    assert list(content["results"]) == ["synthetic 8", "synthetic 12"]
    for row, (name, run) in zip(content["tables"][0]["rows"], content["results"].items(), strict=True):
        assert row[:2] == [name, f"**{run['test']:.2f}** ± {run['error']:.2f}"]
        assert row[3] == ""
        assert -0.6932 * run["variables"] < run["test"] < -2
        assert run["seconds"] < 30
    run_quick("densities_spn", "--em", "--output", str(path))
    content = json.loads(path.read_text())
    for row, run in zip(content["tables"][0]["rows"], content["results"].values(), strict=True):
        assert row[3].strip("*") == f"{run['em']['test']:.2f}"
        assert run["em"]["iterations"] > 0
    run_quick("densities_spn", "--implicit", "synthetic 12", "--output", str(path))
    content = json.loads(path.read_text())
    assert content["tables"][2]["title"] == "Trees that are never built"
    for row, run in zip(content["tables"][2]["rows"], content["results"]["synthetic 12"]["implicit"], strict=True):
        assert row[:3] == ["synthetic 12", f"{run['sum_children']:,}", f"{run['product_children']:,}"]
        assert run["nodes"] >= 10**6
        assert run["used"] < 20_000
        assert run["test"] > -12 * 0.6932


def test_density_table_marks_the_best_and_counts():
    densities = load("densities_spn")
    run = {"error": 0.01, "seconds": 9.0, "sweeps": 100, "r_hat": 1.0, "processor": True}
    results = {"nltcs": run | {"test": -5.994}, "dna": run | {"test": -80.0, "em": {"test": -79.5, "seconds": 5.0}}}
    rows = densities.table(results)
    assert len(rows[0]) == len(densities.METHODS) + 7
    assert rows[0][:5] == ["nltcs", "**-5.99** ± 0.01", "-6.00", "", "-6.11"]
    assert rows[0][11] == "**-5.99**"
    assert rows[1][1:4] == ["-80.00 ± 0.01", "-79.60", "-79.50"]
    assert densities.reached(results).endswith(": 1 of 2.")
    counted = {method: row for method, *row in densities.counted(results)}
    assert counted["EM, here"] == ["0", "0"]
    assert counted["LearnSPN"] == ["2", "0"]
    assert counted["HCLT, EM"] == ["0", "1"]
    assert {len(x) for x in densities.PUBLISHED.values()} == {len(densities.METHODS)}
    assert len(densities.PUBLISHED) == 20


def test_mixed_experiment(tmp_path):
    path = tmp_path / "spn_mixed.json"
    run_quick("mixed_spn", "--output", str(path))
    content = json.loads(path.read_text())
    found = content["results"]["wine"]["models"]
    for name in ("BayesSPN", "EM", "Gaussian mixture"):
        assert found[name]["rmse"] < 0.9 * found["columns alone"]["rmse"], name
        assert found[name]["wrong"] < found["columns alone"]["wrong"], name
    assert found["BayesSPN"]["all"] > found["BayesSPN"]["real"] - 1.1  # three classes
    assert found["BayesSPN"]["calibration"]["categories_off"] < 0.2
    assert all(abs(level - inside) < 0.25 for level, inside in found["BayesSPN"]["calibration"]["numbers"])
    load("report").page(path, content, tmp_path)
    assert "![Sum-product networks on mixed tables](plots/spn_mixed.png)" in (tmp_path / "spn_mixed.md").read_text()


def test_mixture_fills_in_what_a_gaussian_knows():
    mixed = load("mixed_spn")
    g = np.random.default_rng(0)
    x = g.normal(size=(500, 1))
    table = pd.DataFrame({"a": x[:, 0], "b": 2 * x[:, 0] + 1 + 0.01 * g.normal(size=500)})
    coded = mixed.Coded(table)
    model = mixed.Mixture(coded, coded(table), range(2))
    asked = np.array([[0.5, np.nan], [np.nan, 1.0]])
    np.testing.assert_allclose(model.completed(asked), [[0.5, 2.0], [0.0, 1.0]], atol=0.05)
    whole = model.score(coded(table))
    assert whole == pytest.approx(
        float(np.mean(model.model.score_samples(model.wide(coded(table))))) - np.log(model.scale).sum()
    )


def test_graphs_of_crystals_experiment(tmp_path):
    path = tmp_path / "paper_crystal_graphs.json"
    run_quick("paper_crystal_graphs", "--output", str(path))
    run = json.loads(path.read_text())["runs"]["AFLOW prototypes"]
    assert run["crystals"] > 20
    assert run["missed"] > 0.1
    for how in ("renumbered", "shifted"):
        assert run[f"CDVAE, {how}"] > 0.5
        assert run[f"include, {how}"] == 0
    assert run["canonical, renumbered"] == 0


def test_construction_of_crystal_graphs_by_hand():
    graphs = load("paper_crystal_graphs")
    frac, cell = torch.tensor([[0.0, 0, 0], [0.5, 0.5, 0.5]]).double(), 6 * torch.eye(3).double()
    found = graphs.truncated(frac, cell)  # the cutoff of 7 leaves 8 neighbours at 5.2 Å, and 6 images at 6 Å
    assert torch.bincount(found.target).tolist() == [14, 14]
    assert len(graphs.nearest(found, 2).source) == 28
    both = graphs.mirrored(found)
    assert len(both.source) == 28
    assert torch.equal(graphs.keys(both, 2), graphs.keys(found, 2))
    thin = torch.diag(torch.tensor([2.0, 6, 6])).double()
    assert len(graphs.truncated(frac, thin).source) < crystal.neighbors(frac @ thin, thin, 7.0).num_edges


def test_energy_models_of_crystals_learn_the_same(tmp_path):
    path = tmp_path / "paper_crystal.json"
    run_quick("paper_crystal", "--output", str(path))
    content = json.loads(path.read_text())
    for model, table in (("SchNet", 1e-5), ("DimeNet++", 0.0)):  # as far as a filter's table may be off
        runs = [content["runs"][f"{model}|prototypes|{how}"] for how in ("pyfast", "torch", "torch, double")]
        ours, plain, truth = (torch.tensor(run["losses"][: len(runs[2]["losses"])]).double() for run in runs)
        assert len(truth) >= 3
        assert ((ours - truth).abs() / truth).max() <= 2 * ((plain - truth).abs() / truth).max() + table + 1e-6
        assert runs[0]["looks"][-1][2] < runs[0]["mean"]
        assert runs[0]["parameters"] == runs[1]["parameters"]
    load("report").page(path, content, tmp_path)
    assert "![Energy models of crystals](plots/paper_crystal.png)" in (tmp_path / "paper_crystal.md").read_text()


def test_sweep_gate_refuses_what_errs_more_than_it_may():
    bench = load("bench_spn")
    for kind, size in (("RAT", {"replicas": 2, "depth": 2, "sums": 3, "leaves": 3}), ("HCLT", {"hidden": 4})):
        case = bench.Case(kind, bench.table(2000, 9), size)
        parameters, counts, found = case.gibbs(case.rows, case.times)
        case.check_gibbs((parameters, counts, found), case.rows, case.times)
        case.check_log_prob(found, case.rows, parameters)
        moved = counts.weights.roll(1)
        lost = counts.leaves - (counts.leaves == counts.leaves.max()).long()
        swapped = counts.leaves.view(-1, 2).flip(1).flatten()
        for wrong in (
            (parameters, counts._replace(weights=moved), found),
            (parameters, counts._replace(leaves=lost), found),
            (parameters, counts._replace(leaves=swapped), found),
            (parameters, counts, found + 1e-3),
            (case.parameters, counts, found),
        ):
            with pytest.raises(AssertionError, match="wrong answer"):
                case.check_gibbs(wrong, case.rows, case.times)
        for wrong in (found + 1e-3, found[None], found * torch.nan):
            with pytest.raises(AssertionError, match="wrong answer"):
                case.check_log_prob(wrong, case.rows, parameters)
        rows = case.sample(4000)
        case.check_sample(rows, 4000)
        for wrong in (1 - rows, rows[:, :-1], rows.roll(1, 1), torch.zeros_like(rows)):
            with pytest.raises(AssertionError, match="wrong answer"):
                case.check_sample(wrong, len(rows))
