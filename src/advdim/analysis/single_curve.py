"""Whether several groups of points lie on one monotone curve, and how far from it; equality of paired measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class SingleCurveFit:
    """How well the points of each group lie on the monotone curve of the other groups.

    Attributes:
        r2: share of the variance of log y that the curves explain; 1 at best, below 0 if they do worse than the mean.
            Of the points predicted, as all that follows.
        factor: typical error of a prediction as a factor, exp of the root mean square of the error of log y.
        low: lower end of the confidence interval of the factor.
        high: upper end of it.
        by_group: the factor of each group; nan for one that lies beyond all others.
        beyond: number of points that lie beyond the curve of the other groups, at either end, and are not predicted.
        confidence: level of the interval.
    """

    r2: float
    factor: float
    low: float
    high: float
    by_group: dict[str, float]
    beyond: int
    confidence: float

    def __str__(self) -> str:
        return f"R2 = {self.r2:.2f}, within a factor {self.factor:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class GeometricMeanRatio:
    """Geometric mean of paired ratios.

    Attributes:
        ratio: the geometric mean.
        low: lower end of its confidence interval.
        high: upper end of it.
        pairs: number of pairs.
        confidence: level of the interval.
    """

    ratio: float
    low: float
    high: float
    pairs: int
    confidence: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f} [{self.low:.2f}, {self.high:.2f}]"


def fit_single_curve(
    x: ArrayLike, y: ArrayLike, groups: Sequence[str], *, confidence: float = 0.95, resamples: int = 500
) -> SingleCurveFit:
    """How well y is one non-decreasing function of x, whatever the group: each is predicted from the others alone.

    The curve is the isotonic regression of log y on log x, linear between points; what lies beyond its ends is left
    out. A group that had a curve of its own would be predicted badly, however well one curve fitted all points at once.
    The interval is a percentile bootstrap over the points of each group. It is deterministic.

    Args:
        x: [N], positive, such as the gradient norms of networks.
        y: [N], positive, such as their vulnerabilities.
        groups: N names, such as the methods of training; at least two different ones.
        confidence: level of the interval, between 0 and 1.
        resamples: number of bootstrap resamples, at least 1.

    Raises:
        ValueError: if shapes do not match, a value is not positive and finite, all of y are equal, there is one group
            only, no group has a point within the range of the others, or confidence or resamples is no such number.
    """
    _check_level(confidence)
    if not resamples >= 1:
        raise ValueError(f"a bootstrap needs at least one resample, got {resamples}")
    log_x, log_y = _logs(x, y)
    names = np.asarray(groups)
    if names.shape != log_x.shape:
        raise ValueError(f"expected one group per point, got {names.shape} for {log_x.shape} points")
    if len(np.unique(names)) < 2:
        raise ValueError(f"predicting one group from the others needs at least two, got {sorted(set(groups))}")
    errors = _errors(log_x, log_y, names)
    within = np.isfinite(errors)
    if not within.any():
        raise ValueError("no group has a point within the range of the others: there is nothing to predict")
    variance = float(log_y[within].var())
    if variance == 0:
        raise ValueError("all of y are equal: there is no curve to lie on")
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(names == name) for name in np.unique(names)]
    drawn = []
    for _ in range(resamples):
        rows = np.concatenate([rng.choice(m, len(m)) for m in members])
        drawn.append(_rms(_errors(log_x[rows], log_y[rows], names[rows])))
    low, high = np.exp(np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]))
    return SingleCurveFit(
        r2=1 - float(np.mean(errors[within] ** 2)) / variance,
        factor=math.exp(_rms(errors)),
        low=float(low),
        high=float(high),
        by_group={str(name): math.exp(_rms(errors[names == name])) for name in dict.fromkeys(groups)},
        beyond=int((~within).sum()),
        confidence=confidence,
    )


def geometric_mean_ratio(a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95) -> GeometricMeanRatio:
    """Geometric mean of a / b over pairs, with Student's interval for the mean of the logarithms.

    Args:
        a: [N], positive, N at least 2.
        b: [N], positive, paired with a.
        confidence: level of the interval, between 0 and 1.

    Raises:
        ValueError: if shapes do not match, there is one pair only, a value is not positive and finite, or the
            confidence is no level.
    """
    _check_level(confidence)
    log_a, log_b = _logs(a, b)
    differences = log_a - log_b
    if len(differences) < 2:
        raise ValueError("an interval needs at least two pairs, got one")
    from scipy import stats  # here, so that importing advdim stays quick

    mean = float(differences.mean())
    half = stats.t.ppf((1 + confidence) / 2, len(differences) - 1) * stats.sem(differences)
    return GeometricMeanRatio(
        math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(differences), confidence
    )


def _check_level(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"the level of confidence lies between 0 and 1, got {confidence}")


def _logs(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(x, float), np.asarray(y, float)
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise ValueError(f"expected two lists of one length, got shapes {a.shape} and {b.shape}")
    for values in (a, b):
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise ValueError(f"logarithms need positive finite values, got {values[bad[0]]} at {bad[0]}")
    return np.log(a), np.log(b)


def _errors(log_x: NDArray[np.float64], log_y: NDArray[np.float64], names: NDArray[np.str_]) -> NDArray[np.float64]:
    """Error of log y at each point, predicted from the points of the other groups; nan beyond their range."""
    from scipy.optimize import isotonic_regression

    errors = np.empty_like(log_y)
    for name in np.unique(names):
        own = names == name
        x, at, ties = np.unique(log_x[~own], return_inverse=True, return_counts=True)
        curve = isotonic_regression(np.bincount(at, log_y[~own]) / ties, weights=ties).x
        errors[own] = log_y[own] - np.interp(log_x[own], x, curve, left=math.nan, right=math.nan)
    return errors


def _rms(errors: NDArray[np.float64]) -> float:
    """Of those that are numbers; nan if there are none."""
    finite = errors[np.isfinite(errors)]
    return float(np.sqrt(np.mean(finite**2))) if len(finite) else math.nan
