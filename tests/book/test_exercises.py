"""Every chapter ends with four to six exercises; each has a folded solution that runs with the chapter.

The solutions are cells of the chapters, so the test that executes a chapter runs them; here is what it does not see.
"""

import re
from functools import cache
from pathlib import Path

import nbformat
import pytest

BOOK = Path(__file__).parents[2] / "book"
CHAPTERS = sorted(path.stem for path in BOOK.glob("[01]?_*.ipynb"))
NUMBERED = re.compile(r"^(?:\*\*(\d+)\.\*\*|(\d+)\. \*\w)", re.M)  # **1.** Text, or 1. *Title.* Text
IN_CODE = re.compile(r"^# Exercises? ([\d, and]+)", re.M)


@cache
def cells_of(name):
    return nbformat.read(BOOK / f"{name}.ipynb", 4).cells


def last_section(name):
    """The text after the last heading 'Exercises', and the code cells that follow it."""
    cells = nbformat.read(BOOK / f"{name}.ipynb", 4).cells
    headed = (
        i for i, c in enumerate(cells) if c.cell_type == "markdown" and re.search(r"^## Exercises", c.source, re.M)
    )
    begin = max(headed)
    text = "\n\n".join(c.source for c in cells[begin:] if c.cell_type == "markdown").split("## Exercises")[1]
    return text, [c for c in cells[begin:] if c.cell_type == "code"]


@pytest.mark.parametrize("name", CHAPTERS)
def test_four_to_six_exercises_with_solutions_that_run(name):
    text, code = last_section(name)
    numbers = [int(a or b) for a, b in NUMBERED.findall(text)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert 4 <= len(numbers) <= 6
    assert all(cell.metadata.get("tags") == ["hide-cell"] for cell in code)
    assert all(cell.outputs for cell in code), "a solution that prints nothing"
    if "{dropdown}" in text:  # text and cell, one for each
        assert text.count("```{dropdown} Solution") == len(code) == len(numbers)
    else:  # cells that name the exercises which they solve
        solved = [int(n) for cell in code for found in IN_CODE.findall(cell.source) for n in re.findall(r"\d+", found)]
        assert solved == numbers


@pytest.mark.parametrize("name", CHAPTERS)
def test_solutions_check_what_they_say(name):
    _, code = last_section(name)
    assert any(re.search(r"^\s*assert ", cell.source, re.M) for cell in code)


def test_all_ten_chapters_are_here():
    assert [name[:2] for name in CHAPTERS] == [f"{i:02d}" for i in range(1, 11)]


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_begins_in_short_and_ends_with_its_claims(name):
    text = "\n\n".join(c.source for c in cells_of(name) if c.cell_type == "markdown")
    box = re.search(r"\{admonition\} In short\n:class: note\n(.*?)^(?:```|:::)", text, re.M | re.S)
    assert box
    assert all(word in box[1] for word in ("**Question.**", "**Needs**"))
    assert re.search(r"minutes|an hour", box[1])
    assert len(re.findall(r"^[*-] ", box[1], re.M)) in (3, 4)
    heads = re.findall(r"^\| claim \|(.*)\|$", text, re.M)
    assert heads, "no table of claims"
    assert all(word in heads[-1] for word in ("proved", "measured", "open"))
