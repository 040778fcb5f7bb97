"""No perturbation exceeds its budget."""

import math

import pytest
import torch
from helpers.nets import seeded
from torch import nn

from advdim import attacks, measure, norms

INF = math.inf


@pytest.mark.parametrize("p", [1.5, 2, 3, INF])
def test_budgets_hold_on_large_images_in_float32(p):
    """A float32 norm of 200,000 numbers may be off by 1e-4."""
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256**2, 2)), torch.full((2, 3, 256, 256), 0.5)
    nn.init.normal_(net[1].weight, generator=seeded())
    eps = norms.threshold(0.1, p, x[0].numel())
    attacked = attacks.one_step(net, x, torch.tensor([0, 1]), p=p, eps=eps, loss=measure.logit)
    size = norms.norm(attacked.double() - x.double(), p) / eps
    assert (size <= 1 + 1e-6).all()
    assert (size >= 1 - 1e-4).all()
