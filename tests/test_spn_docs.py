"""The page on sum-product networks: every block of it runs by itself, and every option is on it."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from pyfast import spn

PAGE = Path(__file__).resolve().parents[1] / "docs" / "spn.md"
TEXT = PAGE.read_text()
SECTIONS = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(code, id=f"{title}-{i}")
    for title, text in SECTIONS
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
]


@pytest.mark.filterwarnings("ignore:the chains disagree")  # few sweeps
@pytest.mark.parametrize("code", BLOCKS)
def test_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, str(PAGE), "exec"), {})


def test_no_block_escapes():
    assert len(BLOCKS) == TEXT.count("```python") == TEXT.count("```") / 2


def test_every_option_is_mentioned():
    for name in inspect.signature(spn.BayesSPN).parameters:
        assert re.search(rf"\b{name}\b", TEXT), f"{name} is not on the page"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (PAGE.parent / target).exists(), target
