"""One step and PGD against closed forms and independent references, their budgets, and what they leave behind."""

import math

import pytest
import torch
from helpers.nets import batch, linear_net, seeded, trained
from scipy import stats
from torch.nn import functional as F

from advdim import attacks, measure, norms
from advdim.attacks.projected_gradient import random_starts

INF = math.inf
BALLS = (1, 2, INF)


# Closed forms


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("p", [2, INF])
def test_pgd_on_a_linear_model_ends_in_the_steepest_direction(p, early_stop):
    net, (x, y) = linear_net(), batch()
    w = net[1].weight.detach()[y].view_as(x)
    if early_stop:
        y = net(x).argmax(1)  # none is misclassified, and raising the logit of the prediction changes none
        w = net[1].weight.detach()[y].view_as(x)
    attacked = attacks.pgd(net, x, y, p=p, eps=0.3, loss=measure.logit, early_stop=early_stop)
    torch.testing.assert_close(attacked, x + 0.3 * norms.steepest(w, p), rtol=0, atol=1e-13)


def test_l1_pgd_on_a_linear_model_ends_on_the_foremost_pixel():
    net, (x, y) = linear_net(60), batch(60, classes=60)
    w = net[1].weight.detach()
    best = 0.3 * norms.norm(w[y], INF)
    damage = [
        measure.damage(net, x, y, attacks.pgd(net, x, y, p=1, eps=0.3, steps=t, loss=measure.logit), loss=measure.logit)
        for t in (10, 100)
    ]
    assert (damage[0] > 0.95 * best).all()
    assert (damage[1] > 0.995 * best).all()
    assert ((damage[1] > (1 - 1e-9) * best).double().mean()) > 0.7
    with torch.no_grad():
        net[1].weight[:, 17] *= 2 * w.abs().amax() / w[:, 17].abs()  # one pixel stands out: ten steps suffice
    attacked = attacks.pgd(net, x, y, p=1, eps=0.3, loss=measure.logit)
    torch.testing.assert_close(attacked, x + 0.3 * norms.steepest(w[y].view_as(x), 1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_l1_pgd_moves_pixels_at_the_end_of_the_range_inwards_alone(end):
    """The steepest way outwards is no way: the foremost pixel of those that can move is found, however flat it is."""
    net, y = linear_net(), torch.tensor([0, 1])
    x = torch.full((2, 2, 6, 6), end, dtype=torch.float64)
    with torch.no_grad():
        net[1].weight *= 1e-3
        net[1].weight[:, 5] = 1e-2 * (1 - 2 * end)  # inwards
        net[1].weight[:, 7] = -(1 - 2 * end)  # outwards
    attacked = attacks.pgd(net, x, y, p=1, eps=0.3, clip=True, loss=measure.logit)
    expected = x.flatten(1).clone()
    expected[:, 5] += 0.3 * (1 - 2 * end)
    torch.testing.assert_close(attacked.flatten(1), expected, rtol=0, atol=1e-13)


def test_early_steps_go_as_far_as_the_step_size_says():
    net, (x, y) = linear_net(), batch()
    for p in (2, INF):
        for step, expected in ((None, 3 / 7.5 * 0.3), (0.05, 0.15)):
            attacked = attacks.pgd(net, x, y, p=p, eps=0.3, steps=3, step_size=step, loss=measure.logit)
            if step is None:
                expected = 0.3  # 3 steps of eps / (0.75 x 3) leave the ball, and are brought back
            size = norms.norm(attacked - x, p)
            torch.testing.assert_close(size, torch.full_like(size, expected), rtol=1e-12, atol=0)
    one = attacks.pgd(net, x, y, p=2, eps=0.3, steps=10, step_size=0.3 / 7.5, loss=measure.logit)
    assert torch.equal(one, attacks.pgd(net, x, y, p=2, eps=0.3, loss=measure.logit))


# Independent references


def by_hand(net, x, y, p, eps, step, steps, clip):
    """PGD of one image at a time, written from its definition, with its own projections."""
    attacked = []
    for i in range(len(x)):
        delta = torch.zeros_like(x[i])
        for _ in range(steps):
            point = (x[i] + delta).requires_grad_()
            g = torch.autograd.grad(F.cross_entropy(net(point[None]), y[i : i + 1]), point)[0]
            delta = delta + step * (g.sign() if p == INF else g / g.norm())
            if p == INF:
                delta = delta.clamp(-eps, eps)
            elif p == 2:
                delta = delta * min(1.0, eps / float(delta.norm()))
            else:  # the level of the soft threshold by bisection
                low, high = 0.0, float(delta.abs().max())
                for _ in range(60 * (float(delta.abs().sum()) > eps)):
                    middle = (low + high) / 2
                    inside = float((delta.abs() - middle).clamp(min=0).sum()) <= eps
                    low, high = (low, middle) if inside else (middle, high)
                delta = delta.sign() * (delta.abs() - (low if low == 0 else high)).clamp(min=0)
            if clip:
                delta = (x[i] + delta).clamp(0, 1) - x[i]
        attacked.append(x[i] + delta)
    return torch.stack(attacked)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("p", BALLS)
def test_pgd_is_what_its_definition_gives(p, clip):
    net, x, y = trained()
    x, y, eps = x[:6], y[:6], norms.threshold(0.05, p, 72)
    found = attacks.pgd(net, x, y, p=p, eps=eps, steps=5, step_size=eps / 4, clip=clip)
    expected = by_hand(net, x, y, p, eps, eps / 4, 5, clip)
    if p == 1 and clip:  # at the ends of the range it does better than the definition
        damage = [measure.damage(net, x, y, a).mean() for a in (found, expected)]
        assert damage[0] > 0.95 * damage[1]
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eps_inf", [0.01, 0.05])
def test_l1_pgd_does_at_least_what_plain_projected_gradient_does(eps_inf, clip):
    """Its default holds up against the best of the constant steps, found by search."""
    net, x, y = trained()
    x, y, eps = x[:12], y[:12], norms.threshold(eps_inf, 1, 72)
    plain = [
        measure.damage(net, x, y, by_hand(net, x, y, 1, eps, step * eps, 10, clip)).mean()
        for step in (0.02, 0.1, 1 / 7.5, 0.5, 2)
    ]
    found = measure.damage(net, x, y, attacks.pgd(net, x, y, p=1, eps=eps, clip=clip)).mean()
    assert found > 0.95 * max(plain)
    assert found > 1.05 * plain[2]  # the step size of p = 2 and inf


# Budgets


@pytest.mark.parametrize("p", BALLS)
def test_random_starts_fill_the_ball(p):
    """Uniform in the ball: the size to the power d is uniform in [0, eps^d], and no coordinate or sign is preferred."""
    net, x = linear_net().float(), torch.full((2000, 2, 6, 6), 0.5)
    net[1].weight.data.zero_()  # no gradient: what comes back is the start
    y = torch.zeros(2000, dtype=torch.long)
    start = attacks.pgd(net, x, y, p=p, eps=0.4, random_start=True, generator=seeded()) - x
    level = (norms.norm(start, p).double() / 0.4) ** 72
    assert level.max() <= 1 + 1e-3
    for share in (0.25, 0.5, 0.75):
        assert abs((level < share).double().mean() - share) < 0.04
    flat = start.flatten(1).double()
    assert abs((flat > 0).double().mean() - 0.5) < 0.01
    assert (flat.abs().mean(0) / flat.abs().mean() - 1).abs().max() < 0.12


@pytest.mark.parametrize("p", [1, 2])
def test_random_starts_have_the_law_of_the_uniform_ball(p):
    """Of the directions, too: scaled to unit size, a coordinate's size is Beta(1, d - 1) for p = 1, its square is
    Beta(1/2, (d - 1) / 2) for p = 2. The size alone would not tell one ball from the other."""
    net, x = linear_net().float(), torch.full((2000, 2, 6, 6), 0.5)
    net[1].weight.data.zero_()
    y = torch.zeros(2000, dtype=torch.long)
    start = (attacks.pgd(net, x, y, p=p, eps=0.4, random_start=True, generator=seeded()) - x).flatten(1).double()
    unit = start.abs() / norms.norm(start, p)[:, None]
    law = stats.beta(1, 71) if p == 1 else stats.beta(0.5, 35.5)
    for coordinate in (0, 35, 71):
        sample = unit[:, coordinate] if p == 1 else unit[:, coordinate].square()
        assert stats.kstest(sample.numpy(), law.cdf).pvalue > 1e-3


# Options


@pytest.mark.parametrize("p", BALLS)
def test_restarts_never_lower_the_loss_and_keep_the_worst(p):
    net, x, y = trained()
    options = {"p": p, "eps": norms.threshold(0.05, p, 72), "steps": 3, "random_start": True}
    singles = attacks.pgd(
        net,
        x[:8].repeat_interleave(5, 0),
        y[:8].repeat_interleave(5),
        **options,
        generator=seeded(),
    )
    loss = measure.losses(net, singles, y[:8].repeat_interleave(5)).view(8, 5)
    several = attacks.pgd(net, x[:8], y[:8], **options, restarts=5, generator=seeded())
    torch.testing.assert_close(measure.losses(net, several, y[:8]), loss.amax(1), rtol=1e-9, atol=1e-12)
    assert (loss.amax(1) > loss[:, 0]).any()
    chosen = singles.view(8, 5, *x.shape[1:])[torch.arange(8), loss.argmax(1)]
    torch.testing.assert_close(several, chosen, rtol=0, atol=1e-9)


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("p", BALLS)
def test_early_stop_keeps_success_and_moves_no_further(p, restarts):
    net, x, y = trained()
    y = y.clone()
    y[0] = (net(x[:1]).argmax(1) + 1) % 4  # misclassified from the start
    options = {"p": p, "eps": norms.threshold(0.04 if p > 1 else 0.01, p, 72), "steps": 8}
    if restarts > 1:
        options |= {"random_start": True, "restarts": restarts}
    full = attacks.pgd(net, x, y, **options, generator=seeded())
    early = attacks.pgd(net, x, y, **options, early_stop=True, generator=seeded())
    fooled, stopped = (net(a).argmax(1) != y for a in (full, early))
    assert 0.2 < stopped.double().mean() < 1
    if restarts == 1:
        assert (stopped | ~fooled).all()
        assert torch.equal(early[0], x[0])
        assert torch.equal(early[~stopped], full[~stopped])
        assert (norms.norm(early - x, p) <= norms.norm(full - x, p) + 1e-12).all()
        assert not torch.equal(early, full)
    else:
        assert (stopped | ~fooled).double().mean() == 1


def one_by_one(shape, p, generator):
    """A point drawn uniformly from the unit ball, each by itself: what batches of them are to repeat bit for bit."""
    u = torch.rand(shape, generator=generator)
    if p == math.inf:
        return 2 * u - 1
    if p == 2:
        direction = torch.randn(shape, generator=generator)
    else:
        direction = torch.empty_like(u).exponential_(generator=generator) * (u - 0.5).sign()
    radius = torch.rand((), generator=generator) ** (1 / u.numel())
    return direction * (radius / norms.norm(direction[None], p))


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 8, 8), (3, 31, 37), (3, 64, 64)])
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_random_starts_are_drawn_for_a_batch_with_the_bits_of_single_images(p, shape):
    x, radius = torch.zeros(4, *shape), torch.full((4, 1, 1, 1), 0.3)
    drawn = random_starts(x, p, radius, torch.Generator().manual_seed(0), restarts=2)
    generator = torch.Generator().manual_seed(0)
    expected = [[one_by_one(shape, p, generator) for _ in range(2)] for _ in x]
    for found, starts in zip(drawn, zip(*expected, strict=True), strict=True):
        assert torch.equal(found, radius * torch.stack(starts))
