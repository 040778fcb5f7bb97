r"""One training loop for all methods of section 4.1: stochastic gradient descent on an objective of ``penalties``.

The data lie on the model's device, as uint8 or floating point; a batch is cropped, flipped and enlarged there. All
draws (the held-out images, the order of the batches, augmentation, the random starts of PGD) come from the recipe's
seed, and the global generators are neither read nor moved. On one device, with one number of threads, the same recipe
gives the same weights, on a CPU bit for bit, and an interrupted run resumes from its checkpoint to just those weights.
(Layers that draw for themselves, as dropout does, draw from the global generator: to reproduce them is up to the
caller.)

Per batch, batch-norm's running statistics see the passes of the objective and no others: one for "none", the gradient
penalties and "cross-lipschitz", two for augmentation, eight for "pgd-linf". Evaluation is in eval mode.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from . import checkpoints, data, measure, passes, penalties
from .augment import crop_and_flip
from .recipes import PAPER as PAPER
from .recipes import DivergenceError as DivergenceError
from .recipes import Recipe as Recipe
from .recipes import Result as Result

#: Methods that differentiate twice. Off a CPU, they keep the layout of the model; ``twice`` has layers for CPUs only.
DOUBLE = ("gradient-l1", "gradient-l2", "cross-lipschitz", "cross-lipschitz-random")
_CHUNK = 1000  # images evaluated at a time: bounds the memory for enlarged ones
Epochs = int | Sequence[int]  # every so many, or after so many, counted from 1
Pairs = dict[str, tuple[Tensor, Tensor]]  # images and labels, by what they are for

#: Takes (model in eval mode, x [N, C, H, W] as the model takes them, y [N]) to numbers, sums over the images.
Metrics = Callable[[nn.Module, Tensor, Tensor], dict[str, float]]


@dataclass
class _State:
    """Where a run stands, next to the states of model, optimiser, schedule and generator."""

    epoch: int = 0
    batch: int = 0  # the next one of this epoch
    order: Tensor | None = None  # this epoch's order of the images; None before it starts
    losses: Tensor | None = None  # the objective at every batch of this epoch so far
    lr: float = 0.0
    seconds: float = 0.0
    best_epoch: int | None = None
    best: dict[str, Any] = field(default_factory=dict)  # the weights of best validation accuracy
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class _Run:
    model: nn.Module
    x: Tensor
    y: Tensor
    kept: Tensor  # indices of the images trained on
    recipe: Recipe
    sizes: list[int]  # of the batches of an epoch
    optimiser: torch.optim.Optimizer
    schedule: lr_scheduler.LRScheduler
    generator: torch.Generator
    state: _State


def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    *,
    x_test: Tensor | None = None,
    y_test: Tensor | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    progress: bool = True,
    eval_images: int = 1000,
    eval_every: Epochs = 1,
    metrics: Metrics | None = None,
) -> Result:
    """Train a model in place, and leave it in eval mode, parameters without ``.grad``.

    Args:
        model: maps [N, C, H, W] to [N, K], on the device to train on. For weights that a seed determines, build it
            anew for every run.
        x: [N, C, H, W], training images in [0, 1], or uint8 in 0, ..., 255; moved to the model's device.
        y: [N], int64 labels.
        recipe: how to train.
        x_test: [M, C, H, W], images that are measured and never trained on, or None.
        y_test: [M], their labels.
        checkpoint: a file, written whole or not at all after every epoch. If it is there, training resumes from it,
            and a finished run is only loaded. It has to be of the same recipe, data and freshly built model.
        checkpoint_every: batches after which the checkpoint is written within an epoch, too.
        progress: whether to draw a bar, on a terminal.
        eval_images: images of the subsets on which accuracy in training, gradient norms and ``metrics`` are measured.
        eval_every: after every so many epochs, or after so many as a sequence lists, and after the last, train and test
            images are measured.
        metrics: what else to measure then: a function of (model, x, y) to sums over the images x, by name. The history
            gets their means, as ``train_NAME`` and ``test_NAME``. Gradient norms that it gives are not measured again.

    Returns:
        The history, and the best epoch.

    Raises:
        TypeError: if x or y is not a tensor, or x neither floating point nor uint8.
        ValueError: as :func:`advdim.data.check`; if no image is left to train on or to hold out; if the checkpoint is
            unreadable, or of another run.
        DivergenceError: if the objective or a weight is not finite. The checkpoint stays that of the last good state.
    """
    evaluation = {"eval_images": eval_images, "eval_every": eval_every}
    least = eval_every if isinstance(eval_every, int) else min(eval_every)
    for name, count in (("eval_images", eval_images), ("eval_every", least), ("checkpoint_every", checkpoint_every)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if (x_test is None) != (y_test is None):
        raise ValueError("x_test and y_test go together: give both or neither")
    x, y = _resident(x, y, model)
    test: Pairs = {} if x_test is None or y_test is None else {"test": _resident(x_test, y_test, model)}
    generator = torch.Generator().manual_seed(recipe.seed)
    held, kept = recipe.split(len(x), generator)
    held_out: Pairs = {"validation": (x[held.to(x.device)], y[held.to(x.device)])} if len(held) else {}
    few = {"train": _some((x, y), kept, eval_images)}
    few |= {name: _some(pair, torch.arange(len(pair[0])), eval_images) for name, pair in test.items()}

    sizes = recipe.batch_sizes(len(kept))
    optimiser = recipe.optimiser(model.parameters())
    schedule = recipe.scheduler(optimiser, len(sizes))
    run = _Run(model, x, y, kept, recipe, sizes, optimiser, schedule, generator, _State())
    path, identity = None if checkpoint is None else Path(checkpoint), {}
    if path:
        tensors = {"x": x, "y": y} | {f"{c}_test": t for pair in test.values() for c, t in zip("xy", pair, strict=True)}
        identity = checkpoints.identity(asdict(recipe) | evaluation, model, tensors)
        if content := checkpoints.load(path, identity):
            model.load_state_dict(content["model"])
            optimiser.load_state_dict(content["optimiser"])
            schedule.load_state_dict(content["schedule"])
            generator.set_state(content["generator"])
            run.state = _State(**content["state"])

    def save() -> None:
        if path:
            content = {"model": model.state_dict(), "optimiser": optimiser.state_dict()} | {
                "schedule": schedule.state_dict(),
                "generator": generator.get_state(),
                "state": vars(run.state),
            }
            checkpoints.save(path, identity, content)

    from tqdm import tqdm

    steps, done = recipe.epochs * len(sizes), run.state.epoch * len(sizes) + run.state.batch
    off = None if progress else True  # None: off unless on a terminal
    with tqdm(total=steps, initial=done, unit="batch", disable=off, file=sys.stderr) as bar:
        try:
            while not _ended(run, run.state.epoch):
                with _layout(model, recipe):
                    _train_epoch(run, bar, save, checkpoint_every)
                _end_epoch(run, held_out, test, few, eval_every, metrics)
                bar.set_postfix(loss=f"{run.state.history[-1]['loss']:.4g}")
                save()
        finally:
            optimiser.zero_grad()
            model.eval()
    if recipe.keep == "best":
        model.load_state_dict(run.state.best)
    return Result(run.state.history, run.state.best_epoch, run.state.epoch < recipe.epochs)


def _train_epoch(run: _Run, bar: Any, save: Callable[[], None], every: int | None) -> None:
    """Train on what is left of the present epoch."""
    recipe, state, device, objective = run.recipe, run.state, run.x.device, penalties.objective(run.recipe.method)
    if state.order is None or state.losses is None:
        if recipe.schedule == "paper" and state.epoch and state.epoch % recipe.halve_every == 0:
            run.model.load_state_dict(state.best)
        state.order = run.kept[torch.randperm(len(run.kept), generator=run.generator)]
        state.losses = torch.zeros(len(run.sizes), dtype=torch.float64)
        state.lr = run.optimiser.param_groups[0]["lr"]
    losses = state.losses.to(device, _weight(run.model).dtype)
    batches = torch.split(state.order[: sum(run.sizes)].to(device), recipe.batch_size)
    run.model.train()
    start = time.perf_counter()
    for index in batches[state.batch :]:
        x, y = run.x[index], run.y[index]
        x = _images(crop_and_flip(x, run.generator) if recipe.augment else x, recipe, run.model)
        run.optimiser.zero_grad()
        try:
            with passes.bfloat16(device) if recipe.bf16 else nullcontext():
                loss = objective(run.model, x, y, recipe.strength, run.generator)
        except ValueError as error:  # an attack refuses the NaN gradients of a network that has diverged
            with torch.no_grad():
                if run.model(x).isfinite().all():
                    raise
            raise DivergenceError(recipe, state.epoch, state.batch, state.history) from error
        torch.autograd.backward(loss)
        run.optimiser.step()
        run.schedule.step()
        losses[state.batch] = loss.detach()  # read when the epoch ends or is saved: reading each would stall a GPU
        state.batch += 1
        bar.update()
        if state.batch == len(run.sizes) or (every and state.batch % every == 0):
            _refuse_divergence(run, losses)
            state.losses.copy_(losses)
            start, state.seconds = time.perf_counter(), state.seconds + time.perf_counter() - start
            if state.batch < len(run.sizes):
                save()


def _refuse_divergence(run: _Run, losses: Tensor) -> None:
    bad = (~losses[: run.state.batch].isfinite()).nonzero()
    if len(bad) or not all(bool(t.isfinite().all()) for t in run.model.state_dict().values()):
        batch = int(bad[0]) if len(bad) else run.state.batch - 1
        raise DivergenceError(run.recipe, run.state.epoch, batch, run.state.history)


def _end_epoch(run: _Run, held_out: Pairs, test: Pairs, few: Pairs, every: Epochs, metrics: Metrics | None) -> None:
    """Measure, in eval mode, compare with the best, and move on to the next epoch."""
    model, recipe, state = run.model.eval(), run.recipe, run.state
    assert state.losses is not None
    loss = float(state.losses @ torch.tensor(run.sizes, dtype=torch.float64)) / sum(run.sizes)
    row = {"epoch": state.epoch, "loss": loss, "lr": state.lr, "seconds": state.seconds}
    row |= {f"{name}_accuracy": _accuracy(model, *pair, recipe) for name, pair in held_out.items()}
    if recipe.stop_accuracy is not None:
        row["train_accuracy"] = _accuracy(
            model, run.x[run.kept.to(run.x.device)], run.y[run.kept.to(run.y.device)], recipe
        )
    state.history.append(row)
    if held_out:
        best = None if state.best_epoch is None else state.history[state.best_epoch]["validation_accuracy"]
        if best is None or row["validation_accuracy"] > best:
            state.best_epoch = state.epoch
            state.best = {name: t.clone() for name, t in model.state_dict().items()}
    due = (state.epoch + 1) % every == 0 if isinstance(every, int) else state.epoch + 1 in every
    if due or _ended(run, state.epoch + 1):
        for name, pair in ({"train": few["train"]} | test).items():
            if name == "test" or recipe.stop_accuracy is None:
                row[f"{name}_accuracy"] = _accuracy(model, *pair, recipe)
        for name, (x, y) in few.items():
            sums: dict[str, float] = {}
            for part, yc in zip(torch.split(x, _CHUNK), torch.split(y, _CHUNK), strict=True):
                xc = _images(part, recipe, model)
                found = metrics(model, xc, yc) if metrics else {}
                if "l1" not in found:
                    norms = measure.gradient_norms(model, xc, yc)
                    found = {f"l{q}": float(n.sum()) for q, n in norms.items()} | found
                sums = {what: sums.get(what, 0.0) + value for what, value in found.items()}
            row |= {f"{name}_{what}": value / len(y) for what, value in sums.items()}
    state.epoch += 1
    state.batch, state.order, state.losses, state.seconds = 0, None, None, 0.0


def _ended(run: _Run, epochs: int) -> bool:
    """Whether training ends after so many epochs: all, or what early stopping waits, or what stop_accuracy takes."""
    patience, best, enough = run.recipe.early_stopping, run.state.best_epoch, run.recipe.stop_accuracy
    if enough is not None and run.state.history and run.state.history[-1]["train_accuracy"] >= enough:
        return True
    return epochs == run.recipe.epochs or (patience is not None and best is not None and epochs > best + patience)


def _images(x: Tensor, recipe: Recipe, model: nn.Module) -> Tensor:
    """A few images as the model takes them: in [0, 1], in its dtype, enlarged."""
    x = x / 255 if x.dtype == torch.uint8 else x
    x = x.to(_weight(model).dtype)
    return x if recipe.size is None else data.resize(x, recipe.size, recipe.resize)


def _accuracy(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> float:
    chunks = zip(torch.split(x, _CHUNK), torch.split(y, _CHUNK), strict=True)
    right = [(measure.outputs(model, _images(xc, recipe, model)).argmax(1) == yc).sum() for xc, yc in chunks]
    return int(torch.stack(right).sum()) / len(y)


def _weight(model: nn.Module) -> Tensor:
    return next(p for p in model.parameters() if p.is_floating_point())


def _resident(x: Tensor, y: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Images and labels, checked, on the model's device; floating-point images in its dtype."""
    if isinstance(x, Tensor) and x.dtype == torch.uint8:
        data.check(x[:1].float())
        data.check(torch.zeros(len(x), 1, 1, 1), y)
        return x.to(_weight(model).device), y.to(_weight(model).device)
    data.check(x, y)
    return x.to(_weight(model)), y.to(_weight(model).device)


def _some(pair: tuple[Tensor, Tensor], among: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """At most n of the examples, whichever the recipe's seed: seeds are then compared on the same ones."""
    order = torch.randperm(len(among), generator=torch.Generator().manual_seed(0))
    chosen = among[order[:n]].to(pair[0].device)
    return pair[0][chosen], pair[1][chosen]


@contextmanager
def _layout(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Parameters in the layout in which this method's convolutions run fastest, meanwhile."""
    convolutions = any(isinstance(m, nn.Conv2d) for m in model.modules())
    if not convolutions or (recipe.method in DOUBLE and not _weight(model).is_cpu):
        yield
        return
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
