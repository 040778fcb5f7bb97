"""Proposition 3: gradient penalties and augmentation are one objective to first order."""

import math

import numpy as np
import pytest
from helpers.nets import batch, smooth_net
from helpers.objectives import INF, gradients

from advdim import norms
from advdim.train import objectives


@pytest.mark.parametrize("q", [1, 1.5, 2, INF])
def test_gradient_penalty_and_augmentation_agree_to_first_order(q):
    """Objectives and their gradients in the parameters differ by O(strength^2), the penalty itself is O(strength)."""
    net, (x, y) = smooth_net(), batch()
    strengths, apart = (1e-4, 1e-5), {"value": [], "gradient": [], "penalty": []}
    for strength in strengths:
        penalty = objectives.gradient_penalty(net, x, y, strength=strength, q=q)
        augmented = objectives.one_step_augmentation(net, x, y, strength=strength, p=norms.dual(q))
        apart["value"].append((penalty - augmented).abs().item())
        apart["penalty"].append((penalty - objectives.plain(net, x, y)).item())
        apart["gradient"].append((gradients(net, penalty) - gradients(net, augmented)).norm().item())
    slopes = {name: math.log10(large / small) for name, (large, small) in apart.items()}
    assert slopes == pytest.approx({"value": 2, "gradient": 2, "penalty": 1}, abs=0.05)
    assert apart["value"][1] < 0.05 * apart["penalty"][1]


def test_the_bounds_hold_for_a_quadratic_loss_and_are_attained():
    """L(x) = <g, x> + <x, Hx> / 2 at 0, p = 2: the rate of its gradient is the largest size of an eigenvalue of H."""
    rng = np.random.default_rng(0)
    H = rng.standard_normal((5, 5))
    values, vectors = np.linalg.eigh(H + H.T)
    H, rate, eps = H + H.T, abs(values).max(), 0.3
    for g in (*rng.standard_normal((20, 5)), vectors[:, abs(values).argmax()]):
        step = eps * g / np.linalg.norm(g)
        one_step = g @ step + step @ H @ step / 2
        apart = abs(one_step - eps * np.linalg.norm(g)) / 2
        assert apart <= rate * eps**2 / 4 + 1e-12
    assert apart == pytest.approx(rate * eps**2 / 4, rel=1e-12)
