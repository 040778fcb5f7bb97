"""The record of torchvision's architectures: whole, and saying what chapter 10 does."""

import math
import re
import time

import pytest

from advdim import experiments
from advdim.audit import survey
from advdim.data import folders

NAME = "architectures-imagenette-224"
HEADER, POINTS = experiments.recorded(NAME)
FOUND = survey.recorded(NAME)


def test_it_has_every_network_at_every_size():
    expected = {(a.spec, size) for a in survey.ARCHITECTURES for size in a.sizes}
    there = {(p["spec"]["network"], p["spec"]["size"]) for p in POINTS}
    assert there <= expected
    networks = {spec for spec, _ in there}
    assert len(networks) >= 12
    assert there == {(spec, size) for spec, size in expected if spec in networks}  # whole ones
    if len(networks) < len(survey.ARCHITECTURES):
        assert HEADER["cut_short"] == f"{len(networks)} of {len(survey.ARCHITECTURES)} networks"
    assert HEADER["command"] == "advdim survey --data imagenette-224"


def test_there_is_a_number_per_seed_and_image():
    for p in POINTS:
        assert p["status"] == "done"
        assert p["spec"]["images"] == {"data": "imagenette-224", "n": 16}
        m = p["metrics"]
        assert [len(values) for values in m["l_1"]] == [16] * 8
        assert all(math.isfinite(v) and v >= 0 for values in m["l_1"] for v in values)
        for values in [m["l_2"], *(v for _, v in m["boundaries"]), *([m["counted"]] if "counted" in m else [])]:
            assert len(values) == 8
            assert all(math.isfinite(v) and v > 0 for v in values)


def test_the_provenance_is_complete():
    for p in POINTS:
        provenance = p["provenance"]
        counted = {"counted"} if "counted" in p["metrics"] else set()  # the commit of the walk, of later than the rest
        assert set(provenance) == {"command", "date", "commit", "device", "torch", "python", "seconds"} | counted
        assert time.strptime(provenance["date"], "%Y-%m-%d")
        assert re.fullmatch("[0-9a-f]{12}", provenance["commit"])
        for archive, checksum in (pair.split("=") for pair in p["data"].split()):
            assert folders.KNOWN[archive] == checksum


def test_the_law_of_the_readout_can_be_compared_with_every_network():
    assert [a.spec for a, _ in FOUND] == [a.spec for a in survey.ARCHITECTURES if a.spec in {f.spec for f, _ in FOUND}]
    for architecture, found in FOUND:
        assert found.exponent.seeds == 8
        assert found.budget.total == pytest.approx(found.exponent.slope, abs=1e-4)  # six digits are recorded
        assert architecture.readout in survey.READOUTS
        fresh = "batch-norm calibrated on 64 images per size" in found.verdict
        assert fresh or "batch-norm as found" in found.verdict


@pytest.mark.parametrize("name", [a.name for a, f in FOUND if any(t.name == "avgpool" for t in f.budget.terms)])
def test_averages_over_all_places_take_what_they_must(name):
    """The step of the average is known exactly, whatever the weights."""
    (pool,) = (t for a, f in FOUND if a.name == name for t in f.budget.terms if t.name == "avgpool")
    (architecture,) = (a for a, _ in FOUND if a.name == name)
    if architecture.readout != "windows":
        assert pool.exponent == pytest.approx(architecture.law[0] - 0.5, abs=1e-4)


@pytest.mark.parametrize("name", [a.name for a, f in FOUND if f.counted is not None])
def test_path_counting_gives_the_level_and_the_exponent(name):
    (found,) = (f for a, f in FOUND if a.name == name)
    assert abs(found.counted.slope - found.exponent.slope) < 0.1
    for row in found.rows:
        counted = [cell.counted for cell in found.cells if cell.size == row.size]
        assert 0.75 < sum(counted) / len(counted) / row.mean < 1.5


def test_a_verdict_warns_of_a_mean_that_a_few_images_make():
    """ConvNeXt's exponent of 3.7 is that of one photograph with black patches; the others have 0.09."""
    verdicts = {a.name: f.verdict for a, f in FOUND}
    words = "A few images dominate the mean at 64, 128 px: "
    words += "it is more than 3 times the median, whose exponent is +0.09 ["
    assert words in verdicts["convnext_tiny"]
    assert "whose exponent is -0.08 [" in verdicts["efficientnet_b0"]
    assert "dominate" not in verdicts["resnet18"]
