"""Execute chapters in place, and store them so that two runs give the same bytes.

usage: rerun.py [CHAPTER.ipynb ...]             format, execute and store (all chapters of book/ by default)
       rerun.py --no-run [CHAPTER.ipynb ...]    only normalise what is stored
       rerun.py --check [CHAPTER.ipynb ...]     write nothing; fail if a chapter is not normalised
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from repository import chapters, put_colab_cell, read

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
KEPT = ("tags", "mystnb")

#: How a chapter's frame says how long its cells run, on one core, in seconds.
TIMES = {"ten seconds": 10, "half a minute": 30, "a minute": 60, "two minutes": 120, "three minutes": 180}


def normalise(notebook: nbformat.NotebookNode, stem: str) -> nbformat.NotebookNode:
    """Drops timestamps, versions and random ids, and puts the cell that installs the package on Colab first."""
    put_colab_cell(notebook, read())
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"{stem[:2]}-{i:02d}"
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in KEPT if key in cell.metadata})
    return notebook


def text_of(notebook: nbformat.NotebookNode) -> str:
    """The bytes to store, as text: what nbformat writes, and ends as `ruff format` leaves it."""
    nbformat.validate(notebook)
    return str(nbformat.writes(notebook)).rstrip("\n") + "\n"


def said(notebook: nbformat.NotebookNode) -> float | None:
    """How long the cells run as the chapter's frame says, in seconds; None if it does not."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(rf"the cells run for ({'|'.join(TIMES)})\b", text)
    return TIMES[found[1]] if found else None


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Runs every cell, in a fresh kernel of this very environment."""
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=40"],  # else each kernel warns that TCP is not encrypted
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    ).execute()


def rerun(path: Path, *, run: bool, write: bool) -> bool:
    """Returns whether the stored file is, or was, other than it should be."""
    old = path.read_text(encoding="utf-8")
    notebook = normalise(nbformat.reads(old, as_version=4), path.stem)
    if run:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        execute(notebook, path.parent)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took, stated = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, said(notebook)
        if stated is None or not 0.4 < took / stated < 1.5:
            print(f"{path.name}: its cells ran for {took:.0f} s of one core, its frame says {stated}", file=sys.stderr)
    new = text_of(normalise(notebook, path.stem))
    if new != old and write:
        path.write_text(new, encoding="utf-8", newline="\n")
    return new != old


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--no-run", action="store_true")
    mode.add_argument("--check", action="store_true")
    parser.add_argument("chapters", nargs="*", type=Path, default=chapters())
    args = parser.parse_args()
    if not args.chapters:
        parser.error("book/ holds no chapter (*.ipynb)")
    if not args.check:  # before executing, so that formatting never comes after it
        subprocess.run([sys.executable, "-m", "ruff", "format", "-q", *args.chapters], check=True)
    failed = False
    for path in args.chapters:
        start = time.perf_counter()
        try:
            differs = rerun(path, run=not (args.no_run or args.check), write=not args.check)
        except CellExecutionError as error:
            print(f"{path}: a cell failed, and nothing was stored\n{error}", file=sys.stderr)
            failed = True
            continue
        verdict = ("not normalised" if args.check else "written") if differs else "unchanged"
        print(f"{path.name}: {verdict} ({time.perf_counter() - start:.1f} s)")
        failed |= args.check and differs
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
