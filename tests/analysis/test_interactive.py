"""Figures to play with: whole in themselves, the same every time, right in what they draw before a script runs."""

import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from advdim.analysis import figures as drawn
from advdim.analysis import interactive, playgrounds, recorded, runs, series


def made():
    points = recorded("initialisation-cifar10-jpeg")[1]
    return [
        playgrounds.paths(),
        playgrounds.dual_norm(),
        playgrounds.exponents({"CIFAR-10": series(points)}),
        playgrounds.collapse(runs(recorded("4.1-cifar10-jpeg")[1])),
        playgrounds.kinks(
            [0.01, 0.1], {"bent": [0.011, 0.3], "smooth": [0.01, 0.11]}, {"bent": 1, "smooth": 1}, [0.02]
        ),
    ]


@pytest.fixture(scope="module")
def figures():
    return [figure._repr_html_() for figure in made()]


def data(source):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', source, re.S)[1])


def test_numbers_keep_four_digits_wherever_they_stand():
    given = {"a": [1 / 3, 2.0, 123456.0], 4: (1e-9, True, "1.23456789", None)}
    assert interactive.rounded(given) == {"a": [0.3333, 2, 123500], "4": [1e-9, True, "1.23456789", None]}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(ValueError, match="cannot be drawn"):
        interactive.rounded([0.0, [value]])


def test_text_in_the_data_cannot_end_the_script():
    found = interactive.figure("paths", {"name": "</script><b>"}, "", label='a "quoted" < label', ident="x")
    source = found._repr_html_()
    assert source.count("</script>") == 2
    assert data(source) == {"name": "</script><b>"}
    assert 'aria-label="a &quot;quoted&quot; &lt; label"' in source


def test_twice_the_same_bytes(figures):
    assert [figure._repr_html_() for figure in made()] == figures


def test_a_figure_asks_nothing_of_elsewhere_and_holds_a_still_picture(figures):
    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.links = [], []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)
            self.links += [value for name, value in attrs if name in ("src", "href")]

    idents = set()
    for source in figures:
        reader = Reader()
        reader.feed(source)
        assert [link for link in reader.links if not link.startswith("data:")] == []
        assert not re.search(r"fetch\(|import\(|XMLHttpRequest|https?://(?!www\.w3\.org/2000/svg)", source)
        assert reader.tags.index("svg") < reader.tags.index("script")  # the still picture comes first
        assert len(source) < 40_000
        idents.add(re.search(r' id="([^"]*)"', source)[1])
    assert len(idents) == len(figures)


def test_the_small_networks_gates_are_those_of_its_image_and_its_paths_sum_to_the_gradient():
    first, second, last = (np.array(layer) for layer in playgrounds.WEIGHTS)
    x = np.array(playgrounds.IMAGE)
    one = first @ x
    two = second @ np.maximum(one, 0)
    assert min(np.abs(one).min(), np.abs(two).min()) > 0.01  # rounding moves no gate
    assert 0 < (one > 0).sum() < 3
    assert 0 < (two > 0).sum() < 3
    gradient = last @ np.diag((two > 0) * 1.0) @ second @ np.diag((one > 0) * 1.0) @ first
    sums = [
        sum(
            last[0, b] * (two[b] > 0) * second[b, a] * (one[a] > 0) * first[a, i]
            for a, b in itertools.product(range(3), repeat=2)
        )
        for i in range(4)
    ]
    np.testing.assert_allclose(sums, gradient[0])
    still = playgrounds.paths()._repr_html_().split("<script")[0]
    assert len(re.findall(r"stroke-dasharray", still)) == (one <= 0).sum() + (two <= 0).sum()


def test_the_recorded_networks_are_all_drawn_and_their_numbers_are_the_records():
    found = series(recorded("initialisation-cifar10-jpeg")[1])
    shown = data(playgrounds.exponents({"CIFAR-10": found})._repr_html_())["sets"][0]
    assert shown["sizes"] == found[0].sizes.tolist()
    assert [net["name"] for net in shown["networks"]] == [f"{s.network}, {s.resize}" for s in found]
    for net, s in zip(shown["networks"], found, strict=True):
        np.testing.assert_allclose(net["l1"], s.metrics["l1"].mean(1), rtol=1e-3)
        np.testing.assert_allclose(net["walk"], s.metrics["walk_l1"].mean(1), rtol=1e-3)


def test_series_of_other_sizes_are_refused():
    found = series(recorded("initialisation-cifar10-jpeg")[1])
    odd = type(found[0])(**{**found[1].__dict__, "sizes": found[1].sizes[:-1]})
    with pytest.raises(ValueError, match="has other sizes"):
        playgrounds.exponents({"CIFAR-10": [found[0], odd]})


def test_the_error_of_the_first_order_is_the_rise_less_the_tangent(figures):
    shown = data(figures[4])
    assert shown["networks"]["bent"] == {"damage": [0.011, 0.3], "slope": 1, "rest": [0.001, 0.2]}
    assert shown["kinks"] == [0.02]


def test_the_trained_networks_are_all_drawn_and_their_numbers_are_the_records(figures):
    table = runs(recorded("4.1-cifar10-jpeg")[1])
    shown = data(figures[3])
    assert shown["axes"] == list(playgrounds.MEASURED.values())
    found = [point for method in shown["methods"] for point in method["points"]]
    columns = ["strength", "seed", *playgrounds.MEASURED]
    ordered = pd.concat(table[table["method"] == method] for method in drawn.METHODS)[columns]
    np.testing.assert_allclose(found, ordered, rtol=1e-3)
    still = figures[3].split("<script")[0]
    assert still.count("<circle") == (table["pgd-linf_vulnerability"] > 0).sum()
