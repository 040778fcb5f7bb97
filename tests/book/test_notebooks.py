"""What nbval does not see in a stored chapter: whether it was run, in order, and is fit to be read."""

import json
from pathlib import Path

import nbformat
import pytest
import repository
import rerun
import yaml
from helpers.chapters import complaints

ROOT = Path(__file__).parents[2]
CHAPTERS = repository.chapters(ROOT)


def test_the_table_of_contents_lists_every_chapter() -> None:
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    listed = [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]
    missing = [name for name in listed if not list((ROOT / "book").glob(f"{name}.*"))]
    assert missing == []
    assert [path.stem for path in CHAPTERS if path.stem not in listed] == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_stored_chapter_is_whole(path: Path) -> None:
    assert complaints(nbformat.read(path, 4)) == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_stored_chapter_is_normalised(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert rerun.text_of(rerun.normalise(nbformat.reads(text, as_version=4), path.stem)) == text, (
        "run `make rerun`, or `tools/rerun.py --no-run` where only the form differs"
    )


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_first_cell_installs_the_package_where_it_is_missing(path: Path) -> None:
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    assert "".join(first["source"]) == repository.read(ROOT).colab_cell()
    assert first["metadata"] == {"tags": ["remove-cell"]}
    assert first["outputs"] == []


@pytest.mark.parametrize("path", [p for p in CHAPTERS if p.stem[:2].isdigit()], ids=lambda path: path.stem)
def test_the_frame_says_how_long_the_cells_run(path: Path) -> None:
    """``rerun.py`` measures it, and says so where the frame is wrong."""
    assert rerun.said(nbformat.read(path, 4)) is not None, f"none of: the cells run for {', '.join(rerun.TIMES)}"
