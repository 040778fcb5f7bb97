"""What nbval does not do by itself: it compares figures, too, and refuses a cell that was never run.

Figures are compared pixel by pixel, by the root mean square of the difference, out of 255: over the whole figure, and
over its worst tile, because one moved marker hardly changes the mean of a large figure. Antialiasing stays below both
tolerances; a moved line or marker does not.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RMS = 4.0
TILE = 32  # pixels
TILE_RMS = 32.0
GLUED = "application/papermill.record/"  # values stored for the text to quote, not shown where they are made


def _pixels(encoded: str) -> np.ndarray:
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"), float)


def _figures(outputs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [data for output in outputs for kind, data in output.get("data", {}).items() if kind.endswith("image/png")]


def _worst_tile(squares: np.ndarray) -> float:
    height, width = (-(-n // TILE) * TILE for n in squares.shape)
    padded = np.zeros((height, width))
    padded[: squares.shape[0], : squares.shape[1]] = squares
    tiles = padded.reshape(height // TILE, TILE, width // TILE, TILE).mean(axis=(1, 3))
    return float(np.sqrt(tiles.max()))


def _figure_differences(stored: Sequence[Mapping[str, Any]], drawn: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    before, after = _figures(stored), _figures(drawn)
    if len(before) != len(after):
        yield f"{len(before)} figures stored, {len(after)} drawn"
        return
    for i, (a, b) in enumerate(zip(map(_pixels, before), map(_pixels, after), strict=True)):
        if a.shape != b.shape:
            yield f"figure {i}: stored {a.shape[1]}x{a.shape[0]} pixels wide and high, drawn {b.shape[1]}x{b.shape[0]}"
            continue
        squares = ((a - b) ** 2).mean(axis=2)
        rms, worst = float(np.sqrt(squares.mean())), _worst_tile(squares)
        if rms > RMS or worst > TILE_RMS:
            limits = f"at most {RMS} and {TILE_RMS} of 255"
            yield f"figure {i}: differs by {rms:.2f}, in its worst tile by {worst:.1f} ({limits})"


def pytest_configure(config: pytest.Config) -> None:
    """Puts the comparison of figures into nbval's own."""
    if not config.getoption("nbval", False):
        return
    from nbval.plugin import IPyNbCell

    text_agrees = IPyNbCell.compare_outputs

    def compare_outputs(self: Any, drawn: Any, stored: Any, skip_compare: Any = None) -> bool:
        glued = {kind for o in (*drawn, *stored) for kind in o.get("data", {}) if kind.startswith(GLUED + "image/")}
        if not text_agrees(self, drawn, stored, (*(skip_compare or self.parent.skip_compare), *glued)):
            return False
        differences = list(_figure_differences(stored, drawn))
        self.comparison_traceback.extend(f"mismatch 'image/png': {line}" for line in differences)
        return not differences

    IPyNbCell.compare_outputs = compare_outputs


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of all notebooks, only the book's chapters are collected."""
    return True if collection_path.suffix == ".ipynb" and collection_path.parent != config.rootpath / "book" else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks a chapter's cells, whose kernel is a process, and leaves out what is slow, or Colab's, unless -m names it.

    Not by -m in pyproject.toml, which a -m of the command line would replace. Files that start processes come first,
    and of these the site's: they last longest and wait most, so that the rest fills the gaps.
    """
    for item in items:
        if hasattr(item, "cell"):
            item.add_marker("process")
    marked = {mark: {item.path for item in items if item.get_closest_marker(mark)} for mark in ("browser", "process")}
    items.sort(key=lambda item: [item.path not in paths for paths in marked.values()])
    left_out = {mark for mark in ("slow", "colab") if mark not in config.getoption("markexpr")}
    deselected = [item for item in items if left_out & {mark.name for mark in item.iter_markers()}]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in set(deselected)]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuses a cell that was never run, which nbval would pass."""
    if hasattr(item, "cell") and item.cell.execution_count is None:
        pytest.fail(f"{item.nodeid} was never run, so nothing is proved; run `make rerun`", pytrace=False)
