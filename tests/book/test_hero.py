"""The landing page's figure shows what the package computes, and its data bear out what the page says of them."""

import json
import re

import hero
import numpy as np
import pytest


@pytest.fixture(scope="module")
def stored():
    return hero.PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data(stored):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', stored, re.S)[1])


def numbers(data):
    """All numbers, and all packed bytes but the signs, in order; the shares of classes in 255ths."""
    if isinstance(data, dict):
        return [n for key, item in data.items() if key not in ("signs",) for n in numbers(item)]
    if isinstance(data, list):
        return [n for item in data for n in numbers(item)]
    if isinstance(data, str):
        return list(np.frombuffer(hero.base64.b64decode(data), np.uint8))
    return [data]


def test_the_file_is_what_the_tool_writes(stored, data):
    computed = hero.compute()
    recomputed, shown = numbers(hero.interactive.rounded(computed)), numbers(data)
    np.testing.assert_allclose(shown, recomputed, rtol=2e-3, atol=1)
    for name, sides in data["cases"].items():  # a gradient of size 0 may be drawn with either sign
        for side, case in sides.items():
            for readout in hero.READOUTS:
                pair = [
                    np.unpackbits(np.frombuffer(hero.base64.b64decode(c["signs"]), np.uint8))
                    for c in (case[readout], computed["cases"][name][side][readout])
                ]
                assert np.mean(pair[0] != pair[1]) < 1e-3
    assert hero.page(data) == stored  # still picture, script and all
    assert len(json.dumps(data)) < 45_000


def test_twice_the_side_is_twice_the_damage_but_for_an_average(data):
    for means in data["means"].values():
        growth = np.array(means["fc"][1:]) / means["fc"][:-1]
        assert growth == pytest.approx(2, rel=0.15)
        assert means["average"] == pytest.approx(means["average"][0] * np.ones(4), rel=0.2)


def test_signs_of_the_gradient_are_an_attack_and_signs_at_random_do_little(data):
    for sides in data["cases"].values():
        for side, case in sides.items():
            for readout in hero.READOUTS:
                attacked, drawn = (np.array(case[readout][way]["loss"]) for way in ("gradient", "random"))
                assert (np.diff(attacked) > 0).all()
                assert attacked[1] - attacked[0] == pytest.approx(case[readout]["slope"], rel=0.25)
                share = np.abs(drawn - drawn[0]).max() / (attacked[-1] - attacked[0])
                assert share < (0.05 if side == "64" else 0.3)
