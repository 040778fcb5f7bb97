"""Residual networks: the path count of their blocks, exact with coins, against real networks, and through graphs.

Exact identities hold to 1e-12. Monte Carlo means must lie within 4 standard errors, all seeds being fixed.
"""

import math

import pytest
import torch
import torchvision
from helpers.monte_carlo import generator, normal, z_score
from torch import nn

from advdim import analysis, measure, models, theory
from advdim.models import initialise


class Coins(nn.Module):
    """Gates that are fair coins, of one draw for all images."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, z):
        return z * torch.randint(0, 2, z.shape[1:], generator=self.generator).to(z)


def residual(kind, scale, blocks, width=24, seed=0, pixels=(1, 3, 3)):
    """A fully connected residual network of unit gain, by the rule he_unit."""
    d = math.prod(pixels)

    def linear(n, m):
        return nn.Linear(n, m, bias=False)

    layers = [nn.Flatten(), linear(d, width)]
    if kind == "pre":
        for _ in range(blocks):
            branch = nn.ReLU(), linear(width, width), nn.ReLU(), linear(width, width)
            layers.append(models.Residual(*branch, scale=scale))
        layers.append(nn.ReLU())
    else:
        layers.append(nn.ReLU())
        for _ in range(blocks):
            branch = linear(width, width), nn.ReLU(), linear(width, width)
            layers += [models.Residual(*branch, scale=scale), nn.ReLU()]
    net = nn.Sequential(*layers, linear(width, 2)).double()
    initialise.he_unit_(net, torch.Generator().manual_seed(seed))
    return net


def with_coins(module, generator):
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, Coins(generator))
        else:
            with_coins(child, generator)
    return module


def squares(nets, x):
    y = torch.zeros(1, dtype=torch.long)
    return torch.stack([measure.input_gradients(n, x, y, loss=measure.logit).square().sum() for n in nets])


@pytest.mark.parametrize(("kind", "factor"), [("pre", lambda a: 1 + a**2), ("post", lambda a: 0.5 + a**2)])
@pytest.mark.parametrize(("scale", "blocks"), [(1.0, 1), (0.5, 3), (2.0, 2)])
def test_the_closed_form(kind, factor, scale, blocks):
    for width in (1, 7):
        v = theory.path_second_moment(residual(kind, scale, blocks, width), (1, 3, 3))
        torch.testing.assert_close(v, torch.full_like(v, factor(scale) ** blocks / 9), rtol=1e-12, atol=0)


@pytest.mark.parametrize("padding", ["circular", "reflect"])
@pytest.mark.parametrize("kind", ["pre", "post"])
def test_the_closed_form_of_convolutional_blocks(kind, padding):
    def conv(i):
        return nn.Conv2d(i, 4, 3, padding=1, padding_mode=padding, bias=False)

    layers = [conv(1)] if kind == "pre" else [conv(1), nn.ReLU()]
    for _ in range(2):
        branch = conv(4), nn.ReLU(), conv(4)
        layers += (
            [models.Residual(nn.ReLU(), *branch, scale=0.7)]
            if kind == "pre"
            else [models.Residual(*branch, scale=0.7), nn.ReLU()]
        )
    layers += [nn.ReLU()] if kind == "pre" else []
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 36, 1, bias=False)).double()
    initialise.he_unit_(net, generator())
    level = (1 if kind == "pre" else 0.5) + 0.7**2
    assert float(theory.path_second_moment(net, (1, 6, 6)).sum()) == pytest.approx(level**2, rel=1e-12)


def coin_squares(kind, scale, blocks, width, draws, d=9):
    """Squared gradient norms of networks with coins for gates, tau = 1, in plain tensors: [draws]."""
    source = generator(2)

    def coins(h):
        return h * torch.randint(0, 2, h.shape[:2], generator=source)[..., None]

    def layer(n, m, c=2):
        return normal(draws, n, m, variance=c / m, seed=source)

    J = layer(width, d)
    J = coins(J) if kind == "post" else J
    for _ in range(blocks):
        inner = layer(width, width) @ (coins(J) if kind == "pre" else J)
        J = J + scale * layer(width, width) @ coins(inner)
        J = coins(J) if kind == "post" else J
    return (layer(1, width, 1) @ (coins(J) if kind == "pre" else J)).square().sum((1, 2))


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_coins_meet_the_closed_form_at_any_width(kind):
    expected = float(theory.path_second_moment(residual(kind, 0.7, 2, width=3), (1, 3, 3)).sum())
    assert z_score(coin_squares(kind, 0.7, 2, 3, 20_000), expected) < 4


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_gates_of_the_images_give_the_level_of_real_networks(kind):
    """Coins are exact to O(1/width) before activation; after it the images' own gates are needed, and suffice."""
    x = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(1)).double()
    nets = [residual(kind, 1.0, 2, width=48, seed=seed) for seed in range(200)]
    measured = squares(nets, x)
    walk = torch.stack([theory.path_second_moment(net, x=x).sum() for net in nets])
    assert z_score(measured - walk, 0) < 4
    assert walk.std() < measured.std()
    coins = float(theory.path_second_moment(nets[0], (1, 3, 3)).sum())
    assert z_score(measured, coins) < 4 if kind == "pre" else measured.mean() > 1.6 * coins


def test_convolutional_blocks_with_a_strided_shortcut():
    def conv(i, o, k=3, **options):
        return nn.Conv2d(i, o, k, padding=k // 2, padding_mode="circular", bias=False, **options)

    def net(seed):
        plain = models.Residual(nn.ReLU(), conv(6, 6), nn.ReLU(), conv(6, 6), scale=0.5)
        branch = nn.ReLU(), conv(6, 12, stride=2), nn.ReLU(), conv(12, 12)
        wider = models.Residual(*branch, shortcut=conv(6, 12, 1, stride=2))
        layers = conv(1, 6), plain, wider, nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 2, bias=False)
        model = nn.Sequential(*layers).double()
        initialise.he_unit_(model, torch.Generator().manual_seed(seed))
        return model

    # the strided shortcut has weights of variance 2 / 6 and no gate before them: it doubles, and the branch adds 1
    v = theory.path_second_moment(net(0), (1, 8, 8))
    assert float(v.sum()) == pytest.approx(1.25 * (2 + 1), rel=1e-12)
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    source = generator(3)
    nets = [with_coins(net(seed), source) for seed in range(200)]
    assert z_score(squares(nets, x), float(v.sum())) < 4


def test_torchvisions_resnet():
    """The walk with the images' gates, eval mode, calibrated batch-norm: the level is right within 15 per cent."""
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    few, y = x[:2], torch.zeros(2, dtype=torch.long)
    ratios, coins = [], []
    for seed in range(8):
        torch.manual_seed(seed)
        net = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)
        models.calibrate_batch_norm(net, x)
        net.eval()
        square = measure.gradient_norms(net, few, y, q=(2,), loss=measure.logit)[2].double().square().mean()
        ratios.append(math.log(float(square / theory.path_second_moment(net, x=few).sum())))
        coins.append(math.log(float(square / theory.path_second_moment(net, (3, 32, 32)).sum())))
        assert not net.training
    interval = analysis.mean_interval(ratios)
    assert -0.15 < interval.low < 0 < interval.high < 0.15
    assert analysis.mean_interval(coins).low > 0.5  # coins miss the level: gates behind a sum are open more often


def test_the_graph_agrees_with_the_sequence():
    """The same layers, nested, so that they are followed as a graph."""
    for options in (
        {"readout": "fc"},
        {"readout": "fc", "pooling": "max"},
        {"readout": "average"},
        {"padding": "zeros"},
    ):
        net = models.build("conv_strided", (1, 8, 8), depth=3, width=4, **options).double()
        nested = nn.Sequential(nn.Sequential(*net[:3]), nn.Sequential(*net[3:]))
        torch.testing.assert_close(
            theory.path_second_moment(nested, (1, 8, 8)), theory.path_second_moment(net), rtol=1e-12, atol=1e-15
        )


@pytest.mark.parametrize("size", [7, 8])
def test_maxima_over_the_border_pick_one_of_the_inputs_that_are_there(size):
    """The maximum of torchvision's ResNets: every step of the walk goes to an input, so that its sum stays 1."""
    side = (size - 1) // 2 + 1
    net = nn.Sequential(nn.MaxPool2d(3, 2, padding=1), nn.Flatten(), nn.Linear(side * side, 2, bias=False))
    initialise.he_unit_(net, torch.Generator().manual_seed(0))
    assert float(theory.path_second_moment(net, (1, size, size)).sum()) == pytest.approx(1, rel=1e-12)
    x = torch.rand(3, 1, size, size, generator=torch.Generator().manual_seed(1))
    picked = theory.path_second_moment(net, x=x)
    assert float(picked.sum()) == pytest.approx(1, rel=1e-6)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.layer(x.flatten(1)).relu()
        return self.out(self.layer(h))


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.layer(x.flatten(1))
        return self.out(h + torch.relu(h))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(x.flatten(1) if x.sum() > 0 else -x.flatten(1))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Twice(), "used twice"),
        (Doubled(), "without a random weight"),
        (Branching(), "depends on values"),
        (nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Softmax(1))), "Softmax"),
        (nn.Sequential(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2))), "dropout in train mode"),
    ],
)
def test_refusals(net, message):
    with pytest.raises(TypeError, match=message):
        theory.path_second_moment(net, (1, 2, 2))
