"""One curve or several: constructed cases with known answers; ratios against SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from advdim.analysis import fit_single_curve, geometric_mean_ratio

rng = np.random.default_rng(0)
X = np.geomspace(1, 100, 60)
GROUPS = ["a", "b", "c"] * 20


def test_points_of_one_curve_collapse():
    found = fit_single_curve(X, X**0.7, GROUPS, resamples=100)
    assert found.r2 > 0.995
    assert 1 <= found.low <= found.factor <= found.high < 1.08
    assert set(found.by_group) == {"a", "b", "c"}


@pytest.mark.parametrize("curve", [np.tanh, np.sqrt, lambda x: np.exp(x / 50)])
def test_any_increasing_curve_does(curve):
    assert fit_single_curve(X, curve(X / 10), GROUPS, resamples=1).r2 > 0.98


def test_the_factor_is_that_of_the_noise():
    """The error of a prediction is the noise of a point, and little more, where points are many."""
    x = np.geomspace(1, 100, 900)
    noise = rng.normal(0, 0.2, 900)
    found = fit_single_curve(x, x * np.exp(noise), ["a", "b", "c"] * 300, resamples=100)
    assert math.log(found.factor) == pytest.approx(0.2, rel=0.12)
    assert found.low < found.factor < found.high


def test_a_group_with_a_curve_of_its_own_stands_out():
    y = X * np.where(np.array(GROUPS) == "b", 3.0, 1.0)
    found = fit_single_curve(X, y, GROUPS, resamples=1)
    assert found.by_group["b"] == pytest.approx(3, rel=0.1)
    assert found.factor > 1.5
    # The other two are predicted from a mixture of their curve and the shifted one, so they are off as well.
    assert 1 < found.by_group["a"] < found.by_group["b"]


def test_a_group_without_any_relation_is_not_explained():
    y = np.exp(rng.normal(size=60))
    assert fit_single_curve(X, y, GROUPS, resamples=1).r2 < 0.2


def test_the_interval_of_the_factor_is_deterministic():
    y = X * np.exp(rng.normal(0, 0.3, 60))
    assert fit_single_curve(X, y, GROUPS, resamples=50) == fit_single_curve(X, y, GROUPS, resamples=50)


def test_resamples_are_of_the_points_of_each_group_by_itself():
    """Groups of one point leave nothing to draw; and quantiles lie as the level says, also at a low one."""
    x, y = [1.0, 2, 3, 4], [1.0, 3, 2, 4]
    found = fit_single_curve(x, y, ["a", "b", "c", "d"], resamples=5)
    assert found.low == pytest.approx(found.factor, rel=1e-12)
    assert found.high == pytest.approx(found.factor, rel=1e-12)
    assert found.factor > 1.1
    assert str(found) == f"R2 = {found.r2:.2f}, within a factor {found.factor:.2f} [{found.low:.2f}, {found.high:.2f}]"
    y = X * np.exp(rng.normal(0, 0.3, 60))
    wide, narrow = (fit_single_curve(X, y, GROUPS, resamples=40, confidence=c) for c in (0.95, 0.2))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_what_lies_beyond_the_other_groups_is_not_predicted():
    """A steep curve: one continued as a constant would be wrong by factors."""
    x = np.array([1.0, 2, 3, 4, 5, 40])
    found = fit_single_curve(x, x**3, ["a", "b", "a", "b", "a", "b"], resamples=20)
    assert found.beyond == 2  # 1 below all of b, and 40 above all of a
    assert found.factor == pytest.approx(1, abs=1e-9)
    alone = fit_single_curve([1, 2, 3, 10, 11], [1, 2, 3, 4, 5.0], ["a", "b", "a", "c", "c"], resamples=20)
    assert math.isnan(alone.by_group["c"])
    with pytest.raises(ValueError, match="nothing to predict"):
        fit_single_curve([1, 2, 8, 9], [1, 2, 3, 4.0], ["a", "a", "b", "b"])


def test_equal_x_share_one_value():
    x = np.array([1.0, 1, 1, 2, 2, 2])
    found = fit_single_curve(x, np.array([1.0, 2, 4, 8, 8, 8]), ["a", "b", "c"] * 2, resamples=20)
    # a is predicted by the mean of log 2 and log 4 at 1, by log 8 at 2; likewise b and c.
    errors = np.log([1, 2, 4]) - np.log([np.sqrt(8), 2, np.sqrt(2)])
    expected = math.exp(math.sqrt((errors**2).sum() / 6))
    assert found.factor == pytest.approx(expected, rel=1e-12)


def test_ratio_is_scipys_t_interval():
    a, b = np.exp(rng.normal(0.3, 0.1, 12)), np.exp(rng.normal(0, 0.1, 12))
    found = geometric_mean_ratio(a, b)
    oracle = stats.ttest_rel(np.log(a), np.log(b)).confidence_interval(0.95)
    assert math.log(found.ratio) == pytest.approx(np.mean(np.log(a / b)), rel=1e-12)
    assert math.log(found.low) == pytest.approx(oracle.low, rel=1e-9)
    assert math.log(found.high) == pytest.approx(oracle.high, rel=1e-9)
    assert found.pairs == 12


def test_the_interval_covers_at_its_level():
    hits = 0
    for _ in range(400):
        d = rng.normal(0.2, 0.5, 6)
        found = geometric_mean_ratio(np.exp(d), np.ones(6))
        hits += found.low <= math.exp(0.2) <= found.high
    assert stats.binomtest(hits, 400, 0.95).pvalue > 1e-3
