"""Tables as the chapters show them: HTML in a notebook, aligned text elsewhere, the same rounded numbers in both."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MISSING = "-"


@dataclass(frozen=True)
class Table:
    """A table whose cells are text by now.

    Attributes:
        columns: their headings.
        rows: of as many cells each.
        numeric: which columns hold numbers, and are set to the right.
        title: what the table shows, above it; may be empty.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    title: str = ""

    def _repr_html_(self) -> str:
        sides = ["right" if numeric else "left" for numeric in self.numeric]
        caption = f"<caption>{html.escape(self.title)}</caption>\n" if self.title else ""
        head = "".join(
            f'<th scope="col" style="text-align:{side}">{html.escape(name)}</th>'
            for name, side in zip(self.columns, sides, strict=True)
        )
        body = "\n".join(f"<tr>{self._row(row, sides)}</tr>" for row in self.rows)
        inside = f"{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
        return f'<table class="advdim-table">\n{inside}\n</table>'

    def _row(self, row: tuple[str, ...], sides: list[str]) -> str:
        first, *others = (
            f' style="text-align:{side}">{html.escape(cell)}</' for cell, side in zip(row, sides, strict=True)
        )
        return f'<th scope="row"{first}th>' + "".join(f"<td{cell}td>" for cell in others)

    def __repr__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[place]) for line in lines) for place in range(len(self.columns))]
        text = [
            "  ".join(
                cell.rjust(width) if numeric else cell.ljust(width)
                for cell, width, numeric in zip(line, widths, self.numeric, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join(([self.title] if self.title else []) + text)


def table(columns: Mapping[str, str] | Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> Table:
    """A table to end a cell with: its headings, how their numbers are rounded, and its rows.

    Args:
        columns: heading to the format of its cells, as ``format`` takes it (``".2f"``, ``".0%"``, ``"d"``, ``"g"``);
            an empty one means text, such as an exponent with its interval. A sequence of headings: all are text.
        rows: of a value for each column. What is None or not a number is shown as a dash.
        title: what the table shows, in a line above it.

    Returns:
        an object that notebooks display, as HTML or as text.

    Raises:
        ValueError: if a row has more or fewer cells than there are columns.
    """
    formats = dict(columns) if isinstance(columns, Mapping) else dict.fromkeys(columns, "")
    written = []
    for given in rows:
        cells = tuple(given)
        if len(cells) != len(formats):
            raise ValueError(
                f"{len(cells)} cells in the row {cells!r} for {len(formats)} columns: {', '.join(formats)}"
            )
        written.append(tuple(_cell(value, spec) for value, spec in zip(cells, formats.values(), strict=True)))
    return Table(tuple(formats), tuple(written), tuple(spec != "" for spec in formats.values()), title)


def _cell(value: Any, spec: str) -> str:
    if value is None:
        return MISSING
    if spec == "" or isinstance(value, str):
        return str(value)
    return MISSING if value != value else format(value, spec)


def origin(header: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> Table:
    """Where a record comes from: its command, date, commit, PyTorch and device, and how many points it has.

    Args:
        header: of the record.
        points: of the record, as :func:`advdim.analysis.recorded` returns both.

    Returns:
        a table of two columns. Where the points count images that an attack could not use, the last row has the
        largest share of each kind.
    """
    names = ("date", "commit", "torch", "device")
    rows = [("command", header["command"])]
    rows += [(name, ", ".join(sorted({point["provenance"][name] for point in points}))) for name in names]
    rows += [("points", str(len(points)))]
    flags = points[0]["metrics"].get("flags", {})
    if flags:
        most = {name: max(point["metrics"]["flags"][name] for point in points) for name in flags}
        rows += [("images flagged, at most", ", ".join(f"{name} {share:g}" for name, share in most.items()))]
    return table(["record", ""], rows)
