"""Images and small networks in float64 for the tests of measuring."""

import torch
from torch import nn
from torch.nn import functional as F

from advdim import models


def batch(n=5, shape=(2, 6, 6), classes=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand(n, *shape, generator=generator, dtype=torch.float64).to(dtype),
        torch.randint(classes, (n,), generator=generator),
    )


def relu_net(**options):
    return models.build("conv_strided", (2, 6, 6), 4, width=6, depth=2, init="torch", **options).double()


def smooth_net():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 8), nn.Softplus(), nn.Linear(8, 4))
    net = net.double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.5, generator=generator)
    return net


class Bomb(nn.Module):
    """A layer that passes its input on, and raises instead after some passes."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("boom")
        return x


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_net(classes=4):
    return models.build("mlp", (2, 6, 6), classes, depth=1).double()


def trained(seed=0):
    """A small net, trained to tell random images apart, so that its loss is curved; its images and labels."""
    net, (x, y) = relu_net(), batch(40, seed=seed)
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    net.zero_grad(set_to_none=True)
    return net, x, y
