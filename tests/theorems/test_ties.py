"""Ties: on copied pixels maxima pass the gradient to a share of the pixels only, whatever the weights."""

import pytest
import torch

from advdim import data, measure, models


@pytest.mark.parametrize(("factor", "poolings"), [(2, 2), (4, 1), (4, 2)])
def test_few_entries_are_reached_and_the_l_1_norm_does_not_grow(factor, poolings):
    small = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    small = (256 * small).round() / 256
    images, y = data.resize(small, 8 * factor, "copy"), torch.tensor([0, 1])
    options = {"depth": 2 * poolings, "base_size": 8, "width": 4, "padding": "circular"}
    net = models.build("conv_dilated", images.shape[1:], **options).double()
    for p in net.parameters():  # sums of such numbers are exact, and equal is equal
        p.data = (64 * p.data).round() / 64
    levels = min(poolings, factor.bit_length() - 1)
    g = measure.input_gradients(net, images, y)
    reached = (g != 0).flatten(1).sum(1)
    assert (reached <= g[0].numel() / 4**levels).all()
    assert (reached > 0).all()
    assert not g[:, :, 1::2].any()
    assert not g[..., 1::2].any()
    if poolings >= factor.bit_length() - 1:
        assert (g.abs().flatten(1).sum(1) <= 8 * g.flatten(1).norm(dim=1) * (1 + 1e-12)).all()
    untied = images + 1e-6 * torch.rand(images.shape, generator=torch.Generator().manual_seed(1)).double()
    assert ((measure.input_gradients(net, untied, y) != 0).flatten(1).sum(1) > reached).all()
