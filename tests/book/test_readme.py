"""What README.md says is so: its example, commands, paths and picture."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
import readme_figure

from advdim import cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.M | re.S)


def test_the_examples_print_what_is_shown_below_them():
    examples, names = blocks("python"), {}
    assert len(examples) == 2
    for example, shown in zip(examples, blocks("text"), strict=False):  # more text: what lies where
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(example, "README.md", "exec"), names)
        assert printed.getvalue() == shown


def test_the_example_is_that_of_the_preface():
    example = blocks("python")[0]
    cells = [
        cell.source for cell in nbformat.read(readme_figure.CHAPTER, as_version=4).cells if cell.cell_type == "code"
    ]
    (cell,) = (code for code in cells if code.startswith("def network(side)"))
    written = example.split("import advdim as ad\n")[1], cell
    assert len({ast.dump(ast.parse(code)) for code in written}) == 1  # lines are shorter there, comments other


def test_every_make_target_exists():
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, flags=re.M))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    assert {"book", "test", "rerun", "help"} <= named
    assert named <= targets


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_commands_by_hand_are_those_of_make():
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS", "JOBS")
    }
    run = subprocess.run(
        ["make", "--dry-run", "--always-make", "book", "test"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    made = [line.replace("--quiet", "").replace("--disable-pip-version-check", "").split() for line in run.splitlines()]
    (by_hand,) = (block for block in blocks("bash") if "-m venv" in block)
    lines = [line for line in by_hand.splitlines() if ".venv/bin/" in line]
    assert len(lines) == 4
    for line in lines:
        assert line.split() in made


def advdim_commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.startswith("advdim ")]


@pytest.mark.parametrize("line", advdim_commands())
def test_every_advdim_command_exists_with_its_options(line: str, capsys: pytest.CaptureFixture[str]):
    words = shlex.split(line)[1:]
    depth = 2 if words[0] == "data" else 1
    with pytest.raises(SystemExit) as stop:
        cli.main([*words[:depth], "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in words[depth:]:
        if word.startswith("--"):
            assert word in text


def test_the_commands_were_found():
    assert {command.split()[1] for command in advdim_commands()} == {
        "audit",
        "survey",
        "data",
        "run",
        "status",
        "record",
    }


def test_what_is_where_is_there():
    tree = blocks("text")[-1]
    for line in tree.splitlines():
        assert (ROOT / line.split()[0]).exists(), line
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_picture_is_the_prefaces_figure():
    assert f"]({readme_figure.PICTURE.relative_to(ROOT).as_posix()})" in README
    same = readme_figure.PICTURE.read_bytes() == readme_figure.stored()  # a difference of bytes is not for printing
    assert same, "run tools/readme_figure.py"
    assert readme_figure.PICTURE.stat().st_size < 200_000
