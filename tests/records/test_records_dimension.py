"""What chapter 8 says of the records of section 4.2 and of the readouts: its exponents and ratios, computed anew."""

from functools import cache

import numpy as np
import pytest

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


@pytest.mark.parametrize("series", UNTIED)
def test_after_usual_training_the_gradient_grows_but_less_than_the_law(series):
    for column in ("l1", "pgd-linf_damage"):
        found = fit(runs(series)[0], column)
        assert 0.3 < found.slope < 0.45
        assert 0 < found.low < found.high < 0.5
    l1 = by_size(runs(series)[0]["l1"], runs(series)[0])
    assert 2.7 < l1[2] / l1[0] < 3.1
    assert 0.5 < fit(runs(series)[0], "initial_l1").slope < 0.67
    assert fit(runs(series)[0], "pgd-linf_vulnerability").low > 0


def test_ties_hide_half_of_the_growth():
    table = runs("tied")[0]
    for column in ("initial_l1", "l1", "pgd-linf_damage"):
        assert 0.1 < fit(table, column).slope < 0.3
    for column in ("l1", "pgd-linf_damage"):
        assert fit(table, column).slope < 0.55 * fit(runs("interpolated")[0], column).slope


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


def test_the_parts_on_and_off_the_copies_follow_the_theorem_in_the_strided_network():
    epochs = runs("strided")[1]
    epochs = epochs[epochs["epoch"] == LAST]
    on = epochs.assign(on=epochs["test_on_l1"].fillna(epochs["test_l1"]))
    assert fit(on, "on").high < 0.2
    copied = epochs[epochs["size"] > 32]
    off = fit(copied.assign(off=np.sqrt(copied["test_l2"] ** 2 - copied["test_on_l2"] ** 2)), "off")
    assert abs(off.slope) < 0.1
    assert off.contains(0)
    assert off.high - off.low > 0.2


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


def test_early_stopping_costs_no_accuracy_and_dampens_damage():
    saved = []
    for series in SERIES:
        epochs = runs(series)[1]
        stop = epochs.loc[epochs.groupby(["size", "seed"])["test_accuracy"].idxmax()]
        end = epochs[epochs["epoch"] == LAST]
        saved += list(by_size(stop["test_damage"], stop) / by_size(end["test_damage"], end))
        assert (by_size(stop["test_accuracy"], stop) >= by_size(end["test_accuracy"], end)).all()
    assert max(saved) < 1.001
    assert min(saved) == pytest.approx(2 / 3, abs=0.04)


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
    assert fit(averaged, "initial_l1").high < 0.2
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


def test_behind_a_projection_nothing_grows_from_64_px_on_and_accuracy_stays():
    projected, connected = readout("projected"), readout("connected")
    for column in ("l1", "pgd-linf_damage", "pgd-linf_vulnerability"):
        values, without = (by_size(t[column], t) for t in (projected, connected))
        assert values[2] < 1.05 * values[1]
        assert values[2] / without[2] == pytest.approx(0.5, abs=0.04)
    assert by_size(projected["accuracy"], projected) == pytest.approx(
        by_size(connected["accuracy"], connected), abs=0.01
    )


# Robust training


def test_pgd_training_lowers_the_level_undoes_the_growth_and_costs_the_fit():
    usual = by_size(runs("tied")[0]["l1"], runs("tied")[0])
    learnt = []
    for strength, low, high in ((0.0, 1, 1), (0.001, 1.9, 4.1), (0.004, 5, 16), (0.016, 30, 71)):
        table, epochs = runs("tied", strength=strength)
        lowered = usual / by_size(table["l1"], table)
        assert (lowered >= low).all()
        assert (lowered <= high).all()
        growth = fit(table, "l1")
        if strength == 0.001:
            assert growth.contains(0)
            assert growth.high < fit(runs("tied")[0], "l1").low
        elif strength:
            assert growth.high < 0
        last = epochs[epochs["epoch"] == LAST]
        learnt.append(by_size(last["train_accuracy"], last))
    assert (np.diff(learnt, axis=0) < 0).all()
    assert (np.array(learnt)[:3, 2] < np.array(learnt)[:3, 0]).all()
    assert (learnt[3] < 0.3).all()


def test_a_fixed_strength_asks_more_of_larger_images():
    table = runs("interpolated")[0]
    initial = by_size(table["initial_l1"], table)
    assert 4 < initial[2] / initial[0] < 5


def test_test_accuracies_at_the_three_sizes_do_not_differ_beyond_their_error():
    found = [by_size(t["accuracy"], t) for t in (runs("tied", strength=s)[0] for s in (0.0, 0.001, 0.004, 0.016))]
    assert np.ptp(found, axis=1).max() < 0.05
    assert found[0].min() > found[3].max() + 0.05
