"""What an attack does to a model: damage and vulnerability (Definition 1), and an evaluation with its doubts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import data
from ..theory import norms
from .gradients import (
    Loss,
    check_classes,
    check_minimum,
    cross_entropy,
    gradients_and_outputs,
    losses,
    outputs,
    warn_of_train_mode,
)


def damage(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacked: Tensor,
    *,
    loss: Loss = cross_entropy,
    batch_size: int | None = None,
) -> Tensor:
    r"""Adversarial damage :math:`\Delta L` of every example (Definition 1): the loss after less before the attack.

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], clean images.
        y: [N], int64 labels.
        attacked: like x, the images after the attack.
        loss: a loss per example; :func:`zero_one` gives the drop of accuracy.
        batch_size: images per pass.

    Returns:
        [N]; its mean is the damage of the attack. NaN where the model is.

    Raises:
        TypeError: as :func:`input_gradients`.
        ValueError: as :func:`input_gradients`, and for attacked images of another shape.
    """
    _check_pair(x, attacked)
    after = losses(model, attacked, y, loss=loss, batch_size=batch_size)
    return after - losses(model, x, y, loss=loss, batch_size=batch_size)


def predictions(outputs: Tensor) -> Tensor:
    """Class of the largest of the logits [N, K], int64 [N]; -1, which is no label, where a logit is NaN."""
    return outputs.argmax(1).masked_fill(outputs.isnan().any(1), -1)


def zero_one(outputs: Tensor, y: Tensor) -> Tensor:
    """0-1 loss per example, [N]: 1 where the largest of the logits [N, K] is not that of the label, or one is NaN.

    Raises:
        ValueError: if a label is not below K.
    """
    check_classes(y, outputs.shape[1])
    return (predictions(outputs) != y).to(outputs.dtype)


def vulnerability(model: nn.Module, x: Tensor, attacked: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Whether each example's predicted class changes, [N] bool; the mean is Definition 1's vulnerability.

    A model whose logits are NaN predicts nothing, and does not pass for robust: there, the class counts as changed.

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], clean images.
        attacked: like x, the images after the attack.
        batch_size: images per pass.

    Raises:
        TypeError: as :func:`outputs`.
        ValueError: as :func:`outputs`, and for attacked images of another shape.
    """
    _check_pair(x, attacked)
    before = predictions(outputs(model, x, batch_size=batch_size))
    return _changed(before, predictions(outputs(model, attacked, batch_size=batch_size)))


@dataclass(frozen=True)
class Evaluation:
    """What an attack did to a model, with what makes one doubt it; see :func:`evaluate`.

    Attributes:
        accuracy: share of images classified right before the attack. With a NaN among its logits none is.
        attacked_accuracy: the same after it.
        vulnerability: share of images whose predicted class changes (Definition 1), or is none for a NaN.
        damage: mean increase of the loss (Definition 1).
        accuracy_damage: accuracy lost, the damage of the 0-1 loss; at most the vulnerability.
        size: largest p-norm of a perturbation, in pixel units.
        flags: shares of images that speak against the measurement, 0 in the best case: ``saturated``, whose loss is so
            small that its gradient is rounding noise; ``no gradient``, whose gradient is exactly 0; ``not raised``,
            whose loss the attack did not raise though it moved them; ``too large``, whose perturbation is larger than
            eps by more than rounding; ``out of range``, which leave [0, 1] by more than rounding; ``not finite``, with
            a NaN or infinite loss, before or after, or gradient.
    """

    accuracy: float
    attacked_accuracy: float
    vulnerability: float
    damage: float
    accuracy_damage: float
    size: float
    flags: dict[str, float]


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacked: Tensor,
    *,
    p: float,
    eps: float,
    loss: Loss = cross_entropy,
    batch_size: int | None = None,
) -> Evaluation:
    """Accuracy, vulnerability and damage of an attack, from any source, recomputed outside it.

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], clean images.
        y: [N], int64 labels.
        attacked: like x, the images after the attack.
        p: exponent of the attacker's norm, in [1, inf].
        eps: size that the attack was allowed, in pixel units.
        loss: a loss per example, bounded below by 0.
        batch_size: images per pass.

    Returns:
        Means over the images, and the flags.

    Raises:
        TypeError: as :func:`input_gradients`.
        ValueError: as :func:`input_gradients`, for attacked images of another shape, and for a negative eps.
    """
    check_minimum(0, eps=eps)
    _check_pair(x, attacked)
    data.check(x, y)
    warn_of_train_mode(model)
    x, attacked = x.detach(), attacked.detach()
    gradients, before = gradients_and_outputs(model, x, y, loss=loss, batch_size=batch_size)
    after = outputs(model, attacked, batch_size=batch_size)
    clean, raised = loss(before, y), loss(after, y)
    right, still = predictions(before) == y, predictions(after) == y
    steepness = norms.norm(gradients, math.inf)
    sizes = norms.norm(attacked - x, p)
    # What rounding may add: of the norm, relative to the images' own size, since attacked - x is a difference.
    rounding = 4 * torch.finfo(x.dtype).eps
    slack = rounding * (eps + norms.norm(x, p))
    outside = ((attacked < -rounding) | (attacked > 1 + rounding)).flatten(1).any(1)
    flags = {
        "saturated": clean < 10 * torch.finfo(x.dtype).eps,
        "no gradient": steepness == 0,
        "not raised": (sizes > 0) & (raised <= clean),
        "too large": sizes > eps + slack,
        "out of range": outside,
        "not finite": ~(clean.isfinite() & raised.isfinite() & steepness.isfinite()),
    }
    return Evaluation(
        accuracy=_mean(right),
        attacked_accuracy=_mean(still),
        vulnerability=_mean(_changed(predictions(before), predictions(after))),
        damage=_mean(raised - clean),
        accuracy_damage=_mean(right) - _mean(still),
        size=float(sizes.max()),
        flags={name: _mean(flag) for name, flag in flags.items()},
    )


def _check_pair(x: Tensor, attacked: Tensor) -> None:
    for images in (x, attacked):
        data.check(images)
    if attacked.shape != x.shape:
        raise ValueError(f"the attacked images are {tuple(attacked.shape)}, the clean ones {tuple(x.shape)}")


def _changed(before: Tensor, after: Tensor) -> Tensor:
    return (before != after) | (before < 0)


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
