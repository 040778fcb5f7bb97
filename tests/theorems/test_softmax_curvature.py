"""The remainder of a softmax over affine logits: at least 0, at most an eighth of the spread squared, and no less."""

import math

import pytest
import torch
from helpers.monte_carlo import normal
from torch.nn import functional as F

from advdim import norms


def share_of_the_bound(w, f, y, delta, p):
    """Remainder over its bound for logits f [N, K] with gradients w [N, K, d], labels y and steps delta [N, d]."""
    r = f.softmax(1) - F.one_hot(y, f.shape[1])
    moved = f + torch.einsum("bki,bi->bk", w, delta)
    rest = F.cross_entropy(moved, y, reduction="none") - F.cross_entropy(f, y, reduction="none")
    rest = rest - torch.einsum("bk,bki,bi->b", r, w, delta)
    spread = norms.norm((w[:, :, None] - w[:, None]).flatten(0, 2), norms.dual(p)).view(len(f), -1).amax(1)
    return rest / (norms.norm(delta, p) ** 2 * spread**2 / 8)


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
@pytest.mark.parametrize("eps", [1e-2, 1.0, 30.0])
def test_the_remainder_lies_between_0_and_its_bound(p, eps):
    w, f, delta = normal(40, 5, 12), normal(40, 5, seed=1), normal(40, 12, seed=2)
    y = torch.arange(40) % 5
    share = share_of_the_bound(w, f, y, eps * delta / norms.norm(delta, p)[:, None], p)
    assert share.min() > -1e-9
    assert share.max() < 1


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_the_bound_is_attained_by_two_equal_logits(p):
    w, f, y = normal(10, 2, 12), torch.zeros(10, 2, dtype=torch.float64), torch.zeros(10, dtype=torch.long)
    steepest = norms.steepest(w[:, 1] - w[:, 0], p)
    share = share_of_the_bound(w, f, y, 1e-3 * steepest, p)
    torch.testing.assert_close(share, torch.ones_like(share), rtol=0, atol=1e-3)
