"""Averages: exact with independent gates over all signs and coins, and the excess of one over real gates."""

import itertools
import math

import pytest
import torch
from helpers.monte_carlo import normal, z_score


def test_an_average_divides_the_second_moment_with_coins():
    """Four pixels, circular kernel of 2, averages over 2, a readout of 2: over all signs of weights, all gates."""
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=4)), dtype=torch.float64)
    gates = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64)
    kernel, readout = signs[:, :2], signs[:, 2:]  # in-degrees 2, tau = 2
    jacobian = torch.zeros(16, 4, 4, dtype=torch.float64)  # [signs, position, pixel]
    for t in range(4):
        jacobian[:, t, t] += kernel[:, 0]
        jacobian[:, t, (t + 1) % 4] += kernel[:, 1]
    pooled = torch.einsum("gt,sti->gsti", gates, jacobian).unflatten(2, (2, 2)).mean(3)
    gradient = torch.einsum("sp,gspi->gsi", readout, pooled)
    square = gradient.square().mean((0, 1))
    torch.testing.assert_close(square, torch.full_like(square, 2 / 2 / 4), rtol=1e-12, atol=0)


@pytest.mark.parametrize("smooth", [False, True])
def test_the_excess_of_one_layer_over_real_gates(smooth):
    d, channels, draws, offsets = 6, 2, 60_000, (-1, 0, 1)
    x = torch.linspace(0.5, 0.9, d).double() if smooth else torch.tensor([0.9, 0.1, 0.6, 0.2, 0.8, 0.3]).double()
    u = torch.stack([x.roll(-o) for o in offsets])  # [offset, position]
    u = u / u.norm(dim=0)
    v, i = 2 / len(offsets), 2
    total = len(offsets) * v / 2
    for j, k in itertools.permutations(range(3), 2):
        t, there = (i - offsets[j]) % d, (i - offsets[k]) % d
        rho = float(u[:, t] @ u[:, there])
        b = u[j, t] * u[k, there] + u[k, t] * u[j, there] - rho * (u[j, t] * u[k, t] + u[j, there] * u[k, there])
        total += v * float(b) / (2 * math.pi * math.sqrt(1 - rho**2))
    w = normal(draws, channels, 3, variance=v)
    gates = torch.einsum("mco,op->mcp", w, torch.stack([x.roll(-o) for o in offsets])) > 0
    inner = sum(gates[:, :, (i - o) % d] * w[:, :, j] for j, o in enumerate(offsets)) / d
    gradient = (normal(draws, channels, variance=1 / channels, seed=1) * inner).sum(1)
    assert z_score(gradient.square(), total / d**2) < 4
    if not smooth:
        assert z_score(gradient.square(), 1 / d**2) > 4  # of independent gates
