"""Layers that are differentiated twice give what PyTorch's own give, in values, gradients and running statistics."""

import copy
from contextlib import nullcontext

import pytest
import torch
from helpers.objectives import seeded
from torch import nn
from torch.nn import functional as F

from advdim import models
from advdim.models import fast
from advdim.models.fast.double_backpropagation import DoubleBackward, PlainDoubleBackward
from advdim.train import objectives


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


# Each layer by finite differences: (function of images and weights, images, weights, the layer's own step back)

RUNNING = (None, None)
LAYERS = {
    "convolution": (F.conv2d, (2, 3, 5, 4), [(4, 3, 3, 3), (4,)], "_Convolution"),
    "all of its options": (
        lambda x, w: F.conv2d(x, w, None, (2, 1), (1, 2), (1, 2), 2),
        (2, 4, 5, 4),
        [(6, 2, 3, 2)],
        "_Convolution",
    ),
    "options by name": (
        lambda x, w: F.conv2d(input=x, weight=w, stride=2, padding=(1,)),
        (1, 2, 5, 5),
        [(3, 2, 3, 3)],
        "_Convolution",
    ),
    "batch-norm": (
        lambda x, w, b: F.batch_norm(x, *RUNNING, w, b, training=True, eps=0.1),
        (3, 2, 3, 2),
        [(2,), (2,)],
        "_BatchNorm",
    ),
    "without weights": (lambda x: F.batch_norm(x, *RUNNING, training=True), (3, 2, 3, 2), [], "_BatchNorm"),
    "of vectors": (lambda x, w: F.batch_norm(x, *RUNNING, w, training=True), (5, 3), [(3,)], "_BatchNorm"),
    "reflection": (lambda x: F.pad(x, (1, 2, 0, 3), "reflect"), (2, 2, 4, 5), [], "_Reflection"),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_that_of_pytorch_and_so_are_its_two_gradients(name, layout):
    layer, shape, weights, own = LAYERS[name]
    x, *weights = leaves = [numbers(*s, seed=i).requires_grad_() for i, s in enumerate([shape, *weights])]
    direction = numbers(*layer(x, *weights).shape, seed=9)

    def both(x, *weights, layers=None):
        layers = layers or DoubleBackward()
        with layers:
            values = layer(x.contiguous(memory_format=layout) if x.ndim == 4 else x, *weights)
        assert type(layers) is PlainDoubleBackward or type(values.grad_fn).__name__.startswith(own)
        squares = (direction * values).square() + values  # a second derivative in the values, too
        return values, layers.gradient(squares, x)

    for mine, theirs in zip(both(*leaves), both(*leaves, layers=PlainDoubleBackward()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(both, leaves)


def test_a_channel_that_a_weight_of_0_shuts_off_has_the_gradients_of_pytorch():
    x, w = numbers(4, 2, 3, 3).requires_grad_(), torch.tensor([0.0, 1.5], dtype=torch.float64, requires_grad=True)
    found = []
    for layers in (DoubleBackward(), PlainDoubleBackward()):
        with layers:
            values = F.batch_norm(x, *RUNNING, w, training=True)
        total = layers.gradient(values.exp(), x).square().sum() + layers.gradient(values.sin(), x).sin().sum()
        found.append(torch.autograd.grad(total, (x, w)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


# Networks


def conv(name="conv_strided", **options):
    depth = {"conv_strided": 3, "conv_dilated": 4}[name]
    return models.build(name, (3, 8, 8), 4, width=6, depth=depth, **{"batch_norm": True, **options})


NETS = {
    "section 4.1": lambda: conv(normalise="batch", readout="fc"),
    "section 4.2": lambda: conv("conv_dilated", base_size=4),
    "zeros": lambda: conv(padding="zeros"),
    "circular": lambda: conv(padding="circular", batch_norm=False),
    "mlp": lambda: models.build("mlp", (3, 8, 8), 4, width=6, batch_norm=True),
    "other layers": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, padding="same", groups=3),
        nn.BatchNorm2d(6, affine=False, momentum=None),
        nn.Softplus(),
        nn.ReflectionPad2d(2),
        nn.Conv2d(6, 4, 3, stride=2, groups=2),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Tanh(),
        nn.ConstantPad2d(1, 0.5),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.LazyLinear(4),
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", ["gradient-l1", "gradient-l2", "cross-lipschitz", "cross-lipschitz-random"])
@pytest.mark.parametrize("name", NETS)
def test_penalties_by_these_layers_are_those_by_pytorchs(name, method, training, monkeypatch):
    x, y = numbers(5, 3, 8, 8), torch.arange(5) % 4
    net = NETS[name]().double().train(training)
    net(x)
    for p in net.parameters():
        nn.init.normal_(p, 0.3, 0.5, generator=seeded(1))
    found = []
    for layers in (DoubleBackward, PlainDoubleBackward):
        monkeypatch.setattr(fast, "double_backward", lambda _, layers=layers: layers())
        model = copy.deepcopy(net)
        value = objectives.objective(method)(model, x, y, 0.1, seeded())
        value.backward()
        found.append([value.detach(), *(p.grad for p in model.parameters()), *model.buffers()])
    assert sum(t.abs().sum() > 0 for t in found[0]) > len(list(net.parameters())) / 2
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_outside_of_the_first_gradient_the_weights_have_theirs():
    net, x = conv(normalise="batch").double().train(), numbers(5, 3, 8, 8)
    found = []
    for layers in (DoubleBackward(), PlainDoubleBackward()):
        model = copy.deepcopy(net)
        with layers:
            value = model(x).square().sum()
        first = torch.autograd.grad(value, list(model.parameters()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), list(model.parameters()))
        found.append([*first, *second])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


def test_a_third_derivative_is_refused_not_wrong():
    x = numbers(4, 2, 3, 3).requires_grad_()
    layers = DoubleBackward()
    with layers:
        values = F.batch_norm(x, *RUNNING, training=True)
    with pytest.raises(RuntimeError, match="third derivative"):
        torch.autograd.grad(layers.gradient(values.exp(), x).square().sum(), x, create_graph=True)


# Precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_rounds_what_it_rounds_elsewhere(dtype):
    net, x = conv().to(dtype).train(), numbers(5, 3, 8, 8, dtype=dtype)
    with fast.autocast(x.device):
        expected = copy.deepcopy(net)(x)
        with DoubleBackward():
            outputs = net(x)
    assert outputs.dtype == expected.dtype == (torch.bfloat16 if dtype == torch.float32 else dtype)
    assert torch.equal(outputs, expected)


def test_in_bfloat16_the_penalty_is_as_precise_as_pytorchs(monkeypatch):
    x, y = numbers(32, 3, 8, 8, dtype=torch.float32), torch.arange(32) % 4
    net = conv().train()
    for i, layer in enumerate(net):
        if isinstance(layer, nn.ReLU):  # at a kink, rounding decides which of two gradients it is
            net[i] = nn.Softplus()
    gradients = {}
    for name, layers, model in (
        ("exact", PlainDoubleBackward, net.double()),
        ("mine", DoubleBackward, net),
        ("theirs", PlainDoubleBackward, net),
    ):
        monkeypatch.setattr(fast, "double_backward", lambda _, layers=layers: layers())
        model = copy.deepcopy(model) if name == "exact" else copy.deepcopy(model).float()
        images = x.double() if name == "exact" else x
        with nullcontext() if name == "exact" else fast.autocast(x.device):
            value = objectives.gradient_penalty(model, images, y, strength=0.5, q=2)
        value.backward()
        gradients[name] = torch.cat([p.grad.double().flatten() for p in model.parameters()])
    errors = {name: (g - gradients["exact"]).norm() / gradients["exact"].norm() for name, g in gradients.items()}
    assert 0 < errors["mine"] < max(1.5 * errors["theirs"], 0.02)
    assert errors["mine"] < 0.1
