"""The kurtosis of the gradient's entries: its bound, and the networks that attain it."""

import math

import pytest
from helpers.monte_carlo import conv_entries, last_hidden, normal


def kurtosis(entries):
    """Kurtosis of the pooled entries, in units of their common deviation, and its standard error over networks."""
    fourth, second = (entries**4).mean(1), (entries**2).mean()
    return float(fourth.mean() / second**2), float(fourth.std() / math.sqrt(len(entries)) / second**2)


def test_width_1_attains_the_bound():
    w = normal(500_000, 3)
    entry = (w[:, 0] * (0.3 * w[:, 1] + 0.9 * w[:, 2] > 0) * w[:, 2])[:, None]
    found, error = kurtosis(entry)
    assert abs(found - 3 * 6) < 4 * error
    assert error < 1


@pytest.mark.parametrize("widths", [(4,), (6, 6)])
def test_fully_connected_networks_have_it_exactly(widths):
    a, J = last_hidden(40_000, 6, widths)
    found, error = kurtosis(((normal(len(a), a.shape[1], seed=5) / math.sqrt(a.shape[1]))[:, None] @ J)[:, 0])
    exact = 3 * math.prod(1 + 5 / n for n in widths)
    assert abs(found - exact) < 4 * error
    assert error < 0.1 * exact


@pytest.mark.parametrize(("channels", "hidden"), [(1, 2), (4, 2)])
def test_convolutions_stay_below_it_at_every_size(channels, hidden):
    bound = 3 * (1 + 5 / channels) ** hidden
    for d in (4, 12):
        found, error = kurtosis(conv_entries(6000, d, channels, hidden))
        assert found + 2 * error < bound
        assert found > 3
