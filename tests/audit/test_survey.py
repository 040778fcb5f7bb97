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


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("net.py:dense --sizes 8 32 --images 4 --seeds 3", "measured with seeds 2, asked for 3: name another folder"),
        ("net.py:dense --sizes 8 32 --images 3 --seeds 2", "images 4, asked for 3: name another folder by --out, or"),
        ("net.py:dense --sizes 8 16 --images 4 --seeds 2", "sizes 8 32, asked for 8 16: name another folder"),
        ("net.py:dense --images 4 --seeds 2", "sizes 8 32, asked for of its own: name another folder"),
        ("other.py:dense --sizes 8 32 --images 4 --seeds 2", "network net.py:dense, asked for other.py:dense"),
        ("net.py:dense --sizes 8 32 --images 4 --seeds 2 --data more", "data "),
        ("net.py:dense other.py:dense", "two networks are called dense"),
        ("--sizes 8 32", "--sizes are those of networks that are named"),
        ("net.py:dense --data nowhere", "nowhere"),
    ],
)
def test_what_was_asked_otherwise_is_not_taken_for_done(photographs, capsys, line, words):
    """In one line, before anything is measured; a record is refused, too."""
    command = "survey net.py:dense --data photos --sizes 8 32 --images 4 --seeds 2 --device cpu"
    assert main(command.split()) == 0
    (photographs / "photos").rename(photographs / "more")
    if "--data" not in line:
        (photographs / "more").rename(photographs / "photos")
        line += " --data photos"
    else:
        (photographs / "more" / "a" / "1.png").unlink()
    stored = photographs / "survey" / "dense.json"
    before = stored.read_bytes()
    capsys.readouterr()
    for more in ([], ["--record", "r.jsonl"]):
        assert main(["survey", *line.split(), "--device", "cpu", *more]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        assert words in err
    assert stored.read_bytes() == before
    assert not (photographs / "r.jsonl").exists()


def test_a_record_names_the_options_that_make_its_numbers(photographs):
    command = "survey net.py:dense --data photos --sizes 8 32 --images 4 --seeds 2 --device cpu"
    assert main(command.split()) == 0
    assert main([*command.split(), "--record", "r.jsonl"]) == 0
    header, points = read_record_file(photographs / "r.jsonl")
    assert header["command"] == "advdim survey net.py:dense --data photos --sizes 8 32 --seeds 2 --images 4"
    assert {point["provenance"]["command"] for point in points} <= {header["command"]}


def test_a_file_that_is_no_result_is_not_read_as_one(photographs, capsys):
    (photographs / "survey").mkdir()
    (photographs / "survey" / "dense.json").write_text("[]")
    assert main(["survey", "net.py:dense", "--data", "photos", "--images", "4"]) == 2
    assert "holds no result of a survey" in capsys.readouterr().err


def test_where_nothing_is_done_nothing_is_recorded(photographs, capsys):
    assert main(["survey", "net.py:dense", "--data", "photos", "--record", "r.jsonl"]) == 2
    assert "no network is done" in capsys.readouterr().err
    assert not (photographs / "r.jsonl").exists()


def test_a_damaged_file_is_named_and_not_used(photographs, capsys):
    """A digit that changed would be another number in the record."""
    line = "survey net.py:averaging --data photos --sizes 8 16 --images 2 --seeds 2 --device cpu"
    command = line.split()
    assert main(command) == 0
    file = photographs / "survey" / "averaging.json"
    whole = file.read_text()
    digit = whole.index('"l_1": [[') + 12
    other_digit = whole[:digit] + str(9 - int(whole[digit])) + whole[digit + 1 :]
    capsys.readouterr()
    for damaged in (other_digit, whole[:-30], "[]", "{}", "[" * 5000):
        file.write_text(damaged)
        for way in ([], ["--record", "r.jsonl"]):
            assert main([*command, *way]) == 2
            assert re.fullmatch(r"advdim: survey/averaging\.json holds no result .*\n", capsys.readouterr().err)
    file.rename("elsewhere")
    assert main(command) == 0
    assert json.loads(file.read_text())["points"][0]["metrics"] == json.loads(whole)["points"][0]["metrics"]
