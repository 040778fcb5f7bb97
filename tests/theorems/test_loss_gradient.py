"""The gradient of the loss against that of an output: the coefficients, the bounds in mean, and the exact readout."""

import math

import pytest
import torch
from helpers.monte_carlo import generator, last_hidden, normal, z_score
from torch.nn import functional as F


def coefficients(f, c):
    return f.softmax(-1) - F.one_hot(torch.tensor(c), f.shape[-1])


@pytest.mark.parametrize("K", [2, 3, 10])
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_the_coefficients_squares_lie_between_multiples_of_the_error(K, scale):
    r = coefficients(scale * normal(500, K), 0)
    wrong, squares = r[:, 0] ** 2, (r**2).sum(1)
    assert r.sum(1).abs().max() < 1e-12
    assert (K / (K - 1) * wrong <= squares + 1e-15).all()
    assert (squares <= 2 * wrong + 1e-15).all()


@pytest.mark.parametrize(("K", "widths"), [(2, (1, 1)), (10, (1, 1)), (10, (6, 6))])
@pytest.mark.parametrize("brightness", [0.1, 30.0])
def test_the_bounds_in_mean_hold_where_all_depends_on_all(K, widths, brightness):
    draws, d = 4000, 6
    a, J = last_hidden(draws, d, widths)
    w = normal(draws, K, a.shape[1], variance=1 / a.shape[1], seed=7)
    r = coefficients(brightness * torch.einsum("bkn,bn->bk", w, a), 0)
    outputs = w @ J
    loss = torch.einsum("bk,bki->bi", r, outputs)
    square = (loss**2).sum(1)
    error = 4 * square.std() / math.sqrt(draws)
    assert 1 - 1 / K - error < square.mean() < 2 + 2 * math.log(K) + error
    rest = loss.abs().sum(1) - outputs[:, 0].abs().sum(1) / 2
    assert rest.mean() > -4 * rest.std() / math.sqrt(draws)
    for q in (1, 2, 4):
        rest = (loss.abs() ** q).sum(1) - (2 * K ** (1 / q) + math.sqrt(2)) ** q * (outputs[:, 0].abs() ** q).sum(1)
        assert rest.mean() < 0


def test_the_readouts_mean_is_exact():
    K, tau, draws = 4, 2.0, 20_000
    a, J = (t[0] for t in last_hidden(1, 7, (8, 8), seed=3))
    n = len(a)
    w = normal(draws, K, n, variance=tau / n)
    f = w @ a
    r = coefficients(f, 1)
    square = (torch.einsum("bk,bkn->bn", r, w) @ J).square().sum(1)
    whole, mu = float((J**2).sum()), float((J.T @ a).square().sum() / a.square().sum() / (J**2).sum())
    seen, squares = (r * f * math.sqrt(n / tau) / a.norm()).sum(1).square(), (r**2).sum(1)
    assert z_score(square - tau * whole / n * (squares + mu * (seen - squares)), 0) < 4
    assert z_score(square - tau * whole / n * squares, 0) > 4  # without the dependence it is wrong
    assert 0.05 < mu < 0.9


def test_the_mean_coefficient_is_one_over_the_classes():
    f = normal(20_000, 5, seed=generator(1))
    assert z_score(f.softmax(1)[:, 0], 1 / 5) < 4
