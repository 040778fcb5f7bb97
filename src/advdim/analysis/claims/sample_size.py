"""The claims on run 3, sample size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..power_law import Interval
from .cells import Cells, Metric, Point, at_end, at_loss, gather, less, mean_over_sizes, slopes, whole
from .verdicts import NO_RULE, Finding, PerSeed, Rule, above, below, finding, level, not_zero

#: The registered claims, in the README's words.
CLAIMS = {
    "3a": "The exponent falls with n",
    "3b": "At the largest n there is growth",
    "3c": "The exponent goes with test accuracy",
    "3d": "The same at equal training loss",
    "3e": "Width does not matter",
}
#: Seeds registered, by number of training images; the largest sample, all of them or 10,000, has :data:`MOST`.
SEEDS, FEWER = {300: 5, 1000: 5, 3000: 5}, 3
#: Stands for the largest sample.
MOST = 10_000
#: Channels, and those that they are compared with at :data:`WIDER_AT` images.
WIDTH, WIDER, WIDER_AT = 16, 32, 3000
#: The training loss of claim 3d: with crops and flips few runs reach a lower one.
LOSS = 1.0
#: Series by how the images came to their size.
SERIES = {"copied": "copy", "interpolated": "bilinear", "natural": "area"}
GRADIENT = at_end("test", "l1")
M = 3


def runs(points: Sequence[Point], series: str, n: int, width: int = WIDTH) -> Cells:
    """The runs of one series with n training images; MOST takes all that have more than 3,000."""

    def chosen(spec: dict[str, Any]) -> bool:
        images = spec.get("train", MOST)  # left out: all, Imagenette's 9,469
        same = images > max(SEEDS) if n == MOST else images == n
        return bool(spec["images"]["resize"] == SERIES[series] and same and spec["network"]["width"] == width)

    return gather(points, chosen)


def findings(points: Sequence[Point]) -> list[Finding]:
    """Every registered statistic of the run, from its points."""
    found = [one for name in SERIES for one in _of_series(points, name)]
    return sorted([*found, accuracy_slope(points)], key=lambda one: one.claim)


def against_n(points: Sequence[Point], series: str, metric: Metric) -> PerSeed:
    """Slope of a seed's exponents of a metric against log10 of the sample size, of seeds that have all three."""
    by_n = {n: slopes(runs(points, series, n), metric) for n in SEEDS}
    x = np.log10(list(SEEDS))
    x = x - x.mean()
    seeds = sorted(set.intersection(*(set(one) for one in by_n.values())))
    return {seed: float(x @ [by_n[n][seed] for n in SEEDS] / (x @ x)) for seed in seeds}


def _of_series(points: Sequence[Point], name: str) -> list[Finding]:
    samples, largest = [runs(points, name, n) for n in SEEDS], runs(points, name, MOST)
    at = at_loss("test_l1", LOSS)

    def decide(claim: str, statistic: str, values: PerSeed, rule: Rule, *needed: Cells) -> Finding:
        planned = max(SEEDS.values()) if len(needed) == len(SEEDS) else FEWER
        return finding(claim, name, statistic, values, rule, m=M, planned=planned, whole=len(whole(*needed)))

    wider, same = runs(points, name, WIDER_AT, WIDER), runs(points, name, WIDER_AT)
    wide = less(slopes(wider, GRADIENT), slopes(same, GRADIENT))
    falls, falls_at = (against_n(points, name, metric) for metric in (GRADIENT, at))
    what = f"exponent at {MOST:,} images or all"
    return [
        decide("3a", "slope of the exponent in log10 n", falls, below(), *samples),
        decide("3b", what, slopes(largest, GRADIENT), above(), largest),
        decide("3d", f"slope in log10 n at loss {LOSS:g}", falls_at, below(), *samples),
        decide("3d", f"{what} at loss {LOSS:g}", slopes(largest, at), above(), largest),
        decide("3e", f"exponent, {WIDER} less {WIDTH} channels", wide, NO_RULE, wider, same),
    ]


def against_accuracy(points: Sequence[Point]) -> list[tuple[str, int, int, float, float]]:
    """Series, n, seed, mean test accuracy over sizes and exponent of E||g||_1, of every n and whole seed."""
    rows = []
    for name in SERIES:
        for n in (*SEEDS, MOST):
            cells = runs(points, name, n)
            accuracies = mean_over_sizes(cells, at_end("test", "accuracy"))
            rows += [(name, n, seed, accuracies[seed], slope) for seed, slope in slopes(cells, GRADIENT).items()]
    return rows


def accuracy_slope(points: Sequence[Point]) -> Finding:
    """Claim 3c: least squares with an intercept for each series, and Student's interval of the slope."""
    rows = against_accuracy(points)
    names = sorted({name for name, *_ in rows})
    seeds = sorted({seed for _, _, seed, *_ in rows})
    accuracies, exponents = (np.array([row[k] for row in rows]) for k in (3, 4))
    intercepts = np.array([[name == row[0] for name in names] for row in rows], float).reshape(len(rows), len(names))
    interval = _slope(accuracies, intercepts, exponents)
    of_seeds = {seed: interval.mean for seed in seeds} if interval else {}
    return finding(
        "3c",
        "all series",
        "slope of the exponent in the test accuracy",
        of_seeds,
        not_zero(),
        m=M,
        planned=max(SEEDS.values()),
        interval=interval,
        note=f"{len(rows)} points",
    )


def _slope(x: NDArray[np.float64], intercepts: NDArray[np.float64], y: NDArray[np.float64]) -> Interval | None:
    """Student's interval of the slope in x; None without degrees of freedom, or where x does not vary."""
    freedom = len(y) - intercepts.shape[1] - 1
    if freedom < 1:
        return None
    projection = intercepts @ np.linalg.pinv(intercepts)
    x, y = x - projection @ x, y - projection @ y
    if not x @ x > 1e-12:
        return None
    from scipy import stats  # here, so that importing advdim stays quick

    slope = float(x @ y / (x @ x))
    error = math.sqrt(float(np.sum((y - slope * x) ** 2)) / freedom / float(x @ x))
    half = float(stats.t.ppf((1 + level(M)) / 2, freedom)) * error
    return Interval(slope, slope - half, slope + half, level(M))
