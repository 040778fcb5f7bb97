"""Figures that several chapters share: what is drawn where."""

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from advdim.analysis import figures
from advdim.train import objectives


def table(*methods):
    """Two strengths, stronger first, and two seeds per method."""
    return pd.DataFrame(
        [
            {"method": m, "strength": s, "l1": 10 * i + s + seed, "damage": i + 100 * s + seed}
            for i, m in enumerate(methods)
            for s in (0.3, 0.1)
            for seed in (0, 1)
        ]
    )


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


def test_every_run_is_a_marker_at_its_place(ax):
    runs = table("augment-l2", "none")
    figures.by_method(ax, runs, "l1", "damage", line=False)
    drawn = {line.get_label(): np.column_stack(line.get_data()) for line in ax.lines}
    assert set(drawn) == {"usual training", r"augmentation, $\ell_2$"}
    for method, label in (("none", "usual training"), ("augment-l2", r"augmentation, $\ell_2$")):
        own = runs[runs.method == method]
        np.testing.assert_array_equal(drawn[label], own[["l1", "damage"]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("l1", "damage")


def test_lines_join_the_means_over_seeds_in_order_of_strength(ax):
    figures.by_method(ax, table("none", "pgd-linf"), "l1", "damage")
    joined = [np.column_stack(line.get_data()) for line in ax.lines if line.get_linestyle() == "-"]
    np.testing.assert_allclose(joined, [[[0.6, 10.5], [0.8, 30.5]], [[10.6, 11.5], [10.8, 31.5]]])
    labels = ax.get_legend_handles_labels()[1]
    assert len(labels) == 2  # a line has no entry of its own


def test_methods_can_be_told_apart_without_colour_and_with_it():
    looks = {label: (marker, place) for label, marker, place in figures.METHODS.values()}
    markers, places = zip(*looks.values(), strict=True)
    assert len(set(markers)) == len(set(places)) == len(looks) == 7
    assert set(figures.METHODS) == set(objectives.METHODS)


def test_a_method_without_a_style_is_refused(ax):
    with pytest.raises(ValueError, match="no style for the method 'adversarial-logit'"):
        figures.by_method(ax, table("none", "adversarial-logit"), "l1", "damage")


def test_logarithmic_axes_have_plain_numbers_at_1_2_and_5(ax):
    ax.plot([0.3, 60], [0.3, 60])
    figures.log_axes(ax, "x")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    low, high = ax.get_xlim()
    shown = [
        label.get_text() for label, at in zip(ax.get_xticklabels(), ax.get_xticks(), strict=True) if low <= at <= high
    ]
    assert shown == ["0.5", "1", "2", "5", "10", "20", "50"]
    assert len(ax.xaxis.get_minorticklocs()) == 0


def test_by_size_draws_means_ranges_and_the_square_root_law(ax):
    rows = [
        {"d": d, "seed": seed, "net": net, "l1": factor * d**power * (1 + 0.1 * seed)}
        for net, factor, power in (("second", 2, 0.5), ("first", 1, 0.25))
        for d in (64, 256, 1024)
        for seed in (-1, 0, 1)
    ]
    figures.by_size(ax, pd.DataFrame(rows), "l1", "net")
    handles, labels = ax.get_legend_handles_labels()
    assert labels == [r"$\propto \sqrt{d}$", "second", "first"]
    guide, second, first = handles[0], *(h.lines[0] for h in handles[1:])
    assert second.get_xdata().tolist() == [8, 16, 32]
    assert second.get_ydata() == pytest.approx([16, 32, 64])
    assert guide.get_ydata() == pytest.approx([16, 32, 64])
    assert first.get_ydata() == pytest.approx([8**0.5, 16**0.5, 32**0.5])
    ends = [h.lines[1] for h in handles[1:]]
    assert [cap.get_ydata()[0] for cap in ends[0]] == pytest.approx([16 * 0.9, 16 * 1.1])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["8", "16", "32"]
    guides = [line.get_ydata() for line in ax.lines if line.get_linestyle() == "--"]
    assert len(guides) == 2
    assert guides[1] == pytest.approx(8**0.5 * np.array([1, 2, 4]))
    ax.clear()
    figures.by_size(ax, pd.DataFrame(rows).assign(size=[row["d"] ** 0.5 * 4 for row in rows]), "l1", "net")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["32", "64", "128"]
    assert ax.get_xlabel() == "image size (px)"
    ax.clear()
    figures.by_size(ax, pd.DataFrame(rows), "l1", "net", guide=False)
    assert ax.get_legend_handles_labels()[1] == ["second", "first"]


def test_a_size_axis_has_a_tick_for_each_size_and_no_other(ax):
    ax.plot([8, 64], [1, 8])
    figures.size_axis(ax, [64, 8, 16, 8])
    assert [(tick, label.get_text()) for tick, label in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)] == [
        (8, "8"),
        (16, "16"),
        (64, "64"),
    ]
    assert (ax.get_xscale(), len(ax.xaxis.get_minorticklocs())) == ("log", 0)


def test_concepts_have_a_colour_each_that_can_be_read_on_white():
    def luminance(colour):
        channels = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(colour)
        ]
        return np.dot([0.2126, 0.7152, 0.0722], channels)

    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
    for concept, colour in figures.COLOURS.items():
        assert 1.05 / (luminance(colour) + 0.05) >= 3, concept  # WCAG 1.4.11


def test_type_is_nine_pixels_or_more_in_a_figure_as_wide_as_the_column():
    with matplotlib.rc_context():
        figures.style()
        sizes = [plt.rcParams[f"{name}.labelsize"] for name in ("axes", "xtick", "ytick")]
        assert min(*sizes, plt.rcParams["legend.fontsize"], plt.rcParams["font.size"]) * figures.COLUMN / 7.2 >= 9
        assert plt.rcParams["figure.figsize"][0] == figures.COLUMN


def test_a_name_has_one_colour_in_all_figures_whatever_stands_beside_it():
    trainings = ["initialisation", "usual training", "PGD training, 0.001", "PGD training, 0.004"]
    first = figures.colours(trainings)
    assert list(first) == trainings
    assert len(set(first.values())) == len(trainings)
    assert first["initialisation"] == figures.colours(["x", "before training"])["before training"]
    assert first["usual training"] == figures.colours(["usual"])["usual"]
    lightness = [sum(matplotlib.colors.to_rgb(first[name])) for name in trainings[2:]]
    assert lightness[0] > lightness[1]  # the stronger the darker
    sizes = figures.colours(f"{side} px" for side in (8, 16, 32, 64, 128, 256))
    assert list(sizes.values()) == list(figures.RAMP)
    assert figures.colours(["strided, fc, He", "mlp"])["strided, fc, He"] == figures.COLOURS["strided"]
    assert figures.colours(["strided, zero padding"])["strided, zero padding"] == figures.COLOURS["zero padding"]
    assert figures.colours(["mlp, He"])["mlp, He"] == figures.COLOURS["fully connected"]
    assert len(set(figures.colours("abc").values())) == 3
