"""First order is valid while eps sqrt(d) is small: the remainder through a random first layer."""

import math

import pytest
import torch
from helpers.monte_carlo import generator, normal

from advdim import norms

CURVATURE = 3.0


def quadratic(z, b):
    """A loss of the first layer's sums whose remainder is exactly CURVATURE |zeta|^2 / 2."""
    return (b * z).sum(-1) + CURVATURE / 2 * (z**2).sum(-1)


@pytest.mark.parametrize("p", [2, 3, math.inf])
@pytest.mark.parametrize("d", [8, 128])
def test_the_remainder_is_at_most_that_of_the_level_above(p, d):
    n, draws, eps = 5, 50, 0.3
    W, b = normal(draws, n, d, variance=2 / d), normal(draws, n, seed=1)
    x = torch.rand(d, generator=generator(2), dtype=torch.float64)
    z = W @ x
    g = torch.einsum("bni,bn->bi", W, b + CURVATURE * z)
    size = norms.threshold(eps, p, d)
    largest = torch.linalg.matrix_norm(W, 2)
    bound = CURVATURE / 2 * (largest * eps * math.sqrt(d)) ** 2
    for direction in (norms.steepest(g, p), norms.steepest(normal(draws, d, seed=3), p)):
        step = size * direction
        rest = quadratic(W @ x + torch.einsum("bni,bi->bn", W, step), b) - quadratic(z, b) - (g * step).sum(1)
        assert (rest.abs() <= bound * (1 + 1e-12)).all()
        assert (rest.abs() > 0).all()


@pytest.mark.parametrize("d", [8, 32, 256])
def test_singular_values_lie_within_their_bounds_in_the_mean(d):
    n, draws, tau = 4, 300, 2.0
    W = normal(draws, n, d, variance=tau / d)
    s = torch.linalg.svdvals(W)
    for mean, bound, sign in ((s[:, 0], 1 + math.sqrt(n / d), 1), (s[:, -1], 1 - math.sqrt(n / d), -1)):
        excess = sign * (mean / math.sqrt(tau) - bound)
        assert excess.mean() < 4 * excess.std() / math.sqrt(draws)
    # and the worst l_2 damage is that of the level above, between the two: here of a linear loss, where it is exact
    b = normal(draws, n, seed=1)
    gained = norms.norm(torch.einsum("bni,bn->bi", W, b), 2)
    length = b.norm(dim=1)
    assert (s[:, -1] * length <= gained * (1 + 1e-12)).all()
    assert (gained <= s[:, 0] * length * (1 + 1e-12)).all()
