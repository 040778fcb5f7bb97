"""Training against explicit loops, and what the schedule, the methods and the measurements of an epoch promise."""

import io
import math
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from advdim import data, measure, models, train
from advdim.models import fast
from advdim.train import Recipe, crop_and_flip, loop, objectives

STRENGTHS = {
    "none": 0.0,
    "gradient-l1": 0.05,
    "gradient-l2": 0.05,
    "augment-linf": 0.05,
    "augment-l2": 0.05,
    "pgd-linf": 0.05,
    "cross-lipschitz": 0.01,
    "cross-lipschitz-random": 0.01,
}
PASSES = dict.fromkeys(STRENGTHS, 1) | {"augment-linf": 2, "augment-l2": 2, "pgd-linf": 8}
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


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", n=300)


@pytest.fixture(scope="module")
def test_digits():
    return data.load("digits", "test", n=200)


def mlp(depth=2):
    return models.build("mlp", (1, 8, 8), depth=depth, width=32)


def conv():
    return models.build("conv_strided", (1, 8, 8), depth=2, width=6, batch_norm=True)


def fit(model, xy, recipe, **options):
    return train.fit(model, *xy, recipe, progress=False, **options)


def weights(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trace(model, look):
    """Collect what `look` finds at every forward pass in train mode."""
    seen = []
    model.register_forward_pre_hook(lambda m, inputs: seen.append(look(m, inputs[0])) if m.training else None)
    return seen


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


def test_what_is_measured_leaves_the_weights_alone(digits, test_digits):
    nets = [conv(), conv()]
    fit(nets[0], digits, Recipe(epochs=2))
    fit(nets[1], digits, Recipe(epochs=2), x_test=test_digits[0], y_test=test_digits[1], eval_images=7)
    assert same(weights(nets[0]), weights(nets[1]))


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


# Augmentation


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
@pytest.mark.parametrize(("padding", "flip"), [(4, True), (2, False), (0, True)])
def test_crops_and_flips_are_those_of_a_loop_over_pixels(dtype, padding, flip):
    n, channels, height, width = 6, 2, 5, 7
    x = (255 * torch.rand(n, channels, height, width, generator=seeded(1), dtype=torch.float64)).to(dtype)
    found = crop_and_flip(x, seeded(), padding=padding, flip=flip)
    assert (found.shape, found.dtype) == (x.shape, dtype)
    generator = seeded()
    down, right = (torch.randint(2 * padding + 1, (n, 1), generator=generator) - padding for _ in range(2))
    flips = torch.randint(2, (n, 1), generator=generator) if flip else torch.zeros(n, 1)
    for i in range(n):
        for r in range(height):
            for c in range(width):
                row = r + int(down[i])
                column = (width - 1 - c if flips[i] else c) + int(right[i])
                inside = 0 <= row < height and 0 <= column < width
                expected = x[i, :, row, column] if inside else torch.zeros(channels, dtype=dtype)
                assert torch.equal(found[i, :, r, c], expected)


def test_shifts_are_uniform_and_flips_even_image_by_image():
    n = 9000
    where = torch.zeros(n, 1, 9, 9)
    where[:, :, 4, 4], where[:, :, 4, 5] = 1, 0.5  # the half is to the right of the one, unless flipped
    moved = crop_and_flip(where, seeded(), padding=3)
    row, column = (
        (moved[:, 0] == 1).flatten(1).float().argmax(1) // 9,
        (moved[:, 0] == 1).flatten(1).float().argmax(1) % 9,
    )
    flipped = moved[torch.arange(n), 0, row, column - 1] == 0.5
    counts = torch.zeros(2, 7, 7)
    for f, r, c in zip(flipped.long().tolist(), (row - 1).tolist(), (column - 1).tolist(), strict=True):
        counts[f, r, c] += 1
    expected = n / counts.numel()
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < 97 + 4 * math.sqrt(2 * 97)  # 97 degrees of freedom: four standard deviations


def test_training_sees_augmented_images_and_measuring_the_images_themselves(digits):
    net, x = mlp(), digits[0]
    evaluated = []
    net.register_forward_pre_hook(lambda m, inputs: None if m.training else evaluated.append(inputs[0].clone()))
    seen = trace(net, lambda _, images: images.clone())
    fit(net, digits, Recipe(epochs=1, batch_size=300, augment=True, seed=5))
    generator = seeded(5)
    expected = crop_and_flip(x[torch.randperm(300, generator=generator)], generator)
    assert torch.equal(seen[0], expected)
    assert not torch.equal(seen[0], x)
    for images in evaluated:
        assert sorted(images.flatten(1).tolist()) == sorted(x.flatten(1).tolist())


@pytest.mark.parametrize(("shape", "padding"), [((3, 8, 8), 4), ((1, 3, 8, 8), -1)])
def test_augmentation_refuses(shape, padding):
    with pytest.raises(ValueError, match=r"\[N, C, H, W\] and padding"):
        crop_and_flip(torch.zeros(shape), seeded(), padding=padding)


# Validation, the best epoch, the paper's schedule


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


# The record of an epoch


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
    with fast.training_layout(elsewhere, twice=recipe.method in loop.DOUBLE_BACKWARD):
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


def test_an_error_that_is_no_divergence_stays_itself(digits, monkeypatch):
    def refuse(*_):
        raise ValueError("something else")

    monkeypatch.setitem(objectives.METHODS, "none", refuse)
    with pytest.raises(ValueError, match="something else") as e:
        fit(mlp(), digits, Recipe(epochs=1))
    assert not isinstance(e.value, train.DivergenceError)


@pytest.mark.parametrize(("name", "value"), INVALID)
def test_a_recipe_refuses(name, value):
    with pytest.raises(ValueError, match=f"{name}|strength|method"):
        Recipe(**{name: value})


@pytest.mark.parametrize("need", [{"schedule": "paper"}, {"keep": "best"}, {"early_stopping": 2}])
def test_what_needs_validation_says_so(need):
    with pytest.raises(ValueError, match="need validation above 0"):
        Recipe(**need)


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
