"""The term of a moving kink: what is true, what augmentation finds, and how far apart they can be."""

import math

import pytest
import torch
from helpers.monte_carlo import generator

from advdim import norms


def terms(a, u, b, p):
    """T, A, c_0, c_1 of the book, and the two steps <u, delta_j>; a and u are [N, d], b is [N, 1]."""
    q = norms.dual(p)
    g = a, a + b * u
    step = [(norms.steepest(each, p) * u).sum(1) for each in g]
    c = [b[:, 0] * s for s in step]
    positive = c[0].clamp(min=0) - (-c[1]).clamp(min=0)
    negative = c[1].clamp(min=0) - (-c[0]).clamp(min=0)
    return norms.norm(g[1], q) - norms.norm(g[0], q), torch.where(b[:, 0] > 0, positive, negative), *c, step


@pytest.mark.parametrize("p", [1.5, 2, 4, math.inf])
@pytest.mark.parametrize("size", [0.01, 1.0, 10.0])
def test_both_terms_lie_between_the_same_two_numbers(p, size):
    a, u = torch.randn(2, 400, 7, generator=generator(), dtype=torch.float64)
    b = size * torch.randn(400, 1, generator=generator(1), dtype=torch.float64)
    truth, found, low, high, _ = terms(a, u, b, p)
    slack = 1e-12 * (1 + high.abs())
    for term in (truth, found):
        assert (low - slack <= term).all()
        assert (term <= high + slack).all()
    if p == 2:
        assert (high - low <= 2 * (b * u).square().sum(1) / a.norm(dim=1) + slack).all()
    if p == math.inf:
        same = (a.sign() == (a + b * u).sign()).all(1)
        torch.testing.assert_close(truth[same], found[same], rtol=1e-9, atol=1e-12)
        assert same.any()


@pytest.mark.parametrize("p", [2, math.inf])
@pytest.mark.parametrize("b", [1.5, -1.5])
def test_augmentation_finds_its_term_by_crossings(p, b):
    """Positions <u, x> uniform on [-1, 1], the kink at 0: density 1/2; crossings are counted on a fine grid."""
    eps, position = 1e-2, torch.linspace(-1, 1, 2_000_001, dtype=torch.float64)
    a, u = torch.randn(2, 1, 5, generator=generator(3), dtype=torch.float64)
    _, found, _, _, step = terms(a, u, torch.tensor([[b]], dtype=torch.float64), p)
    moved = position + eps * torch.where(position > 0, step[1], step[0])
    crossed = ((moved > 0).double() - (position > 0).double()).mean()
    assert float(b * crossed / eps / 0.5) == pytest.approx(float(found), abs=1e-3 * (1 + abs(float(found))))


def test_augmentation_misses_it_where_the_step_runs_along_the_kink():
    one = torch.ones(1, 1, dtype=torch.float64)
    truth, found, *_ = terms(torch.tensor([[0.0, 1.0]]).double(), torch.tensor([[1.0, 0.0]]).double(), one, 2)
    assert float(truth) == pytest.approx(math.sqrt(2) - 1, rel=1e-12)
    assert float(found) == 0
    truth, found, *_ = terms(one, one, one, 2)
    assert (float(truth), float(found)) == (1, 1)
