"""The fast gradient method on models whose steepest direction is known."""

import math

import pytest
import torch
from helpers.nets import batch, linear_net

from advdim import attacks, measure, norms

INF = math.inf


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, INF])
def test_one_step_damages_a_linear_model_by_eps_times_the_dual_norm(p):
    net, (x, y) = linear_net(), batch()
    attacked = attacks.one_step(net, x, y, p=p, eps=0.3, loss=measure.logit)
    expected = 0.3 * norms.norm(net[1].weight.detach()[y], norms.dual(p))
    torch.testing.assert_close(
        measure.damage(net, x, y, attacked, loss=measure.logit), expected, rtol=1e-12, atol=1e-14
    )
    assert norms.norm(attacked - x, p).tolist() == pytest.approx([0.3] * 5, rel=1e-12)
