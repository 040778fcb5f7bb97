"""No perturbation exceeds its budget."""

import math

import pytest
import torch
from helpers.nets import seeded
from torch import nn

from advdim import attacks, measure, norms
from advdim.attacks import perturbation

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


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_too_long_is_cut_to_the_radius_and_the_rest_left(p, dtype):
    x = torch.full((3, 2, 5, 5), 0.5, dtype=dtype)
    delta = torch.randn(3, 2, 5, 5, generator=seeded(1)).to(dtype)
    delta /= norms.norm(delta, p).view(-1, 1, 1, 1) / torch.tensor([0.3, 0.1, 0.05]).view(-1, 1, 1, 1)
    radius = torch.full((3, 1, 1, 1), 0.1, dtype=dtype)
    size = norms.norm(perturbation.perturbed(x, delta, p, radius, clip=False).double() - x.double(), p)
    assert (size <= 0.1).all()
    torch.testing.assert_close(size, torch.tensor([0.1, 0.1, 0.05]).double(), rtol=1e-4, atol=0)
