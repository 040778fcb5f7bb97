"""Losses, damage and vulnerability against their definitions and closed forms."""

import math

import pytest
import torch
from helpers.nets import batch, relu_net, smooth_net
from torch.nn import functional as F

from advdim import attacks, measure, models, norms

INF = math.inf


def test_losses_by_their_definitions():
    outputs = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]], dtype=torch.float64)
    y = torch.tensor([0, 2])
    softmax = outputs.exp() / outputs.exp().sum(1, keepdim=True)
    torch.testing.assert_close(measure.cross_entropy(outputs, y), -softmax[[0, 1], y].log(), rtol=1e-14, atol=0)
    assert measure.logit(outputs, y).tolist() == [1.0, 3.0]
    assert measure.zero_one(outputs, y).tolist() == [1.0, 0.0]
    assert measure.zero_one(outputs, y).dtype == outputs.dtype


@pytest.mark.parametrize("p", [1, 2, INF])
def test_damage_of_a_linear_two_class_model_in_closed_form(p):
    """With margin m = f_y - f_other, the worst attack lowers m by eps |w_y - w_other|_q, and L = log(1 + e^-m)."""
    net = models.build("mlp", (2, 6, 6), 2, depth=1).double()
    x, y = batch(classes=2)
    eps, weight = 0.3, net[1].weight.detach()
    w = (weight[0] - weight[1]) * (1 - 2 * y[:, None])
    margin = (w * x.flatten(1)).sum(1)
    attacked = x + eps * norms.steepest(measure.input_gradients(net, x, y), p)
    expected = F.softplus(eps * norms.norm(w, norms.dual(p)) - margin) - F.softplus(-margin)
    damage = measure.damage(net, x, y, attacked)
    torch.testing.assert_close(damage, expected, rtol=1e-11, atol=1e-13)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):  # and no other attack of that size does worse
        other = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        other = eps * other / norms.norm(other, p).view(-1, 1, 1, 1)
        assert (measure.damage(net, x, y, x + other) <= damage).all()


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, INF])
def test_damage_is_eps_times_the_dual_norm_to_first_order(p):
    """Lemma 2: what is left over shrinks with eps squared."""
    net, (x, y) = smooth_net(), batch()
    g = measure.input_gradients(net, x, y)
    first_order = measure.gradient_norms(net, x, y, q=(norms.dual(p),))[norms.dual(p)]
    rest = []
    for eps in (1e-3, 1e-4):
        damage = measure.damage(net, x, y, x + eps * norms.steepest(g, p))
        rest.append((damage - eps * first_order).abs())
        torch.testing.assert_close(damage / eps, first_order, rtol=0.1, atol=1e-2)
    assert (rest[1] <= rest[0] / 50 + 1e-12).all()


def test_accuracy_lost_is_at_most_the_vulnerability():
    """A change between two wrong classes costs no accuracy; for a perfect model both agree."""
    net, (x, y) = models.build("mlp", (2, 6, 6), 4, width=8).double(), batch(200)
    g = measure.input_gradients(net, x, y)
    attacked = x + 0.1 * norms.steepest(g, INF)
    lost = measure.damage(net, x, y, attacked, loss=measure.zero_one)
    changed = measure.vulnerability(net, x, attacked)
    assert changed.dtype == torch.bool
    assert (lost <= changed.double()).all()
    before, after = net(x).argmax(1), net(attacked).argmax(1)
    assert torch.equal(lost, (after != y).double() - (before != y).double())
    assert torch.equal(changed, before != after)
    assert 0 < changed.double().mean() < 1
    assert lost.mean() < changed.double().mean()  # some attack moved between wrong classes
    perfect = measure.damage(net, x, before, attacked, loss=measure.zero_one)
    assert torch.equal(perfect, changed.double())


def test_no_attack_does_no_damage():
    net, (x, y) = relu_net(), batch()
    assert not measure.damage(net, x, y, x).any()
    assert not measure.vulnerability(net, x, x).any()


CLEAN = {"saturated": 0, "no gradient": 0, "not raised": 0, "too large": 0, "out of range": 0, "not finite": 0}


def linear():
    """A linear model of two classes in float64, and images well inside [0, 1]."""
    x, y = batch(40, classes=2)
    x = 0.3 + 0.4 * (x - x.min()) / (x.max() - x.min())
    return models.build("mlp", (2, 6, 6), 2, depth=1).double(), x, y


@pytest.mark.parametrize("p", [1, 2, INF])
def test_a_linear_model_in_closed_form(p):
    """Margin m = f_y - f_other falls by exactly eps |w|_q: who changes sides, and by how much, is known."""
    net, x, y = linear()
    weight = net[1].weight.detach()
    w = (weight[0] - weight[1]) * (1 - 2 * y[:, None])
    margin = (w * x.flatten(1)).sum(1)
    eps = 1.01 * float(margin.abs().median() / norms.norm(w, norms.dual(p))[0])  # past the median image, not on it
    lowered = margin - eps * norms.norm(w, norms.dual(p))
    result = measure.evaluate(net, x, y, attacks.one_step(net, x, y, p=p, eps=eps), p=p, eps=eps)
    share = lambda condition: condition.double().mean().item()  # noqa: E731
    assert result.accuracy == share(margin > 0)
    assert result.attacked_accuracy == share(lowered > 0)
    assert 0 < result.vulnerability == share((margin > 0) != (lowered > 0))
    assert result.accuracy_damage == pytest.approx(result.vulnerability, abs=1e-15)  # two classes, worst direction
    assert result.damage == pytest.approx((F.softplus(-lowered) - F.softplus(-margin)).mean().item(), rel=1e-12)
    assert result.size == pytest.approx(eps, rel=1e-12)
    assert result.flags["too large"] == result.flags["not raised"] == result.flags["saturated"] == 0


def test_it_is_its_parts_on_a_relu_net_in_any_batches():
    net, (x, y) = models.build("mlp", (2, 6, 6), 4, width=16).double(), batch(200)
    attacked = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    result = measure.evaluate(net, x, y, attacked, p=2, eps=10.0)
    assert result.damage == pytest.approx(measure.damage(net, x, y, attacked).mean().item(), rel=1e-12)
    zero_one = measure.damage(net, x, y, attacked, loss=measure.zero_one)
    assert result.accuracy_damage == pytest.approx(zero_one.mean().item(), abs=1e-12)
    changed = measure.vulnerability(net, x, attacked)
    assert result.vulnerability == pytest.approx(changed.double().mean().item(), abs=1e-12)
    assert ((zero_one < 0).any() and (zero_one > 0).any()).item()  # the attack also sets some wrong ones right
    assert result.accuracy_damage <= result.vulnerability
    assert result.size == pytest.approx(norms.norm(attacked - x, 2).max().item(), rel=1e-12)
    lowered = measure.damage(net, x, y, attacked) <= 0
    assert 0 < result.flags["not raised"] == lowered.double().mean().item()
    halves = measure.evaluate(net, x, y, attacked, p=2, eps=10.0, batch_size=7)
    assert halves.flags == result.flags
    assert halves.damage == pytest.approx(result.damage, rel=1e-12)


def test_no_flag_for_a_sound_attack_and_for_none():
    net, x, y = linear()
    attacked = attacks.one_step(net, x, y, p=INF, eps=0.1)
    assert measure.evaluate(net, x, y, attacked, p=INF, eps=0.1).flags == CLEAN
    untouched = measure.evaluate(net, x, y, x, p=INF, eps=0.1)
    assert untouched.flags == CLEAN
    assert untouched.vulnerability == untouched.damage == untouched.size == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [1, 2, INF])
def test_rounding_is_no_offence(p, dtype):
    net, x, y = linear()
    net, x = net.to(dtype), x.to(dtype)
    for eps in (1e-4, 0.01, 0.1):
        attacked = attacks.pgd(net, x, y, p=p, eps=eps, steps=3)
        assert measure.evaluate(net, x, y, attacked, p=p, eps=eps).flags["too large"] == 0


def test_each_flag_is_raised_by_its_own_offence():
    net, x, y = linear()
    step = norms.steepest(measure.input_gradients(net, x, y), INF)
    assert measure.evaluate(net, x, y, x + 0.101 * step, p=INF, eps=0.1).flags == CLEAN | {"too large": 1}
    assert measure.evaluate(net, x, y, x - 0.1 * step, p=INF, eps=0.1).flags == CLEAN | {"not raised": 1}
    far = measure.evaluate(net, x, y, x + step, p=INF, eps=1.0)
    assert far.flags == CLEAN | {"out of range": 1}
    for shift in (1.0, -1.0):
        assert measure.evaluate(net, x, y, x + shift, p=INF, eps=1.0).flags["out of range"] == 1
    half = torch.where(torch.arange(len(x)).view(-1, 1, 1, 1) % 2 == 0, x + 0.2 * step, x + 0.1 * step)
    assert measure.evaluate(net, x, y, half, p=INF, eps=0.1).flags == CLEAN | {"too large": 0.5}

    confident = models.build("mlp", (2, 6, 6), 2, depth=1).double()
    confident[1].weight.data.mul_(0)
    confident[1].bias.data = torch.tensor([50.0, -50.0], dtype=torch.float64)
    flags = measure.evaluate(confident, x, torch.zeros_like(y), x, p=INF, eps=0.1).flags
    assert flags == CLEAN | {"saturated": 1, "no gradient": 1}


def test_the_largest_size_that_is_no_offence():
    """Rounding may add 4 units of the last place, of eps and of the image's own size: a difference of large numbers."""
    net, x, y = linear()
    net, x = net.float(), x.float()
    x[:, 0, 0, 0] = 0.75  # the largest: the norm of each image, for p = inf
    slack = 4 * torch.finfo(torch.float32).eps * (0.125 + 0.75)
    for share, flagged in ((0.85, 0), (1.15, 1)):
        attacked = x.clone()
        attacked[:, 0, 0, 0] += 0.125 + share * slack
        assert measure.evaluate(net, x, y, attacked, p=INF, eps=0.125).flags["too large"] == flagged


def test_what_rounding_may_add_is_within_the_range_and_more_is_not():
    net, (x, y) = smooth_net(), batch(4)
    room = 4 * torch.finfo(x.dtype).eps
    for value, share in ((-room, 0.0), (1 + room, 0.0), (-2 * room, 1.0), (1 + 2 * room, 1.0)):
        attacked = x.clamp(0, 1)
        attacked[:, 0, 0, 0] = value
        assert measure.evaluate(net, x, y, attacked, p=2, eps=99).flags["out of range"] == share
