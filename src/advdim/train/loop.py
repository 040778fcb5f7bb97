r"""One training loop for all methods of section 4.1: stochastic gradient descent on an objective of :mod:`.objectives`.

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
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from ..models import fast
from . import checkpoint as checkpoints
from . import evaluation, objectives
from .augment import crop_and_flip
from .evaluation import Metrics, Pairs
from .recipe import Recipe
from .result import DivergenceError, Result

#: Methods that differentiate the gradient again.
DOUBLE_BACKWARD = ("gradient-l1", "gradient-l2", "cross-lipschitz", "cross-lipschitz-random")
Epochs = int | Sequence[int]  # every so many, or after so many, counted from 1


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
    train_idx: Tensor  # of the images trained on
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
        ValueError: as :func:`advdim.data.check`; if a label is not below K; if no image is left to train on or to hold
            out; if the checkpoint is unreadable, or of another run.
        DivergenceError: if the objective or a weight is not finite. The checkpoint stays that of the last good state.
    """
    counts = {"eval_images": eval_images, "eval_every": eval_every}
    least = eval_every if isinstance(eval_every, int) else min(eval_every)
    for name, count in (("eval_images", eval_images), ("eval_every", least), ("checkpoint_every", checkpoint_every)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if (x_test is None) != (y_test is None):
        raise ValueError("x_test and y_test go together: give both or neither")
    x, y = evaluation.resident(x, y, model)
    test: Pairs = {} if x_test is None or y_test is None else {"test": evaluation.resident(x_test, y_test, model)}
    evaluation.check_labels(model, x, recipe, y, *(labels for _, labels in test.values()))
    generator = torch.Generator().manual_seed(recipe.seed)
    validation_idx, train_idx = recipe.split(len(x), generator)
    held_out = validation_idx.to(x.device)
    validation: Pairs = {"validation": (x[held_out], y[held_out])} if len(held_out) else {}
    eval_subsets = {"train": evaluation.subset((x, y), train_idx, eval_images)}
    eval_subsets |= {
        name: evaluation.subset(pair, torch.arange(len(pair[0]), device="cpu"), eval_images)
        for name, pair in test.items()
    }

    sizes = recipe.batch_sizes(len(train_idx))
    optimiser = recipe.optimiser(model.parameters())
    schedule = recipe.scheduler(optimiser, len(sizes))
    run = _Run(model, x, y, train_idx, recipe, sizes, optimiser, schedule, generator, _State())
    save = _resume(run, None if checkpoint is None else Path(checkpoint), asdict(recipe) | counts, test)

    from tqdm import tqdm

    steps, done = recipe.epochs * len(sizes), run.state.epoch * len(sizes) + run.state.batch
    off = None if progress else True  # None: off unless on a terminal
    with tqdm(total=steps, initial=done, unit="batch", disable=off, file=sys.stderr) as bar:
        try:
            while not _ended(run, run.state.epoch):
                with fast.in_training(model, twice=recipe.method in DOUBLE_BACKWARD) as net:
                    _train_epoch(run, net, bar, save, checkpoint_every)
                _end_epoch(run, validation, test, eval_subsets, eval_every, metrics)
                bar.set_postfix(loss=f"{run.state.history[-1]['loss']:.4g}")
                save()
        finally:
            optimiser.zero_grad()
            model.eval()
    if recipe.keep == "best":
        model.load_state_dict(run.state.best)
    return Result(run.state.history, run.state.best_epoch, run.state.epoch < recipe.epochs)


def _resume(run: _Run, path: Path | None, settings: dict[str, Any], test: Pairs) -> Callable[[], None]:
    """Go on from the checkpoint, if there is one; gives the function that writes it."""
    if path is None:
        return lambda: None
    tensors = {"x": run.x, "y": run.y}
    tensors |= {f"{c}_test": t for pair in test.values() for c, t in zip("xy", pair, strict=True)}
    identity = checkpoints.identity(settings, run.model, tensors)
    parts: dict[str, Any] = {"model": run.model, "optimiser": run.optimiser, "schedule": run.schedule}
    if content := checkpoints.load(path, identity):
        for name, part in parts.items():
            part.load_state_dict(content[name])
        run.generator.set_state(content["generator"])
        run.state = _State(**content["state"])

    def save() -> None:
        content = {name: part.state_dict() for name, part in parts.items()}
        checkpoints.save(path, identity, content | {"generator": run.generator.get_state(), "state": vars(run.state)})

    return save


def _train_epoch(run: _Run, net: nn.Module, bar: Any, save: Callable[[], None], every: int | None) -> None:
    """Train on what is left of the present epoch."""
    recipe, state, device, objective = run.recipe, run.state, run.x.device, objectives.objective(run.recipe.method)
    if state.order is None or state.losses is None:
        if recipe.schedule == "paper" and state.epoch and state.epoch % recipe.halve_every == 0:
            run.model.load_state_dict(state.best)
        state.order = run.train_idx[torch.randperm(len(run.train_idx), generator=run.generator, device="cpu")]
        state.losses = torch.zeros(len(run.sizes), dtype=torch.float64, device="cpu")
        state.lr = run.optimiser.param_groups[0]["lr"]
    losses = state.losses.to(device, evaluation.weight_of(run.model).dtype)
    batches = torch.split(state.order[: sum(run.sizes)].to(device), recipe.batch_size)
    run.model.train()

    def gradients(x: Tensor, y: Tensor, drawn: objectives.Draws) -> Tensor:
        run.optimiser.zero_grad()
        with fast.autocast(device) if recipe.bf16 else nullcontext():
            loss = objective(net, x, y, recipe.strength, drawn)
        torch.autograd.backward(loss)
        return loss.detach()

    step = fast.training_steps(gradients, run.optimiser, net)
    start = time.perf_counter()
    for index in batches[state.batch :]:
        x, y = run.x[index], run.y[index]
        x = evaluation.model_images(crop_and_flip(x, run.generator) if recipe.augment else x, recipe, run.model)
        loss = step(x, y, objectives.draws(recipe.method, x, recipe.strength, run.generator))
        run.schedule.step()
        losses[state.batch] = loss  # read when the epoch ends or is saved: reading each would stall a GPU
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


def _end_epoch(
    run: _Run, validation: Pairs, test: Pairs, eval_subsets: Pairs, every: Epochs, metrics: Metrics | None
) -> None:
    """Measure, in eval mode, compare with the best, and move on to the next epoch."""
    model, recipe, state = run.model.eval(), run.recipe, run.state
    assert state.losses is not None
    loss = float(state.losses @ state.losses.new_tensor(run.sizes)) / sum(run.sizes)
    row = {"epoch": state.epoch, "loss": loss, "lr": state.lr, "seconds": state.seconds}
    row |= {f"{name}_accuracy": evaluation.accuracy(model, *pair, recipe) for name, pair in validation.items()}
    if recipe.stop_accuracy is not None:
        trained = run.train_idx.to(run.x.device)
        row["train_accuracy"] = evaluation.accuracy(model, run.x[trained], run.y[trained], recipe)
    state.history.append(row)
    if validation:
        best = None if state.best_epoch is None else state.history[state.best_epoch]["validation_accuracy"]
        if best is None or row["validation_accuracy"] > best:
            state.best_epoch = state.epoch
            state.best = {name: t.clone() for name, t in model.state_dict().items()}
    due = (state.epoch + 1) % every == 0 if isinstance(every, int) else state.epoch + 1 in every
    if due or _ended(run, state.epoch + 1):
        whole = test if "train_accuracy" in row else {"train": eval_subsets["train"]} | test
        row |= evaluation.measured(model, recipe, whole, eval_subsets, metrics)
    state.epoch += 1
    state.batch, state.order, state.losses, state.seconds = 0, None, None, 0.0


def _ended(run: _Run, epochs: int) -> bool:
    """Whether training ends after so many epochs: all, or what early stopping waits, or what stop_accuracy takes."""
    patience, best, enough = run.recipe.early_stopping, run.state.best_epoch, run.recipe.stop_accuracy
    if enough is not None and run.state.history and run.state.history[-1]["train_accuracy"] >= enough:
        return True
    return epochs == run.recipe.epochs or (patience is not None and best is not None and epochs > best + patience)
