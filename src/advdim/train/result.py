"""What comes out of a training run."""

from __future__ import annotations

from dataclasses import dataclass

from .recipe import Recipe


@dataclass(frozen=True)
class Result:
    """What a training run did; the weights are in the model.

    Attributes:
        history: per epoch, ``epoch`` (from 0), ``loss`` (mean objective over the epoch's steps), ``lr`` (of its first
            step), ``seconds``; ``train_accuracy``, of a fixed subset of the images trained on, unaugmented;
            ``validation_accuracy`` and ``test_accuracy``, of all such images, where there are any; ``train_l1``,
            ``train_l2``, ``test_l1``, ``test_l2``: mean norms of the input gradients of the cross-entropy, per pixel
            unit, over fixed subsets. Evaluated at the end of the epoch, in eval mode; on train and test images, of the
            epochs that ``eval_every`` chooses. With ``stop_accuracy``, ``train_accuracy`` is that of all images trained
            on, after every epoch.
        best_epoch: the first epoch of best validation accuracy, or None without validation images.
        stopped_early: whether training ended before the recipe's last epoch.
    """

    history: list[dict[str, float]]
    best_epoch: int | None
    stopped_early: bool


class DivergenceError(ValueError):
    """The objective, or a weight, became infinite or NaN; ``history`` holds the epochs before.

    Attributes:
        method: the recipe's.
        strength: the recipe's.
        epoch: in which it happened, from 0.
        batch: of that epoch, from 0: the first of an objective not finite; else the last taken before a weight was not.
        history: as :class:`Result`'s, of the finished epochs.
    """

    def __init__(self, recipe: Recipe, epoch: int, batch: int, history: list[dict[str, float]]) -> None:
        super().__init__(
            f"training with method {recipe.method!r} at strength {recipe.strength} diverged in epoch {epoch}, batch "
            f"{batch}: the objective or a weight is not finite; lower lr = {recipe.lr} or the strength"
        )
        self.method, self.strength, self.epoch, self.batch = recipe.method, recipe.strength, epoch, batch
        self.history = history
