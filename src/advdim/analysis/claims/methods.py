"""The claims on run 5: section 4.1's methods at equal gradient, and the gradient penalty with smooth activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .cells import PAPER, Point, at_end, attacked
from .verdicts import CONTRADICTED, FEWEST, OPEN, SUPPORTED, Finding, PerSeed, Rule, finding

#: The registered claims, in the README's words.
CLAIMS = {
    "5a": "Penalty, augmentation and PGD training act alike at equal E||g||_1",
    "5b": "The gradient penalty needs smooth activations",
}
#: Seeds registered, at least; the factor within which methods act alike; strengths of one sign that decide 5b.
SEEDS, ALIKE, STRENGTHS_OF_ONE_SIGN = 2, 1.25, 2
METHODS = ("gradient-l1", "gradient-l2", "augment-linf", "augment-l2", "pgd-linf", "cross-lipschitz")
SMOOTH = ("gelu", "softplus")
PENALTY = "gradient-l1"
DAMAGE, ROBUST = (attacked("pgd-linf", outcome, PAPER, few=True) for outcome in ("damage", "accuracy"))
GRADIENT, CLEAN = at_end("test", "l1"), at_end("test", "accuracy")


def is_alike() -> Rule:
    """Supported if the interval of the log ratio lies within the factor, contradicted if beyond it, else open."""
    most = math.log(ALIKE)

    def judge(interval: Any) -> str:
        if -most <= interval.low and interval.high <= most:
            return SUPPORTED
        return CONTRADICTED if interval.low > most or interval.high < -most else OPEN

    return Rule(f"within a factor {ALIKE:g}", judge)


def findings(points: Sequence[Point]) -> list[Finding]:
    """Every registered statistic of the run, from its points."""
    return [*_alike(points), *(one for name in SMOOTH for one in _smooth(points, name))]


def runs(points: Sequence[Point], method: str, activation: str | None = None) -> list[Point]:
    """The runs of a method, or of usual training ("none"), with ReLU or another activation."""
    return [
        point
        for point in points
        if point["spec"]["network"].get("activation") == activation
        and point["spec"]["recipe"]["method"].removesuffix("-random") == method
    ]


def _alike(points: Sequence[Point]) -> list[Finding]:
    """Claim 5a: log of the PGD damage less the pooled isotonic curve over log E||g||_1, mean over strengths."""
    pooled = [point for method in ("none", *METHODS) for point in runs(points, method)]
    pairs = [(GRADIENT(point), DAMAGE(point)) for point in pooled]
    excess: dict[tuple[str, int], list[float]] = {}
    if pairs:
        from scipy.optimize import isotonic_regression  # here, so that importing advdim stays quick

        log_x, log_y = np.log(np.array(pairs, float)).T
        _, at, ties = np.unique(log_x, return_inverse=True, return_counts=True)
        curve = isotonic_regression(np.bincount(at, log_y) / ties, weights=ties).x
        rest = log_y - curve[at]
        for point, error in zip(pooled, rest, strict=True):
            recipe = point["spec"]["recipe"]
            excess.setdefault((recipe["method"].removesuffix("-random"), recipe["seed"]), []).append(float(error))
    found = []
    for name in METHODS:
        values = {seed: float(np.mean(errors)) for (method, seed), errors in excess.items() if method == name}
        what = "log ratio of PGD damage to the pooled curve"
        found.append(finding("5a", name, what, values, is_alike(), m=len(METHODS), planned=SEEDS))
    return found


def _smooth(points: Sequence[Point], name: str) -> list[Finding]:
    """Claim 5b: PGD accuracy with ReLU less that with a smooth activation, at equal strength and clean accuracy."""
    relu, smooth = (runs(points, PENALTY, activation) for activation in (None, name))
    usual = runs(points, "none")
    found = []
    for what in ("equal strength", "equal clean accuracy"):
        by_strength: dict[float, PerSeed] = {}
        for point in smooth:
            seed, strength = (point["spec"]["recipe"][key] for key in ("seed", "strength"))
            own = [one for one in relu if one["spec"]["recipe"]["seed"] == seed]
            if what == "equal strength":
                other = [ROBUST(one) for one in own if one["spec"]["recipe"]["strength"] == strength]
                value = other[0] if other else None
            else:
                own = own + [one for one in usual if one["spec"]["recipe"]["seed"] == seed]
                value = _at_accuracy(own, CLEAN(point))
            robust = ROBUST(point)
            if value is not None and robust is not None:
                by_strength.setdefault(strength, {})[seed] = value - robust
        found.append(_signs(f"ReLU less {name}", f"PGD accuracy at {what}", by_strength))
    return found


def _at_accuracy(own: Sequence[Point], accuracy: float | None) -> float | None:
    """PGD accuracy of runs of one seed, linear in the clean accuracy between them; None beyond them."""
    pairs = sorted((float(CLEAN(one) or 0), float(ROBUST(one) or 0)) for one in own)
    if accuracy is None or len(pairs) < 2 or not pairs[0][0] <= accuracy <= pairs[-1][0]:
        return None
    clean, robust = np.array(pairs).T
    return float(np.interp(accuracy, clean, robust))


def _signs(about: str, statistic: str, by_strength: dict[float, PerSeed]) -> Finding:
    """Supported if ReLU is worse in all seeds at two strengths, contradicted if better, else open."""
    worse, better = (
        sum(all(sign * value > 0 for value in values.values()) for values in by_strength.values()) for sign in (-1, 1)
    )
    shared = set.intersection(*(set(values) for values in by_strength.values())) if by_strength else set()
    means = {seed: float(np.mean([values[seed] for values in by_strength.values()])) for seed in sorted(shared)}
    words = f"one sign in all seeds at {STRENGTHS_OF_ONE_SIGN} strengths"
    note = f"worse in all seeds at {worse} strengths, better at {better}" if by_strength else ""
    one = finding("5b", about, statistic, means, Rule(words, lambda _: OPEN), m=1, planned=SEEDS, note=note)
    if one.seeds < FEWEST or max(worse, better) < STRENGTHS_OF_ONE_SIGN:
        return one
    verdict = OPEN if min(worse, better) >= STRENGTHS_OF_ONE_SIGN else SUPPORTED if worse > better else CONTRADICTED
    return Finding(**{**vars(one), "verdict": verdict})
