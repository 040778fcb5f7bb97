"""What an audit found: tables over sizes, an exponent where there is one, and the layer budget."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from ..analysis import PowerLaw, exponent, mean_interval
from . import layers
from .cells import Cell
from .layers import Budget
from .plan import CHECKPOINT, FRESH

#: Local slopes that differ by no more than this pass for one power law, however small the noise.
SAME_SLOPE = 0.1

#: Of a printed audit, before its lines break.
COLUMNS = 110

#: A space at which no line breaks.
KEPT = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Row:
    """What was measured at one size, means over images and seeds.

    Attributes:
        size: side of the images, in pixels.
        mean: of the gradient norms.
        median: of the gradient norms, over all images and seeds.
        accuracy: share of right answers; None for a fresh network.
        attacked: the same after the attack.
        vulnerability: share of answers that the attack changes.
        damage: increase of the loss by the attack.
        first_order: damage over eps times the mean gradient norm, 1 where first order describes the attack.
    """

    size: int
    mean: float
    median: float
    accuracy: float | None = None
    attacked: float | None = None
    vulnerability: float | None = None
    damage: float | None = None
    first_order: float | None = None


@dataclass(frozen=True)
class Audit:
    """What :func:`advdim.audit.audit` found. Printing it gives the table and the verdict.

    Attributes:
        question: "fresh", "one checkpoint" or "trained per size": what the numbers are about.
        network: its name.
        data: the images' name.
        rows: one per size, increasing.
        exponent: of the gradient's norm in the number d of input dimensions; None where there is none to speak of.
        power_law: whether the slopes between neighbouring sizes agree within noise; None where that is not known.
        budget: the exponent split over the layers, or None.
        counted: the exponent that path counting predicts, by the gates that are open on two of the images; None where
            paths are not counted (:func:`advdim.theory.path_second_moment`), and of networks that are not fresh.
        notes: of the pre-flight; those that begin with "!" cast doubt on the numbers.
        verdict: in words, by fixed rules.
        settings: all that was set, and what calibration and resizing were done.
        complete: whether all seeds asked for were measured.
        cells: the measurements themselves, per seed and size.
    """

    question: str
    network: str
    data: str
    rows: tuple[Row, ...]
    exponent: PowerLaw | None
    power_law: bool | None
    budget: Budget | None
    counted: PowerLaw | None
    notes: tuple[str, ...]
    verdict: str
    settings: dict[str, Any] = field(repr=False)
    complete: bool
    cells: tuple[Cell, ...] = field(repr=False)

    def __str__(self) -> str:
        q = self.settings["q"]
        over = f"{self.settings['images']} images" if self.question == CHECKPOINT else _count(self.seeds, "seed")
        lines = [f"{self.network} on {self.data}: {self.question}, {_count(self.settings['images'], 'image')}, {over}"]
        if self.question == CHECKPOINT:
            lines = [f"{self.network} on {self.data}: {self.question}, {over}"]
        table = [("size", [f"{row.size}" for row in self.rows])]
        if self.question != FRESH:
            table += [(name, [_share(getattr(row, name)) for row in self.rows]) for name in ("accuracy", "attacked")]
            table += [("damage", [_share(row.damage) for row in self.rows])]
        table += [(f"|g|_{q:g}", [f"{row.mean:.4g}" for row in self.rows])]
        table += [("median", [f"{row.median:.4g}" for row in self.rows])]
        if self.exponent is not None:
            table += [("local", ["", *(f"{slope:+.2f}" for slope in self.exponent.local)])]
        width = max(8, *(len(text) + 2 for _, texts in table for text in texts))
        lines += [f"{name:<9}" + "".join(f"{text:>{width}}" for text in texts) for name, texts in table]
        if self.exponent is not None:
            e = self.exponent
            clean = {True: "", False: "; not a clean power law", None: ""}[self.power_law]
            lines.append(f"exponent in d {e.slope:+.2f}{interval(e)}, {_known(e)}over {over}{clean}")
        if self.counted is not None:
            c = self.counted
            lines.append(f"paths     {c.slope:+.2f}{interval(c)}, by path counting")
        if self.budget is not None:
            steps = self.budget.summary().replace(" ", KEPT).replace(KEPT * 2, "  ")  # a step stays in one line
            lines += [line.replace(KEPT, " ") for line in _wrapped(f"budget    {steps}")]
        return "\n".join([*lines, *self.notes, *_wrapped(f"VERDICT   {self.verdict}")])

    @property
    def seeds(self) -> int:
        """How many seeds were measured at every size."""
        return len({cell.seed for cell in self.cells})


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS, subsequent_indent=" " * 10, break_on_hyphens=False)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def interval(law: PowerLaw) -> str:
    """Its interval in brackets; nothing for one seed, which has none."""
    return "" if math.isnan(law.low) else f" [{law.low:+.2f}, {law.high:+.2f}]"


def _known(law: PowerLaw) -> str:
    return "without an interval, " if math.isnan(law.low) else "95% "


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def rows_of(cells: Sequence[Cell], sizes: Sequence[int], eps: float) -> tuple[Row, ...]:
    """The table over sizes, of the cells of all seeds."""
    rows = []
    for size in sizes:
        own = [cell.values for cell in cells if cell.size == size]
        pooled = {name: [v for values in own for v in values[name]] for name in own[0]}
        mean = statistics.fmean(pooled["l_q"])
        row: dict[str, float] = {}
        if "damage" in pooled:
            row = {
                "accuracy": statistics.fmean(pooled["right"]),
                "attacked": statistics.fmean(pooled["attacked"]),
                "vulnerability": statistics.fmean(pooled["changed"]),
                "damage": statistics.fmean(pooled["damage"]),
                "first_order": statistics.fmean(pooled["damage"]) / (eps * mean),
            }
        rows.append(Row(size, mean, statistics.median(pooled["l_q"]), **row))
    return tuple(rows)


def columns(
    cells: Sequence[Cell], sizes: Sequence[int], question: str, of: Callable[[Cell], Sequence[float]]
) -> np.ndarray:
    """A table [S, n] of a quantity per image: means over images per seed, or for one checkpoint the images."""
    seeds = sorted({cell.seed for cell in cells})
    by_key = {(cell.size, cell.seed): np.asarray(of(cell)) for cell in cells}
    if question == CHECKPOINT:
        return np.stack([by_key[size, seeds[0]] for size in sizes])
    return np.array([[by_key[size, seed].mean() for seed in seeds] for size in sizes])


def fit(
    cells: Sequence[Cell], sizes: Sequence[int], channels: int, question: str, q: float
) -> tuple[PowerLaw | None, bool | None, Budget | None, list[str]]:
    """The exponent over sizes, whether it is a power law, the layer budget, and notes.

    For one checkpoint the columns are images, without those whose gradient vanishes somewhere.
    """
    if len(sizes) < 2:
        return None, None, None, []
    d = [channels * size**2 for size in sizes]
    gradient = columns(cells, sizes, question, lambda cell: cell.values["l_q"])
    inside = {"x": columns(cells, sizes, question, lambda cell: cell.values["l_2"])}
    names = [name for name in cells[0].boundaries if all(name in cell.boundaries for cell in cells)]
    for name in names:
        inside[name] = columns(cells, sizes, question, lambda cell, name=name: cell.boundaries[name])  # type: ignore[misc]
    notes = []
    keep = (gradient > 0).all(0)
    if question == CHECKPOINT:
        for table in inside.values():
            keep &= (table > 0).all(0) if (table > 0).any() else True
        if not keep.all():
            notes.append(f"! {int((~keep).sum())} images have a gradient of exactly 0 at some size and are left out")
        if keep.sum() < 2:
            return None, None, None, [*notes, "! too few images have a gradient for an exponent"]
        gradient, inside = gradient[:, keep], {name: table[:, keep] for name, table in inside.items()}
    inside = {name: table for name, table in inside.items() if (table > 0).all() and np.isfinite(table).all()}
    law = exponent(d, gradient)
    parts = layers.budget(d, gradient, inside, q) if names and "x" in inside else None
    return law, is_power_law(d, gradient), parts, notes


def of_medians(audit: Audit) -> PowerLaw | None:
    """The exponent of the median over images, which a few images cannot dominate; None where a median is 0."""
    sizes = [row.size for row in audit.rows]
    by_key = {(cell.size, cell.seed): statistics.median(cell.values["l_q"]) for cell in audit.cells}
    if len(sizes) < 2 or min(by_key.values()) <= 0:
        return None
    seeds = sorted({cell.seed for cell in audit.cells})
    return exponent([size**2 for size in sizes], [[by_key[size, seed] for seed in seeds] for size in sizes])


def counted(cells: Sequence[Cell], sizes: Sequence[int], channels: int) -> PowerLaw | None:
    """The exponent of what path counting predicts, where it was counted for every cell."""
    by_key = {(cell.size, cell.seed): cell.counted for cell in cells if cell.counted is not None}
    if len(sizes) < 2 or len(by_key) < len(cells):
        return None
    seeds = sorted({cell.seed for cell in cells})
    d = [channels * size**2 for size in sizes]
    return exponent(d, [[by_key[size, seed] for seed in seeds] for size in sizes])


def is_power_law(d: Sequence[int], table: np.ndarray) -> bool | None:
    """Whether the slopes between neighbouring sizes agree: no two differ by more than 0.1 and than noise explains.

    Args:
        d: [S].
        table: [S, n], one column per seed or image.

    Returns:
        None where there are fewer than three sizes or two columns.
    """
    if len(d) < 3 or table.shape[1] < 2:
        return None
    local = np.diff(np.log(table), axis=0) / np.diff(np.log(np.asarray(d, float)))[:, None]
    pairs = list(combinations(range(len(local)), 2))
    for i, j in pairs:
        apart = mean_interval(local[i] - local[j], 1 - 0.05 / len(pairs))
        if abs(apart.mean) > SAME_SLOPE and not (apart.contains(0) or math.isnan(apart.low)):
            return False
    return True
