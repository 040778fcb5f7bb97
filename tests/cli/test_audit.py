"""The command `advdim audit`."""

import json

import pytest

from advdim.cli import main

NET = """
from torch import nn

def net(size):
    return nn.Sequential(nn.Flatten(), nn.Linear(size**2, 32), nn.ReLU(), nn.Linear(32, 10))

def softmax():
    return nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1))
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(NET)
    return str(tmp_path / "mine.py")


def test_a_factory_in_a_file(file, tmp_path, capsys):
    command = [
        "audit",
        f"{file}:net",
        "--data",
        "digits",
        "--seeds",
        "2",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.startswith("net on digits: fresh, 32 images, 2 seeds")
    assert "VERDICT   Fresh, " in out
    assert "about" in err
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"audit.json", "audit.csv", "audit.png", "cells.jsonl"}
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["question"] == "fresh"


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("FILE:softmax", [], "a softmax"),
        ("FILE:nothing", [], "has no 'nothing'; there are"),
        ("resnet18", [], "a network is named torchvision:NAME"),
        ("torchvision:resnet19", [], "near it: resnet101, resnet152, resnet18"),
        ("no.such.module:f", [], "cannot import no.such.module"),
        ("nowhere.py:f", [], "no file nowhere.py"),
        ("FILE:net", ["--data", "nothing"], "no data set 'nothing'"),
        ("FILE:net", ["--sizes", "8", "16"], "more than the images' 8"),
        ("FILE:net", ["--weights", "gone.pt"], "cannot read the weights gone.pt"),
        ("FILE:net", ["--eps", "-1"], "eps must be positive"),
        ("torchvision:resnet18", [], "takes 3 channels, the images have 1"),
    ],
)
def test_refusals_exit_2_and_name_the_cure_in_one_line(spec, options, words, file, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ADVDIM_DATA", str(tmp_path))
    command = ["audit", spec.replace("FILE", file), "--data", "digits", "--device", "cpu", *options]
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.splitlines()[-1].startswith("advdim: ")
