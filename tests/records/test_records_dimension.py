"""What chapter 8 says of the records of section 4.2 and of the readouts: its exponents and ratios, computed anew."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

import advdim as ad
from advdim import experiments

SERIES = {
    "tied": ("conv_dilated", "copy"),
    "interpolated": ("conv_dilated", "bilinear"),
    "strided": ("conv_strided", "copy"),
}
UNTIED = ["interpolated", "strided"]
LAST = 19  # the last epoch, from 0


@cache
def tables(name):
    points = experiments.recorded(f"{name}-cifar10-jpeg")[1]
    return experiments.runs(points), experiments.epochs(points), points[0]["spec"]["eps"]


def runs(series, name="4.2", strength=0.0):
    """The runs, and the epochs, of one series at one strength."""
    network, resize = SERIES[series]
    return tuple(
        t[t["network"].str.startswith(network) & (t["resize"] == resize) & (t["strength"] == strength)]
        for t in tables(name)[:2]
    )


def fit(table, column):
    return experiments.exponents(table.assign(all="all"), column, "all")["all"]


def by_size(values, table):
    return values.groupby(table["size"]).mean().to_numpy()


def rounded(found):
    """Mean and interval, as the chapter quotes them."""
    mean = found.slope if isinstance(found, ad.analysis.PowerLaw) else found.mean
    return round(mean, 2), round(found.low, 2), round(found.high, 2)


#: Exponents after usual training, with Student's intervals: gradient, damage, vulnerability, gradient before training.
EXPONENTS = {
    "interpolated": [(0.38, 0.33, 0.44), (0.35, 0.29, 0.42), (0.30, 0.02, 0.58), (0.55, 0.44, 0.67)],
    "strided": [(0.38, 0.28, 0.47), (0.40, 0.29, 0.51), (0.15, -0.14, 0.45), (0.65, 0.60, 0.70)],
    "tied": [(0.18, -0.04, 0.40), (0.17, -0.06, 0.40), (0.05, -0.79, 0.89), (0.23, 0.12, 0.35)],
}


@pytest.mark.parametrize("series", list(SERIES))
def test_exponents_after_usual_training(series):
    table = runs(series)[0]
    columns = ("l1", "pgd-linf_damage", "pgd-linf_vulnerability", "initial_l1")
    assert [rounded(fit(table, column)) for column in columns] == EXPONENTS[series]


def test_there_is_growth_without_ties_and_for_gradients_less_than_the_law():
    for series in UNTIED:
        table = runs(series)[0]
        assert fit(table, "l1").low > 0
        assert fit(table, "l1").high < 0.5
        assert fit(table, "pgd-linf_damage").low > 0
    assert fit(runs("strided")[0], "pgd-linf_damage").high > 0.5  # not excluded
    assert fit(runs("tied")[0], "l1").low < 0  # growth is not established there


@pytest.mark.parametrize(
    ("first", "second", "column", "expected"),
    [
        ("interpolated", "tied", "initial_l1", (0.32, 0.29, 0.35)),
        ("interpolated", "tied", "l1", (0.20, 0.01, 0.38)),
        ("interpolated", "tied", "pgd-linf_damage", (0.19, -0.01, 0.39)),
        ("strided", "tied", "l1", (0.20, 0.04, 0.35)),
        ("interpolated", "strided", "l1", (0.00, -0.04, 0.05)),
    ],
)
def test_differences_of_exponents(first, second, column, expected):
    pair = (fit(runs(series)[0], column) for series in (first, second))
    assert rounded(ad.analysis.exponent_difference(*pair)) == expected


def test_factors_from_32_to_128_px():
    for series, factor in (("interpolated", 2.88), ("strided", 2.85)):
        own = runs(series)[0].pivot(index="seed", columns="size", values="l1")
        assert round(ad.analysis.geometric_mean_ratio(own[128], own[32]).ratio, 2) == factor


def test_one_step_finds_a_share_of_one_by_s_where_maxima_tie_and_pgd_finds_all():
    eps = tables("4.2")[2]
    for series, low in (("tied", 0), ("interpolated", 0.75), ("strided", 1)):
        table = runs(series)[0]
        one, ten = (by_size(table[f"{a}_damage"] / (eps * table["l1"]), table) for a in ("one-step-linf", "pgd-linf"))
        assert (one > low).all()
        assert (one < 1.1).all()
        assert np.abs(ten - 1).max() < 0.1
        if series == "tied":
            assert one / one[0] == pytest.approx([1, 1 / 2, 1 / 4], abs=0.04)


def shares(series, strength=0.0):
    """Share of the gradient's squared length on the copied images, at 64 and 128 px: before training, and after."""
    table, epochs = runs(series, strength=strength)
    table, epochs = table[table["size"] > 32], epochs[(epochs["size"] > 32) & (epochs["epoch"] == LAST)]
    before = by_size(table["initial_on_l2"], table) / by_size(table["initial_l2"], table)
    after = by_size(epochs["test_on_l2"], epochs) / by_size(epochs["test_l2"], epochs)
    return before**2, after**2


def test_where_the_gradient_goes():
    law = [1 / 4, 1 / 16]
    before, after = shares("tied")
    assert before == pytest.approx(law, abs=0.001)
    assert after == pytest.approx(law, abs=0.015)
    before, after = shares("strided")
    assert before == pytest.approx(law, abs=0.02)
    assert (after > 2 * before).all()
    assert (after < 5 * before).all()


def test_the_parts_on_and_off_the_copies_in_the_strided_network():
    epochs = runs("strided")[1]
    epochs = epochs[epochs["epoch"] == LAST]
    on = epochs.assign(on=epochs["test_on_l1"].fillna(epochs["test_l1"]))
    assert rounded(fit(on, "on")) == (0.11, 0.02, 0.21)
    copied = epochs[epochs["size"] > 32]
    off = fit(copied.assign(off=np.sqrt(copied["test_l2"] ** 2 - copied["test_on_l2"] ** 2)), "off")
    assert rounded(off) == (0.02, -0.44, 0.48)  # from two sizes, and so wide that it says little


@pytest.mark.parametrize("series", list(SERIES))
def test_gradients_at_training_and_test_images_part(series):
    table, epochs = runs(series)
    test, train = (epochs.pivot_table(index="epoch", columns="size", values=f"{s}_l1") for s in ("test", "train"))
    assert (test.iloc[0] < table.groupby("size")["initial_l1"].mean() / 1.3).all()
    assert (np.diff(test.iloc[1:], axis=0) > 0).all()
    assert (test.iloc[-1] > 1.8 * test.iloc[0]).all()
    assert (train.iloc[-1] < train.iloc[0]).all()
    gap = (test.iloc[-1] / train.iloc[-1]).to_numpy()
    assert (gap > 3).all()
    if series == "strided":
        assert (gap > 10).all()
        assert (np.diff(gap) > 0).all()


def test_stopping_after_ten_epochs_reduces_the_damage():
    for series in SERIES:
        epochs = runs(series)[1]
        for _, own in epochs.groupby("size"):
            early, end = (own[own["epoch"] == epoch].set_index("seed") for epoch in (9, LAST))
            found = ad.analysis.geometric_mean_ratio(early["test_damage"], end["test_damage"])
            assert 0.36 < found.ratio < 0.70
            assert found.high < 1


def test_loss_damage_is_not_accuracy_damage():
    strided, interpolated = (runs(s)[0] for s in ("strided", "interpolated"))
    loss, lost = (
        [by_size(value(t), t) for t in (strided, interpolated)]
        for value in (
            lambda t: t["pgd-linf_damage"],
            lambda t: t["accuracy"] - t["pgd-linf_accuracy"],
        )
    )
    assert loss[0][1] > 3 * loss[1][1]
    assert lost[0][1] < 1.4 * lost[1][1]
    for series in SERIES:
        table = runs(series)[0]
        lost = table["accuracy"] - table["pgd-linf_accuracy"]
        assert (by_size(table["pgd-linf_vulnerability"], table) > by_size(lost, table)).all()
        assert by_size(lost, table)[2] > by_size(lost, table)[0]


# Readouts


def readout(kind):
    """The usually trained runs of one readout of the strided network."""
    table = tables("readouts")[0]
    names = table["network"]
    chosen = {
        "projected": names.str.contains("projected"),
        "connected": names.str.contains(" fc ") & ~names.str.contains("projected"),
        "averaged": ~names.str.contains(" fc "),
    }
    return table[chosen[kind] & (table["method"] == "none")]


def test_at_the_smallest_size_the_three_readouts_are_one_network():
    values = [readout(kind) for kind in ("projected", "connected", "averaged")]
    smallest = [v[v["size"] == 32].set_index("seed").sort_index()["l1"] for v in values]
    assert smallest[0].equals(smallest[1])
    assert smallest[0].equals(smallest[2])


def test_an_averaging_readout_loses_its_advantage_in_training():
    averaged, connected = readout("averaged"), readout("connected")
    assert rounded(fit(averaged, "initial_l1")) == (0.15, 0.08, 0.23)
    share = by_size(averaged["l1"], averaged) / by_size(connected["l1"], connected)
    before = by_size(averaged["initial_l1"], averaged) / by_size(connected["initial_l1"], connected)
    assert before[1] < 0.6
    assert share[1] > 0.8
    changed, of_connected = (by_size(t["pgd-linf_vulnerability"], t) for t in (averaged, connected))
    assert changed[1] > of_connected[1] - 0.02
    assert changed[2] > 1.3 * of_connected[2]
    epochs = tables("readouts")[1]
    last = epochs[(epochs["epoch"] == LAST) & (epochs["method"] == "none")]
    learnt = last.groupby(["network", "size"])["train_accuracy"].mean()
    assert (learnt.drop(index=(averaged["network"].iloc[0], 128)) > 0.97).all()
    assert learnt[averaged["network"].iloc[0], 128] < 0.8


def test_behind_a_projection():
    projected, connected = readout("projected"), readout("connected")
    tables_ = [t.pivot_table(index="seed", columns="size", values="l1") for t in (projected, connected)]
    assert rounded_ratio(tables_[0][128], tables_[0][64]) == (0.96, 0.58, 1.58)
    for column, expected in (
        ("l1", (0.49, 0.39, 0.62)),
        ("pgd-linf_damage", (0.47, 0.37, 0.60)),
        ("pgd-linf_vulnerability", (0.51, 0.22, 1.19)),
    ):
        values = [t[t["size"] == 128].set_index("seed")[column] for t in (projected, connected)]
        assert rounded_ratio(*values) == expected
    assert by_size(projected["accuracy"], projected) == pytest.approx(
        by_size(connected["accuracy"], connected), abs=0.01
    )


def rounded_ratio(a, b):
    found = ad.analysis.geometric_mean_ratio(a, b)
    return round(found.ratio, 2), round(found.low, 2), round(found.high, 2)


# Robust training


#: After 20 epochs of PGD training: exponent of the gradient, and what it is less than that of usual training.
AFTER_PGD = {
    0.001: [(-0.08, -0.33, 0.18), (-0.26, -0.33, -0.19)],
    0.004: [(-0.21, -0.39, -0.03), (-0.39, -0.74, -0.05)],
    0.016: [(-0.10, -0.26, 0.06), (-0.28, -0.47, -0.09)],
}


def test_pgd_training_lowers_the_level_and_after_20_epochs_the_slope():
    table = runs("tied")[0]
    usual, slope = by_size(table["l1"], table), fit(table, "l1")
    for strength, low, high in ((0.001, 1.9, 4.1), (0.004, 5, 16), (0.016, 30, 71)):
        own = runs("tied", strength=strength)[0]
        lowered = usual / by_size(own["l1"], own)
        assert ((lowered >= low) & (lowered <= high)).all()
        growth = fit(own, "l1")
        assert [rounded(growth), rounded(ad.analysis.exponent_difference(growth, slope))] == AFTER_PGD[strength]


def test_but_larger_networks_had_learnt_less_so_that_the_slopes_are_no_verdict():
    learnt = []
    for strength in (0.0, *AFTER_PGD):
        epochs = runs("tied", strength=strength)[1]
        last = epochs[epochs["epoch"] == LAST]
        learnt.append(by_size(last["train_accuracy"], last))
    assert (np.diff(learnt, axis=0) < 0).all()
    assert (np.array(learnt)[1:3, 2] < np.array(learnt)[1:3, 0] - 0.15).all()
    assert (learnt[3] < 0.3).all()
    epochs = runs("tied", strength=0.004)[1]
    equal = at_accuracy(epochs, 0.3)
    assert rounded(ad.analysis.exponent(equal.index, equal.to_numpy())) == (0.05, -0.77, 0.87)


def at_accuracy(history, level):
    """E||g||_1 on test images when the training accuracy first reaches a level, log-linearly between epochs."""
    out = {}
    for (d, seed), own in history.sort_values("epoch").groupby(["d", "seed"]):
        reached, logs = own["train_accuracy"].cummax().to_numpy(), np.log(own["test_l1"].to_numpy())
        (j, *_) = np.flatnonzero(reached >= level)
        share = 1.0 if j == 0 else (level - reached[j - 1]) / (reached[j] - reached[j - 1])
        out[d, seed] = np.exp(logs[j] * share + (logs[j - 1] * (1 - share) if j else 0))
    return pd.Series(out).unstack()


def test_a_fixed_strength_asks_more_of_larger_images():
    table = runs("interpolated")[0]
    initial = by_size(table["initial_l1"], table)
    assert 4 < initial[2] / initial[0] < 5


def test_test_accuracies_at_the_three_sizes_do_not_differ_beyond_their_error():
    found = [by_size(t["accuracy"], t) for t in (runs("tied", strength=s)[0] for s in (0.0, 0.001, 0.004, 0.016))]
    assert np.ptp(found, axis=1).max() < 0.05
    assert found[0].min() > found[3].max() + 0.05
