"""A table says the same in HTML and in text, rounds as it is told, and aligns what it rounds."""

import re
from html import unescape

import numpy as np
import pytest

from advdim.analysis import PowerLaw, exponent, origin, recorded, table

COLUMNS = {"network": "", "d": "d", "share": ".1%", "exponent": ""}


def cells(made):
    """What stands in the cells of the HTML, row by row."""
    rows = re.findall(r"<tr>(.*?)</tr>", made._repr_html_(), re.S)
    return [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def test_html_and_text_hold_the_same_rounded_cells():
    fit = exponent([64, 256, 1024], [[1.0], [2.0], [4.0]], paired=False)
    assert isinstance(fit, PowerLaw)
    made = table(COLUMNS, [("mlp <wide>", np.int64(64), 0.12345, fit), ("conv", 4096, np.float64(1), None)], "title")
    shown = cells(made)
    assert shown == [list(COLUMNS), ["mlp <wide>", "64", "12.3%", str(fit)], ["conv", "4096", "100.0%", "-"]]
    title, *lines = repr(made).splitlines()
    assert title == "title"
    assert [re.split(r" {2,}", line.strip()) for line in lines] == shown
    assert "<wide>" not in made._repr_html_()


def test_numbers_end_in_one_column_and_text_begins_in_one():
    lines = repr(table(COLUMNS, [("a", 5, 0.5, "x"), ("longer", 12345, 0.05, "y")])).splitlines()
    assert lines[1].index("5") == lines[2].index("12345") + 4
    assert lines[0].index("exponent") == lines[1].index("x") == lines[2].index("y")
    assert not any(line != line.rstrip() for line in lines)


def test_what_is_not_a_number_is_a_dash():
    assert cells(table({"a": ".2f", "b": ".2f", "c": ".2f"}, [(float("nan"), np.float32("nan"), "1 to 2")]))[1] == [
        "-",
        "-",
        "1 to 2",
    ]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"3 cells in the row .* for 2 columns: a, b"):
        table(["a", "b"], [(1, 2, 3)])


@pytest.mark.parametrize("name", ["4.1-cifar10-jpeg", "initialisation-cifar10-jpeg"])
def test_a_record_says_where_it_comes_from(name):
    header, points = recorded(name)
    said = dict(cells(origin(header, points))[1:])
    assert said["command"] == header["command"]
    assert said["points"] == str(len(points))
    assert all(point["provenance"]["commit"] in said["commit"] for point in points)
    if "flags" in points[0]["metrics"]:
        worst = max(point["metrics"]["flags"]["not raised"] for point in points)
        assert f"not raised {worst:g}" in said["images flagged, at most"]
