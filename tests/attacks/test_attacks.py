"""One step and PGD against closed forms and independent references, their budgets, and what they leave behind."""

import math

import pytest
import torch
from helpers.nets import batch, relu_net, smooth_net
from torch import nn
from torch.nn import functional as F

from advdim import attacks, measure, models, norms

INF = math.inf
BALLS = (1, 2, INF)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(classes=4):
    return models.build("mlp", (2, 6, 6), classes, depth=1).double()


def rows(values):
    return values.view(-1, 1, 1, 1)


def trained(seed=0):
    """A small net, trained to tell random images apart, so that its loss is curved; its images and labels."""
    net, (x, y) = relu_net(), batch(40, seed=seed)
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    net.zero_grad(set_to_none=True)
    return net, x, y


# Closed forms


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, INF])
def test_one_step_damages_a_linear_model_by_eps_times_the_dual_norm(p):
    net, (x, y) = linear(), batch()
    attacked = attacks.one_step(net, x, y, p=p, eps=0.3, loss=measure.logit)
    expected = 0.3 * norms.norm(net[1].weight.detach()[y], norms.dual(p))
    torch.testing.assert_close(
        measure.damage(net, x, y, attacked, loss=measure.logit), expected, rtol=1e-12, atol=1e-14
    )
    assert norms.norm(attacked - x, p).tolist() == pytest.approx([0.3] * 5, rel=1e-12)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, INF])
def test_one_step_is_first_order_optimal(p):
    """Lemma 2: damage / (eps |g|_q) tends to 1, with a remainder that shrinks as eps."""
    net, (x, y) = smooth_net(), batch()
    norm = measure.gradient_norms(net, x, y, q=(norms.dual(p),))[norms.dual(p)]
    off = []
    for eps in (1e-4, 1e-6):
        damage = measure.damage(net, x, y, attacks.one_step(net, x, y, p=p, eps=eps))
        off.append((damage / (eps * norm) - 1).abs().max())
    assert off[0] < 1e-2
    assert off[1] < 1e-4
    assert off[1] < off[0] / 20


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("p", [2, INF])
def test_pgd_on_a_linear_model_ends_in_the_steepest_direction(p, early_stop):
    net, (x, y) = linear(), batch()
    w = net[1].weight.detach()[y].view_as(x)
    if early_stop:
        y = net(x).argmax(1)  # none is misclassified, and raising the logit of the prediction changes none
        w = net[1].weight.detach()[y].view_as(x)
    attacked = attacks.pgd(net, x, y, p=p, eps=0.3, loss=measure.logit, early_stop=early_stop)
    torch.testing.assert_close(attacked, x + 0.3 * norms.steepest(w, p), rtol=0, atol=1e-13)


def test_l1_pgd_on_a_linear_model_ends_on_the_foremost_pixel():
    net, (x, y) = linear(60), batch(60, classes=60)
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


def test_early_steps_go_as_far_as_the_step_size_says():
    net, (x, y) = linear(), batch()
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


@pytest.mark.parametrize("p", [1.5, 2, 3, INF])
def test_budgets_hold_on_large_images_in_float32(p):
    """A float32 norm of 200,000 numbers may be off by 1e-4."""
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256**2, 2)), torch.full((2, 3, 256, 256), 0.5)
    nn.init.normal_(net[1].weight, generator=seeded())
    eps = norms.threshold(0.1, p, x[0].numel())
    attacked = attacks.one_step(net, x, torch.tensor([0, 1]), p=p, eps=eps, loss=measure.logit)
    size = norms.norm(attacked.double() - x.double(), p) / eps
    assert (size <= 1 + 1e-6).all()
    assert (size >= 1 - 1e-4).all()


@pytest.mark.parametrize("p", BALLS)
def test_random_starts_fill_the_ball(p):
    """Uniform in the ball: the size to the power d is uniform in [0, eps^d], and no coordinate or sign is preferred."""
    net, x = linear().float(), torch.full((2000, 2, 6, 6), 0.5)
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
