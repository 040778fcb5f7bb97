"""The training objectives against closed forms, finite differences and one another."""

import itertools
import math
import warnings

import pytest
import torch
from helpers.nets import batch, relu_net, smooth_net
from helpers.objectives import EVERY, INF, gradients, inputs_of, seeded
from torch import nn
from torch.nn import functional as F

from advdim import attacks, models, norms
from advdim.train import objectives

STRENGTH = 0.03
SHAPE, D, CLASSES = (2, 6, 6), 72, 4


def linear(classes=CLASSES):
    return models.build("mlp", SHAPE, classes, depth=1, init="torch").double()


def finite_differences(net, objective, step=1e-5):
    """Central differences of an objective in every single parameter."""
    slopes = []
    for p in net.parameters():
        flat = p.data.view(-1)
        for i in range(len(flat)):
            start, ends = flat[i].item(), []
            for sign in (1, -1):
                flat[i] = start + sign * step
                ends.append(objective(net).item())
            flat[i] = start
            slopes.append((ends[0] - ends[1]) / (2 * step))
    return torch.tensor(slopes, dtype=torch.float64)


def tiny(batch_norm=False):
    """A smooth net small enough to be differentiated parameter by parameter."""
    layers = [nn.Conv2d(2, 2, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 4), nn.Softplus(), nn.Linear(4, 3)]
    if batch_norm:
        layers.insert(1, nn.BatchNorm2d(2))
    net, generator = nn.Sequential(*layers).double(), seeded(3)
    for p in net.parameters():
        nn.init.normal_(p, std=0.8, generator=generator)
    return net


# Closed forms, on linear models: the gradient of the loss is W^T (softmax - onehot)


def loss_gradient(net, x, y):
    residual = net(x).softmax(1) - F.one_hot(y, net.classes)
    return residual @ net[1].weight


@pytest.mark.parametrize("q", [1, 1.5, 2, INF])
def test_gradient_penalty_of_a_linear_model(q):
    net, (x, y) = linear(), batch()
    size = loss_gradient(net, x, y).abs()
    mean = (size.amax(1) if q == INF else (size**q).sum(1) ** (1 / q)).mean()
    expected = F.cross_entropy(net(x), y) + 0.5 * STRENGTH * D ** (1 - 1 / q) * mean
    found = objectives.gradient_penalty(net, x, y, strength=STRENGTH, q=q)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradients(net, found), gradients(net, expected), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("p", [1, 2, INF])
def test_augmentation_of_a_linear_model(p):
    """The perturbed logits are f + W delta, with Lemma 2's maximiser for delta."""
    net, (x, y) = linear(), batch()
    g = loss_gradient(net, x, y).detach()
    foremost = F.one_hot(g.abs().argmax(1), D)
    delta = {1: D * foremost * g.sign(), 2: math.sqrt(D) * g / g.norm(dim=1, keepdim=True), INF: g.sign()}[p]
    clean, attacked = net(x), net(x) + STRENGTH * delta @ net[1].weight.T
    expected = F.cross_entropy(clean, y) + (F.cross_entropy(attacked, y) - F.cross_entropy(clean, y)) / 2
    found = objectives.one_step_augmentation(net, x, y, strength=STRENGTH, p=p)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradients(net, found), gradients(net, expected), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("classes", [2, 4, 7])
def test_cross_lipschitz_of_a_linear_model(classes):
    net, (x, y) = linear(classes), batch(classes=classes)
    w = net[1].weight
    pairs = itertools.combinations(range(classes), 2)
    expected = F.cross_entropy(net(x), y) + STRENGTH * 2 / classes**2 * sum(
        (w[i] - w[j]).square().sum() for i, j in pairs
    )
    found = objectives.cross_lipschitz(net, x, y, strength=STRENGTH)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradients(net, found), gradients(net, expected), rtol=1e-11, atol=1e-14)


def test_pgd_training_of_a_linear_model_with_two_classes():
    """The steepest direction is the same everywhere, so PGD ends in the corner of the ball, wherever it starts."""
    net, (x, y) = linear(2), batch(classes=2)
    w = net[1].weight
    apart = (w[1] - w[0]) * (1 - 2 * y[:, None])  # the loss rises with the other class's logit less the label's
    margin = ((net(x) @ torch.tensor([-1.0, 1.0]).double()) * (1 - 2 * y)) + STRENGTH * apart.abs().sum(1)
    found = objectives.pgd_training(net, x, y, strength=STRENGTH, random_start=False)
    torch.testing.assert_close(found, F.softplus(margin).mean(), rtol=1e-13, atol=0)


def test_cross_lipschitz_is_its_definition_on_a_curved_net():
    net, (x, y) = smooth_net(), batch()
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: net(v[None])[0], image) for image in x])
    rows = jacobian.flatten(2)
    pairs = sum((rows[:, i] - rows[:, j]).square().sum(1) for i in range(CLASSES) for j in range(i))
    expected = F.cross_entropy(net(x), y) + STRENGTH * 2 / CLASSES**2 * pairs.mean()
    torch.testing.assert_close(objectives.cross_lipschitz(net, x, y, strength=STRENGTH), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("estimator", ["exact", "random-sign"])
def test_cross_lipschitz_in_train_mode_is_about_that_of_the_same_statistics(estimator):
    """The gradient of a plain total over the batch would lose four fifths of it to batch-norm."""
    net = models.build("conv_strided", (3, 16, 16), width=16, depth=4, batch_norm=True, normalise="batch").double()
    x, y = batch(32, shape=(3, 16, 16), classes=10)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0  # the running statistics are the last batch's
    values = {}
    for training in (True, False):
        net.train(training)
        options = {"estimator": estimator, "generator": seeded()}
        draws = 1 if estimator == "exact" else 10
        penalised = [objectives.cross_lipschitz(net, x, y, strength=1, **options).item() for _ in range(draws)]
        values[training] = sum(penalised) / draws - objectives.plain(net, x, y).item()
    assert values[True] == pytest.approx(values[False], rel=0.2)


# The attacks inside the objectives are those of advdim.attacks


@pytest.mark.parametrize("p", [1, 1.5, 2, INF])
def test_augmentation_adds_the_one_step_attack(p):
    net, (x, y) = relu_net(), batch()
    attacked = attacks.one_step(net, x, y, p=p, eps=norms.threshold(STRENGTH, p, D))
    expected = (F.cross_entropy(net(x), y) + F.cross_entropy(net(attacked), y)) / 2
    found = objectives.one_step_augmentation(net, x, y, strength=STRENGTH, p=p)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("share", [1, 0.5])
@pytest.mark.parametrize("p", [2, INF])
def test_one_step_of_pgd_is_the_one_step_attack(p, share):
    """A full step, or half of one, which stays inside the ball."""
    net, (x, y), step = relu_net(), batch(), share * norms.threshold(STRENGTH, p, D)
    expected = F.cross_entropy(net(attacks.one_step(net, x, y, p=p, eps=step)), y)
    found = objectives.pgd_training(net, x, y, strength=STRENGTH, p=p, steps=1, step_size=step, random_start=False)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("p", [1, 2, INF])
def test_pgd_training_uses_the_attack_of_seven_steps(p):
    net, (x, y), eps = relu_net(), batch(), norms.threshold(STRENGTH, p, D)
    step = None if p == 1 else eps / (0.75 * 7)
    attacked = attacks.pgd(net, x, y, p=p, eps=eps, steps=7, step_size=step, random_start=True, generator=seeded(5))
    found = objectives.pgd_training(net, x, y, strength=STRENGTH, p=p, generator=seeded(5))
    assert found.item() == pytest.approx(F.cross_entropy(net(attacked), y).item(), rel=1e-13)


def test_pgd_training_starts_at_random_within_the_ball_and_steps_as_the_paper_does():
    net, (x, y) = relu_net(), batch()
    seen = inputs_of(net, lambda: objectives.pgd_training(net, x, y, strength=STRENGTH, generator=seeded()))
    moved = [(point - x).abs() for point in seen]
    assert len(seen) == 8
    assert moved[0].mean().item() == pytest.approx(STRENGTH / 2, rel=0.1)  # uniform in [-strength, strength]
    assert max(m.max().item() for m in moved) <= STRENGTH
    first = (seen[1] - seen[0]).abs()
    inside = moved[1] < STRENGTH * (1 - 1e-9)
    assert inside.double().mean() > 0.5
    torch.testing.assert_close(first[inside], torch.full_like(first[inside], STRENGTH / 5.25), rtol=1e-9, atol=0)


def test_pgd_training_warns_of_nothing_and_silences_nothing():
    """In train mode an attack of the package would warn; one that is meant does not, and a model's own words pass."""
    net, (x, y) = tiny(batch_norm=True).train(), batch(6, classes=3)
    words = "BatchNorm2d '1' is in train mode: the gradients are not each example's own; call model.eval() first"
    for hook, expected in ((None, []), (lambda *_: warnings.warn(words, stacklevel=1), [words] * 8)):
        if hook:
            net.register_forward_pre_hook(hook)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            filters = list(warnings.filters)
            objectives.pgd_training(net, x, y, strength=0.01, generator=seeded())
            assert warnings.filters == filters
        assert [str(w.message) for w in seen] == expected


# Gradients in the parameters, against finite differences


@pytest.mark.parametrize(
    "name",
    [
        "gradient-l1",
        "gradient-l1.5",
        "gradient-l2",
        "augment-linf",
        "pgd-linf",
        "cross-lipschitz",
        "cross-lipschitz-random",
    ],
)
@pytest.mark.parametrize("training", [False, True], ids=["smooth", "batch-norm"])
def test_gradients_are_those_of_the_objective(name, training):
    """With l_inf attacks, too: signs do not move with the parameters."""
    net, (x, y) = tiny(batch_norm=training).train(training), batch(6, classes=3)

    def objective(model):
        return EVERY[name](model, x, y, 0.1, seeded())

    found, expected = gradients(net, objective(net)), finite_differences(net, objective)
    assert (found - expected).norm() < 1e-8 * expected.norm()


@pytest.mark.parametrize("name", ["augment-l2", "pgd-l2"])
def test_no_gradient_passes_through_a_perturbation(name):
    """An l_2 perturbation does move with the parameters, and is held where it was found."""
    net, (x, y) = tiny(), batch(6, classes=3)

    def objective(model):
        return EVERY[name](model, x, y, 0.3, seeded())

    fixed = inputs_of(net, lambda: objective(net))[-1]

    def held(model):
        attacked = F.cross_entropy(model(fixed), y)
        return attacked if name == "pgd-l2" else (attacked + F.cross_entropy(model(x), y)) / 2

    found, expected = gradients(net, objective(net)), finite_differences(net, held)
    assert (found - expected).norm() < 1e-8 * expected.norm()
    assert (found - finite_differences(net, objective)).norm() > 1e-4 * expected.norm()


# Random signs


@pytest.mark.parametrize("classes", [2, 3, 4, 6])
def test_the_mean_over_all_signs_is_exact(monkeypatch, classes):
    net = nn.Sequential(*smooth_net()[:-1], nn.Linear(8, classes, dtype=torch.float64))
    nn.init.normal_(net[-1].weight, generator=seeded())
    x, y = batch(classes=classes)
    found = []
    for pattern in itertools.product((-1.0, 1.0), repeat=classes):
        signs = torch.tensor(pattern, dtype=torch.float64)
        monkeypatch.setattr(objectives, "_signs", lambda outputs, _, signs=signs: signs.expand_as(outputs))
        found.append(EVERY["cross-lipschitz-random"](net, x, y, STRENGTH, seeded()))
    exact = objectives.cross_lipschitz(net, x, y, strength=STRENGTH)
    mean = torch.stack(found).mean()
    torch.testing.assert_close(mean, exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(net, mean), gradients(net, exact), rtol=1e-10, atol=1e-13)
    assert max(found) > exact * 1.0001 or classes == 2  # two classes: one difference, whatever the signs


def test_signs_are_drawn_for_every_example_and_class():
    signs = objectives._signs(torch.zeros(4000, 3, dtype=torch.float64), seeded())
    assert signs.dtype == torch.float64
    assert signs.unique().tolist() == [-1, 1]
    moments = signs.T @ signs / len(signs)
    torch.testing.assert_close(moments, torch.eye(3).double(), rtol=0, atol=0.06)  # 4 standard deviations
    assert signs.mean(0).abs().max() < 0.06
    assert (signs[1:] * signs[:-1]).mean(0).abs().max() < 0.06


def test_draws_are_made_for_what_draws_alone():
    """At no strength nothing is drawn, so that the generator goes on as for the plain loss."""
    x, _ = batch(3)
    for method in objectives.METHODS:
        for strength in (0, 0.5, 1):
            generator = seeded()
            before = generator.get_state()
            found = objectives.draws(method, x, strength, generator)
            if strength == 0 or method not in ("pgd-linf", "cross-lipschitz-random"):
                assert found is None
            elif method == "pgd-linf":
                assert found.shape == (len(x), 1, *x.shape[1:])
                continue
            else:
                assert found is generator
            assert torch.equal(generator.get_state(), before)
