"""What determines a training run, next to the network and the data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from ..data import Resize
from . import objectives


@dataclass(frozen=True)
class Recipe:
    """What, next to the network and the data, determines a training run.

    Attributes:
        method: of :data:`advdim.train.objectives.METHODS`.
        strength: of the method, at least 0, in pixel units.
        epochs: passes through the training images, at most.
        batch_size: images per step. What is left at the end is a smaller batch, unless it is a single image, which
            batch-norm could not take: that one sits out the epoch.
        lr: learning rate, the highest of the schedule.
        momentum: of stochastic gradient descent.
        weight_decay: of every parameter.
        schedule: "one-cycle" (up from lr / 25 for three tenths of the steps, then down to nearly 0, along cosines) or
            "paper" (every ``halve_every`` epochs, back to the weights of best validation accuracy, at half the rate,
            momentum kept).
        halve_every: epochs between those returns.
        augment: whether to crop at random, with padding 4, and flip (:func:`advdim.train.crop_and_flip`).
        size: side, in pixels, to which images are enlarged, after augmentation; None keeps theirs.
        resize: how, "copy" or "bilinear"; see :func:`advdim.data.resize`.
        validation: share of the training images that is held out.
        early_stopping: epochs without a better validation accuracy after which training ends, or None.
        stop_accuracy: training ends after the first epoch in which this share of the images trained on is right, in
            eval mode and unaugmented; None trains for all epochs.
        keep: the weights kept, of the "last" epoch or of the first of "best" validation accuracy.
        bf16: whether the objective is computed under autocast to bfloat16; never in evaluation.
        seed: of all draws.

    Raises:
        ValueError: for an unknown choice, a number out of range, or a need of validation images without a share.
    """

    method: str = "none"
    strength: float = 0.0
    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "one-cycle"
    halve_every: int = 30
    augment: bool = False
    size: int | None = None
    resize: Resize = "copy"
    validation: float = 0.0
    early_stopping: int | None = None
    stop_accuracy: float | None = None
    keep: str = "last"
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        objectives.objective(self.method)
        known = {"schedule": ("one-cycle", "paper"), "keep": ("last", "best"), "resize": ("copy", "bilinear")}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        for name in ("epochs", "batch_size", "halve_every", "early_stopping", "size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, low, high in (("strength", 0, math.inf), ("weight_decay", 0, math.inf), ("momentum", 0, 1)):
            if not low <= getattr(self, name) < high:
                raise ValueError(f"{name} must be in [{low}, {high}), got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be above 0 and finite, got {self.lr}")
        if self.method == "none" and self.strength:
            raise ValueError(f"the method 'none' has no penalty, got strength {self.strength}; set it to 0")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be in [0, 1), a share of the training images, got {self.validation}")
        if self.stop_accuracy is not None and not 0 < self.stop_accuracy <= 1:
            raise ValueError(f"stop_accuracy must be in (0, 1], a share of the images, got {self.stop_accuracy}")
        if not self.validation and (self.schedule == "paper" or self.keep == "best" or self.early_stopping):
            raise ValueError("the paper's schedule, keep='best' and early_stopping need validation above 0, got 0")

    def split(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices of the images held out, drawn at random, and of those trained on, of n images."""
        if not self.validation:
            return torch.arange(0, device="cpu"), torch.arange(n, device="cpu")
        held = round(self.validation * n)
        if not 0 < held < n:
            raise ValueError(f"validation = {self.validation} of {n} images leaves none to hold out, or to train on")
        drawn = torch.randperm(n, generator=generator, device=generator.device)
        return drawn[:held].sort().values, drawn[held:].sort().values

    def batch_sizes(self, n: int) -> list[int]:
        """Sizes of the batches of an epoch of n images."""
        sizes = [min(self.batch_size, n - start) for start in range(0, n, self.batch_size)]
        return sizes[:-1] if len(sizes) > 1 and sizes[-1] == 1 else sizes

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Stochastic gradient descent on the parameters that need a gradient."""
        trained = [p for p in parameters if p.requires_grad]
        return torch.optim.SGD(trained, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def scheduler(self, optimiser: torch.optim.Optimizer, batches: int) -> lr_scheduler.LRScheduler:
        """The schedule of the learning rate, to be stepped after each of an epoch's batches."""
        if self.schedule == "paper":
            return lr_scheduler.StepLR(optimiser, self.halve_every * batches, gamma=0.5)
        return lr_scheduler.OneCycleLR(optimiser, self.lr, total_steps=self.epochs * batches, cycle_momentum=False)


#: Section 4.1's schedule; ``dataclasses.replace(PAPER, method=..., strength=...)`` makes one of its runs.
PAPER = Recipe(epochs=200, lr=0.01, schedule="paper", augment=True, validation=0.1)
