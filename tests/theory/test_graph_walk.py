"""The walk along a graph: whatever a step is called, it counts as the layer does; what it refuses is named."""

import operator

import pytest
import torch
from helpers.nets import seeded
from torch import nn
from torch.nn import functional as F

from advdim import theory
from advdim.models import initialise


class Steps(nn.Module):
    """Two convolutions with steps of the caller's between them and a readout, and a layer for them."""

    def __init__(self, between, features, layer=None):
        super().__init__()
        self.between, self.layer = between, layer or nn.Identity()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.out = nn.Linear(features, 2)
        initialise.he_(self, seeded())

    def forward(self, x):
        return self.out(self.between(self.second(self.first(x).relu()), self.layer))


def moments(between, features, layer=None):
    """The path sums, over all gates and with the gates of images."""
    net, x = Steps(between, features, layer).double(), torch.rand(3, 1, 8, 8, generator=seeded(1)).double()
    return torch.stack([theory.path_second_moment(net, (1, 8, 8)), theory.path_second_moment(net, x=x)])


def same(expected, *form):
    torch.testing.assert_close(moments(*form), expected, rtol=1e-12, atol=0)


def test_the_walk_is_that_of_the_sequence_of_layers():
    net = Steps(lambda h, _: h.relu().flatten(1), 256)
    layers = [net.first, nn.ReLU(), net.second, nn.ReLU(), nn.Flatten(), net.out]
    plain = theory.path_second_moment(nn.Sequential(*layers), (1, 8, 8))
    torch.testing.assert_close(theory.path_second_moment(net, (1, 8, 8)), plain, rtol=1e-12, atol=0)


def test_gates_and_flattenings_have_many_names():
    expected = moments(lambda h, _: h.relu().flatten(1), 256)
    assert not torch.allclose(*expected)  # the second knows the gates
    for relu in (F.relu, torch.relu, lambda h: h.relu_()):
        same(expected, lambda h, _, relu=relu: torch.flatten(relu(h), 1), 256)
    same(expected, lambda h, relu: relu(h).flatten(1), 256, nn.ReLU())


def test_averages_have_many_names():
    def layer(h, layer):
        return layer(h.relu()).flatten(1)

    quarters, rows, whole = (moments(layer, n, nn.AvgPool2d(k)) for n, k in ((16, 4), (32, (1, 8)), (4, 8)))
    for size in (2, (2, 2)):
        same(quarters, layer, 16, nn.AdaptiveAvgPool2d(size))
    same(rows, layer, 32, nn.AdaptiveAvgPool2d((None, 1)))
    same(whole, lambda h, _: h.relu().mean((2, 3)), 4)
    same(whole, lambda h, _: torch.mean(h.relu(), (2, 3)), 4)
    with pytest.raises(TypeError, match="windows of different sizes"):
        moments(layer, 36, nn.AdaptiveAvgPool2d(3))


def test_numbers_multiply_by_their_squares_and_add_nothing():
    expected = moments(lambda h, _: h.relu().flatten(1), 256)
    for times in (operator.mul, torch.mul, lambda h, a: h.mul(a), lambda h, a: a * h):
        same(9 * expected, lambda h, _, times=times: times(h, 3.0).relu().flatten(1), 256)
    for plus in (operator.add, torch.add, lambda h, a: h.add(a)):
        same(expected, lambda h, _, plus=plus: plus(h.relu(), 1.0).flatten(1), 256)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.scale * x.flatten(1)


def test_a_tensor_outside_of_layers_is_named_with_its_owner():
    net = nn.Sequential(nn.Sequential(Scaled(), nn.Linear(4, 2)))
    with pytest.raises(TypeError, match=r"^Scaled uses the tensor 0\.0\.scale outside of its layers"):
        theory.path_second_moment(net, (1, 2, 2))


@pytest.mark.parametrize(
    "between",
    [lambda h: h + h.relu(), lambda h: torch.add(h.relu(), h), lambda h: torch.add(h, other=h.relu()), lambda h: h + h],
)
def test_sums_of_what_comes_from_one_value_are_refused_however_they_are_written(between):
    with pytest.raises(TypeError, match="without a random weight between"):
        moments(lambda h, _: between(h).flatten(1), 256)


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (lambda h, _: (h * h.relu()).flatten(1), "a product of two values has no path sum"),
        (lambda h, _: h.sigmoid().flatten(1), "the paths through sigmoid are not known here"),
    ],
)
def test_what_has_no_path_sum_is_refused(between, message):
    with pytest.raises(TypeError, match=message):
        moments(between, 256)


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": (0, 1)}, {"ceil_mode": True}])
def test_averages_over_the_border_are_refused(options):
    with pytest.raises(TypeError, match="windows over the border are not known"):
        moments(lambda h, layer: layer(h).flatten(1), 36, nn.AvgPool2d(3, **options))


def test_dropout_that_is_awake_is_refused_and_an_average_over_no_border_taken():
    def layer(h, layer):
        return layer(h.relu()).flatten(1)

    expected = moments(lambda h, _: h.relu().flatten(1), 256)
    for sleeping in (nn.Dropout(0.5).eval(), nn.Dropout(0.0), nn.AvgPool2d(1, padding=(0, 0))):
        same(expected, layer, 256, sleeping)
    with pytest.raises(TypeError, match="layer is a dropout in train mode"):
        moments(layer, 256, nn.Dropout(0.5))


def test_maxima_need_images_where_their_windows_are_dilated_or_ceiled():
    def layer(h, layer):
        return layer(h.relu()).flatten(1)

    same(moments(layer, 64, nn.MaxPool2d(2)), layer, 64, nn.MaxPool2d((2, 2), dilation=(1, 1)))
    for odd in ({"dilation": 2}, {"dilation": (2, 1)}, {"ceil_mode": True}):
        with pytest.raises(TypeError, match="dilated or ceiled windows need images"):
            moments(layer, 64, nn.MaxPool2d(2, **odd))
