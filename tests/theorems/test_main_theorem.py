"""The square-root law for outputs and loss, p in [2, inf], and the moments behind attacks with p < 2."""

import math

import pytest
import torch
from helpers.monte_carlo import conv_entries, last_hidden, normal
from torch.nn import functional as F

from advdim import norms


@pytest.mark.parametrize("widths", [(2,), (8, 8)])
def test_all_ratios_lie_within_the_bounds_and_do_not_grow(widths):
    K, ratios = 5, []
    fourth = 3 * math.prod(1 + 5 / n for n in widths)
    for d in (4, 64):
        draws = 3000
        a, J = last_hidden(draws, d, widths, seed=d)
        w = normal(draws, K, a.shape[1], variance=1 / a.shape[1], seed=1)
        r = torch.einsum("bkn,bn->bk", w, a).softmax(1) - F.one_hot(torch.tensor(0), K)
        output, loss = (w @ J)[:, 0], torch.einsum("bk,bki->bi", r, w @ J)
        for p in (2, 3, math.inf):
            row = []
            for g, low, high in ((output, 1, 1), (loss, 1 / 2, math.sqrt(2 + 2 * math.log(K)))):
                sized = norms.threshold(1.0, p, d) * norms.norm(g, norms.dual(p)) / math.sqrt(d)
                error = 4 * sized.std() / math.sqrt(draws)
                assert low / math.sqrt(fourth) - error < sized.mean() < high + error
                row.append((sized.mean(), error))
            ratios.append(row)
    for small, large in zip(ratios[:3], ratios[3:], strict=True):
        for (a, e), (b, f) in zip(small, large, strict=True):
            assert abs(a - b) < e + f + 0.15  # a law of sqrt(16) = 4 is far outside


@pytest.mark.parametrize("r", [1, 2, 3])
def test_even_moments_are_bounded(r):
    odd = math.prod(range(1, 2 * r, 2))
    a, J = last_hidden(20_000, 5, (4,))
    entries = ((normal(len(a), 4, seed=2) / 2)[:, None] @ J)[:, 0]  # tau = 1, L = 2
    moment = (entries ** (2 * r)).mean(1)
    bound = odd**2 * 2 ** (r - 1) / 5**r
    assert moment.mean() < bound + 4 * moment.std() / math.sqrt(len(a))
    if r == 1:
        assert moment.mean() == pytest.approx(bound, rel=0.1)


def test_the_largest_entry_grows_like_a_power_of_the_logarithm():
    for d in (8, 24):
        g = conv_entries(1500, d, 4, 2)  # L = 3, and C = 1 for stride 1
        bound = math.e * 2 * (2 + math.log(d)) ** 1.5 * math.sqrt(d)
        assert d * g.abs().amax(1).mean() < bound
