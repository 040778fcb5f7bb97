"""Fitted exponents against exact power laws, SciPy's regression, and the coverage that an interval promises."""

import math

import numpy as np
import pytest
from scipy import stats

from advdim import analysis

D = np.array([64.0, 256.0, 1024.0, 4096.0])


def experiment(rng, *, slope=0.5, seeds=8, noise=0.2, common=0.0):
    """A power law with log-normal noise of each measurement, and of each seed at every size."""
    log_noise = noise * rng.standard_normal((len(D), seeds)) + common * rng.standard_normal(seeds)
    return 3 * D[:, None] ** slope * np.exp(log_noise)


@pytest.mark.parametrize("slope", [-1.5, -0.5, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("seeds", [1, 5])
def test_an_exact_power_law_is_recovered(slope, seeds):
    fit = analysis.exponent(D, np.tile(7 * D[:, None] ** slope, seeds))
    assert fit.slope == pytest.approx(slope, abs=1e-12)
    assert math.exp(fit.intercept) == pytest.approx(7, rel=1e-12)
    assert fit.local == pytest.approx([slope] * 3, abs=1e-12)
    np.testing.assert_allclose(fit.predict([10, 100]), 7 * np.array([10.0, 100.0]) ** slope, rtol=1e-12)
    if seeds > 1:
        assert fit.low == fit.slope == fit.high
        assert fit.contains(fit.slope)
    else:
        assert math.isnan(fit.low)
        assert math.isnan(fit.high)
        assert not fit.contains(fit.slope)


def test_slope_is_the_regression_of_mean_logs():
    values = experiment(np.random.default_rng(0), noise=1.0)  # so strong that mean of logs and log of mean differ
    fit = analysis.exponent(D, values)
    oracle = stats.linregress(np.log(D), np.log(values).mean(axis=1))
    assert fit.slope == pytest.approx(oracle.slope, rel=1e-12)
    assert fit.intercept == pytest.approx(oracle.intercept, rel=1e-12)
    assert fit.means == pytest.approx(stats.gmean(values, axis=1))
    assert fit.local == pytest.approx(np.diff(np.log(fit.means)) / np.diff(np.log(D)))
    assert fit.bend.mean == pytest.approx(fit.local[-1] - fit.local[0])


def test_order_of_sizes_and_seeds_and_unit_of_values_do_not_matter():
    rng = np.random.default_rng(1)
    values = experiment(rng)
    fit = analysis.exponent(D, values)
    order = np.array([2, 0, 3, 1])
    assert analysis.exponent(D[order], values[order]) == fit
    assert analysis.exponent(D.tolist(), values.tolist()) == fit
    scaled = analysis.exponent(D, 1e6 * values)
    assert (scaled.slope, scaled.low, scaled.high) == pytest.approx((fit.slope, fit.low, fit.high), abs=1e-12)
    assert analysis.exponent(D, values[:, rng.permutation(8)]).slope == pytest.approx(fit.slope, abs=1e-12)
    assert (analysis.exponent(3 * D, values).slope, analysis.exponent(D, D[:, None] * values).slope) == pytest.approx(
        (fit.slope, fit.slope + 1), abs=1e-12
    )


# Log-noise of [S, n] measurements of mean 0, by distribution.
LAWS = {
    "gaussian values": lambda rng, n: np.log(np.maximum(1 + 0.2 * rng.standard_normal((4, n)), 0.05)),
    "log-normal": lambda rng, n: 0.5 * rng.standard_normal((4, n)),
    "other spreads": lambda rng, n: np.array([0.1, 0.3, 0.6, 1.0])[:, None] * rng.standard_normal((4, n)),
    "heavy tails": lambda rng, n: 0.3 * rng.standard_t(3, (4, n)),
    "skewed": lambda rng, n: 0.3 * (rng.exponential(1, (4, n)) - 1),
}
SIMULATED = 600


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("seeds", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("law", LAWS)
def test_coverage_of_the_interval(law, seeds, paired):
    """Of simulated experiments at least 92% of the intervals hold the truth; 3 and 5 seeds by bootstrap: 74 and 90%."""
    rng = np.random.default_rng([1, seeds, paired])
    covered = 0
    for _ in range(SIMULATED):
        noise = LAWS[law](rng, seeds) + (0.5 * rng.standard_normal(seeds) if paired else 0)
        covered += analysis.exponent(D, 3 * D[:, None] ** 0.5 * np.exp(noise), paired=paired).contains(0.5)
    assert covered / SIMULATED > 0.92


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("seeds", [3, 8])
def test_coverage_of_a_difference(seeds, paired):
    rng = np.random.default_rng([4, seeds, paired])
    covered = chance = 0
    for _ in range(SIMULATED):
        common = 0.5 * rng.standard_normal((4, seeds)) if paired else 0
        first, second = (
            analysis.exponent(D, D[:, None] ** slope * np.exp(0.3 * rng.standard_normal((4, seeds)) + common))
            for slope in (0.5, 0.4)
        )
        difference = analysis.exponent_difference(first, second, paired=paired)
        covered += difference.contains(0.1)
        chance += difference.contains(0.0)
    assert 0.93 < covered / SIMULATED < 0.98
    assert chance < covered


def test_coverage_of_another_level():
    rng = np.random.default_rng(4)
    fits = [analysis.exponent(D, experiment(rng), confidence=0.8) for _ in range(SIMULATED)]
    covered = np.mean([fit.contains(0.5) for fit in fits])
    assert abs(covered - 0.8) < 4 * math.sqrt(0.8 * 0.2 / SIMULATED)


def test_coverage_of_the_bend():
    rng = np.random.default_rng(5)
    fits = [analysis.exponent(D, experiment(rng, seeds=4)) for _ in range(SIMULATED)]
    assert 0.93 < np.mean([fit.bend.contains(0) for fit in fits]) < 0.97
    bent = analysis.exponent(D, np.exp(-((np.log(D) - 8) ** 2) / 10)[:, None] * experiment(rng, noise=0.05))
    assert bent.bend.high < 0
    assert analysis.exponent(D[:2], experiment(rng)[:2]).bend is None


def test_the_interval_is_students_of_the_seeds_own_slopes():
    values = experiment(np.random.default_rng(5))
    own = [stats.linregress(np.log(D), np.log(column)).slope for column in values.T]
    oracle = stats.ttest_1samp(own, 0).confidence_interval(0.95)
    fit = analysis.exponent(D, values)
    assert (fit.low, fit.high) == pytest.approx(tuple(oracle), rel=1e-12)
    assert fit.slopes[0] == pytest.approx(own)
    mean = analysis.mean_interval(own, 0.95)
    assert (mean.mean, mean.low, mean.high) == pytest.approx((fit.slope, fit.low, fit.high))


def test_a_difference_is_that_of_scipy():
    rng = np.random.default_rng(6)
    first, second, fewer = (analysis.exponent(D, experiment(rng, seeds=n)) for n in (6, 6, 4))
    a, b, c = (np.array(fit.slopes[0]) for fit in (first, second, fewer))
    paired = analysis.exponent_difference(first, second)
    assert (paired.low, paired.high) == pytest.approx(tuple(stats.ttest_rel(a, b).confidence_interval(0.95)), rel=1e-9)
    welch = analysis.exponent_difference(first, fewer, paired=False)
    oracle = stats.ttest_ind(a, c, equal_var=False).confidence_interval(0.95)
    assert (welch.low, welch.high) == pytest.approx(tuple(oracle), rel=1e-9)
    with pytest.raises(ValueError, match="6 and 4"):
        analysis.exponent_difference(first, fewer)
    with pytest.raises(ValueError, match=r"0\.95 and 0\.9"):
        analysis.exponent_difference(first, analysis.exponent(D, experiment(rng), confidence=0.9))


def test_one_seed_has_no_interval_and_two_an_honest_one():
    one, two = (analysis.exponent(D, experiment(np.random.default_rng(7), seeds=n)) for n in (1, 2))
    assert math.isnan(one.low)
    assert two.high - two.low == pytest.approx(stats.t.ppf(0.975, 1) * abs(np.diff(two.slopes[0])[0]), rel=1e-9)
    assert str(analysis.mean_interval([2.0])) == "2.00 (no interval)"
    for wrong in ([], [1.0, math.nan], [[1.0]]):
        with pytest.raises(ValueError, match="finite values"):
            analysis.mean_interval(wrong)


def test_pairing_removes_what_a_seed_shares_over_sizes():
    values = experiment(np.random.default_rng(6), noise=0.01, common=1.0)
    together, apart = (analysis.exponent(D, values, paired=paired) for paired in (True, False))
    assert together.slope == pytest.approx(apart.slope, rel=1e-12)
    assert (together.high - together.low) < 0.1 * (apart.high - apart.low)


def test_sizes_off_the_line_are_no_spread_over_seeds():
    curved = np.tile(np.array([1.0, 5.0, 2.0, 9.0])[:, None], 6)
    fit = analysis.exponent(D, curved)
    assert fit.low == pytest.approx(fit.slope, abs=1e-12) == fit.high


def test_printed_and_contained():
    fit = analysis.exponent(D, experiment(np.random.default_rng(7)))
    assert str(fit) == f"{fit.slope:.2f} [{fit.low:.2f}, {fit.high:.2f}]"
    assert str(analysis.exponent(D, D**0.5)) == "0.50 (one seed: no interval)"
    assert fit.contains(fit.low)
    assert not fit.contains(fit.high + 0.1)
    assert fit.contains(fit.high + 0.1, slack=0.2)
    assert fit.seeds == 8
    assert fit.confidence == 0.95


@pytest.mark.parametrize(
    ("d", "values", "match"),
    [
        ([1, 2, 3], [1, 2], r"\(3,\).*\(2, 1\)"),
        ([[1, 2]], [[1, 2]], r"\(1, 2\)"),
        (4, 5, r"\(\)"),
        ([4], [1], r"\[4\.0\]"),
        ([4, 4], [1, 2], r"\[4\.0, 4\.0\]"),
        ([0, 4], [1, 2], r"\[0\.0, 4\.0\]"),
        ([-1, 4], [1, 2], r"\[-1\.0, 4\.0\]"),
        ([1, math.inf], [1, 2], r"\[1\.0, inf\]"),
        ([1, math.nan], [1, 2], r"\[1\.0, nan\]"),
        ([1, 4], [1, 0], r"values\[1, 0\] = 0\.0"),
        ([1, 4], [[1, 1], [2, -3]], r"values\[1, 1\] = -3\.0"),
        ([1, 4], [[1, math.nan], [2, 3]], r"values\[0, 1\] = nan"),
        ([1, 4], [[1, 1], [math.inf, 3]], r"values\[1, 0\] = inf"),
        ([1, 4], np.ones((2, 0)), "no seed"),
    ],
)
def test_wrong_measurements_are_refused_by_value(d, values, match):
    with pytest.raises(ValueError, match=match):
        analysis.exponent(d, values)


def test_slopes_between_sizes_that_are_not_equally_far_apart():
    d, rng = np.array([1.0, 2, 16, 24]), np.random.default_rng(2)
    fit = analysis.exponent(d, rng.lognormal(size=(4, 5)))
    assert fit.local == pytest.approx(np.diff(np.log(fit.means)) / np.diff(np.log(d)))
    assert fit.bend.mean == pytest.approx(fit.local[-1] - fit.local[0])


def test_a_paired_difference_needs_two_fits_that_are_paired():
    values = np.random.default_rng(3).lognormal(size=(3, 4))
    fits = [analysis.exponent([1, 2, 4], values, paired=paired) for paired in (True, False)]
    for first, second in (fits, fits[::-1]):
        with pytest.raises(ValueError, match="paired=False"):
            analysis.exponent_difference(first, second)
    assert analysis.exponent_difference(fits[0], fits[0]).mean == 0
