"""The claims on run 1, usual training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .cells import (
    LOSSES,
    SMALL,
    Cells,
    Metric,
    Point,
    at_end,
    at_loss,
    attacked,
    beyond_fit,
    gather,
    less,
    log,
    mean_over_sizes,
    ratio,
    sizes,
    slopes,
    whole,
)
from .verdicts import NO_RULE, Finding, PerSeed, Rule, above, finding, is_half, is_zero

#: The registered claims, in the README's words.
CLAIMS = {
    "1a": "The gradient grows with d",
    "1b": "It grows as the square root of d",
    "1c": "So does the damage",
    "1d": "So does the vulnerability",
    "1e": "The growth is not one of the training state",
    "1f": "The growth is the same on training images",
    "1g": "Copies hide a part of it",
    "1h": "Training turns a part of the gradient onto the images",
    "1i": "First order suffices",
}
#: Seeds registered.
SEEDS = 8
#: Seeds registered of the dilated network at the fourth size.
SEEDS_BEYOND = 4
#: The series: network, and how the images came to their size.
SERIES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "dilated, copied": lambda spec: _is(spec, "conv_dilated", "copy"),
    "dilated, interpolated": lambda spec: _is(spec, "conv_dilated", "bilinear"),
    "strided, copied": lambda spec: _is(spec, "conv_strided", "copy"),
    "dilated, natural": lambda spec: _is(spec, "conv_dilated", "area"),
}
GRADIENT, ON_TRAINING = at_end("test", "l1"), at_end("train", "l1")
DAMAGE = attacked("one-step-linf", "damage", SMALL)
VULNERABILITY = attacked("one-step-linf", "vulnerability", SMALL)


def series(points: Sequence[Point]) -> dict[str, Cells]:
    """The registered series of the run, by name, with the points that there are."""
    return {name: gather(points, chosen) for name, chosen in SERIES.items()}


def findings(points: Sequence[Point]) -> list[Finding]:
    """Every registered statistic of the run, from its points."""
    by_name = series(points)
    found = [one for name, cells in by_name.items() for one in _of_series(name, cells)]
    copied, interpolated = by_name["dilated, copied"], by_name["dilated, interpolated"]
    gap = less(slopes(interpolated, GRADIENT), slopes(copied, GRADIENT))
    what = "exponent of E||g||_1, interpolated less copied"
    there = len(whole(copied, interpolated))
    for name, cells in by_name.items():
        if name.startswith("dilated"):
            beyond, log_ratio = beyond_fit(cells, GRADIENT), "log ratio of E||g||_1 at the fourth size to the fit"
            found.append(finding("1a", name, log_ratio, beyond, NO_RULE, m=4, planned=SEEDS_BEYOND))
    found.append(finding("1g", "dilated", what, gap, above(), m=1, planned=SEEDS, whole=there))
    return sorted(found, key=lambda one: one.claim)


def on_image_share(point: Point) -> float:
    """The share of the gradient's mean square that survives averaging down, times s squared: 1 at initialisation."""
    state, spec = point["metrics"]["test"], point["spec"]
    return float((spec["images"]["size"] / spec["base_size"]) ** 2 * state["on_l2_square"] / state["l2_square"])


def _of_series(name: str, cells: Cells) -> list[Finding]:
    there = len(whole(cells))

    def decide(claim: str, statistic: str, values: PerSeed, rule: Rule) -> Finding:
        return finding(claim, name, statistic, values, rule, m=4, planned=SEEDS, whole=there)

    def growth(split: str, level: float) -> PerSeed:
        return slopes(cells, at_loss(f"{split}_l1", level))

    end = slopes(cells, GRADIENT)
    damage = slopes(cells, DAMAGE)
    on = {seed: log(on_image_share)(cells[seed, sizes(cells)[-1]]) for seed in whole(cells)}
    first_order: Metric = lambda point: SMALL * point["metrics"]["test"]["l1"]  # noqa: E731
    on_few = (attacked(f"{attack}-linf", "damage", SMALL, few=True) for attack in ("pgd", "one-step"))
    return [
        decide("1a", "exponent of E||g||_1", end, above()),
        decide("1b", "exponent of E||g||_1", end, is_half()),
        decide("1c", "exponent of the damage", damage, above()),
        decide("1c", "exponent of the damage", damage, is_half()),
        decide("1d", "exponent of the vulnerability", slopes(cells, VULNERABILITY), above()),
        *(
            decide("1e", f"exponent of E||g||_1 at loss {loss:g}", growth("test", loss), above() if i == 0 else NO_RULE)
            for i, loss in enumerate(LOSSES)
        ),
        decide("1f", "exponent, test less training images", less(end, slopes(cells, ON_TRAINING)), is_zero()),
        decide(
            "1f",
            f"the same at loss {LOSSES[0]:g}",
            less(growth("test", LOSSES[0]), growth("train", LOSSES[0])),
            is_zero(),
        ),
        decide("1h", "log of s^2 times the surviving share", {k: v for k, v in on.items() if v is not None}, above()),
        decide("1i", "one-step damage / eps E||g||_1", mean_over_sizes(cells, ratio(DAMAGE, first_order)), NO_RULE),
        decide("1i", "PGD / one-step damage", mean_over_sizes(cells, ratio(*on_few)), NO_RULE),
    ]


def _is(spec: dict[str, Any], network: str, resize: str) -> bool:
    return bool(spec["network"]["name"] == network and spec["images"]["resize"] == resize)
