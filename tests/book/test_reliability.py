"""Each promise of the appendix on reliability names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "book" / "appendix_reliability.md").read_text(encoding="utf-8")
PROMISES = [row for table in re.findall(r"```\{list-table\}(.*?)```", PAGE, re.S) for row in table.split("\n* - ")[2:]]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def collected(path: Path) -> set[str]:
    """The functions of a file that pytest collects, unless they are marked to be skipped or left out by default."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = {ast.unparse(mark).partition("(")[0] for mark in node.decorator_list}
            if not marks & {"pytest.mark.skip", "pytest.mark.xfail", "pytest.mark.slow"}:
                found.add(node.name)
    return found


def test_every_promise_names_a_test() -> None:
    assert len(PROMISES) > 25
    assert [row for row in PROMISES if "::" not in row] == []


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda value: value.rpartition("/")[2])
def test_each_test_named_exists(file: str, name: str) -> None:
    assert name in collected(ROOT / file)


def test_a_test_that_is_not_there_would_be_missed() -> None:
    assert "test_that_is_not_there" not in collected(Path(__file__))
