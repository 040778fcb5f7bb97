"""How far the backward walk spreads through strided convolutions: its peak, and what its unevenness costs."""

import math

import pytest
import torch
from torch import nn

from advdim import theory
from advdim.models import initialise


@pytest.mark.parametrize(
    ("side", "strides"), [(3, (1, 1)), (3, (2, 1)), (3, (2, 2)), (4, (2, 2)), (4, (3,)), (5, (4,))]
)
@pytest.mark.parametrize("padding", ["circular", "reflect"])
def test_the_peak_and_the_evenness_are_within_their_bounds(side, strides, padding):
    size, left, layers = 24, 24, []
    for stride in strides:
        layers += [nn.Conv2d(1, 1, side, stride, padding=1, padding_mode=padding, bias=False), nn.ReLU()]
        left //= stride
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(left**2, 1, bias=False)).double()
    initialise.he_unit_(net, torch.Generator().manual_seed(0))
    omega = theory.path_second_moment(net, (1, size, size))
    peak = math.prod(t / side * math.ceil(side / t) for t in strides) ** 2
    if padding == "reflect":
        peak *= 9 ** len(strides)
    d = size**2
    assert float(omega.sum()) == pytest.approx(1, rel=1e-12)
    assert float(d * omega.max()) <= peak * (1 + 1e-12)
    evenness = float((omega / d).sqrt().sum())
    assert peak**-0.5 * (1 - 1e-12) <= evenness <= 1 + 1e-12
    if padding == "circular" and set(strides) == {1}:
        assert evenness == pytest.approx(1, rel=1e-12)
