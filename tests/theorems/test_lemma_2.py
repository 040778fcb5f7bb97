"""Lemma 2: to first order an attack of size eps gains eps times the dual norm, along the steepest direction."""

import math

import pytest
import torch
from helpers.nets import batch, smooth_net
from helpers.strategies import dot, draw, exact, exponents, matrices
from hypothesis import given
from hypothesis import strategies as st

from advdim import attacks, measure, norms

INF = math.inf


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, INF])
def test_one_step_is_first_order_optimal(p):
    """Lemma 2: damage / (eps |g|_q) tends to 1, with a remainder that shrinks as eps."""
    net, (x, y) = smooth_net(), batch()
    norm = measure.gradient_norms(net, x, y, q=(norms.dual(p),))[norms.dual(p)]
    off = []
    for eps in (1e-4, 1e-6):
        damage = measure.damage(net, x, y, attacks.one_step(net, x, y, p=p, eps=eps))
        off.append((damage / (eps * norm) - 1).abs().max())
    assert off[0] < 1e-2
    assert off[1] < 1e-4
    assert off[1] < off[0] / 20


@exact
@given(matrices, exponents)
def test_steepest_attains_the_dual_norm_with_unit_length(g, p):
    g = torch.from_numpy(g)
    direction = norms.steepest(g, p)
    torch.testing.assert_close(dot(g, direction), norms.norm(g, norms.dual(p)), rtol=1e-11, atol=0)
    vanishing = (g == 0).all(1)
    torch.testing.assert_close(norms.norm(direction, p), (~vanishing).double(), rtol=1e-11, atol=0)
    assert not direction[vanishing].any()


@exact
@given(matrices, exponents, st.integers(0, 9))
def test_no_other_direction_does_better(g, p, seed):
    g = torch.from_numpy(g)
    other = draw(*g.shape, seed=seed)
    other = other / norms.norm(other, p)[:, None]
    assert (dot(g, other) <= dot(g, norms.steepest(g, p)) * (1 + 1e-11) + 1e-11).all()


def test_steepest_has_the_explicit_forms_of_lemma_2():
    g = draw(3, 2, 3, 3)
    assert torch.equal(norms.steepest(g, INF), g.sign())
    torch.testing.assert_close(norms.steepest(g, 2), g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1), rtol=1e-14, atol=0)
    cubic = g.sign() * g.abs() ** 0.5  # p = 3, q = 3/2
    cubic = cubic / (cubic.abs() ** 3).flatten(1).sum(1).view(-1, 1, 1, 1) ** (1 / 3)
    torch.testing.assert_close(norms.steepest(g, 3), cubic, rtol=1e-13, atol=0)
