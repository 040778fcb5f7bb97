"""What chapter 9 says of the record of natural images, computed again from the record."""

import math
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import advdim as ad
from advdim import experiments
from advdim.experiments import grids

USUAL, WEAK, ROBUST, STRONG = STRENGTHS = 0.0, 0.001, 0.004, 0.016


@cache
def points():
    return experiments.recorded("natural-imagenette-224")[1]


@cache
def runs():
    table = experiments.runs(points())
    names = {"damage": "pgd-linf_damage", "vulnerability": "pgd-linf_vulnerability", "attacked": "pgd-linf_accuracy"}
    return table.assign(**{name: table[column] for name, column in names.items()})


def epochs(epoch):
    """The measurements after an epoch, counted from 1."""
    table = experiments.epochs(points())
    return table[table["epoch"] == epoch - 1]


def exponent(table, column, strength=USUAL):
    (fit,) = experiments.exponents(table[table["strength"] == strength], column, "strength").values()
    return fit


def means(column, strength=USUAL, table=None):
    table = runs() if table is None else table
    return table[table["strength"] == strength].groupby("size")[column].mean()


def by_seed(column, size, strength=USUAL, table=None):
    table = runs() if table is None else table
    own = table[(table["size"] == size) & (table["strength"] == strength)]
    return own.set_index("seed")[column].sort_index()


def interval(differences):
    return ad.analysis.mean_interval(differences)


def test_the_setting_is_the_chapters():
    assert set(runs()["strength"]) == set(STRENGTHS)
    assert sorted(runs()["size"].unique()) == [32, 64, 128]
    assert (runs()["seed"].nunique(), len(runs()), grids.SMALL_EPS) == (3, 36, 0.0008)
    assert {p["spec"]["eps"] for p in points()} == {grids.SMALL_EPS}


@pytest.mark.parametrize(
    ("column", "slope", "low", "high"),
    [
        ("l1", 0.40, 0.26, 0.54),
        ("damage", 0.39, 0.24, 0.53),
        ("vulnerability", 0.35, 0.02, 0.68),
        ("initial_l1", 0.45, 0.34, 0.55),
    ],
)
def test_the_growth_survives_usual_training(column, slope, low, high):
    fit = exponent(runs(), column)
    assert (round(fit.slope, 2), round(fit.low, 2), round(fit.high, 2)) == (slope, low, high)


def test_the_two_doublings_of_the_side_cannot_be_told_apart():
    fit = exponent(runs(), "l1")
    assert [round(slope, 2) for slope in fit.local] == [0.51, 0.30]
    assert (round(fit.bend.low, 2), round(fit.bend.high, 2)) == (-0.66, 0.24)


def test_levels_after_usual_training():
    l1 = means("l1")
    assert 2.9 < l1[128] / l1[32] < 3.1
    assert (means("initial_l1") / l1).between(4, 5).all()
    assert [round(v, 2) for v in means("vulnerability")] == [0.08, 0.12, 0.20]
    counts = runs()[runs()["strength"] == USUAL]["vulnerability"] * 200
    assert (round(counts.min()), round(counts.max())) == (12, 48)
    assert means("train_accuracy", table=epochs(20)).min() > 0.99


def test_before_training_it_is_the_exponent_of_the_wide_network():
    known = experiments.series(experiments.recorded("initialisation-imagenette-224")[1])
    (wide,) = [s for s in known if str(s.network) == "conv_dilated batch-norm he_unit"]
    measured, counted = (ad.analysis.exponent(wide.d, wide.metrics[name]).slope for name in ("l1", "walk_l1"))
    assert (round(measured, 2), round(counted, 2)) == (0.44, 0.45)
    assert exponent(runs(), "initial_l1").contains(measured)


def test_differences_from_the_exponents_on_cifar():
    other = experiments.runs(experiments.recorded("4.2-cifar10-jpeg")[1])
    other = other[other["network"].str.startswith("conv_dilated")]
    own = exponent(runs(), "l1")
    for resize, expected in (("bilinear", (0.02, -0.10, 0.14)), ("copy", (0.22, 0.04, 0.40))):
        theirs = exponent(other[other["resize"] == resize], "l1")
        assert rounded(ad.analysis.exponent_difference(own, theirs, paired=False)) == expected


def rounded(found):
    """Mean and interval of a difference, as the chapter quotes them."""
    return round(found.mean, 2), round(found.low, 2), round(found.high, 2)


@pytest.mark.parametrize(
    ("strength", "slope", "difference"),
    [
        (WEAK, (-0.13, -0.38, 0.12), (-0.53, -0.92, -0.14)),
        (ROBUST, (-0.28, -0.61, 0.05), (-0.68, -0.94, -0.42)),
        (STRONG, (-0.22, -1.20, 0.77), (-0.62, -1.53, 0.30)),
    ],
)
def test_after_20_epochs_of_pgd_training_no_slope_excludes_0(strength, slope, difference):
    fit = exponent(runs(), "l1", strength)
    assert (round(fit.slope, 2), round(fit.low, 2), round(fit.high, 2)) == slope
    assert rounded(ad.analysis.exponent_difference(fit, exponent(runs(), "l1"))) == difference


def test_pgd_training_lowers_the_gradients_and_does_not_fit():
    ratio = {strength: means("l1") / means("l1", strength) for strength in STRENGTHS}
    assert 2 < ratio[WEAK][32] < 2.2
    assert (round(ratio[STRONG].min()), round(ratio[STRONG].max())) == (39, 206)
    flagged = {
        (p["spec"]["recipe"]["strength"], p["spec"]["images"]["size"]): p["metrics"]["flags"]["no gradient"]
        for p in points()
        if p["metrics"]["flags"]["no gradient"] > 0.01
    }
    assert flagged == {(STRONG, 128): 0.14}
    for strength, expected in ((WEAK, [0.89, 0.66]), (ROBUST, [0.61, 0.36])):
        assert [round(v, 2) for v in means("train_accuracy", strength, epochs(20))[[32, 128]]] == expected
    assert means("train_accuracy", ROBUST, epochs(20)).is_monotonic_decreasing
    assert means("train_accuracy", STRONG, epochs(20)).between(0.2, 0.3).all()
    for strength in (ROBUST, STRONG):
        assert (means("loss", strength) - math.log(10)).abs().max() < 0.13
    costs = pd.concat([means("accuracy") - means("accuracy", strength) for strength in STRENGTHS[1:]])
    assert (round(costs.min(), 2), round(costs.max(), 2)) == (0.02, 0.14)
    damage = ROBUST * means("initial_l1")
    assert (round(damage[32], 1), round(damage[128])) == (5.8, 20)


def test_accuracy_and_gradient_norm_are_on_one_line_at_all_sizes():
    table = runs()
    dummies = [table["size"] == size for size in (64, 128)]
    design = np.stack([np.ones(len(table)), np.log2(table["l1"]), *dummies], axis=1).astype(float)
    fit = stats.linregress(design[:, 1], table["accuracy"])
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ design.T @ table["accuracy"]
    variance = (table["accuracy"] - design @ found).var(ddof=0) * len(table) / (len(table) - 4)
    around = np.sqrt(variance * np.diag(inverse)) * stats.t.ppf(0.975, len(table) - 4)
    assert round(found[1], 3) == round(fit.slope, 3) == 0.015
    assert (round(found[1] - around[1], 3), round(found[1] + around[1], 3)) == (0.012, 0.019)
    assert all(abs(found[2:]) < 0.0025)
    assert all((around[2:] > 0.015) & (around[2:] < 0.025))
    accuracy = table["accuracy"].mean()
    assert math.sqrt(variance) < math.sqrt(accuracy * (1 - accuracy) / 200)
    by_series = table.groupby(["strength", "size"])["accuracy"].mean()
    assert (round(by_series.min(), 2), round(by_series.max(), 2)) == (0.18, 0.33)


def test_pgd_does_the_first_order_damage_and_one_step_falls_short():
    ratios = {}
    for attack in ("one-step-linf", "pgd-linf"):
        ratio = runs().assign(ratio=runs()[f"{attack}_damage"] / (grids.SMALL_EPS * runs()["l1"]))
        ratios[attack] = pd.concat([means("ratio", strength, ratio) for strength in STRENGTHS])
    assert ratios["pgd-linf"].between(0.955, 1.005).all()
    assert ratios["one-step-linf"].between(0.84, 0.98).all()
    assert round(ratios["one-step-linf"].min(), 2) == 0.85


def test_what_the_fine_pixels_cost():
    ratio = ad.analysis.geometric_mean_ratio(by_seed("l1", 128), by_seed("l1", 32))
    assert 2.9 < ratio.ratio < 3.1
    assert ratio.low > 2
    gain = by_seed("accuracy", 128) - by_seed("accuracy", 32)
    assert round(gain.mean(), 3) == 0.037
    assert 0 < interval(gain).low < 0.01
    assert [round(v, 3) for v in means("attacked")[[32, 128]]] == [0.232, 0.182]
    assert interval(by_seed("attacked", 128) - by_seed("attacked", 32)).contains(0)
    for column, less in (("accuracy", 0.018), ("attacked", 0.028)):
        for strength in STRENGTHS[1:]:
            for size in (64, 128):
                difference = by_seed(column, size, strength) - by_seed(column, 32, strength)
                assert interval(difference).contains(0) == ((strength, size) != (WEAK, 64))
        difference = by_seed(column, 64, WEAK) - by_seed(column, 32, WEAK)
        assert round(difference.mean(), 3) == -less


def test_loss_damage_and_accuracy_damage():
    lost = means("accuracy") - means("attacked")
    assert round(means("damage")[128] / means("damage")[32], 1) == 2.9
    assert round(lost[128] / lost[32], 1) == 2.4
    assert (lost < means("vulnerability")).all()


def test_gradients_at_training_and_test_images_part():
    early, late = epochs(5), epochs(20)
    for size in (32, 64, 128):
        assert 0.9 < means("test_l1", table=early)[size] / means("train_l1", table=early)[size] < 1.1
        assert means("train_l1", table=late)[size] < means("train_l1", table=epochs(10))[size]
        assert means("test_l1", table=late)[size] > means("test_l1", table=epochs(10))[size]
    gaps = {}
    for strength in STRENGTHS:
        for size in (32, 64, 128):
            pair = (by_seed(f"{split}_l1", size, strength, late) for split in ("test", "train"))
            gaps[strength, size] = ad.analysis.geometric_mean_ratio(*pair)
    assert [round(gaps[USUAL, size].ratio) for size in (32, 64, 128)] == [9, 13, 6]
    assert all(gaps[USUAL, size].low > 4 for size in (32, 64, 128))
    assert [round(gaps[WEAK, size].ratio, 1) for size in (32, 64, 128)] == [3.2, 4.6, 1.7]
    stronger = [gaps[strength, size] for strength in (ROBUST, STRONG) for size in (32, 64, 128)]
    assert all(gap.low < 1.05 and gap.ratio < 1.8 for gap in stronger)
    assert sum(gap.low > 1 for gap in stronger) == 1
    apart = [exponent(late, f"{split}_l1") for split in ("test", "train")]
    assert rounded(ad.analysis.exponent_difference(*apart)) == (-0.11, -0.22, -0.01)
    assert [round(slope, 2) for slope in apart[1].local] == [0.23, 0.82]  # no power law


def test_early_stopping_halves_the_gradients():
    for size in (32, 64, 128):
        early, late = (by_seed("test_l1", size, table=epochs(epoch)) for epoch in (10, 20))
        ratio = ad.analysis.geometric_mean_ratio(early, late)
        assert ratio.ratio < 0.5
        assert ratio.high < 1
        cost = by_seed("test_accuracy", size, table=epochs(20)) - by_seed("test_accuracy", size, table=epochs(10))
        assert -0.001 < cost.mean() < 0.055
        assert interval(cost).low < 0 < interval(cost).high
