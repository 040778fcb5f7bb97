"""The book's figures to play with: dual norms, paths of a small network, kinks, recorded exponents and trainings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import METHODS
from .interactive import Html, figure
from .tables import Series

if TYPE_CHECKING:
    import pandas as pd

#: The colours of networks with kinks and of smooth ones; the site's style sheet has the first, for light and for dark.
KINKED_AND_SMOOTH = ("var(--kinked, #7c3aed)", "var(--smooth, #0f766e)")

#: Weights of the network 4-3-3-1, [to][from] per layer, and its image: chosen so that each layer has a shut gate.
WEIGHTS = (
    ((0.8, -0.5, 0.3, 0.6), (-0.7, 0.4, -0.9, 0.2), (0.5, 0.9, -0.4, -0.6)),
    ((0.9, 0.3, -0.6), (-0.8, 0.7, -0.5), (0.4, -0.6, 1.1)),
    ((1.0, -0.7, 0.8),),
)
IMAGE = (0.9, 0.6, 0.7, 0.2)
SVG = '<svg viewBox="0 0 {} {}" xmlns="http://www.w3.org/2000/svg">{}</svg>'


def paths() -> Html:
    """The network 4-3-3-1: choose a pixel and see its paths, gates and products; or release the backward walk.

    Returns:
        an object that notebooks display, with a still drawing of the network inside.
    """
    sizes, columns = (4, 3, 3, 1), (70, 250, 430, 610)
    places = [[(x, 40 + (i + 0.5) * 230 / n) for i in range(n)] for x, n in zip(columns, sizes, strict=True)]
    opened, values = [], np.array(IMAGE)
    for layer in WEIGHTS[:2]:
        values = np.array(layer) @ values
        opened.append(values > 0)
        values = values * opened[-1]
    gates = [[True] * 4, *opened, [True]]
    drawn = []
    for depth, (before, after) in enumerate(pairwise(places)):
        for i, (x, y) in enumerate(before):
            for j, (u, v) in enumerate(after):
                lit = gates[depth][i] and gates[depth + 1][j] and (depth or i == 0)
                weight = WEIGHTS[depth][j][i]
                colour = ("var(--cool)" if weight > 0 else "var(--hot)") if lit else "var(--faint)"
                width = f"{1 + 2.5 * abs(weight):.1f}" if lit else "1"
                drawn.append(
                    f'<line x1="{x}" y1="{y:.1f}" x2="{u}" y2="{v:.1f}" stroke="{colour}" stroke-width="{width}"/>'
                )
    for depth, column in enumerate(places):
        for i, (x, y) in enumerate(column):
            shut = "" if gates[depth][i] else ' stroke-dasharray="3 3"'
            words = f"x{i + 1}" if depth == 0 else "f" if depth == 3 else str(int(gates[depth][i]))
            drawn.append(
                f'<circle cx="{x}" cy="{y:.1f}" r="15" stroke="currentColor" stroke-width="1.5"{shut} '
                f'fill="var(--pst-color-background, Canvas)"/><text x="{x}" y="{y + 4:.1f}" '
                f'text-anchor="middle">{words}</text>'
            )
    label = (
        "A network of four pixels, three and three neurons and one output. The paths from the first pixel through "
        "open gates are lit, positive weights in one colour and negative ones in another; neurons with shut gates are "
        "dashed."
    )
    still = SVG.format(720, 300, "".join(drawn))
    caption = (
        "To play with: a network of four pixels, three and three neurons and one output. Choose a pixel: its paths "
        "light up, blue for positive weights and orange for negative ones, unless a gate on them is shut (0, dashed); "
        "the products of the open ones sum to the gradient. Or release walkers from the output of a network of three "
        "layers and see where they arrive."
    )
    data = {"weights": WEIGHTS, "image": IMAGE}
    return figure("paths", data, still, label=label, ident="fig-play-paths", caption=caption)


def dual_norm() -> Html:
    """Unit balls of the l_p norms and the worst perturbation for a gradient: turn it, and slide p from 1 to infinity.

    Returns:
        an object that notebooks display, with a still drawing for p = 1, 2 and infinity inside.
    """
    angle = math.pi / 6
    g = np.array([math.cos(angle), math.sin(angle)])
    worst = {"1": np.array([1.0, 0.0]), "2": g, "\u221e": np.array([1.0, 1.0])}
    balls = {
        "1": '<polygon points="80,0 0,-80 -80,0 0,80"',
        "2": '<circle r="80"',
        "\u221e": '<rect x="-80" y="-80" width="160" height="160"',
    }
    drawn = []
    for place, (p, ball) in enumerate(balls.items()):
        tip, end = 80 * worst[p], 120 * g
        drawn.append(
            f'<g transform="translate({120 + 240 * place},130)">{ball} fill="var(--faint)" stroke="currentColor"/>'
            f'<line x2="{end[0]:.1f}" y2="{-end[1]:.1f}" stroke="var(--cool)" stroke-width="2"/>'
            f'<text x="{end[0] + 4:.1f}" y="{-end[1]:.1f}">g</text>'
            f'<line x2="{tip[0]:.1f}" y2="{-tip[1]:.1f}" stroke="var(--hot)" stroke-width="3"/>'
            f'<circle cx="{tip[0]:.1f}" cy="{-tip[1]:.1f}" r="5" fill="var(--hot)"/>'
            f'<text y="118" text-anchor="middle">p = {p}</text></g>'
        )
    many = np.random.default_rng(0).normal(size=64).round(2).tolist()
    label = (
        "Unit balls of the norms l_1, l_2 and l_infinity, one gradient, and the point of each ball that is farthest in "
        "its direction: a corner on an axis, the gradient's own direction, and the corner of the square."
    )
    still = SVG.format(720, 260, "".join(drawn))
    data = {"angle": angle, "place": 0.5, "g": many}
    caption = (
        "To play with: turn the gradient and slide p. Left: the ball, the gradient (blue) and the worst perturbation "
        "(orange), which touches the highest level that the ball reaches. Right: the same for a gradient of 64 "
        "coordinates: p = 1 spends all on the largest, p = \u221e the same on each."
    )
    return figure("dual_norm", data, still, label=label, ident="fig-play-dual-norm", caption=caption)


def kinks(sizes: Iterable[float], damage: dict[str, Iterable[float]], slope: dict[str, float], at: Any) -> Html:
    """The loss along an attack for a network with kinks and for a smooth one, and the error of the first order.

    Args:
        sizes: of the attack, increasing.
        damage: name of a network to the rise of its loss at each size; first the network with kinks.
        slope: name to what a unit of size raises its loss by, to first order.
        at: sizes at which the first network crosses a kink.

    Returns:
        an object that notebooks display, with a still picture of the two curves inside.
    """
    grid, networks, drawn = list(sizes), {}, []
    top = max(slope[name] * grid[-1] for name in damage)
    for name, colour in zip(damage, KINKED_AND_SMOOTH, strict=True):
        rise = list(damage[name])
        rest = [d - slope[name] * e for d, e in zip(rise, grid, strict=True)]
        networks[name] = {"damage": rise, "slope": slope[name], "rest": rest}
        points = " ".join(
            f"{60 + 600 * e / grid[-1]:.1f},{270 - 240 * d / top:.1f}" for e, d in zip(grid, rise, strict=True)
        )
        drawn.append(f'<polyline points="60,270 {points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn.append(
            f'<line x1="60" y1="270" x2="660" y2="{270 - 240 * slope[name] * grid[-1] / top:.1f}" stroke="{colour}" '
            f'stroke-dasharray="5 4"/><text x="80" y="{50 + 18 * len(networks)}" style="fill:{colour}">{name}</text>'
        )
    crossed = sorted(float(place) for place in at)
    drawn += [
        f'<line x1="{60 + 600 * k / grid[-1]:.1f}" x2="{60 + 600 * k / grid[-1]:.1f}" y1="270" y2="278" '
        f'stroke="{KINKED_AND_SMOOTH[0]}"/>'
        for k in crossed
    ]
    words = '<text x="0" y="14">rise of the loss; dashed: first order</text><text x="660" y="296" text-anchor="end">'
    label = (
        "The loss along an attack for a network with kinks and a smooth one: both start along their tangents; the "
        "first bends at each kink, the other evenly."
    )
    caption = (
        "To play with: one image and its l\u221e attack. Left, the rise of the loss up to the size chosen: near 0 both "
        "networks follow their first order (dashed), and the ticks mark where a gate of the ReLU network turns. Right, "
        "the error of the first order at all sizes."
    )
    still = SVG.format(720, 300, "".join(drawn) + words + f"size of the attack, to {grid[-1]:g}; ticks: kinks</text>")
    data = {"sizes": grid, "networks": networks, "kinks": crossed}
    return figure("kinks", data, still, label=label, ident="fig-play-kinks", caption=caption)


def exponents(records: dict[str, Iterable[Series]]) -> Html:
    """Recorded networks over image sizes: measured exponents against predicted ones, refitted over a range of sizes.

    Args:
        records: name of the images to their series, as :func:`advdim.analysis.series` gives them for a record of the
            experiment ``initialisation``. The series of one record share their sizes.

    Returns:
        an object that notebooks display, with a still scatter plot inside.

    Raises:
        ValueError: if the series of a record differ in their sizes.
    """
    sets, dots = [], []
    for place, (name, given) in enumerate(records.items()):
        found = list(given)
        sizes = found[0].sizes.tolist()
        different = [str(s.network) for s in found if s.sizes.tolist() != sizes]
        if different:
            raise ValueError(f"{different[0]} of {name!r} has other sizes than {sizes}: give the series of equal sizes")
        networks = [_recorded(s) for s in found]
        sets.append({"name": name, "sizes": sizes, "d": found[0].d.tolist(), "networks": networks})
        for net in networks:
            x, y = (np.polyfit(np.log(found[0].d), np.log(net[key]), 1)[0] for key in ("walk", "l1"))
            shape = "var(--cool)" if place == 0 else "var(--hot)"
            dots.append(
                f'<circle cx="{74 + 340 * x:.1f}" cy="{256 - 340 * y:.1f}" r="5" fill="{shape}" opacity="0.8"/>'
            )
    axes = "".join(
        f'<line x1="40" x2="320" y1="{256 - 340 * v}" y2="{256 - 340 * v}" stroke="var(--faint)"/>'
        f'<text x="34" y="{260 - 340 * v}" text-anchor="end">{v}</text>'
        f'<text x="{74 + 340 * v}" y="306" text-anchor="middle">{v}</text>'
        for v in (0, 0.25, 0.5)
    )
    ends = '<line x1="46" y1="284" x2="312" y2="18" stroke="currentColor" stroke-dasharray="5 4"/>'
    words = '<text x="0" y="12">measured exponent in d</text><text x="60" y="325">predicted by path counting</text>'
    label = "Exponents of the gradient's l_1 norm in the input dimension, measured against predicted, a dot a network."
    still = SVG.format(720, 330, axes + ends + "".join(dots) + words)
    caption = (
        "To play with: every dot is a network of the record; on the dashed line, what is measured is what path "
        "counting predicts. Choose the images, mark a kind of network, or fit over fewer sizes; a dot's name and "
        "exponents stand below when it is chosen."
    )
    return figure("exponents", {"sets": sets}, still, label=label, ident="fig-play-exponents", caption=caption)


def _recorded(s: Series) -> dict[str, Any]:
    net = s.network
    return {
        "name": f"{net}, {s.resize}",
        "init": net.init,
        "padding": net.padding or "reflect",
        "readout": net.readout or {"mlp": "fc", "conv_strided": "average"}.get(net.name, "max"),
        "l1": s.metrics["l1"].mean(axis=1).tolist(),
        "walk": s.metrics["walk_l1"].mean(axis=1).tolist(),
    }


#: What the axes of :func:`collapse` can show, by the column of the table.
MEASURED = {
    "l1": "gradient norm E\u2016g\u2016\u2081",
    "pgd-linf_vulnerability": "vulnerability to PGD",
    "pgd-linf_damage": "damage of PGD",
    "l2": "gradient norm E\u2016g\u2016\u2082",
    "deepfool-linf_vulnerability": "vulnerability to DeepFool",
    "accuracy": "accuracy",
}
SHAPES = {"o": "circle", "s": "square", "^": "up", "v": "down", "D": "diamond", "P": "plus", "*": "star"}


def collapse(runs: pd.DataFrame) -> Html:
    """Trained networks over two of their measurements, chosen by the reader.

    Args:
        runs: one row per training run, as :func:`advdim.analysis.runs` gives it, with the columns of
            :data:`MEASURED`.

    Returns:
        an object that notebooks display, with a still plot of vulnerability over gradient norm inside.
    """
    import seaborn as sns

    palette, methods, dots = sns.color_palette("colorblind").as_hex(), [], []
    logs = np.log(runs.loc[runs["pgd-linf_vulnerability"] > 0, ["l1", "pgd-linf_vulnerability"]])
    low, high = logs.min().to_numpy(), logs.max().to_numpy()
    for method, (label, marker, place) in METHODS.items():
        own = runs[runs["method"] == method]
        if own.empty:
            continue
        name = (
            label.replace(r"$\ell_1$", "l\u2081").replace(r"$\ell_2$", "l\u2082").replace(r"$\ell_\infty$", "l\u221e")
        )
        points = own[["strength", "seed", *MEASURED]].to_numpy().tolist()
        methods.append({"name": name, "shape": SHAPES[marker], "colour": palette[place], "points": points})
        for _, _, l1, vulnerability, *_ in points:
            if vulnerability > 0:
                x, y = (np.log([l1, vulnerability]) - low) / (high - low)
                dots.append(f'<circle cx="{80 + 610 * x:.1f}" cy="{320 - 290 * y:.1f}" r="5" fill="{palette[place]}"/>')
    words = f'<text x="0" y="14">{MEASURED["pgd-linf_vulnerability"]}, logarithmic</text>'
    words += f'<text x="690" y="372" text-anchor="end">{MEASURED["l1"]}, logarithmic</text>'
    label = (
        "Trained networks, a dot each, in the colours of their methods: vulnerability rises with the gradient's norm."
    )
    caption = (
        "To play with: every mark is a trained network of the record. Choose what the axes show and which methods are "
        "drawn, and step through the networks: damage lies on one curve over the gradient's norm, vulnerability in a "
        "band about one, accuracy rises with both."
    )
    still = SVG.format(720, 380, "".join(dots) + words)
    data = {"axes": list(MEASURED.values()), "methods": methods}
    return figure("collapse", data, still, label=label, ident="fig-play-collapse", caption=caption)
