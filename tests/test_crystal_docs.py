"""The page on crystals: every block of it runs by itself, and every option is on it."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from pyfast import crystal

PAGE = Path(__file__).resolve().parents[1] / "docs" / "crystal.md"
TEXT = PAGE.read_text()
SECTIONS = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(code, id=f"{title}-{i}")
    for title, text in SECTIONS
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
@pytest.mark.parametrize("code", BLOCKS)
def test_block_runs(code):
    torch.manual_seed(0)
    exec(compile(code, str(PAGE), "exec"), {})


def test_no_block_escapes():
    assert len(BLOCKS) == TEXT.count("```python") == TEXT.count("```") / 2


@pytest.mark.parametrize("function", [crystal.radius_graph, crystal.knn_graph])
def test_every_option_is_mentioned(function):
    for name in inspect.signature(function).parameters:
        assert re.search(rf"\b{name}\b", TEXT), f"{name} of {function.__name__} is not on the page"
