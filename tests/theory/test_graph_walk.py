"""What the walk along a graph refuses, by name."""

import pytest
import torch
from torch import nn

from advdim import theory


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
