"""The pages of the docs: every block runs by itself, the main calls' options are mentioned, links lead somewhere."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from pyfast import crystal, linear_attention, prune, spn

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = {page.stem: page.read_text() for page in sorted(DOCS.glob("*.md"))}
WITH_CODE = [name for name, text in PAGES.items() if "```" in text]
SECTION, CODE = (
    re.compile(pattern, re.DOTALL | re.MULTILINE)
    for pattern in (r"^## (.*?)\n(.*?)(?=^## |\Z)", r"^```python\n(.*?)^```$")
)
BLOCKS = [
    pytest.param(code, id=f"{name}: {title}-{i}")
    for name in WITH_CODE
    for title, text in SECTION.findall(PAGES[name])
    for i, code in enumerate(CODE.findall(text))
]
MENTIONED = [
    ("crystal", crystal.radius_graph),
    ("crystal", crystal.knn_graph),
    ("linear_attention", linear_attention.attention),
    ("linear_attention", linear_attention.step),
    ("prune", prune.global_magnitude_),
    ("prune", prune.GradualPruner),
    ("spn", spn.BayesSPN),
]


@pytest.mark.filterwarnings("ignore:the chains disagree")  # few sweeps
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler and its forward mode
@pytest.mark.parametrize("code", BLOCKS)
def test_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, "docs", "exec"), {})


def test_no_block_escapes():
    assert {"crystal", "linear_attention", "prune", "spn"} <= set(WITH_CODE)
    for name in WITH_CODE:
        blocks = [b for b in BLOCKS if b.id.startswith(f"{name}: ")]
        assert len(blocks) == PAGES[name].count("```python") == PAGES[name].count("```") / 2, name


@pytest.mark.parametrize(("page", "function"), MENTIONED, ids=lambda x: getattr(x, "__name__", x))
def test_every_option_is_mentioned(page, function):
    for name in inspect.signature(function).parameters:
        assert re.search(rf"\b{name}\b", PAGES[page]), f"{name} of {function.__name__} is not on the page"


def test_every_public_name_of_linear_attention_is_mentioned_or_explains_itself():
    functions = {"attention", "step", "elu_plus_one", "LinearAttention"}
    assert functions <= set(linear_attention.__all__)
    for name in functions:
        assert f"linear_attention.{name}" in PAGES["linear_attention"]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGES[name]):
        assert (DOCS / target).exists(), target
