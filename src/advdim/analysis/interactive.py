"""Figures to play with: one piece of HTML each, with its data, its script and a still picture inside.

A figure needs nothing from elsewhere, so it works in a site opened from a disk, in Colab and in Jupyter. Where no
script runs, and in print, the still picture stands in its place. The same arguments give the same bytes.
"""

from __future__ import annotations

import html
import json
import math
from importlib import resources
from typing import Any

DIGITS = 4


class Html:
    """What a notebook shows as HTML, and elsewhere as a line of text."""

    def __init__(self, source: str, label: str) -> None:
        self.source, self.label = source, label

    def _repr_html_(self) -> str:
        return self.source

    def __repr__(self) -> str:
        return f"<{self.label}>"


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """Numbers to so many significant digits, in nested lists and dictionaries, as JSON can hold them.

    Raises:
        ValueError: for a number that is not finite, which JSON has no word for.
    """
    if isinstance(value, dict):
        return {str(key): rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be drawn: leave it out")
        short = float(f"{value:.{digits}g}")
        return int(short) if short == int(short) else short
    return value


def _file(name: str) -> str:
    return resources.files(__package__).joinpath("javascript", name).read_text(encoding="utf-8").strip()


def figure(script: str, data: Any, still: str, *, label: str, ident: str, caption: str = "") -> Html:
    """A figure that a script draws, with a still picture for where none runs.

    Args:
        script: name of a file of ``advdim/analysis/javascript``, without its ending, that defines the function
            ``figure(root, live, data)``: it fills the element ``live``.
        data: what the script draws: lists, dictionaries, numbers and strings. Numbers keep four significant digits.
        still: HTML of the still picture, usually inline SVG in the colour ``currentColor``.
        label: what the figure shows, in words, for those who do not see it.
        ident: the id of its element; a page may hold one figure of each.
        caption: words below the figure: what to do with it and what there is to see.

    Returns:
        an object that notebooks display.

    Raises:
        FileNotFoundError: if there is no such script.
        ValueError: if a number of the data is not finite.
    """
    packed = json.dumps(rounded(data), ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    text = html.escape(label, quote=True)
    start = f"kit.start({json.dumps(ident)}, figure);"
    source = "\n".join(
        [
            f'<div class="advdim-fig" id="{ident}" role="group" aria-label="{text}">',
            f"<style>{_file('figure.css')}</style>",
            f'<div class="static" role="img" aria-label="{text}">{still}</div>',
            f'<script type="application/json">{packed}</script>',
            f"<script>(() => {{\n{_file('kit.js')}\n{_file(script + '.js')}\n{start}\n}})();</script>",
            *([f'<p class="caption">{html.escape(caption)}</p>'] if caption else []),
            "</div>",
        ]
    )
    return Html(source, label)
