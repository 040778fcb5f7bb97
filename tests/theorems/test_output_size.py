"""E f^2 = tau sum_i omega(i) x_i^2, over all signs of all weights: an expectation without a sampling error."""

import itertools

import pytest
import torch


def test_the_outputs_mean_square_is_the_walks_mean_of_the_squared_pixels():
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=10)), dtype=torch.float64)
    x = torch.tensor([0.9, 0.2, 0.4], dtype=torch.float64)
    # 3 pixels, 2 units that see pixels 1, 2 and 2, 3, then 2 units and one output: in-degrees 2, 2 and 2, tau = 2
    a, b, c = signs[:, :4].view(-1, 2, 2), signs[:, 4:8].view(-1, 2, 2), signs[:, 8:10]
    first = torch.einsum("mjk,jk->mj", a, torch.stack([x[:2], x[1:]])).relu()
    f = (c * torch.einsum("mij,mj->mi", b, first).relu()).sum(1)
    omega = torch.tensor([1 / 4, 1 / 2, 1 / 4], dtype=torch.float64)
    assert float((f**2).mean()) == pytest.approx(2 * float((omega * x**2).sum()), rel=1e-12)
