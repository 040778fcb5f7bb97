"""The pages of the package: their examples print what they show, and no public name is missing from them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import pages

import advdim

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "book" / "api"
PACKAGES = sorted(path.stem for path in FOLDER.glob("*.md"))
#: What a package hands on that is described on another's page.
ELSEWHERE = {"experiments": {"Series", "epochs", "exponents", "recorded", "runs", "series"}}

#: Tuples of names, and the type of one: they are described where they are taken.
CHOICES = {"PADDINGS", "POOLINGS", "READOUTS", "Resize"}


@pytest.mark.parametrize("name", PACKAGES)
def test_the_examples_print_what_is_shown(name: str) -> None:
    path = FOLDER / f"{name}.md"
    names: dict[str, Any] = {}
    examples = pages.examples(path.read_text(encoding="utf-8"))
    assert examples
    for code, shown in examples:
        assert pages.printed(code, names, path) == shown


def test_every_package_has_its_page() -> None:
    packages = {name for name in advdim.__all__ if hasattr(getattr(advdim, name), "__path__")}
    packages |= {"audit"}  # whose name, in the package, is that of its function
    assert set(PACKAGES) == packages
    listed = (ROOT / "book" / "_toc.yml").read_text(encoding="utf-8")
    assert [name for name in PACKAGES if f"file: api/{name}\n" not in listed] == []


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_in_the_summary_and_in_the_reference(name: str) -> None:
    page = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    package = importlib.import_module(f"advdim.{name}")
    public = {n for n in package.__all__ if not isinstance(getattr(package, n), ModuleType)} - ELSEWHERE.get(
        name, set()
    )
    described = set(re.findall(r"^\.\. (?:auto|py:)\w+:: (\S+)$", page, flags=re.M))
    assert public - described - CHOICES == set()
    callables = {n for n in public - CHOICES if callable(getattr(package, n))} - {"Loss"}
    assert [n for n in callables if f"\n   {n}\n" not in page] == []
