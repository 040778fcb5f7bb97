"""What every training objective keeps to: strength 0, randomness, the model as found, batch-norm, errors."""

import warnings

import pytest
import torch
from helpers.nets import batch, relu_net
from helpers.objectives import EVERY, INF, gradients, inputs_of, seeded
from torch import nn
from torch.nn import functional as F

from advdim import models, norms
from advdim.measure.gradients import batches
from advdim.train import objectives


@pytest.mark.parametrize(
    ("name", "objective", "options"),
    [
        ("gradient-l1", objectives.gradient_penalty, {"q": 1}),
        ("gradient-l2", objectives.gradient_penalty, {"q": 2}),
        ("augment-linf", objectives.one_step_augmentation, {"p": INF}),
        ("augment-l2", objectives.one_step_augmentation, {"p": 2}),
        ("pgd-linf", objectives.pgd_training, {"p": INF, "steps": 7, "random_start": True, "generator": seeded}),
        ("cross-lipschitz", objectives.cross_lipschitz, {"estimator": "exact"}),
        ("cross-lipschitz-random", objectives.cross_lipschitz, {"estimator": "random-sign", "generator": seeded}),
    ],
)
def test_methods_are_what_their_names_say(name, objective, options):
    net, (x, y) = relu_net(), batch()
    options = {k: v() if k == "generator" else v for k, v in options.items()}
    expected = objective(net, x, y, strength=0.1, **options).item()
    assert objectives.objective(name)(net, x, y, 0.1, seeded()).item() == expected
    others = [objectives.objective(m)(net, x, y, 0.1, seeded()).item() for m in EVERY if m in objectives.METHODS]
    assert sum(value == expected for value in others) == 1
    assert len(others) == 7


@pytest.mark.parametrize("name", ["none", *EVERY])
def test_strength_0_is_the_plain_loss(name):
    net, (x, y) = relu_net(), batch()
    objective = EVERY[name] if name in EVERY else objectives.objective(name)
    expected = F.cross_entropy(net(x), y)
    found = objective(net, x, y, 0, None)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradients(net, found), gradients(net, expected), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", EVERY)
def test_randomness_comes_from_the_generator_alone(name):
    net, (x, y) = relu_net(), batch(8)
    values = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        values.append(EVERY[name](net, x, y, 0.1, seeded(7)).item())
        assert torch.equal(torch.get_rng_state(), state)
    assert values[0] == values[1]
    draws = name.startswith("pgd-l") or name.endswith("random")
    assert (EVERY[name](net, x, y, 0.1, seeded(8)).item() != values[0]) == draws


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_found(name, training):
    """But for the graph: parameters, their .grad and requires_grad, the images and the mode do not change."""
    net, (x, y) = relu_net(batch_norm=True).train(training), batch(8)
    parameters = list(net.parameters())
    parameters[0].requires_grad_(False)
    for p in parameters[1::2]:
        p.grad = torch.full_like(p, 3.0)
    before = {k: v.clone() for k, v in net.named_parameters()}
    images = x.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = EVERY[name](net, x, y, 0.1, seeded())
    assert value.shape == ()
    assert value.requires_grad
    assert all(torch.equal(p, before[k]) for k, p in net.named_parameters())
    assert [p.requires_grad for p in parameters] == [False] + [True] * (len(parameters) - 1)
    assert all(p.grad is None for p in parameters[::2])
    assert all((p.grad == 3).all() for p in parameters[1::2])
    assert torch.equal(x, images)
    assert x.grad is None
    assert net.training == training
    assert all(module.training == training for module in net.modules())


PASSES = {
    "gradient-l1": 1,
    "augment-linf": 2,
    "augment-l2": 2,
    "pgd-linf": 8,
    "cross-lipschitz": 1,
    "cross-lipschitz-random": 1,
}


@pytest.mark.parametrize("name", PASSES)
def test_batch_norm_in_train_mode_sees_every_pass_with_the_whole_batch(name):
    net = models.build("conv_strided", (1, 160, 160), 4, width=2, depth=2, batch_norm=True).train()
    x, y = batch(5, shape=(1, 160, 160), dtype=torch.float32)
    assert len(list(batches(x))) > 1  # more than attacks send through at once, of themselves
    seen = inputs_of(net, lambda: EVERY[name](net, x, y, 0.1, seeded()))
    assert [len(images) for images in seen] == [5] * PASSES[name]
    counts = [m.num_batches_tracked.item() for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert counts == [PASSES[name]] * len(counts)
    net.eval()
    EVERY[name](net, x, y, 0.1, seeded())
    assert counts == [m.num_batches_tracked.item() for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


def test_an_attack_in_train_mode_uses_the_statistics_of_the_batch():
    net, (x, y) = relu_net(batch_norm=True), batch(8)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):  # in eval mode, another net
                m.running_mean += 0.5
                m.running_var *= 4
    values = {}
    for training in (True, False):
        net.train(training)
        delta = torch.zeros_like(x)
        for _ in range(3):
            point = (x + delta).requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(net(point), y, reduction="sum"), point)
            delta = (delta + 0.1 / 2.25 * g.sign()).clamp(-0.1, 0.1)
        values[training] = F.cross_entropy(net.train()(x + delta), y).item()
    net.train()
    found = objectives.pgd_training(net, x, y, strength=0.1, steps=3, random_start=False)
    assert found.item() == pytest.approx(values[True], rel=1e-12)
    assert found.item() != pytest.approx(values[False], rel=1e-6)


@pytest.mark.parametrize("q", [1, 1.5, 2, 3, INF])
@pytest.mark.parametrize("share", [0.5, 1.0], ids=["some", "all"])
def test_where_gradients_vanish_the_penalty_has_a_finite_gradient(q, share):
    net, (x, y) = relu_net(), batch(8)
    x[: int(share * 8)] = -100.0  # pushes every unit of these images below 0
    with torch.no_grad():
        for p in net[0].parameters():
            p.copy_(p.abs())
    found = objectives.gradient_penalty(net, x, y, strength=0.1, q=q)
    g = torch.autograd.grad(F.cross_entropy(net(x.requires_grad_()), y), x)[0].flatten(1)
    assert (norms.norm(g, 1) == 0).double().mean() == share
    slopes = gradients(net, found)
    assert slopes.isfinite().all()
    assert slopes.norm() > 0
    if share == 1:
        assert found.item() == pytest.approx(F.cross_entropy(net(x), y).item(), rel=1e-14)


@pytest.mark.parametrize("name", EVERY)
def test_every_objective_is_finite_in_float32_where_the_loss_saturates(name):
    net, (x, y) = relu_net().float(), batch(8, dtype=torch.float32)
    with torch.no_grad():
        net[-1].weight *= 1e6
        y = net(x).argmax(1)  # all right, and so sure of it that most gradients underflow to 0
        assert (norms.norm(loss_gradient_of(net, x, y), 2) == 0).any()
    value = EVERY[name](net, x, y, 1e-6, seeded())
    assert value.isfinite()
    assert gradients(net, value).isfinite().all()


def loss_gradient_of(net, x, y):
    with torch.enable_grad():
        point = x.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(net(point), y, reduction="sum"), point)[0].flatten(1)


@pytest.mark.parametrize("name", EVERY)
def test_training_lowers_every_objective(name):
    net, (x, y) = relu_net(batch_norm=True).float().train(), batch(16, dtype=torch.float32)
    optimiser = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    generator, values = seeded(), []
    for _ in range(25):
        optimiser.zero_grad()
        value = EVERY[name](net, x, y, 0.01, generator)
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]
