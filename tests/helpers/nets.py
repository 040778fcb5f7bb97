"""Images and small networks in float64 for the tests of measuring."""

import torch
from torch import nn

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
