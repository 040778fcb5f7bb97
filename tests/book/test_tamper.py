"""Proof that the proof works: whatever is tampered with in a chapter, or under it, makes the default suite fail.

A small chapter of its own is executed and stored as the real ones are; then one thing at a time is changed, and pytest
is run on it in a project that has this project's own conftest.py and configuration.
"""

import base64
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
import repository
import rerun
from helpers.chapters import complaints
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
CHAPTER = Path("book") / "01_tiny.ipynb"
MODULE = "def root(d):\n    return d**0.5\n"
CELLS = [
    new_markdown_cell("# A tiny chapter"),
    new_code_cell("from tiny import root\n\nprint([round(root(d), 3) for d in (2, 3, 5)])"),
    new_code_cell("root(16)"),
    new_code_cell(
        "import matplotlib.pyplot as plt\n\n"
        "fig, ax = plt.subplots(figsize=(3, 2))\n"
        "ax.plot([1, 2, 3], [root(d) for d in (1, 2, 3)])\n"
        'ax.plot([1.5], [1.6], "o")\n'
        "plt.show()",
        metadata={"mystnb": {"figure": {"caption": "A root."}, "image": {"alt": "A rising curve and one dot."}}},
    ),
]

Tamper = Callable[[nbformat.NotebookNode], None]


def project(folder: Path) -> Path:
    """An empty project with this one's configuration of pytest and nbval."""
    (folder / "book").mkdir(parents=True)
    (folder / "tests").mkdir()
    for name in ("conftest.py", "pyproject.toml", "tests/sanitize.cfg"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose one chapter is executed, stored and in order."""
    folder = project(tmp_path_factory.mktemp("tiny") / "project")
    (folder / "book" / "tiny.py").write_text(MODULE)
    nbformat.write(new_notebook(cells=CELLS), folder / CHAPTER)
    rerun.rerun(folder / CHAPTER, run=True, write=True)
    return folder


def prove(folder: Path, *options: str, **environment: str) -> tuple[int, str]:
    """The verdict of pytest on a project: its exit status (0 passed, 1 failed) and what it printed."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", *options, "book"],
        cwd=folder,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


def code(notebook: nbformat.NotebookNode, text: str) -> nbformat.NotebookNode:
    """The code cell whose source holds `text`."""
    return next(cell for cell in notebook.cells if cell.cell_type == "code" and text in cell.source)


def change_printed_number(notebook: nbformat.NotebookNode) -> None:
    output = code(notebook, "print").outputs[0]
    assert "1.732" in output.text
    output.text = output.text.replace("1.732", "1.733")


def change_result(notebook: nbformat.NotebookNode) -> None:
    output = code(notebook, "root(16)").outputs[0]
    assert output.data["text/plain"] == "4.0"
    output.data["text/plain"] = "4.1"


def remove_output(notebook: nbformat.NotebookNode) -> None:
    code(notebook, "print").outputs = []


def remove_figure(notebook: nbformat.NotebookNode) -> None:
    code(notebook, "plt.show").outputs = []


def move_line(notebook: nbformat.NotebookNode) -> None:
    cell = code(notebook, "plt.show")
    assert "for d in (1, 2, 3)" in cell.source
    cell.source = cell.source.replace("for d in (1, 2, 3)", "for d in (1, 2.3, 3)")


def move_dot(notebook: nbformat.NotebookNode) -> None:
    cell = code(notebook, "plt.show")
    assert "[1.6]" in cell.source
    cell.source = cell.source.replace("[1.6]", "[1.5]")


def enlarge_figure(notebook: nbformat.NotebookNode) -> None:
    output = code(notebook, "plt.show").outputs[0]
    image = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    buffer = io.BytesIO()
    image.resize((image.width + 1, image.height)).save(buffer, "png")
    output.data["image/png"] = base64.b64encode(buffer.getvalue()).decode()


def forget_to_run(notebook: nbformat.NotebookNode) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = None, []


def test_executing_again_gives_the_same_bytes(tiny: Path) -> None:
    before = (tiny / CHAPTER).read_bytes()
    assert not rerun.rerun(tiny / CHAPTER, run=True, write=True)
    assert (tiny / CHAPTER).read_bytes() == before


UNTOUCHED = "untouched"
TAMPERED: dict[Tamper, str] = {
    change_printed_number: "1.733",
    change_result: "4.1",
    remove_output: "Unexpected output fields",
    remove_figure: "Unexpected output fields",
    move_line: "figure 0: differs by",
    move_dot: "figure 0: differs by",
    enlarge_figure: "figure 0: stored",
    forget_to_run: "was never run",
}


@pytest.fixture(scope="module")
def failures(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What pytest says of each cell that failed, by chapter, where every way to tamper has a chapter of its own."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("tampered") / "project")
    (folder / CHAPTER).rename(folder / "book" / f"{UNTOUCHED}.ipynb")
    for tamper in TAMPERED:
        notebook = nbformat.read(tiny / CHAPTER, 4)
        tamper(notebook)
        nbformat.write(notebook, folder / "book" / f"{tamper.__name__}.ipynb")
    status, report = prove(folder, "--junitxml=found.xml")
    assert status == 1, report
    cells = list(ElementTree.parse(folder / "found.xml").iter("testcase"))
    assert len(cells) == 4 * (1 + len(TAMPERED)), report
    found: dict[str, list[str]] = {name: [] for name in (UNTOUCHED, *(tamper.__name__ for tamper in TAMPERED))}
    for cell in cells:
        chapter = cell.attrib["classname"].split(".")[1]
        found[chapter] += [failed.text or "" for failed in cell if failed.tag in ("failure", "error")]
    return found


def test_untouched_chapter_passes(tiny: Path, failures: dict[str, list[str]]) -> None:
    assert failures[UNTOUCHED] == []
    assert complaints(nbformat.read(tiny / CHAPTER, 4)) == []


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
def test_tampered_chapter_fails(failures: dict[str, list[str]], tamper: Tamper) -> None:
    assert TAMPERED[tamper] in "\n".join(failures[tamper.__name__])


def test_altered_function_under_a_chapter_fails(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "book" / "tiny.py").write_text(MODULE.replace("0.5", "0.501"))
    status, report = prove(folder)
    assert status == 1, report
    assert "Cell outputs differ" in report


def test_altered_package_under_a_real_chapter_fails(tmp_path: Path) -> None:
    """One function is off by one part in a hundred, in a copy of the package that the chapter imports instead."""
    folder = project(tmp_path / "project")
    chapter = next(path for path in repository.chapters(ROOT) if path.stem.startswith("02_"))
    shutil.copy(chapter, folder / "book")
    shutil.copytree(ROOT / "src" / "advdim", folder / "src" / "advdim", ignore=shutil.ignore_patterns("__pycache__"))
    module = folder / "src" / "advdim" / "theory" / "norms.py"
    with module.open("r+") as file:
        assert "def norm(" in file.read(), "the function to alter has moved"
        file.write("\n\n_norm = norm\n\n\ndef norm(x, q):\n    return 1.01 * _norm(x, q)\n")
    status, report = prove(folder, "-x", PYTHONPATH=str(folder / "src"))
    assert status == 1, report
    assert "Cell outputs differ" in report


def test_complaints_name_what_nbval_does_not_see(tiny: Path) -> None:
    notebook = nbformat.read(tiny / CHAPTER, 4)
    forget_to_run(notebook)
    assert "not run from top to bottom" in complaints(notebook)[0]
    notebook = nbformat.read(tiny / CHAPTER, 4)
    code(notebook, "plt.show").metadata = {}
    printed = code(notebook, "print").outputs[0]
    printed.text = "see /home/somebody/data.csv, which took 3.1 s; half is 1/2, and d/dx is a derivative"
    assert complaints(notebook) == [
        "cell 2: prints the path /home/somebody/data.csv",
        "cell 2: prints a timing, took 3",
        "cell 4: its figure has no alt text (metadata mystnb.image.alt)",
        "cell 4: its figure has no caption (metadata mystnb.figure.caption)",
    ]
    notebook = nbformat.read(tiny / CHAPTER, 4)
    code(notebook, "print").outputs[0].name = "stderr"
    code(notebook, "root(16)").metadata = {"tags": ["nbval-ignore-output"]}
    code(notebook, "root(16)").source += f"  # {'x' * 80}"
    assert complaints(notebook) == [
        "cell 2: something was written to stderr",
        f"cell 3: a line of 92 characters is cut on the site: root(16)  # {'x' * 28}",
        "cell 3: keeps its output from being checked",
    ]
