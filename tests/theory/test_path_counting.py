"""Path sums against paths counted one by one, and their sums, layer by layer, in closed form, to 1e-12."""

import math

import numpy as np
import pytest
import torch
from helpers.by_hand import count_paths
from torch import nn

from advdim import models, theory

# Against paths counted one by one


@pytest.mark.parametrize("init", ["he", "he_unit", "torch", "ntk", "mup"])
def test_path_sums_of_an_mlp_are_the_paths_counted(init):
    net = models.build("mlp", (2, 2, 2), init=init, width=4, depth=3)
    counted, paths = count_paths(net)
    assert paths == 8 * 4 * 4
    np.testing.assert_allclose(theory.path_second_moment(net), counted, rtol=1e-12)


@pytest.mark.parametrize("padding", models.PADDINGS)
@pytest.mark.parametrize("pooling", models.POOLINGS)
@pytest.mark.parametrize("readout", models.READOUTS)
def test_path_sums_of_conv_nets_are_the_paths_counted(padding, pooling, readout):
    net = models.build(
        "conv_strided", (1, 5, 5), width=2, depth=2, padding=padding, pooling=pooling, readout=readout, classes=2
    )
    for k in (0, 1):
        np.testing.assert_allclose(theory.path_second_moment(net), count_paths(net, k)[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("padding", models.PADDINGS)
def test_path_sums_of_a_dilated_net_are_the_paths_counted(padding):
    net = models.build("conv_dilated", (1, 6, 6), width=1, depth=2, padding=padding, base_size=3, readout="fc")
    assert net[0].dilation == (2, 2)
    np.testing.assert_allclose(theory.path_second_moment(net), count_paths(net)[0], rtol=1e-12, atol=1e-15)


# Sums


@pytest.mark.parametrize("size", [8, 16, 32])
def test_zero_padding_loses_the_paths_over_the_border(size):
    """One layer, by hand: of 9 (n + 2)^2 pairs, a kernel at the border misses 3 per side and 1 more per corner."""
    net = models.build("conv_strided", (1, size, size), width=2, depth=1, padding="zeros", readout="fc")
    expected = 2 * (3 * size - 2) ** 2 / (3 * size) ** 2
    assert float(theory.path_second_moment(net).sum()) == pytest.approx(expected, rel=1e-12)
    deeper = models.build("conv_strided", (1, size, size), width=2, depth=3, padding="zeros", readout="fc")
    assert float(theory.path_second_moment(deeper).sum()) < expected


def test_normalisation_and_batch_norm_scale_the_path_sums():
    mean, std = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.5])
    bare = theory.path_second_moment(models.build("mlp", (2, 3, 3), width=4))
    scaled = theory.path_second_moment(models.build("mlp", (2, 3, 3), width=4, normalise=(mean, std)))
    torch.testing.assert_close(scaled, bare / std.double().view(2, 1, 1) ** 2, rtol=1e-12, atol=0)
    net = models.build("mlp", (2, 3, 3), width=4, batch_norm=True)
    norms = [m for m in net if isinstance(m, nn.BatchNorm1d)]
    for m in norms:
        m.running_var.fill_(4.0)
        nn.init.constant_(m.weight, 3.0)
    torch.testing.assert_close(theory.path_second_moment(net), bare * (9 / (4 + norms[0].eps)) ** 2, rtol=1e-12, atol=0)


def test_predicted_norms():
    net = models.build("mlp", (1, 5, 5), width=4)
    predicted = theory.predicted_norms(net)
    assert predicted[2] == pytest.approx(math.sqrt(2), rel=1e-12)
    assert predicted[1] == pytest.approx(math.sqrt(2 * 25 / math.pi) * math.sqrt(2), rel=1e-12)
    zeros = models.build("conv_strided", (1, 8, 8), width=4, depth=2, padding="zeros", readout="fc")
    v = theory.path_second_moment(zeros)
    assert theory.predicted_norms(zeros)[1] == pytest.approx(
        sum(math.sqrt(2 * float(a) / math.pi) for a in v.flatten())
    )
