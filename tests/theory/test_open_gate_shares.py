"""Path counting with the gates that are open on given images: against plain loops, closed forms and real networks."""

import math

import pytest
import torch
from helpers.by_hand import images, logit_gradient
from torch import nn
from torch.nn import functional as F

from advdim import models, theory
from advdim.theory import path_counting


def smooth(n, size, coarse=8):
    """Random images, interpolated up from coarse x coarse pixels."""
    return F.interpolate(images(n, 1, coarse, coarse), size=size, mode="bilinear")


def mlp(depth=4, width=12, **options):
    return models.build("mlp", (1, 6, 6), depth=depth, width=width, **options).double()


@pytest.mark.parametrize("init", ["he", "torch", "ntk"])
def test_an_mlp_counts_its_open_gates(init):
    """Every path crosses one gate per layer: the count with halves, times 2 x share for each layer of gates."""
    net, x = mlp(init=init), images(5, 1, 6, 6)
    h, factor = x.flatten(1), 1.0
    linears = [layer for layer in net if isinstance(layer, nn.Linear)]
    for layer in linears[:-1]:
        h = (h @ layer.weight.T + layer.bias).clamp(min=0)
        factor *= 2 * sum(float(v > 0) for v in h.flatten()) / h.numel()
    assert abs(factor - 1) > 0.05  # else nothing is tested
    expected = factor * theory.path_second_moment(net)
    torch.testing.assert_close(theory.path_second_moment(net, x=x), expected, rtol=1e-12, atol=0)
    norms = theory.predicted_norms(net, x=x)
    assert norms[2] == pytest.approx(math.sqrt(float(expected.sum())), rel=1e-12)
    assert norms[1] == pytest.approx(math.sqrt(2 / math.pi) * float(expected.sqrt().sum()), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"batch_norm": True}),
        ("conv_strided", {"depth": 3, "pooling": "max", "readout": "fc"}),
        ("conv_strided", {"depth": 3, "pooling": "average", "padding": "zeros"}),
        ("conv_strided", {"depth": 2, "readout": "max", "batch_norm": True}),
        ("conv_dilated", {"depth": 4, "base_size": 8}),
    ],
)
def test_shares_are_those_of_a_forward_loop(name, options):
    net, x = models.build(name, (1, 16, 16), width=5, **options).double(), smooth(4, 16)
    if options.get("batch_norm"):
        models.calibrate_batch_norm(net, smooth(32, 16))
    expected, h, before = [], x, None
    for layer in net:
        relu, h = isinstance(before, nn.ReLU), layer(h)
        if isinstance(layer, nn.ReLU):
            open_gates = float((h > 0).double().mean())
            expected.append(open_gates)
        elif relu and isinstance(layer, nn.MaxPool2d):
            expected.append(float((h > 0).double().mean()) / open_gates)
        else:
            expected.append(1.0)
        before = layer
    found = path_counting.open_gate_shares(net, x)
    assert found == pytest.approx(expected, rel=1e-12)
    for layer, share in zip(net, found, strict=True):
        assert isinstance(layer, nn.ReLU | nn.MaxPool2d) or share == 1
        assert not isinstance(layer, nn.ReLU) or 0 < share < 1


def test_maxima_after_a_relu_pick_open_gates():
    """Of gates open by halves, a maximum over many finds an open one almost always: the two factors make 1."""
    net, x = models.build("conv_strided", (1, 16, 16), depth=1, width=8, readout="max").double(), images(4, 1, 16, 16)
    _, relu, maximum, *_ = path_counting.open_gate_shares(net, x)
    assert 0.2 < relu < 0.9
    assert relu * maximum == pytest.approx(1, rel=1e-12)  # 256 positions per channel
    expected = 2 * theory.path_second_moment(net)
    torch.testing.assert_close(theory.path_second_moment(net, x=x), expected, rtol=1e-12, atol=0)


def test_a_maximum_before_its_relu_is_counted_once():
    x = torch.tensor([[[[1.0, -2.0, 3.0, 4.0, -5.0, -6.0]]]], dtype=torch.float64)
    weights = [nn.Conv2d(1, 1, 1, bias=False), nn.Linear(3, 1, bias=False)]
    for layer in weights:
        nn.init.ones_(layer.weight)
    pool = nn.MaxPool2d((1, 2))
    before = nn.Sequential(weights[0], pool, nn.ReLU(), nn.Flatten(), weights[1]).double()
    after = nn.Sequential(weights[0], nn.ReLU(), pool, nn.Flatten(), weights[1]).double()
    assert path_counting.open_gate_shares(before, x) == pytest.approx([1, 1, 2 / 3, 1, 1])  # 1, 4, -5
    assert path_counting.open_gate_shares(after, x) == pytest.approx([1, 1 / 2, 4 / 3, 1, 1])  # 3 of 6, then 2 of 3
    for net in (before, after):
        assert theory.path_second_moment(net, x=x).tolist() == [[pytest.approx([1 / 3] * 6)]]


def test_no_gate_is_open_on_black_images():
    net = mlp()
    shares = path_counting.open_gate_shares(net, torch.zeros(2, 1, 6, 6).double())
    assert [share for share in shares if share != 1] == [0.0] * 3
    assert not theory.path_second_moment(net, x=torch.zeros(2, 1, 6, 6).double()).any()
    deaf = models.build("conv_strided", (1, 8, 8), depth=1, readout="max", width=2).double()
    shares = path_counting.open_gate_shares(deaf, torch.zeros(1, 1, 8, 8).double())
    assert shares[1] == 0
    assert all(math.isfinite(share) for share in shares)


def test_the_image_shape_is_that_of_x():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    assert theory.path_second_moment(plain, x=images(3, 1, 6, 6)).shape == (1, 6, 6)


def test_the_networks_weights_and_images_are_left_as_found():
    net, x = mlp(), images(3, 1, 6, 6).requires_grad_()
    before = [p.clone() for p in net.parameters()]
    theory.path_second_moment(net, x=x)
    assert x.grad is None
    assert all(p.grad is None and torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_counted_gates_predict_the_length_of_a_max_pooling_networks_gradients():
    """60 networks, 4 smooth images: maxima leave more gates open than half, and the count knows it.

    The standard error of prediction over measurement is about 4% (checked below), so 10% is 2.5 of it: confidence 98%.
    """
    x, measured, counted, halves = smooth(4, 16), [], [], 0.0
    for seed in range(60):
        net = models.build(
            "conv_strided", (1, 16, 16), 1, width=16, depth=5, readout="fc", pooling="max", seed=seed
        ).double()
        measured.append(logit_gradient(net, x).square().flatten(1).sum(1).mean())
        counted.append(theory.path_second_moment(net, x=x).sum())
        halves = halves or float(theory.path_second_moment(net).sum())
    squares, predicted = torch.stack(measured), torch.stack(counted)
    length = math.sqrt(float(squares.mean()))
    assert math.sqrt(float(predicted.mean())) == pytest.approx(length, rel=0.1)
    assert length / math.sqrt(halves) > 1.25
    error = float((squares - predicted).std()) / math.sqrt(60) / 2 / length**2
    assert error < 0.045
