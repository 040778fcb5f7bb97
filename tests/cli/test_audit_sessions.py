"""Sessions of the command `advdim audit`, as a user types them: photographs in a folder, real networks, broken ones."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from advdim import data, train
from advdim.cli import main

NET = """
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

def small(channels=3, classes=2):
    layers = nn.Conv2d(channels, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 2), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))

class After(nn.Module):
    def __init__(self, change, net):
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x):
        return self.change(self.net, x)

def vit(image_size):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16, "num_classes": 10}
    return models.VisionTransformer(image_size, 16, **sizes)

def vit_without_size():
    return vit(224)

def softmax():
    return After(lambda net, x: net(x).softmax(1), small())

def dropout():
    return After(lambda net, x: net(F.dropout(x, 0.5)), small())

def batch():
    return After(lambda net, x: net(F.batch_norm(x, None, None, training=True)), small())

def nan():
    return After(lambda net, x: net(x) / 0 * 0, small())

def detached():
    return After(lambda net, x: net(x.detach()), small())

def a_tuple():
    return After(lambda net, x: (net(x), x), small())

def half():
    return small().half()

def two():
    return small()

def normed():
    return nn.Sequential(nn.BatchNorm2d(3), small())

def three():
    return small(classes=3)

def grey():
    return small(channels=1)

def ten():
    return small(channels=1, classes=10)
"""
MANY = """
from torch import nn

def many(side):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side**2, 2))
"""


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """A folder with a file of networks, and photographs of two classes, of several shapes."""
    folder = tmp_path_factory.mktemp("session")
    (folder / "net.py").write_text(NET)
    (folder / "many.py").write_text(MANY)  # without torchvision, for a process to start sooner
    for name, photograph in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(3):
            cut = photograph[40 * i : 40 * i + 128, 90 * i : 90 * i + 128 + 16 * i]
            Image.fromarray(cut).save(folder / "photos" / name / f"{i}.png")
    (folder / "empty" / "class").mkdir(parents=True)
    return folder


@pytest.fixture
def session(where, monkeypatch, capsys):
    """Types a command there: exit status, what it prints, and what it says on stderr."""
    monkeypatch.chdir(where)
    monkeypatch.setenv("ADVDIM_DATA", str(where / "root"))

    def type_in(line):
        status = main(["audit", "--device", "cpu", *line.split()])
        return status, *capsys.readouterr()

    return type_in


def test_a_fresh_resnet_on_photographs(session):
    status, out, err = session("torchvision:resnet18 --data photos --sizes 32 64 --images 2 --seeds 2")
    assert status == 0
    assert "20 batch-norms are fresh: calibrated on 6 images at each size" in err
    assert "VERDICT   Fresh, it " in out
    assert "says nothing of trained weights" in " ".join(out.split())
    assert "[fresh; batch-norm calibrated on 6 images per size;" in " ".join(out.split())
    assert "by path counting" in out
    assert "-0.50 avgpool" in out


def test_one_checkpoint_on_sizes_that_it_was_not_trained_for(session, where):
    namespace = {}
    exec(NET, namespace)  # the file's own text
    x, y = data.load("digits", "train", size=16, resize="bilinear", n=700)
    torch.manual_seed(0)
    net = namespace["ten"]()
    train.fit(net, x, y, train.Recipe(epochs=15, lr=0.2), progress=False)
    torch.save({"state_dict": net.state_dict()}, where / "w.pt")
    status, out, err = session(
        "net.py:ten --weights w.pt --data digits --sizes 8 16 64 --upsample bilinear --images 150 --no-layers"
    )
    out = " ".join(out.split())
    assert status == 0
    assert "16, 64 px are enlarged (bilinear): exponents are inflated" in err
    assert "VERDICT No exponent: at " in out
    assert "it does not do its task" in out
    assert "exponent in d" not in out
    assert "2 x 2 averages in front: accuracy" in out
    assert "To ask how size itself matters, train one network per size." in out


def test_a_transformer_whose_head_is_zero(session):
    start = time.perf_counter()
    status, out, err = session("net.py:vit --data photos --sizes 32 64")
    assert time.perf_counter() - start < 5  # under 2 s on a quiet machine
    assert (status, out) == (2, "")
    assert "heads.head has zero weights" in err
    assert "--randomise-head" in err
    status, out, err = session(
        "net.py:vit --data photos --sizes 32 64 --images 2 --seeds 2 --randomise-head --size-arg image_size"
    )
    assert status == 0
    assert "VERDICT   Fresh, it " in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("net.py:softmax --data photos", "a softmax, through which gradients are too small. Leave it out"),
        ("net.py:dropout --data photos", "two calls on the same images differ"),
        ("net.py:batch --data photos", "depends on its batch"),
        ("net.py:nan --data photos", "NaN or infinite outputs"),
        ("net.py:detached --data photos", "no gradient reaches the images"),
        ("net.py:vit_without_size --data photos --sizes 64 128", "takes no images of 64 px"),
        ("net.py:grey --data photos", "takes 1 channels, the images have 3"),
        ("net.py:three --data digits", "takes 3 channels, the images have 1"),
        ("net.py:grey --data digits", "label 9 of image"),
        ("net.py:two --data empty", "empty"),
        ("net.py:two --data nowhere/", "nowhere"),
        ("net.py:two --data photos --weights net.py", "net.py holds no plain weights"),
        ("net.py:two --data photos --weights photos", "cannot read the weights photos"),
        ("net.py:two --data photos --sizes 0", "sizes are in pixels"),
        ("net.py:two --data photos --mean 0.5", "mean and std go together"),
        ("net.py:two --data photos --p 0.5", "p"),
        ("net.py:two --data photos --device nowhere", "the device 'nowhere' cannot be used"),
        ("net.py:two --data net.py", "net.py is a file: unpack it with advdim data add net.py"),
        ("net.py:two --data photos --mean 0.5 0.5 --std 1 1", "mean has 2 numbers, the images have 3 channels"),
        ("net.py:two --data photos --seeds 0", "seeds must be at least 1, got 0"),
        ("net.py:two --data photos --budget nan", "budget_s must be positive"),
        ("net.py:two --data photos --sizes 16 --out net.py", "cannot make the folder net.py (File exists)"),
        ("net.py:two --data photos --train 1", "no images to train on beside those that are measured on"),
    ],
)
def test_broken_ones_are_refused_in_one_line(session, line, words):
    status, out, err = session(line)
    assert (status, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("advdim: ")


def test_one_seed_has_no_interval_and_few_images_are_said(session):
    status, out, err = session("net.py:normed --data photos --sizes 16 32 --seeds 1 --no-calibrate")
    assert status == 0
    assert "6 images to measure on, of 32 asked for: there are no more" in err
    assert "! 1 batch-norm is fresh: NOT calibrated" in err
    assert "2 sizes, 1 seed, 6 images" in err
    assert "without an interval, over 1 seed" in out
    assert "nan" not in out


def test_a_folder_is_trained_on_by_its_own_split(session, where):
    for name in ("temple", "flower"):
        for i, split in enumerate(("train", "train", "test")):
            (where / "splits" / split / name).mkdir(parents=True, exist_ok=True)
            image = Image.open(where / "photos" / name / f"{i}.png")
            image.resize((32, 32)).save(where / "splits" / split / name / f"{i}.png")
    status, out, _ = session("net.py:two --data splits --train 1 --sizes 16 32 --seeds 2")
    assert status == 0
    assert "trained per size" in out


def test_other_sizes_of_a_network_that_is_told_its_size_are_another_audit(session, where):
    line = "many.py:many --data photos --seeds 1 --images 2 --out sized"
    assert session(f"{line} --sizes 16 32")[0] == 0
    status, _, err = session(f"{line} --sizes 8 32")
    assert status == 2
    assert "another audit (smallest size, weights differ)" in err


@pytest.mark.parametrize("name", ["a_tuple", "half", "three", "two"])
def test_odd_ones_are_measured(session, name):
    status, out, _ = session(f"net.py:{name} --data photos --sizes 32 64 --seeds 2 --images 2")
    assert status == 0
    assert "AdaptiveAvgPool2d" in out


@pytest.mark.process
def test_interrupted_from_the_keyboard_it_goes_on(session, where, request):
    """In a process of its own; more seeds than it can do before the signal comes."""
    command = [
        "many.py:many",
        "--data",
        "photos",
        "--sizes",
        "16",
        "32",
        "--images",
        "2",
        "--out",
        "kept",
        "--no-layers",
    ]
    started = subprocess.Popen(
        [sys.executable, "-m", "advdim", "audit", *command, "--seeds", "100000", "--device", "cpu"],
        cwd=where,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
    )
    request.addfinalizer(started.kill)
    kept = where / "kept" / "cells.jsonl"
    while not (kept.exists() and len(kept.read_text().splitlines()) > 5):
        assert started.poll() is None, started.communicate()
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "of 100000 seeds: the same call goes on" in out
    assert "Traceback" not in err
    before = kept.read_text()
    assert session(f"{' '.join(command)} --seeds 2")[0] == 0
    assert kept.read_text() == before  # nothing is measured twice
