"""The book's figures to play with: the dual norm, the paths of a small network, the recorded exponents."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from .interactive import Html, figure
from .tables import Series

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
