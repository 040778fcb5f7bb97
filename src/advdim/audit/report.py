"""The files of an audit: audit.json, audit.csv and audit.png."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis import figures
from ..data.atomic import write_text, writing
from .result import Audit, columns


def write(audit: Audit, folder: str | Path) -> list[Path]:
    """Write audit.json (all but the single measurements), audit.csv (those) and audit.png into a folder.

    Args:
        audit: what was found.
        folder: is made if it is not there.

    Returns:
        The three files.
    """
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    write_text(where / "audit.json", as_json(audit))
    write_text(where / "audit.csv", as_csv(audit))
    with writing(where / "audit.png") as file:
        figure(audit).savefig(file, format="png", dpi=120)
    return [where / f"audit.{kind}" for kind in ("json", "csv", "png")]


def as_json(audit: Audit) -> str:
    """Settings, versions, checksum, tables, exponent, budget and verdict; nan and infinities as null."""
    found = {name: value for name, value in asdict(audit).items() if name != "cells"}
    return json.dumps(_plain(found), indent=1, sort_keys=True, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if value == math.inf else None
    return value


def as_csv(audit: Audit) -> str:
    """One line per number: size, seed, image, quantity, module, value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["size", "seed", "image", "quantity", "module", "value"])
    writer.writerows(_lines(audit))
    return text.getvalue()


def _lines(audit: Audit) -> Iterator[list[Any]]:
    for cell in audit.cells:
        for name, values in cell.values.items():
            yield from ([cell.size, cell.seed, i, name, "", repr(v)] for i, v in enumerate(values))
        for module, values in cell.boundaries.items():
            yield from ([cell.size, cell.seed, i, "boundary", module, repr(v)] for i, v in enumerate(values))


def figure(audit: Audit) -> Any:
    """Gradient norms over sizes beside the law, the layer budget as a waterfall, and maps of the gradient."""
    from matplotlib.figure import Figure  # not pyplot: no window, and nothing to close

    drawn = Figure(figsize=(11, 4.2), layout="constrained")
    grid = drawn.add_gridspec(1, 3, width_ratios=(1, 1.2, 0.5))
    left, middle, right = grid[0], grid[1], grid[2]
    curve(audit, drawn.add_subplot(left))
    waterfall(audit, drawn.add_subplot(middle))
    maps = [cell for cell in (audit.cells[0], audit.cells[len(audit.rows) - 1])]
    below = right.subgridspec(2, 1)
    for i, cell in enumerate(maps):
        ax = drawn.add_subplot(below[i])
        ax.imshow(np.asarray(cell.map), cmap="magma")
        ax.set_title(f"mean |gradient|, {cell.size} px", fontsize=8)
        ax.set_axis_off()
    return drawn


def curve(audit: Audit, ax: Any) -> None:
    """Draw gradient norms against the number of input dimensions, points per seed or image, beside the law."""
    sizes = [row.size for row in audit.rows]
    d = np.array([size**2 for size in sizes], float)
    table = columns(audit.cells, sizes, audit.question, lambda cell: cell.values["l_q"])
    share = 1 / audit.settings["q"] - 0.5
    ax.plot(d, table, "o", color="0.6", markersize=3)
    middle = np.array([row.mean for row in audit.rows])
    ax.plot(d, middle, "o-", color="C0", label=f"mean, {audit.network}")
    ax.plot(d, middle[0] * (d / d[0]) ** share, "k--", linewidth=1, label=rf"$\propto d^{{{share:.2g}}}$")
    figures.log_axes(ax, "y")
    ax.set_xscale("log")
    ax.set_xticks(d, [f"{size}²" for size in sizes])
    ax.minorticks_off()
    ax.set(xlabel="pixels d", ylabel=rf"$\|\nabla_x L\|_{{{audit.settings['q']:g}}}$")
    ax.legend(fontsize=8)
    title = "" if audit.exponent is None else f"exponent {audit.exponent}"
    ax.set_title(f"{audit.question}: {title or 'no exponent'}", fontsize=9)


def waterfall(audit: Audit, ax: Any, most: int = 14) -> None:
    """Draw the layer budget, from the pixels to the exponent; small steps that are neighbours are drawn as one."""
    if audit.budget is None:
        ax.set_axis_off()
        return
    least = sorted((abs(t.exponent) for t in audit.budget.terms), reverse=True)[: most // 2][-1]
    bars: list[tuple[str, float, bool]] = []
    for term in audit.budget.terms:
        small = abs(term.exponent) < least
        if small and bars and bars[-1][2]:
            first = bars[-1][0].partition(" … ")[0]
            bars[-1] = (f"{first} … {term.name}", bars[-1][1] + term.exponent, True)
        else:
            bars.append((term.name, term.exponent, small))
    start = 0.0
    for i, (_, step, _) in enumerate(bars):
        ax.barh(i, step, left=start, color="C3" if step > 0 else "C2")
        ax.plot([start + step] * 2, [i - 0.4, i + 1.4], color="0.5", linewidth=0.8)
        start += step
    ax.barh(len(bars), start, color="C0")
    ax.use_sticky_edges = False
    ax.axvline(0, color="k", linewidth=0.8)
    ax.set_yticks(range(len(bars) + 1), [*(name for name, _, _ in bars), "exponent"], fontsize=8)
    ax.invert_yaxis()
    ax.set_title("layer budget of the exponent", fontsize=9)
