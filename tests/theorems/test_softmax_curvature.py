"""The remainder of a softmax over affine logits: at least 0, at most an eighth of the spread squared, and no less."""

import math

import pytest
import torch
from torch.nn import functional as F

from advdim import norms


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
@pytest.mark.parametrize("eps", [1e-2, 1.0, 30.0])
def test_the_remainder_lies_between_0_and_its_bound(p, eps):
    source = torch.Generator().manual_seed(0)
    w, f = (torch.randn(*shape, generator=source, dtype=torch.float64) for shape in ((40, 5, 12), (40, 5)))
    delta = torch.randn(40, 12, generator=source, dtype=torch.float64)
    delta *= eps / norms.norm(delta, p)[:, None]
    y = torch.randint(5, (40,), generator=source)
    r = f.softmax(1) - F.one_hot(y, 5)
    linear = torch.einsum("bk,bki,bi->b", r, w, delta)
    moved = f + torch.einsum("bki,bi->bk", w, delta)
    remainder = F.cross_entropy(moved, y, reduction="none") - F.cross_entropy(f, y, reduction="none") - linear
    spread = norms.norm((w[:, :, None] - w[:, None]).flatten(0, 2), norms.dual(p)).view(40, -1).amax(1)
    assert (remainder >= -1e-12 * (1 + eps)).all()
    assert (remainder <= eps**2 * spread**2 / 8 + 1e-12).all()


def test_the_constant_is_attained_for_two_equal_logits():
    for t in (1e-2, 1e-3):
        remainder = math.log1p(math.exp(t)) - math.log(2) - t / 2  # w_1 - w_2 = t along delta
        assert remainder / (t**2 / 8) == pytest.approx(1, abs=t)
