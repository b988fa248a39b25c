"""The command line, on the shipped weights and real images."""

import importlib
import json
import subprocess
import sys
from importlib import resources

import pytest
import torch
from typer.testing import CliRunner

from pyfast import cli, linear_attention, prune
from pyfast import demo as demos
from pyfast.demo import digits, shapes
from pyfast.demo import linear_attention as attention_demo
from pyfast.demo import prune as demo

runner = CliRunner()


@pytest.fixture(autouse=True)
def one_thread():
    """Matmuls in the digits' network are too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_info_names_the_kernels_in_use():
    result = runner.invoke(cli.app(), ["info"])
    assert result.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in result.output.splitlines())
    assert list(lines) == ["pyfast", "kernels", "threads", "torch", "gpu", "triton"]
    assert lines["torch"] == torch.__version__
    assert lines["threads"] == "1"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_info_works_and_the_rest_says_what_to_install(missing, monkeypatch, capsys):
    find = cli.importlib.util.find_spec
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    monkeypatch.setattr(sys, "argv", ["pyfast", "info"])
    cli.main()
    assert "kernels  " in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["pyfast", "demo"])
    with pytest.raises(SystemExit, match=r"pip install 'pyfast-kernels\[cli\]'"):
        cli.main()


@pytest.mark.parametrize("missing", ["sklearn", "safetensors", "ase", "pymatgen"])
def test_demo_without_its_packages_says_what_to_install(missing, monkeypatch):
    find = cli.importlib.util.find_spec
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    result = runner.invoke(cli.app(), ["demo"])
    assert result.exit_code == 2
    assert f"pyfast demo needs {missing}: pip install 'pyfast-kernels[demo]'" in result.output


def test_unknown_section_is_refused_by_name():
    result = runner.invoke(cli.app(), ["demo", "nothing"])
    assert result.exit_code == 2
    said = " ".join(result.output.replace("│", " ").split())
    assert "section must be one of prune, linear_attention, spn, crystal or all, got 'nothing'" in said


def test_demo_shows_collapse_averted(tmp_path):
    picture, numbers = tmp_path / "demo.png", tmp_path / "demo.json"
    result = runner.invoke(cli.app(), ["demo", "prune", "--quick", "--plot", str(picture), "--json", str(numbers)])
    assert result.exit_code == 0, result.output
    assert "masks equal the reference: yes" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = json.loads(numbers.read_text())["prune"]
    assert content["dense_accuracy"] > 97
    collapsed = [row for row in content["sparsities"] if row["plain"]["emptied"]]
    assert all(row["plain"]["accuracy"] < 15 for row in collapsed)  # chance is 10
    assert max(row["minimum"]["accuracy"] for row in collapsed) > 30
    for row in content["sparsities"]:
        assert not row["minimum"]["emptied"]
        assert (
            row["minimum"]["kept"] == row["plain"]["kept"] == round(content["weights"] * (1 - row["plain"]["sparsity"]))
        )


def test_demo_fails_when_a_mask_is_wrong(tmp_path, monkeypatch):
    right = prune.global_magnitude_

    def one_too_many(targets, amount, **options):
        result = right(targets, amount, **options)
        if isinstance(targets, torch.nn.Module):
            with torch.no_grad():
                targets.linear.weight[0, targets.linear.weight[0].abs().argmax()] = 0
        return result

    monkeypatch.setattr(prune, "global_magnitude_", one_too_many)
    monkeypatch.setattr(demo, "SPARSITIES", (0.5,))
    result = runner.invoke(cli.app(), ["demo", "prune", "--quick", "--plot", str(tmp_path / "demo.png")])
    assert result.exit_code == 1
    assert "masks equal the reference: NO" in result.output


@pytest.fixture
def short_text(monkeypatch):
    """A demo of fewer tokens, on the same text."""
    monkeypatch.setattr(attention_demo, "TOKENS", 2**11)


def test_attention_demo_remembers_more_by_the_delta_rule(short_text, tmp_path):
    picture, numbers = tmp_path / "demo.png", tmp_path / "demo.json"
    command = ["demo", "linear_attention", "--quick", "--plot", str(picture), "--json", str(numbers)]
    result = runner.invoke(cli.app(), command)
    assert result.exit_code == 0, result.output
    assert "equal to the reference in rounding: yes" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = json.loads(numbers.read_text())["linear_attention"]
    assert content["words"] > 50_000  # the text is there, not an excerpt
    assert [race["tokens"] for race in content["races"]] == [2**10]
    assert all(race[peer] > 0 for race in content["races"] for peer in ("pyfast", "torch", "softmax"))
    assert 0 < content["errors"]["pyfast"] <= content["errors"]["allowed"] < 1e-4
    memory = content["memory"]
    assert memory["delta rule, half of each word"] > 1.2 * memory["sum"]
    assert memory["delta rule, half of each word"] > 1.2 * memory["always the most frequent word"]


@pytest.mark.parametrize("wrong", ["attention", "step"])
def test_attention_demo_fails_when_an_answer_is_wrong(wrong, short_text, tmp_path, monkeypatch):
    right = getattr(linear_attention, wrong)

    def off(*args, **options):
        found = right(*args, **options)
        first = found[0] if isinstance(found, tuple) else found
        first[0, -1] += 1e-4
        return found

    monkeypatch.setattr(linear_attention, wrong, off)
    result = runner.invoke(cli.app(), ["demo", "linear_attention", "--quick", "--plot", str(tmp_path / "demo.png")])
    assert result.exit_code == 1
    assert "equal to the reference in rounding: NO" in result.output


def test_all_sections_have_a_plot_each(tmp_path, monkeypatch):
    seen = {}
    for section in demos.SECTIONS:
        module = importlib.import_module(f"pyfast.demo.{section}")
        monkeypatch.setattr(module, "run", lambda _, plot, quick, s=section: seen.update({s: plot}) or {"agrees": True})
    result = runner.invoke(cli.app(), ["demo", "--plot", str(tmp_path / "demo.png")])
    assert result.exit_code == 0, result.output
    assert seen == {section: tmp_path / f"demo-{section}.png" for section in demos.SECTIONS}


def test_shipped_weights_are_small_and_say_where_they_are_from():
    safetensors = pytest.importorskip("safetensors")
    path = resources.files("pyfast").joinpath("data/digits.safetensors")
    assert 0 < len(path.read_bytes()) <= 2**20
    with safetensors.safe_open(str(path), framework="pt") as file:
        about = file.metadata()
    x, y, test_x, test_y = digits.images()
    assert about["script"] == "benchmarks/train_digits.py"
    net = digits.pretrained()
    stated = float(about["test accuracy"][:-1])
    assert digits.accuracy(net, test_x, test_y) == pytest.approx(stated, abs=0.21)  # one image, by another rounding
    assert (len(x), len(y), len(test_x), len(test_y)) == (1297, 1297, 500, 500)


def test_recalibration_takes_the_mean_over_the_images_and_nothing_else():
    net = digits.pretrained()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = digits.images()[0]
    digits.recalibrate(net, x)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)
    convolved = torch.stack([net.stem.convolution(part).mean((0, 2, 3)) for part in x.split(650)]).mean(0)
    torch.testing.assert_close(net.stem.norm.running_mean, convolved)
    assert not net.training
    assert net.stem.norm.momentum == 0.1


def test_training_is_repeatable():
    x, y, _, _ = digits.images()
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        net = digits.network()
        digits.train(net, x[:130], y[:130], epochs=1, rate=0.1, decay=0.02, seed=3)
        nets.append(net)
    first, second = (net.state_dict() for net in nets)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_resnet50_has_its_published_size():
    sizes = list(shapes.resnet50())
    assert len(sizes) == 161
    assert sum(torch.Size(s).numel() for s in sizes) == 25_557_032


def test_importing_pyfast_imports_nothing_optional():
    code = "import pyfast, pyfast.cli, sys; print([m for m in sys.argv[1:] if m in sys.modules])"
    optional = ["typer", "rich", "triton", "numba", "matplotlib", "sklearn", "safetensors", "pyfast.demo"]
    result = subprocess.run([sys.executable, "-P", "-c", code, *optional], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_crystal_demo_makes_graphs_of_real_structure_types(tmp_path):
    picture, numbers = tmp_path / "demo.png", tmp_path / "demo.json"
    result = runner.invoke(cli.app(), ["demo", "crystal", "--quick", "--plot", str(picture), "--json", str(numbers)])
    assert result.exit_code == 0, result.output
    assert "equal: yes" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = json.loads(numbers.read_text())["crystal"]
    assert content["structures"] == 288
    assert content["same_bonds"] == content["asked_pymatgen"]
