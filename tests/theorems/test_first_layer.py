"""Behind a fully connected Gaussian first layer: the law of the gradient given all that stands behind, and its limit.

The part along the image is exact, to 1e-12. Monte Carlo means must lie within 4 standard errors, all seeds being fixed.
"""

import math

import pytest
import torch
from helpers.monte_carlo import generator, normal, z_score

from advdim.theory import norms


def gradients(d, draws, n=6, tau=2.0, seed=0):
    """x [d], and per draw W [n, d], z = W x, u = grad h(z) and g = grad h(W x), for the loss of a network with a
    shortcut, real gates, biases and maxima behind W; and g by autograd through W x."""
    source = generator(seed)
    x = 0.2 + torch.rand(d, generator=generator(99), dtype=torch.float64)
    x = x / norms.norm(x[None], 2) * math.sqrt(d)  # M_2(x) = 1 at every d
    W = normal(draws, n, d, variance=tau / d, seed=source)
    bias, first, second = (normal(draws, *shape, seed=source) for shape in ((n,), (n, n), (n, n)))
    readout = normal(draws, 3, n // 2, seed=source)

    def h(z):
        a = (z + bias).relu()
        a = (a + torch.einsum("mij,mj->mi", second, torch.einsum("mij,mj->mi", first, a).relu())).relu()
        f = torch.einsum("mkj,mj->mk", readout, a.view(draws, -1, 2).amax(2))
        return (f.logsumexp(1) - f[:, 0]).sum()

    z = (W @ x).requires_grad_()
    (u,) = torch.autograd.grad(h(z), z)
    images = x.repeat(draws, 1).requires_grad_()
    (g,) = torch.autograd.grad(h(torch.einsum("mij,mj->mi", W, images)), images)
    return x, z.detach(), u, g


def test_the_part_along_the_image_is_exact():
    x, z, u, g = gradients(7, 500)
    assert torch.allclose(g @ x, (u * z).sum(1), rtol=0, atol=1e-12 * float(g.abs().max()) * 100)


@pytest.mark.parametrize(("d", "tau"), [(2, 2.0), (5, 1.0), (40, 2.0)])
def test_the_rest_is_gaussian_given_what_stands_behind(d, tau):
    """Mean square and fourth moment of the part off the image, in units of its standard deviation given u."""
    x, _, u, g = gradients(d, 10_000, tau=tau, seed=d)
    along = x / norms.norm(x[None], 2)
    off = g - (g @ along)[:, None] * along
    alive = u.square().sum(1) > 0
    unit = off[alive] / (u[alive].norm(dim=1) * math.sqrt(tau / d))[:, None]
    square = unit.square().sum(1)
    assert z_score(square, d - 1) < 4
    assert z_score(square.square(), (d - 1) * (d + 1)) < 4  # a chi-square with d - 1 degrees of freedom
    length = u[alive].norm(dim=1)  # of which the rest is independent
    assert z_score((square - (d - 1)) * (length - length.mean()), 0) < 4


@pytest.mark.parametrize(("p", "m"), [(math.inf, math.sqrt(2 / math.pi)), (2, 1.0), (4 / 3, 3**0.25)])
def test_the_law_with_its_constant(p, m):
    off = []
    for d in (16, 1024):
        _, _, u, g = gradients(d, 1500, seed=1)
        size = norms.threshold(1.0, p, d) * norms.norm(g, norms.dual(p)).mean() / math.sqrt(d)
        off.append(abs(float(size / (math.sqrt(2) * m * u.norm(dim=1).mean())) - 1))
    assert off[1] < 0.02


def test_the_mean_square_has_a_part_along_the_image():
    """E ||g||_2^2 = E <u, z>^2 / (d M_2^2) + tau_1 (1 - 1/d) E ||u||_2^2: without the first term it is missed."""
    d = 3
    _, z, u, g = gradients(d, 30_000, seed=2)
    inner, square = (u * z).sum(1).square(), g.square().sum(1)
    assert z_score(square - inner / d - 2 * (1 - 1 / d) * u.square().sum(1), 0) < 4
    assert z_score(square - 2 * (1 - 1 / d) * u.square().sum(1), 0) > 4
