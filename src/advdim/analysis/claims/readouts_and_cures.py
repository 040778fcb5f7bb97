"""The claims on run 4, readouts and cures, some of which compare with networks of run 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import usual_training
from .cells import PAPER, Cells, Metric, Point, at_end, attacked, before_training, gather, less, sizes, slopes, whole
from .verdicts import OPEN, Finding, above, below, finding

#: The registered claims, in the README's words.
CLAIMS = {
    "4a": "Averaging lowers the exponent before and after training",
    "4b": "A cure stops the growth",
    "4c": "A cure makes robust at equal accuracy",
}
#: Seeds registered; comparisons, of four cures; clean accuracies nearer than this are equal.
SEEDS, M, EQUAL = 5, 4, 0.02
#: The cures of the dilated network, by what their specs have.
CURES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "projection": lambda spec: "project" in spec["network"],
    "blur": lambda spec: "blur" in spec["network"],
    "weight decay .0005": lambda spec: spec["recipe"]["weight_decay"] == 0.0005,
    "weight decay .005": lambda spec: spec["recipe"]["weight_decay"] == 0.005,
}
#: Readouts of the strided network.
READOUTS = {"fully connected": "fc", "averaging": None}
GRADIENT = at_end("test", "l1")
ROBUST, CLEAN = attacked("pgd-linf", "accuracy", PAPER, few=True), at_end("test", "accuracy")


def cures(points: Sequence[Point]) -> dict[str, Cells]:
    """The runs with each cure, by its name."""

    def of(cure: Callable[[dict[str, Any]], bool]) -> Cells:
        return gather(points, lambda spec: bool(spec["network"]["name"] == "conv_dilated" and cure(spec)))

    return {name: of(cure) for name, cure in CURES.items()}


def readouts(points: Sequence[Point]) -> dict[str, Cells]:
    """The runs of the strided network with each readout, by its name."""

    def of(readout: str | None) -> Cells:
        return gather(
            points,
            lambda spec: bool(spec["network"]["name"] == "conv_strided" and spec["network"].get("readout") == readout),
        )

    return {name: of(readout) for name, readout in READOUTS.items()}


def findings(points: Sequence[Point], usual: Sequence[Point]) -> list[Finding]:
    """Every registered statistic of the run, from its points and those of usual training (run 1)."""
    connected, averaged = readouts(points).values()
    there = len(whole(connected, averaged))
    found = []
    for when, metric in (("before training", before_training("l1")), ("after training", GRADIENT)):
        values = less(slopes(connected, metric), slopes(averaged, metric))
        what = f"exponent, fully connected less averaging, {when}"
        found.append(finding("4a", "strided, natural", what, values, above(), m=M, planned=SEEDS, whole=there))
    without = usual_training.series(usual)["dilated, natural"]
    for name, cells in cures(points).items():
        growth = slopes(cells, GRADIENT)
        whole_seeds = len(whole(cells))
        what = "exponent of E||g||_1 with the cure"
        found.append(finding("4b", name, what, growth, below(0.1), m=M, planned=SEEDS, whole=whole_seeds))
        found.append(_robust(name, cells, without))
    return sorted(found, key=lambda one: one.claim)


def _robust(name: str, cells: Cells, without: Cells) -> Finding:
    """Claim 4c, at the largest of the three sizes."""

    def gain(metric: Metric) -> dict[int, float]:
        found = {}
        for seed in whole(cells, without):
            size = sizes(cells)[-1]
            with_cure, usual = metric(cells[seed, size]), metric(without[seed, size])
            if with_cure is not None and usual is not None:
                found[seed] = with_cure - usual
        return found

    clean = gain(CLEAN)
    cost = float(np.mean(list(clean.values()))) if clean else 0.0
    what, note = f"PGD accuracy at {PAPER:g}, with less without", f"clean accuracy {cost:+.3f}" if clean else ""
    one = finding("4c", name, what, gain(ROBUST), above(), m=M, planned=SEEDS, note=note)
    if abs(cost) < EQUAL or one.rule.judge is None or one.seeds < 3:
        return one
    return Finding(**{**vars(one), "verdict": OPEN, "note": f"{one.note}: not equal"})
