"""Broken networks and data: each is refused, with the cure named, or measured all the same and said so."""

import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advdim.audit import Refusal, audit

X = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3, 0, 1])


def plain(channels=3, classes=4):
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes)
    )


class Around(nn.Module):
    """A network, and a function of it and the images."""

    def __init__(self, call, net=None):
        super().__init__()
        self.net, self.call = net or plain(), call

    def forward(self, x):
        return self.call(self.net, x)


def with_nan():
    net = plain()
    nn.init.constant_(net[4].weight, float("nan"))
    return net


def with_zero_head():
    net = plain()
    nn.init.zeros_(net[4].weight)
    return net


def into_the_images(net, x):
    x -= 0.5
    return net(x)


REFUSED = {
    "softmax": (lambda: nn.Sequential(plain(), nn.Softmax(1)), "softmax.*logits=lambda out: out.log"),
    "dropout always on": (lambda: Around(lambda net, x: F.dropout(net(x), 0.5, True)), "two calls.*F.dropout"),
    "batch statistics": (
        lambda: Around(lambda net, x: net(F.batch_norm(x, None, None, training=True))),
        "depends on its batch.*running statistics",
    ),
    "batch-norm without statistics": (
        lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), plain()),
        "depends on its batch.*track_running_stats",
    ),
    "NaN weights": (with_nan, r"NaN.*first 4\.weight.*Load them anew"),
    "NaN on the way": (
        lambda: nn.Sequential(plain(), Around(lambda net, x: (x - 1e9).log(), nn.Identity())),
        "first in 1",
    ),
    "detached": (lambda: Around(lambda net, x: net(x.detach())), "no gradient reaches the images"),
    "zero head": (with_zero_head, "4 has zero weights.*randomise_head"),
    "ignores its input": (lambda: Around(lambda net, x: net(x * 0)), "exactly 0"),
    "maps for outputs": (lambda: nn.Conv2d(3, 4, 1), "expected logits"),
    "one output": (lambda: plain(classes=1), "two classes"),
    "channels": (lambda: plain(channels=1), "takes 1 channels, the images have 3"),
    "wrong size": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(100, 4)), "takes no images of 8 px.*size_arg"),
    "too few classes": (lambda: plain(classes=3), "label 3 of image 3 has no output"),
    "an unknown output": (lambda: Around(lambda net, x: {"scores": net(x)}), "dict with scores.*logits=lambda"),
    "needs arguments": (lambda depth: plain(), "needs depth"),
    "no module": (lambda: 3, "gave a int"),
    "fails": (lambda: 1 / 0, "the factory fails at 8 px.*division by zero"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_honest_number_comes_from_is_refused(case):
    make, words = REFUSED[case]
    with pytest.raises(Refusal, match=words):
        audit(make, (X, Y), sizes=[8, 16], seeds=2, device="cpu")


DATA = {
    "0 to 255": ((X * 255, Y), "divide by 255"),
    "normalised": (((X - 0.5) / 0.2, Y), "mean= and std="),
    "uint8": (((X * 255).to(torch.uint8), Y), "floating point"),
    "float labels": ((X, Y.float()), "int64"),
    "no images": ((X[:0], Y[:0]), "empty"),
    "NaN": ((X / 0 * 0, Y), "NaN"),
    "no data set": ("no-such-set", "no data set"),
    "nothing known": (7, "DataLoader"),
    "empty loader": ([], "no images"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_right_is_refused(case, tmp_path, monkeypatch):
    monkeypatch.setenv("ADVDIM_DATA", str(tmp_path))
    data, words = DATA[case]
    with pytest.raises(Refusal, match=words):
        audit(plain, data, sizes=[8, 16], device="cpu")


def test_enlarging_is_refused_unless_asked_for_and_then_said():
    with pytest.raises(Refusal, match=r"32 px is more than the images' 16.*upsample"):
        audit(plain, (X, Y), sizes=[16, 32], device="cpu")
    found = audit(plain, (X, Y), sizes=[16, 32], seeds=2, upsample="bilinear", device="cpu")
    assert "resized from 16 px by bilinear" in found.verdict
    assert any("enlarged" in note for note in found.notes)


OUTPUTS = {
    "attribute": (lambda net, x: SimpleNamespace(logits=net(x)), None),
    "mapping": (lambda net, x: {"logits": net(x), "features": x}, None),
    "tuple": (lambda net, x: (net(x), x), None),
    "by function": (lambda net, x: {"scores": net(x)}, lambda out: out["scores"]),
    "writes into its images": (into_the_images, None),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_of_many_kinds_give_the_same_numbers(case):
    call, logits = OUTPUTS[case]
    same = into_the_images if case.startswith("writes") else lambda net, x: net(x)
    options = {"sizes": [8, 16], "seeds": 2, "device": "cpu"}
    before = X.clone()
    found = audit(lambda: Around(call), (X, Y), logits=logits, **options)
    assert torch.equal(X, before)
    expected = audit(lambda: Around(lambda net, x: same(net, x.clone())), (X, Y), **options)
    assert [row.mean for row in found.rows] == [row.mean for row in expected.rows]


def test_half_precision_is_measured_in_float32_and_said():
    net = plain().half()
    found = audit(net, (X, Y), sizes=[8, 16], device="cpu")
    assert any("float16" in note for note in found.notes)
    assert next(net.parameters()).dtype == torch.float16


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes):
    found = audit(lambda: plain(classes=classes), (X, Y % 2), sizes=[8, 16], seeds=2, device="cpu")
    assert found.settings["classes"] == classes


def test_a_border_that_is_never_looked_at_is_said():
    """Patches of 8 on 20 px leave 4 rows and columns out, without a word from PyTorch."""

    def make():
        return nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))

    x = torch.rand(4, 3, 40, 40)
    found = audit(make, (x, Y[:4]), sizes=[20, 40], seeds=2, device="cpu")
    assert any("at 20 px the network ignores the last 4 rows and 4 columns" in note for note in found.notes)
    assert [row.size for row in audit(make, (x, Y[:4]), seeds=2, device="cpu").rows] == [8, 16, 40]


def test_fresh_batch_norms_are_calibrated_and_it_is_always_said():
    def make():
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))

    def sized(size):
        return nn.Sequential(*list(make())[:4], nn.Linear(6 * (size - 2) ** 2, 4))

    found = audit(sized, (X, Y), sizes=[8, 16], seeds=2, device="cpu")
    assert "calibrated on 6 images" in found.verdict
    bare = audit(sized, (X, Y), sizes=[8, 16], seeds=2, device="cpu", calibrate=False)
    assert "NOT calibrated" in bare.verdict
    assert bare.rows[0].mean != pytest.approx(found.rows[0].mean, rel=0.05)


def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("code was run",)

    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a file of torch")
    for name, words in (
        ("evil.pt", "pickled code is never run"),
        ("noise.pt", "holds no plain weights"),
        ("gone.pt", "cannot read the weights"),
    ):
        with pytest.raises(Refusal, match=words):
            audit(plain, (X, Y), weights=tmp_path / name, device="cpu")
    torch.save(plain(classes=5).state_dict(), tmp_path / "other.pt")
    with pytest.raises(Refusal, match="do not fit"):
        audit(plain, (X, Y), weights=tmp_path / "other.pt", device="cpu")


def test_a_flipped_bit_in_weights_is_noticed(tmp_path):
    """torch.load compares no checksum: another weight would be measured."""
    net = plain()
    file = tmp_path / "weights.pt"
    torch.save(net.state_dict(), file)
    whole, weights = file.read_bytes(), next(net.parameters()).detach().numpy().tobytes()
    at = whole.index(weights)
    for place in (at, at + 1, at + len(weights) // 2):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        torch.load(file, weights_only=True)
        with pytest.raises(Refusal, match=r"weights\.pt is damaged: .*data/0 in it is not what was written"):
            audit(plain, (X, Y), weights=file, device="cpu")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(Refusal, match="a pipe"):  # and nobody waits for it
        audit(plain, (X, Y), weights=file, device="cpu")


def test_a_randomised_head_is_measured():
    found = audit(with_zero_head, (X, Y), sizes=[8, 16], seeds=2, randomise_head=True, device="cpu")
    assert found.rows[0].mean > 0
