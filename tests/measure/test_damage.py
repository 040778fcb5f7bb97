"""Losses, damage and vulnerability against their definitions and closed forms."""

import math

import pytest
import torch
from helpers.nets import batch, relu_net, smooth_net
from torch.nn import functional as F

from advdim import measure, models, norms

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
