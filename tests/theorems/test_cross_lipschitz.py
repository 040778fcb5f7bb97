"""The cross-Lipschitz penalty and the gradient penalty: three identities and a bound, to rounding."""

import itertools

import pytest
import torch
from helpers.monte_carlo import generator


@pytest.mark.parametrize("K", [2, 5])
def test_identities_and_bound(K):
    g = torch.randn(50, K, 6, generator=generator(), dtype=torch.float64)
    f = 3 * torch.randn(50, K, generator=generator(1), dtype=torch.float64)
    centred = g - g.mean(1, keepdim=True)
    pairs = itertools.combinations(range(K), 2)
    omega = 2 / K**2 * sum((g[:, k] - g[:, m]).square().sum(1) for k, m in pairs)
    torch.testing.assert_close(omega, 2 / K * centred.square().sum((1, 2)), rtol=1e-12, atol=0)

    s = f.softmax(1)
    for c in range(K):
        r = s - torch.eye(K, dtype=torch.float64)[c]
        square = torch.einsum("bk,bki->bi", r, g).square().sum(1)
        first, second = K / 2 * r.square().sum(1) * omega, K * (1 - s[:, c]) ** 2 * omega
        assert (square <= first * (1 + 1e-12)).all()
        assert (first <= second * (1 + 1e-9)).all()
        if K == 2:
            torch.testing.assert_close(square, second, rtol=1e-9, atol=1e-14)

    uniform = (g.mean(1, keepdim=True) - g).square().sum(2).mean(1)
    torch.testing.assert_close(uniform, omega / 2, rtol=1e-12, atol=0)
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=K)), dtype=torch.float64)
    mean = torch.einsum("sk,bki->sbi", signs, centred).square().sum(2).mean(0)
    torch.testing.assert_close(mean, K / 2 * omega, rtol=1e-12, atol=0)
