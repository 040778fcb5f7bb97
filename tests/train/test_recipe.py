"""What a recipe promises: schedules, the best epoch, patience; and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.training import conv, fit, mlp, same, seeded, trace, weights
from torch.nn import functional as F

from advdim import measure, train
from advdim.train import Recipe, loop

INVALID = [
    ("method", "sgd"),
    ("schedule", "cosine"),
    ("keep", "first"),
    ("epochs", 0),
    ("batch_size", 0),
    ("halve_every", 0),
    ("size", 0),
    ("lr", 0.0),
    ("lr", math.nan),
    ("lr", math.inf),
    ("momentum", 1.0),
    ("weight_decay", -0.1),
    ("strength", 0.1),
    ("strength", -0.1),
    ("validation", 1.0),
]


@pytest.fixture
def scripted(monkeypatch):
    """Validation accuracies as told, and the weights at each such measurement."""

    def script(values, held):
        left, snapshots = list(values), []

        def accuracy(model, x, y, recipe):
            if len(y) != held:
                return 0.0
            snapshots.append(weights(model))
            return left.pop(0)

        monkeypatch.setattr(loop.evaluation, "accuracy", accuracy)
        return snapshots

    return script


@pytest.mark.parametrize(("keep", "kept"), [("best", 1), ("last", 4)])
def test_the_first_of_the_best_epochs_is_kept(digits, scripted, keep, kept):
    snapshots = scripted([0.5, 0.7, 0.7, 0.6, 0.1], held=30)
    net = conv()
    result = fit(net, digits, Recipe(epochs=5, validation=0.1, keep=keep))
    assert (result.best_epoch, result.stopped_early) == (1, False)
    assert same(weights(net), snapshots[kept])
    assert not same(snapshots[1], snapshots[4])


@pytest.mark.parametrize(
    ("patience", "values", "epochs"),
    [(2, [0.5, 0.7, 0.7, 0.6, 0.9], 4), (1, [0.5, 0.4, 0.9], 2), (3, [0.1, 0.2, 0.3, 0.2, 0.2], 5)],
)
def test_training_ends_after_the_patience_without_a_better_epoch(digits, scripted, patience, values, epochs):
    scripted(values, held=30)
    result = fit(mlp(), digits, Recipe(epochs=5, validation=0.1, early_stopping=patience))
    assert len(result.history) == epochs
    assert result.stopped_early == (epochs < 5)


def test_held_out_images_are_measured_and_never_trained_on(digits):
    x, y = digits
    net, recipe = mlp(), Recipe(epochs=3, batch_size=32, validation=0.2, keep="best", seed=2)
    seen = trace(net, lambda _, images: images.clone())
    result = fit(net, digits, recipe)
    held, kept = recipe.split(300, seeded(2))
    assert sorted([*held.tolist(), *kept.tolist()]) == list(range(300))
    assert len(held) == 60
    assert sorted(torch.cat(seen[:8]).flatten(1).tolist()) == sorted(x[kept].flatten(1).tolist())
    accuracies = [row["validation_accuracy"] for row in result.history]
    assert result.best_epoch == accuracies.index(max(accuracies))
    right = measure.outputs(net, x[held]).argmax(1) == y[held]
    assert right.float().mean().item() == pytest.approx(max(accuracies))


def test_the_papers_schedule_halves_the_rate_and_returns_to_the_best_weights(digits, scripted):
    x, y = digits[0].double(), digits[1]
    snapshots = scripted([0.9, 0.3, 0.2, 0.95, 0.1, 0.2], held=30)
    net, recipe = mlp(depth=1).double(), replace(train.PAPER, epochs=6, halve_every=2, augment=False, batch_size=1000)
    starts = trace(net, lambda m, _: weights(m))  # one batch per epoch
    result = fit(net, (x, y), recipe)
    assert [row["lr"] for row in result.history] == [0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025]
    for epoch, expected in ((1, 0), (2, 0), (3, 2), (4, 3), (5, 4)):
        assert same(starts[epoch], snapshots[expected]), epoch
    # The momentum is that of the weights left behind: v = 0.9 v' + g, with v' from the last step before the return.
    kept = recipe.split(300, seeded())[1]
    before, at = starts[1]["1.weight"], snapshots[1]["1.weight"]
    w = starts[2]["1.weight"].clone().requires_grad_()
    loss = F.cross_entropy(x[kept].flatten(1) @ w.T + starts[2]["1.bias"], y[kept])
    (g,) = torch.autograd.grad(loss, w)
    step = 0.005 * (0.9 * (before - at) / 0.01 + g)
    torch.testing.assert_close(snapshots[2]["1.weight"], starts[2]["1.weight"] - step, rtol=0, atol=1e-12)


def test_the_papers_recipe():
    expected = Recipe(epochs=200, batch_size=128, lr=0.01, momentum=0.9, schedule="paper", augment=True, validation=0.1)
    assert expected == train.PAPER
    assert train.PAPER.halve_every == 30


@pytest.mark.parametrize(("name", "value"), INVALID)
def test_a_recipe_refuses(name, value):
    with pytest.raises(ValueError, match=f"{name}|strength|method"):
        Recipe(**{name: value})


@pytest.mark.parametrize("need", [{"schedule": "paper"}, {"keep": "best"}, {"early_stopping": 2}])
def test_what_needs_validation_says_so(need):
    with pytest.raises(ValueError, match="need validation above 0"):
        Recipe(**need)
