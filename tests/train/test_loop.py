"""Training against explicit loops, and what the schedule, the methods and the measurements of an epoch promise."""

import io
import math
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.training import STRENGTHS, conv, fit, mlp, same, seeded, trace, weights
from torch.nn import functional as F

from advdim import data, models, train
from advdim.models import fast
from advdim.train import Recipe, loop, objectives

PASSES = dict.fromkeys(STRENGTHS, 1) | {"augment-linf": 2, "augment-l2": 2, "pgd-linf": 8}


# The loop


@pytest.mark.parametrize("n", [113, 120])
def test_a_linear_model_takes_the_steps_of_an_explicit_loop(digits, n):
    """Momentum, weight decay, one-cycle rate and order of the batches, with gradients written out; a last batch of 8
    is taken, and one of a single image is not."""
    x, y = digits[0][:n].double(), digits[1][:n]
    recipe = Recipe(epochs=3, batch_size=16, lr=0.2, momentum=0.8, weight_decay=0.01, seed=3)
    net = mlp(depth=1).double()
    w, b = net[1].weight.detach().clone(), net[1].bias.detach().clone()
    seen = trace(net, lambda m, _: (m[1].weight.detach().clone(), m[1].bias.detach().clone()))
    result = fit(net, (x, y), recipe)

    steps = 3 * (n // 16 + (n == 120))
    top = 0.3 * steps - 1

    def rate(t):
        low, high, u = (0.2 / 25, 0.2, t / top) if t <= top else (0.2 / 25e4, 0.2, 1 - (t - top) / (steps - 1 - top))
        return low + (high - low) * (1 - math.cos(math.pi * u)) / 2

    generator, flat, vw, vb, t = seeded(3), x.flatten(1), 0, 0, 0
    for epoch in range(3):
        order, losses, rates = torch.randperm(n, generator=generator), [], []
        for start in range(0, n, 16):
            i = order[start : start + 16]
            if len(i) == 1:
                continue
            torch.testing.assert_close(seen[t], (w, b), rtol=0, atol=1e-12)
            logits = flat[i] @ w.T + b
            losses += [-torch.log_softmax(logits, 1)[torch.arange(len(i)), y[i]]]
            error = (logits.softmax(1) - F.one_hot(y[i], 10)) / len(i)
            vw = 0.8 * vw + error.T @ flat[i] + 0.01 * w
            vb = 0.8 * vb + error.sum(0) + 0.01 * b
            rates.append(rate(t))
            w, b, t = w - rates[-1] * vw, b - rates[-1] * vb, t + 1
        assert result.history[epoch]["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-12)
        assert result.history[epoch]["lr"] == pytest.approx(rates[0], rel=1e-12)
    assert t == len(seen) == steps
    torch.testing.assert_close((net[1].weight, net[1].bias), (w, b), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", objectives.METHODS)
def test_every_method_lowers_its_objective(digits, method):
    history = fit(mlp(), digits, Recipe(method, STRENGTHS[method], epochs=4, batch_size=32)).history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert history[-1]["train_accuracy"] > history[0]["train_accuracy"] + 0.1


@pytest.mark.parametrize("method", objectives.METHODS)
def test_every_method_trains_a_conv_net_in_bfloat16(digits, method):
    net = conv()
    history = fit(net, digits, Recipe(method, STRENGTHS[method], epochs=2, augment=True, bf16=True)).history
    full = conv()
    assert history[-1]["loss"] < history[0]["loss"]
    other = fit(full, digits, Recipe(method, STRENGTHS[method], epochs=2, augment=True)).history
    assert 0 < abs(history[0]["loss"] / other[0]["loss"] - 1) < 0.05  # another precision, the same objective
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_digits_are_learnt_in_a_few_epochs():
    history = fit(
        models.build("mlp", (1, 8, 8)),
        data.load("digits"),
        Recipe(epochs=6, batch_size=32, lr=0.1),
        **dict(zip(("x_test", "y_test"), data.load("digits", "test"), strict=True)),
    ).history
    assert history[-1]["test_accuracy"] > 0.9


@pytest.mark.parametrize(
    ("method", "strengths"),
    [
        ("gradient-l1", (0.1, 0.3)),
        ("gradient-l2", (0.1, 0.3)),
        ("augment-linf", (0.1, 0.2)),
        ("pgd-linf", (0.05, 0.1)),
    ],
)
def test_a_stronger_method_leaves_smaller_gradients_at_test_points(digits, test_digits, method, strengths):
    rows = []
    for strength in (0.0, *strengths):
        recipe = Recipe(method, strength, epochs=8, batch_size=32)
        rows += fit(mlp(), digits, recipe, x_test=test_digits[0], y_test=test_digits[1]).history[-1:]
    for q in (1, 2):
        plain, weak, strong = (row[f"test_l{q}"] for row in rows)
        assert weak < 0.9 * plain
        assert strong < 0.9 * weak
    assert rows[-1]["test_accuracy"] > 0.6  # not the flat network that knows nothing


# Randomness


def test_a_seed_determines_the_run_and_global_generators_do_not(digits):
    recipe = Recipe("pgd-linf", 0.05, epochs=1, augment=True, validation=0.1)
    runs = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002
        random.seed(noise)
        net = conv()  # whose default weights, drawn over, PyTorch takes from the global generator
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        fit(net, digits, replace(recipe, seed=seed))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]  # noqa: NPY002
        runs.append(weights(net))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_bytes_train_as_the_numbers_they_stand_for(digits):
    pixels = (digits[0] * 255).round().to(torch.uint8)
    nets = [conv(), conv()]
    fit(nets[0], (pixels, digits[1]), Recipe(epochs=1, augment=True))
    fit(nets[1], (pixels.float() / 255, digits[1]), Recipe(epochs=1, augment=True))
    assert same(weights(nets[0]), weights(nets[1]))


def test_images_are_enlarged_batch_by_batch(digits):
    nets = [models.build("mlp", (1, 16, 16), width=8) for _ in range(2)]
    small = fit(nets[0], digits, Recipe(epochs=1, size=16)).history
    large = fit(nets[1], (data.resize(digits[0], 16), digits[1]), Recipe(epochs=1)).history
    assert same(weights(nets[0]), weights(nets[1]))
    assert small[0]["train_l1"] == large[0]["train_l1"]


# Validation, the best epoch, the paper's schedule


# The record of an epoch


@pytest.mark.parametrize("method", objectives.METHODS)
def test_batch_norm_sees_the_passes_of_the_objective_and_no_others(digits, test_digits, method):
    net = conv()
    x, y = test_digits
    fit(net, digits, Recipe(method, STRENGTHS[method], epochs=2, batch_size=100), x_test=x, y_test=y)
    assert int(net.state_dict()["1.num_batches_tracked"]) == PASSES[method] * 6


@pytest.mark.parametrize("method", objectives.METHODS)
def test_convolutions_are_laid_out_for_the_method_meanwhile(digits, method):
    net, recipe = conv(), Recipe(method, STRENGTHS[method], epochs=1)
    seen = trace(net, lambda m, _: m[3].weight.is_contiguous(memory_format=torch.channels_last))
    fit(net, digits, recipe)
    assert set(seen) == {True}
    assert net[3].weight.is_contiguous()
    elsewhere = conv().to("meta")  # not a CPU
    with fast.in_training(elsewhere, twice=recipe.method in loop.DOUBLE_BACKWARD):
        laid_out = elsewhere[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert laid_out == (not method.startswith(("gradient", "cross-lipschitz")))


# Failures


def failing(monkeypatch, at, failure):
    """The plain loss, spoilt at one of its calls."""
    calls = iter(range(10**6))

    def objective(model, x, y, *_):
        loss = objectives.plain(model, x, y)
        return failure(loss, model) if next(calls) == at else loss

    monkeypatch.setitem(objectives.METHODS, "none", objective)


def nan_loss(loss, model):
    return loss * math.nan


def nan_gradient(loss, model):
    return loss + (0 * next(model.parameters())).sum().sqrt()  # value 0, slope 0 times infinity


@pytest.mark.parametrize("failure", [nan_loss, nan_gradient])
@pytest.mark.parametrize("at", [0, 4, 8])
@pytest.mark.parametrize("every", [None, 1])
def test_divergence_names_its_place_and_the_checkpoint_stays_good(digits, tmp_path, monkeypatch, failure, at, every):
    recipe, path = Recipe(epochs=3, batch_size=100), tmp_path / "run.pt"
    whole = mlp()
    expected = fit(whole, digits, recipe)
    net = mlp()
    with monkeypatch.context() as patch:
        failing(patch, at, failure)
        epoch, batch = divmod(at, 3)
        if failure is nan_gradient and every is None:  # found in the next objective, or where the epoch ends
            batch = min(batch + 1, 2)
        with pytest.raises(
            train.DivergenceError, match=rf"'none' at strength 0.0 .* epoch {epoch}, batch {batch}"
        ) as e:
            fit(net, digits, recipe, checkpoint=path, checkpoint_every=every)
    error = e.value
    assert (error.method, error.strength, error.epoch, error.batch) == ("none", 0.0, epoch, batch)
    assert [row["loss"] for row in error.history] == [row["loss"] for row in expected.history[: at // 3]]
    assert not net.training
    assert all(p.grad is None for p in net.parameters())
    assert path.exists() == (at >= (1 if every else 3))
    resumed = mlp()
    seen = trace(resumed, lambda *_: 0)
    fit(resumed, digits, recipe, checkpoint=path)
    assert same(weights(resumed), weights(whole))
    assert len(seen) == (9 - at if every else 9 - at // 3 * 3)


@pytest.mark.parametrize("method", objectives.METHODS)
def test_a_rate_far_too_large_is_divergence_whatever_the_method(digits, method):
    with pytest.raises(train.DivergenceError, match=r"epoch 0, batch 1.* lower lr = 1e\+35"):
        fit(mlp(), digits, Recipe(method, STRENGTHS[method], epochs=3, lr=1e35))


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (0, 2), (1, 1)])
def test_a_gradient_not_finite_inside_an_attack_is_divergence_in_its_batch(digits, epoch, batch, every, tmp_path):
    net, first = mlp(), 8 * (3 * epoch + batch) + 4  # the fifth of a batch's eight passes
    passes = iter(range(10**6))
    net.register_forward_hook(lambda m, _, out: out * math.nan if m.training and next(passes) == first else None)
    with pytest.raises(train.DivergenceError) as e:
        fit(
            net,
            digits,
            Recipe("pgd-linf", 0.05, epochs=3, batch_size=100),
            checkpoint=tmp_path / "run.pt",
            checkpoint_every=every,
        )
    assert (e.value.epoch, e.value.batch, len(e.value.history)) == (epoch, batch, epoch)


@pytest.mark.parametrize("method", ["none", "pgd-linf"])
def test_an_error_of_the_model_is_no_divergence(digits, method):
    def refuse(*_):
        raise ValueError("the loss has a gradient with 3 NaN or infinite values")

    net = mlp()
    net.register_forward_hook(refuse)
    with pytest.raises(ValueError, match="3 NaN") as e:
        fit(net, digits, Recipe(method, STRENGTHS[method], epochs=1))
    assert not isinstance(e.value, train.DivergenceError)


def test_fit_refuses(digits):
    x, y = digits
    with pytest.raises(TypeError, match=r"float32|floating point"):
        fit(mlp(), (x.long(), y), Recipe())
    with pytest.raises(ValueError, match="one label per example"):
        fit(mlp(), ((x * 255).to(torch.uint8), y[:-1]), Recipe())
    with pytest.raises(ValueError, match="x_test and y_test go together"):
        fit(mlp(), digits, Recipe(), x_test=x)
    with pytest.raises(ValueError, match="eval_images must be at least 1, got 0"):
        fit(mlp(), digits, Recipe(), eval_images=0)
    with pytest.raises(ValueError, match=r"validation = 0.001 of 300 images leaves none"):
        fit(mlp(), digits, Recipe(validation=0.001))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "progress", "drawn"), [(Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False)]
)
def test_a_bar_is_drawn_on_a_terminal_unless_refused(digits, monkeypatch, stream, progress, drawn):
    monkeypatch.setattr(sys, "stderr", stream())
    train.fit(mlp(), *digits, Recipe(epochs=1), progress=progress)
    assert ("3/3" in sys.stderr.getvalue()) == drawn
