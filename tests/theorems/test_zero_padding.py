"""Zero padding: the closed form of the walk's sum, exact, for each number of strides and size of image."""

import pytest
import torch
from torch import nn

from advdim import theory
from advdim.models import initialise


@pytest.mark.parametrize("m", range(5))
@pytest.mark.parametrize("times", [1, 3])
def test_the_closed_form(m, times):
    side = times * 2**m if m else 4 * times
    layers = [nn.Conv2d(1, 1, 3, 1, padding=1, bias=False), nn.ReLU()]
    for _ in range(m):
        layers += [nn.Conv2d(1, 1, 3, 2, padding=1, bias=False), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear((side // 2**m) ** 2, 1, bias=False)).double()
    initialise.he_unit_(net, torch.Generator().manual_seed(0))
    total = float(theory.path_second_moment(net, (1, side, side)).sum())
    assert total == pytest.approx((1 - 2 ** (m - 1) / side * (1 + 3 ** -(m + 1))) ** 2, rel=1e-12)
