"""What chapter 9 says of the record of natural images, computed again from the record."""

import math
from functools import cache

import pandas as pd
import pytest
from scipy import stats

import advdim as ad
from advdim import experiments
from advdim.experiments import grids

USUAL, ROBUST = 0.0, 0.004


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
    return stats.ttest_1samp(differences, 0).confidence_interval(0.95)


def test_the_setting_is_the_chapters():
    assert set(runs()["strength"]) == {USUAL, ROBUST}
    assert sorted(runs()["size"].unique()) == [32, 64, 128]
    assert (runs()["seed"].nunique(), len(runs()), grids.SMALL_EPS) == (3, 18, 0.0008)
    assert {p["spec"]["eps"] for p in points()} == {grids.SMALL_EPS}


@pytest.mark.parametrize(
    ("column", "slope", "low", "high"),
    [
        ("l1", 0.40, 0.36, 0.47),
        ("damage", 0.39, 0.34, 0.45),
        ("vulnerability", 0.35, 0.26, 0.50),
        ("initial_l1", 0.45, 0.42, 0.50),
    ],
)
def test_the_growth_survives_usual_training(column, slope, low, high):
    fit = exponent(runs(), column)
    assert (round(fit.slope, 2), round(fit.low, 2), round(fit.high, 2)) == (slope, low, high)


def test_the_first_doubling_of_the_side_follows_the_law_and_the_second_does_less():
    assert [round(slope, 2) for slope in exponent(runs(), "l1").local] == [0.51, 0.29]


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
    measured, counted = (ad.scaling.exponent(wide.d, wide.metrics[name]).slope for name in ("l1", "walk_l1"))
    assert (round(measured, 2), round(counted, 2)) == (0.44, 0.45)
    assert exponent(runs(), "initial_l1").contains(measured)


def test_cifar_without_ties_has_nearly_the_same_exponent_and_with_ties_half_of_it():
    other = experiments.runs(experiments.recorded("4.2-cifar10-jpeg")[1])
    other = other[other["network"].str.startswith("conv_dilated")]
    interpolated, copied = (exponent(other[other["resize"] == resize], "l1") for resize in ("bilinear", "copy"))
    own = exponent(runs(), "l1")
    assert own.contains(interpolated.slope)
    assert abs(interpolated.slope - own.slope) < 0.05
    assert 0.4 < copied.slope / own.slope < 0.6


def test_pgd_training_leaves_no_growth_and_does_not_fit():
    fit = exponent(runs(), "l1", ROBUST)
    assert round(fit.slope, 2) == -0.29
    assert fit.high < 0
    fitted = means("train_accuracy", ROBUST, epochs(20))
    assert [round(v, 2) for v in fitted[[32, 128]]] == [0.61, 0.36]
    assert fitted.is_monotonic_decreasing
    assert (means("loss", ROBUST) - math.log(10)).abs().max() < 0.1
    assert (means("accuracy") - means("accuracy", ROBUST)).between(0.055, 0.095).all()
    damage = ROBUST * means("initial_l1")
    assert (round(damage[32], 1), round(damage[128])) == (5.8, 20)


def test_pgd_does_the_first_order_damage_and_one_step_falls_short():
    ratios = {}
    for attack in ("one-step-linf", "pgd-linf"):
        ratio = runs().assign(ratio=runs()[f"{attack}_damage"] / (grids.SMALL_EPS * runs()["l1"]))
        ratios[attack] = pd.concat([means("ratio", strength, ratio) for strength in (USUAL, ROBUST)])
    assert ratios["pgd-linf"].between(0.965, 1.005).all()
    assert ratios["one-step-linf"].between(0.84, 0.98).all()
    assert round(ratios["one-step-linf"].min(), 2) == 0.85


def test_what_the_fine_pixels_cost():
    ratio = ad.collapse.ratio(by_seed("l1", 128), by_seed("l1", 32))
    assert 2.9 < ratio.ratio < 3.1
    assert ratio.low > 2
    gain = by_seed("accuracy", 128) - by_seed("accuracy", 32)
    assert round(gain.mean(), 3) == 0.037
    assert 0 < interval(gain).low < 0.01
    assert [round(v, 3) for v in means("attacked")[[32, 128]]] == [0.232, 0.182]
    low, high = interval(by_seed("attacked", 128) - by_seed("attacked", 32))
    assert low < 0 < high
    for column in ("accuracy", "attacked"):
        for size in (64, 128):
            low, high = interval(by_seed(column, size, ROBUST) - by_seed(column, 32, ROBUST))
            assert low < 0 < high


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
    for strength in (USUAL, ROBUST):
        for size in (32, 64, 128):
            pair = (by_seed(f"{split}_l1", size, strength, late) for split in ("test", "train"))
            gaps[strength, size] = ad.collapse.ratio(*pair)
    assert [round(gaps[USUAL, size].ratio) for size in (32, 64, 128)] == [9, 13, 6]
    assert all(gaps[USUAL, size].low > 4 for size in (32, 64, 128))
    assert all(gaps[ROBUST, size].low < 1.05 and gaps[ROBUST, size].ratio < 1.8 for size in (32, 64, 128))
    assert round(exponent(late, "train_l1").slope, 2) == 0.52


def test_early_stopping_halves_the_gradients():
    for size in (32, 64, 128):
        early, late = (by_seed("test_l1", size, table=epochs(epoch)) for epoch in (10, 20))
        ratio = ad.collapse.ratio(early, late)
        assert ratio.ratio < 0.5
        assert ratio.high < 1
        cost = by_seed("test_accuracy", size, table=epochs(20)) - by_seed("test_accuracy", size, table=epochs(10))
        assert -0.001 < cost.mean() < 0.055
        assert interval(cost).low < 0 < interval(cost).high
