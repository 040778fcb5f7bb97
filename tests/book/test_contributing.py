"""The worked examples of CONTRIBUTING.md run, in order, and print what is shown; what it names is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers import pages

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "CONTRIBUTING.md"
TEXT = GUIDE.read_text(encoding="utf-8")


def test_the_worked_examples_print_what_is_shown() -> None:
    names: dict[str, Any] = {}
    examples = pages.examples(TEXT)
    assert len(examples) == 4
    for code, shown in examples:
        assert shown
        assert pages.printed(code, names, GUIDE) == shown


@pytest.mark.parametrize("title", ["An architecture", "An attack", "An experiment", "A chapter"])
def test_each_guide_is_shorter_than_a_page(title: str) -> None:
    (guide,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", TEXT, flags=re.M | re.S)
    assert len(guide.splitlines()) <= 60
    assert "```python" in guide


def test_every_path_that_it_names_is_there() -> None:
    named = re.findall(r"`((?:src|tests|tools|book|benchmarks|\.github)/[\w./-]+)`", TEXT)
    assert len(named) > 8
    assert [path for path in named if not (ROOT / path).exists() and "NN_" not in path] == []
