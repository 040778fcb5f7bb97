"""Whole audits: what is asked, what is kept, what is said; and the norms against plain autograd."""

import json
import math
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from advdim import data, models, theory, train
from advdim.audit import Refusal, audit, cells, report, result, specs, verdict

X, Y = data.load("digits", "test", size=32, resize="bilinear", n=12)


def linear(size, seed):
    return nn.Sequential(nn.Flatten(), nn.Linear(size**2, 64), nn.ReLU(), nn.Linear(64, 10))


def averaging():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


def test_a_fresh_network_without_averages_grows_by_the_law():
    found = audit(linear, (X, Y), seeds=5, device="cpu")
    assert [row.size for row in found.rows] == [4, 8, 16, 32]
    assert found.exponent.contains(0.5, slack=0.05)
    assert found.question == "fresh"
    assert "by the law" in found.verdict
    assert "says nothing of trained weights" in found.verdict
    assert found.verdict.endswith("[fresh; batch-norm as found; resized from 32 px by area]")
    assert "accuracy" not in str(found)


def test_an_average_takes_the_growth_away_and_is_named():
    found = audit(averaging, (X, Y), sizes=[8, 16, 32], seeds=5, device="cpu")
    assert "AdaptiveAvgPool2d takes away 0.50" in found.verdict
    assert abs(found.exponent.slope) < 0.2


def test_norms_are_those_of_a_loop_over_images():
    found = audit(averaging, (X, Y), sizes=[16, 32], seeds=2, device="cpu")
    for cell in found.cells:
        torch.manual_seed(cell.seed)
        net = averaging()
        for i, x in enumerate(data.resize(X, cell.size, "area")):
            leaf = x[None].clone().requires_grad_()
            F.cross_entropy(net(leaf), Y[i : i + 1]).backward()
            assert cell.values["l_q"][i] == pytest.approx(float(leaf.grad.abs().sum()), rel=1e-5)


@pytest.mark.parametrize(("p", "q"), [(math.inf, 1), (2.0, 2)])
def test_paths_are_counted_by_the_gates_of_two_images(p, q):
    found = audit(averaging, (X, Y), sizes=[8, 16, 32], seeds=2, p=p, dtype=torch.float64, device="cpu")
    for cell in found.cells:
        torch.manual_seed(cell.seed)
        net, x = averaging().double(), data.resize(X, cell.size, "area").double()
        with torch.no_grad():
            r = net(x).softmax(1) - F.one_hot(Y, 10)
        expected = theory.predicted_norms(net, x=x[:2])[q] * float(r.square().sum(1).mean().sqrt())
        assert cell.counted == pytest.approx(expected, rel=1e-6)
    assert found.counted.slope == pytest.approx(found.exponent.slope, abs=0.15)
    assert "by path counting" in str(found)


def test_paths_that_cannot_be_followed_are_not_counted():
    def gated():
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

    found = audit(gated, (X, Y), sizes=[8, 16], seeds=2, device="cpu")
    assert found.counted is None
    assert "by path counting" not in str(found)
    assert (
        audit(averaging, (X, Y), sizes=[8, 16], seeds=2, p=1.0, device="cpu").counted is None
    )  # no formula for q = inf


ARCHITECTURES = (
    "resnet18",
    "resnext50_32x4d",
    "vgg11_bn",
    "densenet121",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "convnext_tiny",
    "swin_t",
    "vit_b_16",
    "squeezenet1_0",
    "shufflenet_v2_x0_5",
    "regnet_y_400mf",
    "mnasnet0_5",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_agree_with_a_plain_loop(name):
    """Norms, exponents, and budgets that add up; in float64, since few images make batch-norm noisy in float32."""
    x = torch.rand(35, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    y = torch.arange(35)
    make = specs.factory(f"torchvision:{name}")
    options = {
        "sizes": [32, 64],
        "images": 3,
        "dtype": torch.float64,
        "device": "cpu",
        "randomise_head": name == "vit_b_16",
    }
    found = audit(make, (x, y), seeds=2, **options)
    assert found.budget.total == pytest.approx(found.exponent.slope, abs=1e-10)
    means = {}
    for cell in found.cells:
        torch.manual_seed(cell.seed)
        net = make(image_size=cell.size) if name == "vit_b_16" else make()
        if name == "vit_b_16":
            torch.manual_seed(cell.seed)
            net.heads.head.reset_parameters()
        net.eval().double()
        small = data.resize(x, cell.size, "area").double()
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules()):
            models.calibrate_batch_norm(net, small[3:])
        norms = []
        for i in range(3):
            leaf = small[i : i + 1].clone().requires_grad_()
            F.cross_entropy(net(leaf), y[i : i + 1]).backward()
            norms.append(float(leaf.grad.abs().sum()))
        assert cell.values["l_q"] == pytest.approx(norms, rel=1e-6)
        means[cell.size, cell.seed] = np.mean(norms)
    slopes = [math.log(means[64, s] / means[32, s]) / math.log(4) for s in (0, 1)]
    assert found.exponent.slope == pytest.approx(np.mean(slopes), abs=1e-6)


def test_where_data_come_from_makes_no_difference():
    loader = DataLoader(TensorDataset(X, Y), batch_size=5)
    options = {"sizes": [8, 16], "seeds": 2, "images": 12, "device": "cpu"}
    tensors, loaded = audit(averaging, (X, Y), **options), audit(averaging, loader, **options)
    assert [row.mean for row in tensors.rows] == [row.mean for row in loaded.rows]
    assert audit(averaging, "digits", seeds=2, device="cpu").rows[-1].size == 8


def test_an_interrupted_audit_goes_on(tmp_path, monkeypatch):
    options = {"sizes": [8, 16], "seeds": 3, "device": "cpu", "out": tmp_path / "out"}
    whole = audit(averaging, (X, Y), **(options | {"out": None}))
    real, left = cells.Store.add, [4]

    def stops(self, cell):
        real(self, cell)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(cells.Store, "add", stops)
    partial = audit(averaging, (X, Y), **options)
    monkeypatch.setattr(cells.Store, "add", real)
    assert not partial.complete
    assert partial.settings["seeds"] == [0, 1]
    assert any("2 of 3 seeds" in note for note in partial.notes)
    with (tmp_path / "out" / "cells.jsonl").open("a") as file:
        file.write('{"size": 16, "se')  # killed while writing
    resumed = audit(averaging, (X, Y), **options)
    assert resumed.complete
    assert resumed.rows == whole.rows
    assert resumed.exponent == whole.exponent
    assert audit(averaging, (X, Y), **options).rows == whole.rows
    with pytest.raises(Refusal, match=r"another audit \(p"):
        audit(averaging, (X, Y), p=2.0, **options)

    def drawn_otherwise():
        net = averaging()
        nn.init.normal_(net[-1].weight)
        return net

    drawn_otherwise.__name__ = "averaging"
    with pytest.raises(Refusal, match=r"another audit \(weights differ\)"):
        audit(drawn_otherwise, (X, Y), **options)


def test_a_damaged_line_is_named_and_its_cell_measured_again(tmp_path, capsys):
    """A digit that changed would be another number of the result."""
    options = {"sizes": [8, 16], "seeds": 2, "images": 4, "layers": False, "device": "cpu", "out": tmp_path}
    whole, file = audit(averaging, (X, Y), **options), tmp_path / "cells.jsonl"
    first, second, *rest = file.read_text().splitlines()
    damaged = [second.replace('"l_q": [0.', '"l_q": [9.'), '{"a": 1}', "[" * 5000, "\xff", '{"size": 16, "se']
    assert second not in damaged
    file.write_text("\n".join([first, *damaged, *rest]) + "\n", encoding="latin-1")
    assert audit(averaging, (X, Y), **options).rows == whole.rows
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" of ")[0] for line in said if "damaged" in line] == [f"advdim: line {i}" for i in range(2, 7)]
    assert all(str(file) in line for line in said if "damaged" in line)
    assert len(file.read_text(encoding="latin-1").splitlines()) == len([first, *damaged, *rest, second])
    file.write_text("x" + first)
    with pytest.raises(Refusal, match=r"cells\.jsonl is damaged: its first line"):
        audit(averaging, (X, Y), **options)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(Refusal, match="a pipe"):
        audit(averaging, (X, Y), **options)


def test_a_full_disk_names_the_file_of_cells():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    store = cells.Store(None, {})
    store.path = Path("/dev/full")
    with pytest.raises(OSError, match=r"No space left.*/dev/full"):
        store.add(cells.Cell(8, 0, {"l_q": [1.0]}, {}))


@pytest.mark.parametrize("change", ["a statistic", "a layer"])
def test_a_changed_network_is_another_audit(change, tmp_path):
    """Batch-norm's statistics are no parameters, and an activation has none."""

    def net(altered):
        torch.manual_seed(0)
        layers = (
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 10),
        )
        made = nn.Sequential(*layers)
        made[1].running_var *= 4 if altered and change == "a statistic" else 1
        made[1].num_batches_tracked += 1
        made[2] = nn.Tanh() if altered and change == "a layer" else made[2]
        return made

    options = {"sizes": [8], "images": 2, "layers": False, "device": "cpu", "out": tmp_path, "eps": 1 / 16}
    before = audit(net(False), (X, Y), **options)
    assert audit(net(False), (X, Y), **options).rows == before.rows
    with pytest.raises(Refusal, match=r"another audit \(weights differ\)"):
        audit(net(True), (X, Y), **options)


class BrokenUnderAttack(nn.Sequential):
    """NaN at every image that is no multiple of 1 / 16, as the attack makes it."""

    def forward(self, x):
        off = ((16 * x).round() - 16 * x).abs().flatten(1).amax(1) > 1e-3
        return super().forward(x).masked_fill(off[:, None], math.nan)


def test_a_network_that_is_nan_under_attack_is_not_robust():
    """The largest of NaNs is the first: of images of class 0, nothing would have changed."""
    net = BrokenUnderAttack(nn.Flatten(), nn.Linear(49, 10))
    x = (16 * X[:, :, :7, :7]).round() / 16
    cell = partial(cells.measure_cell, net.requires_grad_(False), x, Y, [], size=7, seed=0, p=math.inf)
    assert cell(eps=None).values["right"]
    with pytest.raises(Refusal, match=r"values damage is NaN or infinite at 7 px, seed 0"):
        cell(eps=1 / 100)


def test_a_budget_of_time_leaves_whole_seeds():
    found = audit(averaging, (X, Y), sizes=[8, 16], seeds=10_000, budget_s=3.0, device="cpu")
    assert not found.complete
    assert 1 <= len(found.settings["seeds"]) < 10_000


@pytest.fixture(scope="module")
def trained():
    x, y = data.load("digits", "train", size=16, resize="bilinear")
    torch.manual_seed(0)
    net = averaging()
    net[0] = nn.Conv2d(1, 32, 5, stride=2)
    net = nn.Sequential(net[0], nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), *[net[2], net[3]], nn.Linear(32, 10))
    train.fit(net, x, y, train.Recipe(epochs=12, lr=0.1), progress=False)
    return net


def test_one_checkpoint_away_from_its_size_has_no_exponent(trained):
    x, y = data.load("digits", "test", size=16, resize="bilinear", n=200)
    found = audit(trained, (x, y), sizes=[16, 64], images=200, upsample="bilinear", device="cpu")
    assert found.question == "one checkpoint"
    assert found.rows[0].accuracy > 0.8 > 2 * found.rows[1].accuracy
    assert found.exponent is None
    assert found.budget is None
    assert found.verdict.startswith("No exponent: at 64 px it does not do its task")
    assert "At 16 px one step of 0.003922 in l_inf costs" in found.verdict
    assert "train one network per size" in found.verdict
    assert found.rows[0].first_order == pytest.approx(1, abs=0.2)


def test_trained_networks_per_size_are_another_question(trained):
    x, y = data.load("digits", "test", size=16, resize="bilinear", n=100)
    found = audit({(16, 0): trained, (16, 1): trained}, (x, y), images=100, device="cpu")
    assert found.question == "trained per size"
    assert found.rows[0].accuracy > 0.8
    with pytest.raises(Refusal, match="no network for"):
        audit({(8, 0): trained, (16, 1): trained}, (x, y), device="cpu")


def test_training_inside_asks_what_training_makes_of_it():
    x, y = data.load("digits", "train", size=16, resize="bilinear", n=800)
    test = data.load("digits", "test", size=16, resize="bilinear", n=60)
    recipe = train.Recipe(epochs=6, lr=0.1)
    found = audit(
        linear, test, sizes=[8, 16], seeds=2, images=60, recipe=recipe, train_data=(x, y), layers=False, device="cpu"
    )
    assert found.question == "trained per size"
    assert min(row.accuracy for row in found.rows) > 0.7
    with pytest.raises(Refusal, match="train_data"):
        audit(linear, test, recipe=recipe, device="cpu")


def test_guessing_gets_no_verdict():
    torch.manual_seed(0)
    x, y = data.load("digits", "test", n=100)
    found = audit(averaging(), (x, y), sizes=[8], images=100, device="cpu")
    assert found.verdict.startswith("No verdict: at 8 px the accuracy is near chance")


@pytest.mark.parametrize(("bent", "noise", "clean"), [(0.0, 0.01, True), (0.4, 0.01, False), (0.4, 3.0, True)])
def test_a_power_law_is_told_from_a_bend_beyond_noise(bent, noise, clean):
    rng = np.random.default_rng(0)
    d = np.array([10.0, 100, 1000, 10000])
    log = 0.5 * np.log(d) + bent * np.log(d / 10) ** 2 / 10
    table = np.exp(log[:, None] + noise * rng.standard_normal((4, 5)))
    assert result.is_power_law(d, table) is clean


def test_a_power_law_is_called_bent_by_chance_in_few_cases():
    rng = np.random.default_rng(1)
    d = np.array([10.0, 100, 1000, 10000])
    wrong = [
        result.is_power_law(d, np.exp(0.5 * np.log(d)[:, None] + rng.standard_normal((4, 5)))) is False
        for _ in range(400)
    ]
    assert np.mean(wrong) < 0.08  # the level is 0.05


def test_a_verdict_says_what_a_few_images_make_of_the_mean():
    """Of trained networks, too: a mean that one image of eight makes, and the exponent of the others."""

    def cell(size, seed):
        norms = [size * (1 + 0.01 * seed)] * 7 + [size**3]
        return cells.Cell(size, seed, {"l_q": norms, "l_2": norms, "loss": norms, "right": [1.0] * 8}, {})

    measured = [cell(size, seed) for size in (8, 16, 32) for seed in (0, 1)]
    settings = {"sizes": [8, 16, 32], "q": 1.0, "eps": 1.0, "calibration": "c", "resize": "r", "classes": 2}
    found = verdict.concluded("fresh", "net", "data", measured, settings, [])
    words = (
        "dominate the mean at 8, 16, 32 px: it is more than 3 times the median, whose exponent is +0.50 [+0.50, +0.50]"
    )
    assert words in found.verdict
    assert found.exponent.slope > 1


def test_near_chance_is_two_standard_deviations():
    assert verdict.chance(10, 100) == pytest.approx(0.1 + 2 * 0.03)


def test_files_hold_what_was_measured(tmp_path):
    found = audit(averaging, (X, Y), sizes=[8, 16], seeds=2, device="cpu")
    paths = report.write(found, tmp_path)
    assert [path.name for path in paths] == ["audit.json", "audit.csv", "audit.png"]
    stored = json.loads(paths[0].read_text())
    assert stored["exponent"]["slope"] == found.exponent.slope
    assert stored["settings"]["p"] == "inf"
    header, *lines = paths[1].read_text().splitlines()
    assert header == "size,seed,image,quantity,module,value"
    norms = [float(line.split(",")[-1]) for line in lines if ",l_q,," in line]
    assert norms == [v for cell in found.cells for v in cell.values["l_q"]]
    with Image.open(paths[2]) as image:
        assert len(image.getbands()) >= 3


def test_the_generator_of_the_caller_is_left_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    audit(averaging, (X, Y), sizes=[8, 16], seeds=2, device="cpu")
    assert torch.equal(before, torch.random.get_rng_state())
