"""The verdict: fixed rules that turn measured numbers into words, and say nothing that was not measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from . import result
from .cells import Cell
from .layers import Budget
from .plan import CHECKPOINT, FRESH
from .result import Audit, Row

#: Damage over eps times the gradient norm, within which first order describes an attack.
FIRST_ORDER = (0.8, 1.2)


def concluded(
    question: str,
    network: str,
    data: str,
    cells: Sequence[Cell],
    settings: dict[str, Any],
    notes: Sequence[str],
    *,
    channels: int = 3,
    complete: bool = True,
) -> Audit:
    """The audit that measurements make: its tables, exponent and budget where there are any, and the verdict.

    Args:
        question: what was asked.
        network: its name.
        data: the images' name.
        cells: of every seed at every size.
        settings: as they are to be stored; ``sizes``, ``q``, ``eps`` and, of trained networks, ``classes`` are used.
        notes: of the pre-flight.
        channels: of the images.
        complete: whether all seeds were measured.
    """
    rows = result.rows_of(cells, settings["sizes"], settings["eps"])
    law, clean, parts, more = result.fit(cells, settings["sizes"], channels, question, settings["q"])
    if question != FRESH and lost(rows, settings["classes"], _answers(cells)):
        law, clean, parts = None, None, None
    counted = result.counted(cells, settings["sizes"], channels)
    said = (*notes, *more)
    found = Audit(question, network, data, rows, law, clean, parts, counted, said, "", settings, complete, tuple(cells))
    return replace(found, verdict=" ".join([*(_fresh if question == FRESH else _trained)(found), method(found)]))


def method(audit: Audit) -> str:
    """Mode, calibration and resize, which always stand beside a verdict."""
    return f"[{audit.question}; {audit.settings['calibration']}; {audit.settings['resize']}]"


def _answers(cells: Sequence[Cell]) -> int:
    return sum(len(cell.values["right"]) for cell in cells if cell.size == cells[0].size)


def lost(rows: Sequence[Row], classes: int, images: int) -> list[int]:
    """The sizes at which a network does not do its task: below half its best accuracy, or near chance."""
    best = max(row.accuracy or 0.0 for row in rows)
    guessed = chance(classes, images)
    accuracies = {row.size: row.accuracy or 0.0 for row in rows}
    return [size for size, accuracy in accuracies.items() if accuracy < best / 2 or accuracy <= guessed]


def chance(classes: int, images: int) -> float:
    """The accuracy that guessing exceeds on few occasions: its mean and two standard deviations."""
    return 1 / classes + 2 * math.sqrt((1 - 1 / classes) / classes / images)


def _growth(audit: Audit, whose: str) -> list[str]:
    """How it grows, whether like a power law, and by which layer: nothing where there is no exponent."""
    rows, law, q = audit.rows, audit.exponent, audit.settings["q"]
    if law is None:
        return []
    share = 1 / q - 0.5
    times, by_law = rows[-1].mean / rows[0].mean, (rows[-1].size / rows[0].size) ** (2 * share)
    known = not math.isnan(law.low)
    low, high = (law.low, law.high) if known else (law.slope, law.slope)
    if share - 0.1 <= low and high <= share + 0.1:
        said = "it grows by the law"
    elif low <= share <= high:
        said = "it may grow by the law, which the interval contains"
    elif low > share:
        said = "it grows faster than the law"
    elif high < -0.1:
        said = "it falls"
    elif high <= 0.1:
        said = "it hardly grows"
    elif low <= 0:
        said = "it grows more slowly than the law, if at all"
    else:
        said = "it grows more slowly than the law"
    span = f"from {rows[0].size} to {rows[-1].size} px {times:.2g}x, against {by_law:.2g}x by the law d^{share:+.2g}"
    sentences = [f"{whose}{said}: {span}."]
    if audit.power_law is False:
        sentences.append(
            f"Not a power law: its slope is {min(law.local):+.2f} to {max(law.local):+.2f} between neighbouring sizes, "
            "so the exponent holds for these sizes alone."
        )
    return [*sentences, *_dominated(audit), *_largest(audit.budget)]


def _dominated(audit: Audit) -> list[str]:
    """That a few images make the mean, where they do, and what the others say."""
    heavy = [row.size for row in audit.rows if row.mean > 3 * row.median]
    if not heavy or audit.question == CHECKPOINT:  # whose exponent is a mean over those of its images
        return []
    said = f"A few images dominate the mean at {_sizes(heavy)}: it is more than 3 times the median"
    typical = result.of_medians(audit)
    if typical is None:
        return [f"{said}."]
    return [f"{said}, whose exponent is {typical.slope:+.2f}{result.interval(typical)}."]


def _fresh(audit: Audit) -> list[str]:
    said = _growth(audit, "Fresh, ") or _dominated(audit)
    return [*said, "This says nothing of trained weights."]


def _largest(budget: Budget | None) -> list[str]:
    if budget is None:
        return []
    steps = [term for term in budget.terms if term.name != "pixels"]
    largest = max(steps, key=lambda term: abs(term.exponent))
    if abs(largest.exponent) < 0.1:
        return ["No single layer changes the law by 0.1."]
    does = "takes away" if largest.exponent < 0 else "adds"
    name = {"spread": "the spread of the gradient over the pixels", "loss": "the loss"}.get(largest.name, largest.name)
    return [f"The largest step of the layers: {name} {does} {abs(largest.exponent):.2f}."]


def _trained(audit: Audit) -> list[str]:
    rows = audit.rows
    gone = lost(rows, audit.settings["classes"], _answers(audit.cells))
    if len(gone) == len(rows):
        accuracies = ", ".join(f"{row.accuracy:.2f}" for row in rows)
        return [
            f"No verdict: at {_sizes(gone)} the accuracy is near chance ({accuracies}). Check the labels' order, the "
            "normalisation (mean, std) and the weights."
        ]
    best = max((row for row in rows if row.size not in gone), key=lambda row: (row.accuracy or 0.0, row.size))
    if gone:
        which = ", ".join(f"{row.accuracy:.2f}" for row in rows if row.size in gone)
        said = [
            f"No exponent: at {_sizes(gone)} it does not do its task (accuracy {which}, at best {best.accuracy:.2f} at "
            "another)."
        ]
    else:
        checkpoint = audit.question == CHECKPOINT
        said = _growth(audit, "These weights on images of other sizes: " if checkpoint else "Trained at each size, ")
    said += [*_attack(audit, best), *_averages(audit, best)]
    if audit.question == CHECKPOINT:
        said.append("To ask how size itself matters, train one network per size.")
    return said


def _attack(audit: Audit, row: Row) -> list[str]:
    costs = (row.accuracy or 0.0) - (row.attacked or 0.0)
    said = (
        f"At {row.size} px one step of {audit.settings['eps']:.4g} in l_{audit.settings['p']:g} costs {costs:.2f} of "
        f"an accuracy of {row.accuracy:.2f}."
    )
    ratio = row.first_order or 0.0
    if FIRST_ORDER[0] <= ratio <= FIRST_ORDER[1]:
        return [said, f"First order gives its damage to the loss within a fifth (ratio {ratio:.2f})."]
    return [said, f"First order does not describe this attack: damage is {ratio:.2f} times what it gives."]


def _averages(audit: Audit, row: Row) -> list[str]:
    own = [cell.averaged for cell in audit.cells if cell.size == row.size]
    said = []
    for k in sorted(set.intersection(*(set(found) for found in own)) if own else set()):
        right, attacked, l_q = (sum(f[k][what] for f in own) / len(own) for what in ("right", "attacked", "l_q"))
        said.append(
            f"{k} x {k} averages in front: accuracy {right - (row.accuracy or 0):+.2f}, attacked "
            f"{attacked - (row.attacked or 0):+.2f}, gradient {l_q / row.mean:.2f} times as large"
        )
    if not said:
        return []
    return [f"Measured there: {'; '.join(said)}. Not measured: training with the penalty gradient-l1."]


def _sizes(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes)) + " px"
