"""Batch-norm in the walk: the inflation of 1/s^2 by few images, and its dependence on the weights."""

import math

import pytest
from helpers.monte_carlo import normal


@pytest.mark.parametrize("images", [6, 20])
def test_the_inflation_and_the_dependence(images):
    n, draws, eigenvalue = 40, 40_000, 3.0
    m = images - 1
    w = normal(draws, n, variance=1 / n)
    s2 = eigenvalue * w[:, :m].square().sum(1)  # the inputs span the first m dimensions evenly
    expected = eigenvalue * m / n
    laws = (
        (1 / s2 * expected, (images - 1) / (images - 3)),
        (1 / (s2 * (images - 1) / images) * expected, images / (images - 3)),
        (w.square().sum(1) / s2 * eigenvalue * (m - 2) / n, 1 - 2 / n),
    )
    for sample, law in laws:
        error = float(sample.std()) / math.sqrt(draws)
        assert abs(float(sample.mean()) - law) < 4 * error
        assert error < 0.02
