"""The record of an epoch is what measuring finds, and measuring leaves training alone."""

import pytest
import torch
from helpers.training import conv, fit, mlp, same, weights

from advdim import measure
from advdim.train import Recipe


def test_what_is_measured_leaves_the_weights_alone(digits, test_digits):
    nets = [conv(), conv()]
    fit(nets[0], digits, Recipe(epochs=2))
    fit(nets[1], digits, Recipe(epochs=2), x_test=test_digits[0], y_test=test_digits[1], eval_images=7)
    assert same(weights(nets[0]), weights(nets[1]))


def test_an_epochs_record_is_what_measuring_finds(digits, test_digits):
    x, y = test_digits
    net = conv()
    result = fit(net, digits, Recipe(epochs=2), x_test=x, y_test=y, eval_images=500)
    row = result.history[-1]
    assert row["test_accuracy"] == pytest.approx((measure.outputs(net, x).argmax(1) == y).float().mean().item())
    right = measure.outputs(net, digits[0]).argmax(1) == digits[1]
    assert row["train_accuracy"] == pytest.approx(right.float().mean().item())
    for name, pair in (("train", digits), ("test", test_digits)):
        for q, found in measure.gradient_norms(net, *pair).items():
            assert row[f"{name}_l{q}"] == pytest.approx(found.mean().item(), rel=1e-5)
    assert [r["epoch"] for r in result.history] == [0, 1]
    assert row["seconds"] > 0
    assert not net.training
    assert all(p.grad is None for p in net.parameters())


def test_some_epochs_are_measured_and_the_rest_only_validated(digits, test_digits):
    x, y = test_digits
    every, third = (
        fit(
            mlp(), digits, Recipe(epochs=5, validation=0.2, seed=1), x_test=x[:50], y_test=y[:50], eval_every=k,
            metrics=lambda model, x, y: {"images": float(len(x))},
        ).history
        for k in (1, 3)
    )  # fmt: skip
    for row, whole in zip(third, every, strict=True):
        assert {name: whole[name] for name in row if name != "seconds"} == {
            k: v for k, v in row.items() if k != "seconds"
        }
        measured = {name for name in whole if name.startswith(("train_", "test_"))}
        assert measured & set(row) == (measured if row["epoch"] in (2, 4) else set())
        assert "validation_accuracy" in row
    with pytest.raises(ValueError, match="eval_every must be at least 1, got 0"):
        fit(mlp(), digits, Recipe(), eval_every=0)


def test_the_last_epoch_before_an_early_stop_is_measured(digits, test_digits):
    x, y = test_digits
    recipe = Recipe(epochs=40, lr=1e-9, validation=0.2, early_stopping=2)  # which does not learn
    result = fit(mlp(), digits, recipe, x_test=x[:50], y_test=y[:50], eval_every=10)
    assert (result.stopped_early, result.best_epoch, len(result.history)) == (True, 0, 3)
    assert ["test_accuracy" in row and "train_l1" in row for row in result.history] == [False, False, True]


def test_seeds_are_measured_on_the_same_few_images(digits, test_digits):
    sets = []
    for seed in (0, 1):
        net, found = mlp(), []
        net.register_forward_pre_hook(lambda m, inputs, f=found: None if m.training else f.append(inputs[0].clone()))
        x, y = test_digits
        fit(net, digits, Recipe(epochs=2, seed=seed), x_test=x, y_test=y, eval_images=20)
        sets.append([images for images in found if len(images) == 20])
    first, second = sets
    assert len(first) == len(second) == 6  # accuracy and norms of train, norms of test, in two epochs
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
