"""Power laws: the log-log slope of a measurement over input dimensions, with Student's intervals over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean with Student's confidence interval.

    Attributes:
        mean: the mean.
        low: lower end of the interval; nan where there is nothing to estimate a spread from.
        high: upper end of it.
        confidence: level of the interval.
    """

    mean: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        interval = "(no interval)" if math.isnan(self.low) else f"[{self.low:.2f}, {self.high:.2f}]"
        return f"{self.mean:.2f} {interval}"

    def contains(self, value: float, slack: float = 0.0) -> bool:
        """Whether a value lies in the interval, widened by slack on both sides."""
        return self.low - slack <= value <= self.high + slack


@dataclass(frozen=True)
class PowerLaw:
    """A fitted power law ``value = exp(intercept) * d ** slope``.

    Attributes:
        slope: mean over seeds of the least-squares slope of log(value) against log(d): the slope of geometric means.
        low: lower end of the confidence interval of the slope (nan with a single seed).
        high: upper end of it.
        intercept: the fit's intercept, natural logarithm.
        local: slopes between neighbouring sizes, one fewer than there are sizes.
        bend: the last of these less the first, which is 0 for a power law; None with two sizes.
        d: the input dimensions, increasing.
        means: geometric means over seeds, one per size.
        seeds: number of seeds.
        paired: whether a seed is the same experiment at every size.
        confidence: level of the intervals.
        slopes: the seeds' own slopes if they are paired, else the contribution of each measurement, [S][seeds].
    """

    slope: float
    low: float
    high: float
    intercept: float
    local: tuple[float, ...]
    bend: Interval | None
    d: tuple[float, ...]
    means: tuple[float, ...]
    seeds: int
    paired: bool
    confidence: float
    slopes: tuple[tuple[float, ...], ...] = field(repr=False)

    def __str__(self) -> str:
        interval = f"[{self.low:.2f}, {self.high:.2f}]" if self.seeds > 1 else "(one seed: no interval)"
        return f"{self.slope:.2f} {interval}"

    def contains(self, slope: float, slack: float = 0.0) -> bool:
        """Whether a slope lies in the interval, widened by slack on both sides."""
        return self.low - slack <= slope <= self.high + slack

    def predict(self, d: ArrayLike) -> Array:
        """Values of the fitted law at the input dimensions d."""
        return np.asarray(np.exp(self.intercept) * np.asarray(d, float) ** self.slope)


def exponent(d: ArrayLike, values: ArrayLike, *, confidence: float = 0.95, paired: bool = True) -> PowerLaw:
    r"""Exponent of a power law in the input dimension, from measurements over several seeds.

    Each seed has a slope of its own, of :math:`\log v` against :math:`\log d` by least squares. The exponent is their
    mean, and its interval Student's, exact where the slopes are Gaussian. Where a column is another experiment at every
    size, the variances of the sizes are added, and the degrees of freedom are Welch's and Satterthwaite's. Being of
    logarithms, the intervals allow for log-normal values and for another spread at each size. Simulated coverage, at 2
    to 30 seeds, for Gaussian, log-normal, heavy-tailed and skewed values: 93 to 98%.

    Args:
        d: [S], at least two distinct positive input dimensions, in any order.
        values: [S, n], positive measurements, one row per size and one column per seed; or [S] for a single seed.
        confidence: level of the intervals.
        paired: whether a column belongs to one seed at every size (the same images, say).

    Returns:
        The fitted exponent. With a single seed its interval is nan; with two it is honest, and wide.

    Raises:
        ValueError: if shapes do not match, fewer than two sizes are given, a value is not positive and finite, or
            the confidence is no level.
    """
    sizes, table = _checked(d, values, confidence)
    log_d, logs = np.log(sizes), np.log(table)
    means = logs.mean(axis=1)
    centred = log_d - log_d.mean()
    slope = _contrast(centred / (centred**2).sum(), logs, confidence, paired)
    step = np.diff(log_d)
    bend = None
    if len(sizes) > 2:
        weights = np.zeros(len(sizes))
        weights[[-2, -1]] += [-1 / step[-1], 1 / step[-1]]
        weights[[0, 1]] -= [-1 / step[0], 1 / step[0]]
        bend = _contrast(weights, logs, confidence, paired)
    return PowerLaw(
        slope=slope.mean,
        low=slope.low,
        high=slope.high,
        intercept=float(means.mean() - slope.mean * log_d.mean()),
        local=tuple((np.diff(means) / step).tolist()),
        bend=bend,
        d=tuple(sizes.tolist()),
        means=tuple(np.exp(means).tolist()),
        seeds=table.shape[1],
        paired=paired,
        confidence=confidence,
        slopes=tuple(map(tuple, _terms(centred / (centred**2).sum(), logs, paired).tolist())),
    )


def exponent_difference(first: PowerLaw, second: PowerLaw, *, paired: bool = True) -> Interval:
    """How much larger the first exponent is than the second, with Student's interval of the difference.

    Two intervals that overlap say little of a difference: it has an interval of its own. Of many differences at 95%,
    one in twenty excludes 0 by chance.

    Args:
        first: a fitted power law.
        second: another, at the same level of confidence.
        paired: whether the two have their seeds in common, in the same order (the same images and weights, say). Else
            they are compared by Welch's interval.

    Raises:
        ValueError: if levels differ; or, of a paired difference, the number of seeds differs or one fit was not paired.
    """
    if first.confidence != second.confidence:
        raise ValueError(f"the levels of confidence differ: {first.confidence} and {second.confidence}")
    if not paired:
        return _welch(np.array(first.slopes), np.array(second.slopes), first.confidence)
    if not (first.paired and second.paired) or first.seeds != second.seeds:
        raise ValueError(f"seeds in common are needed, got {first.seeds} and {second.seeds}; or say paired=False")
    return mean_interval(np.subtract(first.slopes[0], second.slopes[0]), first.confidence)


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's interval of the mean of independent values.

    Args:
        values: [n], finite, n at least 1; a single one has no interval.
        confidence: level of the interval.

    Raises:
        ValueError: if there is no value, one is not finite, or the confidence is no level.
    """
    row = np.asarray(values, float)
    if row.ndim != 1 or len(row) < 1 or not np.isfinite(row).all():
        raise ValueError(f"expected a list of finite values, got {row.tolist()}")
    _check_level(confidence)
    return _welch(row[None], None, confidence)


def _checked(d: ArrayLike, values: ArrayLike, confidence: float) -> tuple[Array, Array]:
    """Increasing sizes [S] and their values [S, n]."""
    sizes = np.asarray(d, float)
    table = np.asarray(values, float)
    table = table[:, None] if table.ndim == 1 else table
    if sizes.ndim != 1 or table.ndim != 2 or len(sizes) != len(table):
        raise ValueError(f"expected d of shape [S] and values [S, seeds], got {sizes.shape} and {table.shape}")
    if len(np.unique(sizes)) != len(sizes) or len(sizes) < 2 or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError(f"a slope needs at least two distinct positive finite sizes, got d = {sizes.tolist()}")
    if table.shape[1] < 1 or not (np.isfinite(table) & (table > 0)).all():
        bad = np.argwhere(~(np.isfinite(table) & (table > 0)))
        where = f"values[{bad[0][0]}, {bad[0][1]}] = {table[tuple(bad[0])]}" if len(bad) else "no seed at all"
        raise ValueError(f"a power law needs positive finite values, got {where}")
    _check_level(confidence)
    order = np.argsort(sizes)
    return sizes[order], table[order]


def _check_level(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"the level of confidence lies between 0 and 1, got {confidence}")


def _terms(weights: Array, logs: Array, paired: bool) -> Array:
    """Samples [k, seeds] whose means add up to the weighted sum of the rows: one of all rows, or one per row."""
    rows: Array = weights[:, None] * logs
    return rows.sum(axis=0)[None] if paired else rows


def _contrast(weights: Array, logs: Array, confidence: float, paired: bool) -> Interval:
    return _welch(_terms(weights, logs, paired), None, confidence)


def _welch(plus: Array, minus: Array | None, confidence: float) -> Interval:
    """The sum of some samples' means less that of others: Student's interval of one, Welch's of several."""
    sides = [plus] if minus is None else [plus, minus]
    mean = float(plus.mean(axis=1).sum() - (0 if minus is None else minus.mean(axis=1).sum()))
    if min(side.shape[1] for side in sides) < 2:
        return Interval(mean, math.nan, math.nan, confidence)
    parts = [np.where(np.ptp(side, axis=1) > 0, side.var(axis=1, ddof=1) / side.shape[1], 0.0) for side in sides]
    variance = float(sum(part.sum() for part in parts))
    if variance == 0:  # no spread: the interval is the point
        return Interval(mean, mean, mean, confidence)
    spread = sum(float((part**2).sum()) / (side.shape[1] - 1) for part, side in zip(parts, sides, strict=True))
    half = _quantile(variance**2 / spread, confidence) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, confidence)


@lru_cache(maxsize=100)
def _quantile(freedom: float, confidence: float) -> float:
    """Student's, of a two-sided interval."""
    from scipy import special  # here, so that importing advdim stays quick

    return float(special.stdtrit(freedom, (1 + confidence) / 2))
