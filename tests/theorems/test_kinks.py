"""The remainder of a function with kinks at the points of a Poisson process: its moments and its mean size."""

import math

import numpy as np
import pytest


def remainders(rho, mean, draws=100_000, eps=1.0):
    """R(eps) for jumps mean +- 1, [draws]."""
    rng = np.random.default_rng(0)
    crossed = rng.poisson(rho * eps, draws)
    owner = np.repeat(np.arange(draws), crossed)
    jumps = mean + 2.0 * rng.integers(0, 2, len(owner)) - 1
    return np.bincount(owner, jumps * eps * rng.uniform(size=len(owner)), minlength=draws)


@pytest.mark.parametrize("mean", [0.0, -0.5])
@pytest.mark.parametrize("rho", [0.1, 3.0])
def test_mean_and_variance(rho, mean):
    rest, v = remainders(rho, mean), 1 + mean**2
    assert abs(rest.mean() - rho * mean / 2) < 4 * rest.std() / math.sqrt(len(rest))
    square = (rest - rho * mean / 2) ** 2
    assert abs(square.mean() - rho * v / 3) < 4 * square.std() / math.sqrt(len(rest))


def test_the_three_limits_of_the_mean_size():
    few = np.abs(remainders(0.02, 0.0))
    assert abs(few.mean() - 0.02 / 2) < 0.02 * 0.01 + 4 * few.std() / math.sqrt(len(few))
    walk = np.abs(remainders(60.0, 0.0, 20_000))
    assert walk.mean() == pytest.approx(math.sqrt(2 / (3 * math.pi) * 60), rel=0.03)
    drift = np.abs(remainders(200.0, -0.8, 5000))
    assert drift.mean() == pytest.approx(200 * 0.8 / 2, rel=0.02)
