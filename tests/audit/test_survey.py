"""The survey of many networks: the law of a readout is exact, and a record gives back what was measured."""

import json
import re

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from advdim.analysis.records import read_record_file
from advdim.audit import specs, survey
from advdim.cli import main

NET = """
from torch import nn

def averaging():
    features = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))

def dense(size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, 32), nn.ReLU(), nn.Linear(32, 2))

def softmax():
    return nn.Sequential(averaging(), nn.Softmax(1))
"""


@pytest.mark.parametrize("windows", [1, 2, 6, 7])
@pytest.mark.parametrize("side", [1, 3, 4, 6, 7, 13])
def test_windows_multiply_the_mean_square_by_the_mean_of_inverse_areas(side, windows):
    """Of independent gradients: by the sum of all squares in the matrix of the averages, over the windows."""
    places = torch.eye(side**2, dtype=torch.float64).view(-1, 1, side, side)
    matrix = F.adaptive_avg_pool2d(places, windows)
    assert survey._mean_inverse(side, windows) ** 2 == pytest.approx(
        float(matrix.square().sum()) / windows**2, rel=1e-12
    )


def test_an_average_takes_one_half_away_and_windows_that_copy_nothing():
    law = {a.name: a.law for a in survey.ARCHITECTURES}
    assert law["resnet18"] == pytest.approx((0, 0), abs=1e-12)
    assert law["alexnet"] == pytest.approx((0.5, 0.5), abs=1e-12)
    assert law["convnext_tiny"] == pytest.approx((0, 0.5), abs=1e-12)
    assert law["vit_b_16"] is None


def last_maps(architecture, size):
    """The side of what the readout averages, by shapes alone."""
    make, shapes, pooled = specs.factory(architecture.spec), [], []
    with torch.device("meta"):
        net = make(size) if architecture.name.startswith("vit") else make()
        for module in net.modules():
            module.register_forward_hook(
                lambda m, i, out: shapes.append(out.shape) if isinstance(out, torch.Tensor) and out.ndim == 4 else None
            )
            if isinstance(module, nn.AdaptiveAvgPool2d):
                module.register_forward_hook(lambda m, i, out: pooled.append(i[0].shape))
        net.eval()(torch.empty(1, 3, size, size))
    return (pooled or shapes)[-1][-1]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", survey.ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_the_sides_of_the_last_maps_are_those_of_the_networks(architecture):
    assert tuple(last_maps(architecture, size) for size in architecture.sizes) == architecture.sides


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    generator = torch.Generator().manual_seed(0)
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            pixels = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path


def test_a_survey_is_kept_goes_on_and_gives_back_what_it_measured(photographs, capsys):
    command = ["survey", "net.py:averaging", "net.py:dense", "net.py:softmax", "--data", "photos", "--seeds", "2"]
    command += ["--sizes", "8", "32", "--images", "4", "--device", "cpu"]
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert "softmax: the outputs of each image are positive and sum to 1" in err
    assert [line.split()[0] for line in out.splitlines()[1:-1]] == ["averaging", "dense"]
    stored = photographs / "survey" / "dense.json"
    before = stored.stat().st_mtime_ns
    assert main(command) == 1
    assert stored.stat().st_mtime_ns == before
    assert main([*command, "--record", "r.jsonl"]) == 0
    header, points = read_record_file(photographs / "r.jsonl")
    assert header["cut_short"] == "2 of 3 networks"
    assert len(points) == 4
    (_, averaging), (architecture, dense) = survey.audits(points)
    assert architecture.law is None  # nobody has looked at its readout
    assert averaging.budget["2:AdaptiveAvgPool2d"].exponent == pytest.approx(-0.5, abs=1e-5)
    assert dense.budget.total == pytest.approx(dense.exponent.slope, abs=1e-5)
    assert dense.counted.slope == pytest.approx(dense.exponent.slope, abs=0.1)
    kept = (photographs / "survey" / "dense" / "cells.jsonl").read_text().splitlines()[1:]
    means = [sum(cell["values"]["l_q"]) / 4 for cell in map(json.loads, kept) if cell["size"] == 32]
    assert dense.rows[-1].mean == pytest.approx(sum(means) / 2, rel=1e-5)
    assert str(averaging).splitlines()[0] == "averaging on photos: fresh, 4 images, 2 seeds"


def test_where_nothing_is_done_nothing_is_recorded(photographs, capsys):
    assert main(["survey", "net.py:dense", "--data", "photos", "--record", "r.jsonl"]) == 2
    assert "no network is done" in capsys.readouterr().err
    assert not (photographs / "r.jsonl").exists()


def test_what_is_kept_is_used_for_what_it_was_asked_and_never_damaged(photographs, capsys):
    """A digit that changed, or fewer seeds than are asked for, would be another number in the record."""
    command = ["survey", "net.py:averaging", "--data", "photos", "--sizes", "8", "16", "--images", "2"]
    command += ["--seeds", "2", "--device", "cpu"]
    assert main(command) == 0
    file = photographs / "survey" / "averaging.json"
    whole = file.read_text()
    for other in (["--seeds", "3"], ["--images", "3"], ["--sizes", "8"], ["--data", "./photos"]):
        assert main([*command, *other, "--record", "r.jsonl"]) == 1
        assert re.search(rf"averaging\.json is of another survey \({other[0][2:]} .*there", capsys.readouterr().err)
    assert main([*command[:2], "net.py:averaging", *command[2:]]) == 1  # two of one name
    assert "two networks have one name" in capsys.readouterr().err
    digit = whole.index('"l_1": [[') + 12
    for damaged in (
        whole[:digit] + str(9 - int(whole[digit])) + whole[digit + 1 :],
        whole[:-30],
        "[]",
        "{}",
        "[" * 5000,
    ):
        file.write_text(damaged)
        for way in ([], ["--record", "r.jsonl"]):
            assert main([*command, *way]) == 1
            assert re.fullmatch(
                r"advdim: survey/averaging\.json is damaged .*: move it away.*\n", capsys.readouterr().err
            )
    file.rename("elsewhere")
    assert main([*command, "--record", "r.jsonl"]) == 2  # measures no more
    assert main(command) == 0
    assert json.loads(file.read_text())["points"][0]["metrics"] == json.loads(whole)["points"][0]["metrics"]
    assert main([*command, "--record", "r.jsonl"]) == 0
    assert read_record_file(photographs / "r.jsonl")[0]["command"].endswith("--sizes 8 16 --seeds 2 --images 2")
