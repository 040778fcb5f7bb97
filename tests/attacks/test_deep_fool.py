"""DeepFool against the distances to the boundaries of linear models, and the choices that its libraries differ in."""

import math
from contextlib import nullcontext

import pytest
import torch
from helpers.nets import batch, relu_net
from torch import nn

from advdim import attacks, measure, models, norms
from advdim.models import fast

INF = math.inf
NORMS = (2, INF)


def linear(classes):
    net = models.build("mlp", (2, 6, 6), classes, depth=1, seed=3).double()
    nn.init.uniform_(net[1].bias, -0.5, 0.5, generator=torch.Generator().manual_seed(1))
    return net


def distances(net, x, q):
    """Distance [N, K] of linear logits to each boundary of the predicted class; infinite to itself."""
    logits, w = net(x).detach(), net[1].weight.detach()
    best = logits.argmax(1)
    gap = logits.gather(1, best[:, None]) - logits
    width = torch.linalg.vector_norm(w[best][:, None] - w[None], q, dim=2)
    return torch.where(width > 0, gap / width, INF)


@pytest.mark.parametrize("overshoot", [0.02, 0.5])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("p", NORMS)
def test_distance_to_the_nearest_boundary_of_a_linear_model(p, classes, overshoot):
    net, (x, _) = linear(classes), batch(30)
    attacked = attacks.deepfool(net, x, p=p, overshoot=overshoot)
    nearest = distances(net, x, norms.dual(p)).amin(1)
    torch.testing.assert_close(norms.norm(attacked - x, p), (1 + overshoot) * nearest, rtol=1e-9, atol=1e-13)
    assert measure.vulnerability(net, x, attacked).all()
    across = net(x + (attacked - x) * 0.99 / (1 + overshoot)).argmax(1)
    assert torch.equal(across, net(x).argmax(1))  # just before the boundary nothing has changed


@pytest.mark.parametrize("p", NORMS)
def test_candidates_are_the_classes_of_the_largest_logits(p):
    net, (x, _) = linear(6), batch(40)
    ranked = net(x).argsort(1, descending=True)
    far = distances(net, x, norms.dual(p))
    for candidates in (2, 3, 6, 100):
        expected = far.gather(1, ranked[:, 1:candidates]).amin(1)
        attacked = attacks.deepfool(net, x, p=p, candidates=candidates, steps=1)
        torch.testing.assert_close(norms.norm(attacked - x, p), 1.02 * expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("p", NORMS)
def test_all_predictions_of_a_curved_net_change_and_each_image_stops_there(p):
    net, (x, _) = relu_net(), batch(40)
    before = net(x).argmax(1)
    attacked = attacks.deepfool(net, x, p=p)
    assert measure.vulnerability(net, x, attacked).all()
    shorter = [attacks.deepfool(net, x, p=p, steps=steps) for steps in (1, 2, 3)]
    fooled = [net(s).argmax(1) != before for s in shorter]
    assert not fooled[0].all()
    for s, stopped, following in zip(shorter, fooled, [*shorter[1:], attacked], strict=True):
        torch.testing.assert_close(following[stopped], s[stopped], rtol=0, atol=0)  # works on what is left only
        assert not torch.isclose(following[~stopped], s[~stopped]).flatten(1).all(1).any()


@pytest.mark.parametrize("p", NORMS)
def test_clipping_keeps_images_in_range(p):
    net, (x, _) = relu_net(), batch(40)
    free, clipped = (attacks.deepfool(net, x, p=p, clip=clip) for clip in (False, True))
    assert free.min() < 0
    assert clipped.min() >= 0
    assert clipped.max() <= 1
    inside = ((free >= 0) & (free <= 1)).flatten(1).all(1)
    torch.testing.assert_close(clipped[inside], free[inside], rtol=0, atol=1e-12)


def test_with_labels_the_misclassified_stay_where_they_are():
    net, (x, y) = relu_net(), batch(40)
    right = net(x).argmax(1) == y
    assert 0 < right.sum() < 40
    labelled, free = attacks.deepfool(net, x, y), attacks.deepfool(net, x)
    assert torch.equal(labelled[~right], x[~right])
    torch.testing.assert_close(labelled[right], free[right], rtol=0, atol=1e-12)
    assert (norms.norm(free - x, 2) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", NORMS)
def test_an_image_on_the_boundary_leaves_it(p, dtype):
    net, x = linear(3).to(dtype), batch(1)[0].to(dtype)
    with torch.no_grad():
        net[1].weight[1] = net[1].weight[0].flip(0)
        net[1].bias.copy_(torch.tensor([0.0, 0.0, -100.0]))
        x = (x + x.flatten(1).flip(1).view_as(x)) / 2  # symmetric: two equal logits
        logits = net(x)
    assert (logits[0, 0] - logits[0, 1]).abs() < 1e-6
    attacked = attacks.deepfool(net, x, p=p)
    assert measure.vulnerability(net, x, attacked).all()
    assert norms.norm(attacked - x, p) < 1e-5


def test_an_image_is_across_the_boundary_by_more_than_rounding():
    """Logits that differ in the last digit alone may be in another order in the caller's own layers."""
    net, x = linear(3), batch(400)[0]
    net, x = net.float(), x.float()
    before = net(x).argmax(1)
    after = net(attacks.deepfool(net, x, overshoot=0.0))
    own = after.gather(1, before[:, None])[:, 0]
    lead = after.scatter(1, before[:, None], -math.inf).amax(1) - own
    assert (lead > 8 * torch.finfo(torch.float32).eps * own.abs()).all()


@pytest.mark.parametrize("batch_size", [1, 50])
@pytest.mark.parametrize("quick", [True, False])
def test_the_callers_own_model_agrees_that_the_class_has_changed(quick, batch_size):
    """Whatever rounds inside the attack (merged layers, the batch), without any overshoot to cover for it."""
    net = models.build("conv_strided", (2, 6, 6), 4, width=6, depth=2, init="torch", batch_norm=True)
    x = batch(50)[0].float()
    models.calibrate_batch_norm(net, x)
    with nullcontext() if quick else fast.disable():
        attacked = attacks.deepfool(net, x, overshoot=0.0, batch_size=batch_size)
    with torch.no_grad():
        for calls in (lambda images: net(images), lambda images: torch.cat([net(one[None]) for one in images])):
            assert (calls(attacked).argmax(1) != calls(x).argmax(1)).all()


def test_where_no_gradient_leads_to_another_class_the_image_stays():
    net, (x, _) = linear(3), batch(4)
    with torch.no_grad():
        net[1].weight.copy_(net[1].weight[:1].expand(3, -1).clone())
    assert torch.equal(attacks.deepfool(net, x), x)


def test_fifty_steps_are_made_by_default():
    """Where each brings the image nearer to a boundary that none reaches: the gap is e to the minus its brightness."""

    class Asymptotic(nn.Module):
        def forward(self, x):
            gap = (-x.sum((1, 2, 3))).exp()
            return torch.stack([gap, torch.zeros_like(gap)], 1)

    x = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    moved = attacks.deepfool(Asymptotic(), x, overshoot=0) - x
    torch.testing.assert_close(moved, torch.full_like(x, 50.0), rtol=1e-12, atol=0)  # one unit each


def test_a_slope_of_one_is_a_slope_and_two_equal_classes_are_no_way_out():
    """One pixel x, and logits x, 0.5, x: the boundary lies at 0.5, and the third class never leads."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 3)).double()
    net[1].weight.data, net[1].bias.data = torch.tensor([[1.0], [0], [1]]).double(), torch.tensor([0, 0.5, 0]).double()
    x = torch.tensor([0.75, 0.9]).double().view(2, 1, 1, 1)
    for p in NORMS:
        attacked = attacks.deepfool(net, x, torch.tensor([0, 0]), p=p, overshoot=0, steps=1)
        torch.testing.assert_close(attacked, torch.full_like(x, 0.5), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("offset", "across"), [(0.0, True), (1e6, False)])
def test_a_lead_counts_from_the_logits_own_rounding_on(offset, across):
    """A lead of 1e-9 is far above the rounding of 0.5 in float64, and not above that of 1e6."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).double()
    net[1].weight.data = torch.tensor([[1.0], [0]]).double()
    net[1].bias.data = torch.tensor([0, 0.5]).double() + offset
    x = torch.full((1, 1, 1, 1), 0.5 - 1e-9, dtype=torch.float64)
    assert torch.equal(attacks.deepfool(net, x, torch.tensor([0])), x) == across
