"""The book's figures: one style, and the figures that several chapters share. Tables in, figures out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: How each training method is drawn, in all figures: its label, marker, and place in the palette.
#:
#: :meta hide-value:
METHODS: dict[str, tuple[str, str, int]] = {
    "none": ("usual training", "*", 7),
    "gradient-l1": (r"gradient penalty, $\ell_1$", "o", 0),
    "gradient-l2": (r"gradient penalty, $\ell_2$", "s", 9),
    "augment-linf": (r"augmentation, $\ell_\infty$", "^", 1),
    "augment-l2": (r"augmentation, $\ell_2$", "v", 3),
    "pgd-linf": (r"PGD, $\ell_\infty$", "D", 2),
    "cross-lipschitz": ("cross-Lipschitz", "P", 4),
    "cross-lipschitz-random": ("cross-Lipschitz", "P", 4),
}


#: The colour of what is not a training method, in all figures: networks by their last layer, laws, attacks.
#:
#: :meta hide-value:
COLOURS: dict[str, str] = {
    "law": "#4d4d4d",  # what a theorem says, dashed
    "attack": "#c2410c",  # as in the figures to play with
    "gradient": "#1d5fa8",
    "random": "#6b6b6b",
    "ReLU": "#6d28d9",
    "softplus": "#0f766e",
    "initialisation": "#7f5539",
    "zero padding": "#b5651d",
    "average": "#aa4499",
    "max-pool": "#998800",
    "projected": "#be185d",
    "dilated, copied": "#0e7490",
    "dilated, interpolated": "#2b8fb4",
    "dilated, natural": "#9f1239",
    "strided": "#117733",
    "convolutional": "#15803d",
    "fully connected": "#332288",
}

#: Colours of the sizes of images, and of other ordered things, from small to large.
RAMP = ("#0d0887", "#5302a3", "#8b0aa5", "#b83289", "#db5c68", "#e0702f")

#: Width of the column of text, in inches of 100 pixels: a figure of this width is shown in its own size.
COLUMN = 7.2


def style() -> None:
    """Set the style of every figure, at two pixels for one of the screen: sharp, and 9 pixels of type or more.

    A figure as wide as :data:`COLUMN` fills the column; notebooks and the site show it at half its pixels.
    """
    import matplotlib.pyplot as plt

    setup()
    plt.rcParams.update(
        {
            "figure.figsize": (COLUMN, 4.0),
            "font.size": 10,
            "axes.labelsize": 10,
            "axes.titlesize": 11,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "legend.title_fontsize": 9,
        }
    )
    try:
        from IPython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # no notebook
        return
    if get_ipython() is not None:
        set_matplotlib_formats("retina")  # type: ignore[no-untyped-call]  # matplotlib's


def colours(names: Iterable[str]) -> dict[str, str]:
    """The colour of each series of a figure, by what its name speaks of, the same in all figures.

    Args:
        names: "before training" and "initialisation"; "usual" and "usual training"; names that begin with "PGD", in
            order of strength, the stronger the darker; sizes, as "32 px"; and what stands in :data:`COLOURS`, of which
            the first that the name holds counts.

    Returns:
        Name to colour, in the order given; what no rule knows gets the palette's colours in turn.
    """
    import seaborn as sns

    given = list(dict.fromkeys(names))
    palette = sns.color_palette("colorblind").as_hex()
    pgd, spare, found = [n for n in given if n.startswith("PGD")], iter(palette * len(given)), {}
    for name in given:
        concept = next((c for c in COLOURS if c in name.replace("mlp", "fully connected")), None)
        if name in pgd:
            found[name] = str(
                sns.dark_palette(palette[METHODS["pgd-linf"][2]], len(pgd) + 2).as_hex()[-1 - pgd.index(name)]
            )
        elif name.startswith("usual"):
            found[name] = palette[METHODS["none"][2]]
        elif name.startswith("before"):
            found[name] = COLOURS["initialisation"]
        elif name.endswith(" px"):
            found[name] = RAMP[max(0, min(int(name[:-3]).bit_length() - 4, len(RAMP) - 1))]
        else:
            found[name] = COLOURS[concept] if concept else next(spare)
    return found


def size_axis(ax: Any, sides: Iterable[int], which: str = "x") -> None:
    """Label a logarithmic axis with the image's side in pixels: where the data lie, and nowhere else.

    Args:
        ax: the axes.
        sides: sides in pixels, the places on the axis.
        which: "x" or "y".
    """
    from matplotlib import ticker

    shown = sorted(set(sides))
    ax.set(**{f"{which}scale": "log", f"{which}label": "image size (px)"})
    axis = getattr(ax, f"{which}axis")
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_ticks(shown, [f"{side:g}" for side in shown])


def setup() -> None:
    """Set the style of every figure: a white grid, seaborn's colour-blind palette, no random ids in the files."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.8),
            "figure.dpi": 100,
            "savefig.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
            "axes.titlesize": "medium",
            "svg.hashsalt": "advdim",
        }
    )


def by_method(ax: Any, table: pd.DataFrame, x: str, y: str, *, line: bool = True, size: float = 6) -> None:
    """Draw training runs, a marker each, in the shape and colour of their method.

    Args:
        ax: the axes to draw on; their labels get the names of the columns.
        table: one row per run, with columns ``method`` and ``strength``, as :func:`advdim.analysis.runs` gives it.
        x: the column on the horizontal axis.
        y: the column on the vertical axis.
        line: whether a line joins the means over the runs of each strength, in order of strength.
        size: of the markers, in points; stars are larger.

    Raises:
        ValueError: for a method that has no entry in :data:`METHODS`.
    """
    import seaborn as sns

    unknown = sorted(set(table["method"]) - set(METHODS))
    if unknown:
        raise ValueError(f"no style for the method {unknown[0]!r}: there are {', '.join(METHODS)}")
    palette = sns.color_palette("colorblind")
    for method, (label, marker, place) in METHODS.items():
        own = table[table["method"] == method]
        if own.empty:
            continue
        colour, extent = palette[place], 1.7 * size if marker == "*" else size
        look = {"color": colour, "markersize": extent, "markeredgecolor": "white", "markeredgewidth": 0.5}
        ax.plot(own[x], own[y], marker, alpha=0.8, label=label, **look)
        if line:
            means = own.groupby("strength")[[x, y]].mean()
            ax.plot(means[x], means[y], color=colour, linewidth=1)
    ax.set(xlabel=x, ylabel=y)


def by_size(ax: Any, table: pd.DataFrame, y: str, by: str, *, guide: bool = True) -> None:
    """Draw what training runs measured against the side of the image, on logarithmic axes; colours by :func:`colours`.

    Args:
        ax: the axes to draw on.
        table: one row per run, with columns ``d`` and ``size``, as :func:`advdim.analysis.runs` gives it; without
            ``size``, the axis is the square root of ``d``.
        y: the column on the vertical axis: its mean over runs, and a bar over their range.
        by: the column that tells the lines apart, in the order of first appearance.
        guide: whether to draw a dashed line of slope 1, the square-root law, from each line's first mean.
    """
    import numpy as np

    pixels = "size" in table
    groups = [(str(name), own) for name, own in table.groupby(by, sort=False)]
    looks = colours(name for name, _ in groups)
    for place, (name, own) in enumerate(groups):
        found = own.groupby("size" if pixels else "d")[y].agg(["mean", "min", "max"])
        side, means = np.asarray(found.index if pixels else np.sqrt(found.index)), found["mean"]
        if guide:  # one entry in the legend for all
            label = r"$\propto \sqrt{d}$" if place == 0 else "_"
            colour = COLOURS["law"] if place == 0 else looks[name]
            ax.plot(side, means.iloc[0] * side / side[0], "--", color=colour, linewidth=1, label=label, zorder=1)
        bars = np.stack([means - found["min"], found["max"] - means])
        look = {"color": looks[name], "marker": "os^Dv"[place % 5], "markersize": 6, "capsize": 3}
        ax.errorbar(side, means, bars, label=name, linewidth=1.5, **look)
    log_axes(ax, "y")
    size_axis(ax, table["size"] if pixels else np.sqrt(table["d"]))
    ax.set(xlabel="image size (px)" if pixels else r"$\sqrt{d}$", ylabel=y)


def log_axes(ax: Any, which: str = "xy") -> None:
    """Make axes logarithmic, with plain numbers at 1, 2 and 5 times the powers of ten.

    Args:
        ax: the axes.
        which: "x", "y" or "xy".
    """
    from matplotlib import ticker

    ax.set(**{f"{name}scale": "log" for name in which})
    for name in which:
        axis = getattr(ax, f"{name}axis")
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.set_minor_locator(ticker.NullLocator())
