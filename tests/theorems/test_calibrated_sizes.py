"""First-order damage at calibrated sizes: it falls with p, between bounds that are attained."""

import itertools
import math

import pytest
import torch
from helpers.strategies import exact, exponents, matrices
from hypothesis import given

from advdim import norms


@exact
@given(matrices, exponents, exponents)
def test_first_order_damage_falls_with_p_between_its_bounds(g, p, other):
    g = torch.from_numpy(g)
    d = g[0].numel()
    sized = {r: norms.threshold(0.1, r, d) * norms.norm(g, norms.dual(r)) for r in (1, p, other, 2, math.inf)}
    slack = 1e-11 * sized[1]
    ordered = [sized[r] for r in sorted(sized)]
    assert all((small >= large - slack).all() for small, large in itertools.pairwise(ordered))
    assert (sized[p] <= d ** (0 if p == math.inf else 1 / p) * sized[math.inf] + slack).all()


@pytest.mark.parametrize("p", [1, 1.5, 2, 7])
def test_the_bounds_are_attained(p):
    d = 12
    sized = [norms.threshold(1.0, r, d) for r in (p, math.inf)]
    flat, single = torch.ones(1, d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)[:1]
    for g, factor in ((flat, 1.0), (single, d ** (1 / p))):
        left, right = sized[0] * norms.norm(g, norms.dual(p)), sized[1] * norms.norm(g, 1)
        assert left.item() == pytest.approx(factor * right.item(), rel=1e-12)
