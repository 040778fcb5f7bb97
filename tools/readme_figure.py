"""Write the README's picture: the preface's figure, as the chapter stores it and `make test` proves it.

usage: readme_figure.py            after `make rerun ARGS=book/01_preface.ipynb`
"""

from __future__ import annotations

import base64
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = ROOT / "book" / "01_preface.ipynb"
FIGURE = "fig-preface-law"
PICTURE = ROOT / "book" / "_static" / "law.png"


def stored(chapter: Path = CHAPTER, figure: str = FIGURE) -> bytes:
    """The PNG that a chapter stores under a figure's name; raises ValueError if there is none."""
    for cell in nbformat.read(chapter, as_version=4).cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == figure:
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output.data["image/png"])
    raise ValueError(f"{chapter} stores no figure {figure!r}: run `make rerun ARGS={chapter}` first")


if __name__ == "__main__":
    PICTURE.write_bytes(stored())
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size} bytes")
