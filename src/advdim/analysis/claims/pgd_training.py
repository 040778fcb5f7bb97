"""The claims on run 2, PGD training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .cells import (
    LOSSES,
    SMALL,
    Cells,
    Point,
    at_end,
    at_epoch,
    at_loss,
    attacked,
    gather,
    less,
    log,
    mean_over_sizes,
    reached,
    slopes,
    whole,
)
from .verdicts import Finding, PerSeed, Rule, above, below, finding, not_zero

#: The registered claims, in the README's words.
CLAIMS = {
    "2a": "Growth survives PGD training at equal training accuracy",
    "2b": "PGD training weakens the growth",
    "2c": "PGD training lowers the gradient",
    "2d": "The verdict depends on the budget",
    "2e": "Growth of the PGD damage survives",
}
#: Seeds registered, strengths in pixel units, and the epoch at which the shorter budget ends.
SEEDS, STRENGTHS, EARLY = 5, (0.0005, 0.001, 0.004), 20
#: The images, by how they came to their size.
IMAGES = {"copied": "copy", "natural": "area"}
DAMAGE = attacked("pgd-linf", "damage", SMALL, few=True)


def runs(points: Sequence[Point], images: str, strength: float, *, stopped: bool = True) -> Cells:
    """The runs of one strength on copied or natural images; those without a stopping rule have 200 epochs."""
    return gather(
        points,
        lambda spec: (
            spec["images"]["resize"] == IMAGES[images]
            and spec["recipe"]["strength"] == strength
            and ("stop_accuracy" in spec["recipe"]) == stopped
        ),
    )


def findings(points: Sequence[Point]) -> list[Finding]:
    """Every registered statistic of the run, from its points."""
    found = []
    for images in IMAGES:
        usual = runs(points, images, 0.0)
        for strength in STRENGTHS:
            found += _of_strength(f"{images}, PGD {strength:g}", runs(points, images, strength), usual)
    return sorted(found, key=lambda one: one.claim)


def _of_strength(name: str, cells: Cells, usual: Cells) -> list[Finding]:
    alone, both = len(whole(cells)), len(whole(cells, usual))
    at_the_end = reached(cells)
    note = "" if at_the_end else f"too few reach the accuracy: at training loss {LOSSES[0]:g}"
    l1 = at_end("test", "l1") if at_the_end else at_loss("test_l1", LOSSES[0])

    def decide(claim: str, statistic: str, values: PerSeed, rule: Rule, there: int, note: str = "") -> Finding:
        return finding(claim, name, statistic, values, rule, m=6, planned=SEEDS, whole=there, note=note)

    growth = slopes(cells, l1)
    lower = less(mean_over_sizes(cells, log(l1)), mean_over_sizes(usual, log(l1)))
    late, early = (slopes(cells, at_epoch("test_l1", epochs)) for epochs in (np.inf, EARLY))
    return [
        decide("2a", "exponent of E||g||_1", growth, above(), alone, note),
        decide("2b", "exponent less that at strength 0", less(growth, slopes(usual, l1)), below(), both, note),
        decide("2c", "log ratio of E||g||_1 to strength 0", lower, below(), both, note),
        decide("2d", f"exponent at the end less epoch {EARLY}", less(late, early), not_zero(), alone),
        decide("2e", "exponent of the PGD damage", slopes(cells, DAMAGE), above(), alone),
    ]
