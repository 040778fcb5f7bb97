"""The committed records: complete, of the grid they name, and saying what the chapters claim; re-measured when slow."""

import math
import re
import shlex
import time
from functools import cache
from pathlib import Path

import pytest
import torch

import advdim as ad
from advdim import experiments, folders
from advdim.experiments import grids, point, spec
from advdim.experiments.spec import AtInitialisation, Images, Network

FOLDER = Path(experiments.__file__).parent / "recorded"
RECORDS = sorted(file.stem for file in FOLDER.glob("*.jsonl"))
METRICS = {"l1", "l2", "linf", "support", "walk_l1", "walk_l2", "damage_0.0001", "damage_0.004"}


@cache
def recorded(name):
    return experiments.recorded(name)


@cache
def series(name):
    return experiments.series(recorded(name)[1])


def fits(s):
    """Exponents of the measured l_1 norm and of what path counting predicts of it."""
    return (ad.scaling.exponent(s.d, s.metrics[metric]) for metric in ("l1", "walk_l1"))


def chosen(choice, at_least):
    """(record, network) pairs to test, refusing a choice that silently finds none."""
    found = [(name, s) for name in RECORDS for s in series(name) if choice(s)]
    assert len(found) >= at_least * len(RECORDS), f"only {len(found)} networks"
    return [pytest.param(s, id=f"{name}: {s.resize}, {s.network}") for name, s in found]


def meets_h(s):
    """Theorem 4 and Corollary 6: no averages, no maxima, no batch-norm, no paths lost at the border."""
    n = s.network
    if n.batch_norm or n.init not in ("he", "ntk", "torch", "mup"):
        return False
    strided = n.name == "conv_strided" and n.readout == "fc" and n.pooling is None and n.padding in (None, "circular")
    return n.name == "mlp" or strided


def loses_paths(s):
    return s.network.padding == "zeros"


def averages_the_image(s):
    strided = s.network.name == "conv_strided" and s.network.readout is None
    return (strided or s.network.readout == "average") and not s.network.batch_norm


def ties(s):
    return s.network.name == "conv_dilated" and s.resize == "copy" and grids.has_maxima(s.network)


def test_there_are_records():
    assert RECORDS


@pytest.mark.parametrize("name", RECORDS)
def test_the_points_are_those_of_the_grid(name):
    header, points = recorded(name)
    words = shlex.split(header["command"])
    assert words[:3] == ["advdim", "run", header["experiment"]]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert set(options) == {"--data", "--scale"}
    assert options["--scale"] == header["scale"] == "paper"
    assert name == f"{header['experiment']}-{options['--data']}"
    grid = [spec.as_dict(p) for p in grids.GRIDS[header["experiment"]](options["--scale"], options["--data"])]
    by_key = sorted(grid, key=spec.key_of)
    assert sorted((p["spec"] for p in points), key=spec.key_of) == by_key


@pytest.mark.parametrize("name", RECORDS)
def test_the_numbers_are_complete_and_finite(name):
    for p in recorded(name)[1]:
        assert p["status"] == "done"
        assert set(p["metrics"]) == METRICS
        for metric, values in p["metrics"].items():
            assert len(values) == p["spec"]["seeds"]
            assert all(math.isfinite(v) and v > 0 for v in values), (metric, p["spec"])
        assert max(p["metrics"]["support"]) <= 1
        assert len(set(p["metrics"]["l1"])) == p["spec"]["seeds"]


@pytest.mark.parametrize("name", RECORDS)
def test_the_provenance_is_complete(name):
    header, points = recorded(name)
    for p in points:
        provenance = p["provenance"]
        assert set(provenance) == {"command", "date", "commit", "device", "torch", "python", "seconds"}
        assert provenance["command"] == header["command"]
        assert time.strptime(provenance["date"], "%Y-%m-%d")
        assert re.fullmatch("[0-9a-f]{12}", provenance["commit"])  # and not one with changes
        assert all(provenance[key] for key in ("device", "torch", "python"))
        assert provenance["seconds"] > 0
        for archive, checksum in (pair.split("=") for pair in p["data"].split()):
            assert archive.startswith(p["spec"]["images"]["data"])
            assert folders.KNOWN[archive] == checksum


@pytest.mark.parametrize("name", RECORDS)
def test_holders_inequality_and_the_damage(name):
    """Norms of one gradient, and a one-step attack of eps = 1e-4 does the damage that the l_1 norm says.

    Less of it where maxima change their mind within eps, above all where their inputs tie.
    """
    for p in recorded(name)[1]:
        m, s = p["metrics"], p["spec"]["images"]
        d = (1 if s["data"] == "digits" else 3) * s["size"] ** 2
        for l1, l2, linf, damage in zip(m["l1"], m["l2"], m["linf"], m["damage_0.0001"], strict=True):
            assert l2 <= l1 * 1.00001 <= math.sqrt(d) * l2 * 1.00002
            assert linf <= l2 * 1.00001
            assert damage <= 1.05 * l1
            maxima = grids.has_maxima(Network(**p["spec"]["network"]))
            assert damage >= (0.95 if not maxima else 0 if s["resize"] == "copy" else 0.8) * l1


@pytest.mark.parametrize("s", chosen(meets_h, at_least=8))
def test_under_h_the_l_1_norm_grows_as_the_root_of_d(s):
    measured, counted = fits(s)
    assert abs(measured.slope - 0.5) <= 0.05
    assert measured.contains(counted.slope, slack=0.03)


@pytest.mark.parametrize("s", chosen(loses_paths, at_least=1))
def test_zero_padding_follows_its_path_counts(s):
    """Small images lose more of their paths over the border, so that the norm grows faster than the root of d."""
    measured, counted = fits(s)
    assert measured.contains(counted.slope, slack=0.03)
    assert 0.6 < measured.slope < 0.7


@pytest.mark.parametrize("s", chosen(averages_the_image, at_least=2))
def test_a_global_average_takes_the_growth_away(s):
    measured, _ = fits(s)
    assert abs(measured.slope) <= 0.06


@pytest.mark.parametrize("s", chosen(ties, at_least=0))
def test_maxima_tie_on_copied_pixels(s):
    """Equal inputs of a maximum share one path: the gradient lives on ever fewer pixels, and grows less."""
    measured, counted = fits(s)
    assert measured.slope < 0.4
    support = s.metrics["support"].mean(axis=1)
    assert (support[1:] < support[:-1]).all()
    assert not measured.contains(counted.slope, slack=0.03)  # independent gates do not know of ties


def test_ties_are_on_record():
    assert any(ties(s) for name in RECORDS for s in series(name))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "conv_strided", "conv_dilated"])
@pytest.mark.parametrize("name", RECORDS)
def test_a_recorded_point_is_measured_again(name, network):
    """The cheapest point of each architecture, in float32, whatever the number of threads."""
    points = [p for p in recorded(name)[1] if p["spec"]["network"]["name"] == network]
    p = min(points, key=lambda p: p["provenance"]["seconds"])
    images = Images(**p["spec"]["images"])
    try:
        checksum = ad.data.checksum(images.data)
    except folders.MissingDataError as error:
        pytest.skip(str(error))
    assert checksum == p["data"]
    s = AtInitialisation(images, Network(**p["spec"]["network"]), p["spec"]["seeds"], tuple(p["spec"]["eps"]))
    assert spec.key(s) == spec.key_of(p["spec"])
    found = point.run(s, torch.device("cpu"))
    for metric in ("l1", "l2"):
        assert found[metric] == pytest.approx(p["metrics"][metric], rel=1e-3), metric
