"""Power laws: the log-log slope of a measurement over input dimensions, with its uncertainty over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class PowerLaw:
    """A fitted power law ``value = exp(intercept) * d ** slope``.

    Attributes:
        slope: least-squares slope of log(mean over seeds) against log(d).
        low: lower end of the confidence interval of the slope (nan with a single seed).
        high: upper end of it.
        intercept: the fit's intercept, natural logarithm.
        local: slopes between neighbouring sizes, one fewer than there are sizes.
        d: the input dimensions, increasing.
        means: means over seeds, one per size.
        seeds: number of seeds.
        confidence: level of the interval.
    """

    slope: float
    low: float
    high: float
    intercept: float
    local: tuple[float, ...]
    d: tuple[float, ...]
    means: tuple[float, ...]
    seeds: int
    confidence: float

    def __str__(self) -> str:
        interval = f"[{self.low:.2f}, {self.high:.2f}]" if self.seeds > 1 else "(one seed: no interval)"
        return f"{self.slope:.2f} {interval}"

    def contains(self, slope: float, slack: float = 0.0) -> bool:
        """Whether a slope lies in the interval, widened by slack on both sides."""
        return self.low - slack <= slope <= self.high + slack

    def predict(self, d: ArrayLike) -> NDArray[np.float64]:
        """Values of the fitted law at the input dimensions d."""
        return np.asarray(np.exp(self.intercept) * np.asarray(d, float) ** self.slope)


def exponent(
    d: ArrayLike, values: ArrayLike, *, confidence: float = 0.95, paired: bool = True, resamples: int = 2000
) -> PowerLaw:
    r"""Exponent of a power law in the input dimension, from measurements over several seeds.

    The slope is that of :math:`\log \bar v_d` against :math:`\log d`, with :math:`\bar v_d` the mean over seeds. The
    interval is SciPy's percentile bootstrap over seeds, at the level that undoes its narrowness for few seeds
    (Hesterberg, 2015: the normal quantile is replaced by :math:`\sqrt{n/(n-1)}` times Student's). It is deterministic.

    Args:
        d: [S], at least two distinct positive input dimensions, in any order.
        values: [S, n], positive measurements, one row per size and one column per seed; or [S] for a single seed.
        confidence: level of the interval.
        paired: whether a column belongs to one seed at every size (the same images, say), to be resampled as a whole.
        resamples: number of bootstrap resamples.

    Returns:
        The fitted exponent. With a single seed its interval is nan.

    Raises:
        ValueError: if shapes do not match, fewer than two sizes are given, a value is not positive and finite, or
            the confidence is no level.
    """
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
    if not 0 < confidence < 1:
        raise ValueError(f"the level of confidence lies between 0 and 1, got {confidence}")
    order = np.argsort(sizes)
    sizes, table = sizes[order], table[order]
    log_d = np.log(sizes)
    weights = (log_d - log_d.mean()) / ((log_d - log_d.mean()) ** 2).sum()

    def slope(*rows: NDArray[np.float64], axis: int = -1) -> Any:
        return np.tensordot(weights, np.log(np.stack([row.mean(axis=axis) for row in rows])), axes=1)

    log_means = np.log(table.mean(axis=1))
    fitted = float(slope(*table))
    low, high = _interval(slope, table, confidence, paired, resamples)
    return PowerLaw(
        slope=fitted,
        low=low,
        high=high,
        intercept=float(log_means.mean() - fitted * log_d.mean()),
        local=tuple((np.diff(log_means) / np.diff(log_d)).tolist()),
        d=tuple(sizes.tolist()),
        means=tuple(table.mean(axis=1).tolist()),
        seeds=table.shape[1],
        confidence=confidence,
    )


def _interval(
    statistic: Any, table: NDArray[np.float64], confidence: float, paired: bool, resamples: int
) -> tuple[float, float]:
    seeds = table.shape[1]
    if seeds < 2:
        return math.nan, math.nan
    if np.ptp(table, axis=1).max() == 0:  # no spread to resample: the interval is the point
        point = float(statistic(*table))
        return point, point
    from scipy import stats  # here, so that importing advdim stays quick

    t = stats.t.ppf((1 + confidence) / 2, df=seeds - 1)
    level = 1 - 2 * stats.norm.sf(t * math.sqrt(seeds / (seeds - 1)))
    interval = stats.bootstrap(
        tuple(table),
        statistic,
        paired=paired,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)
