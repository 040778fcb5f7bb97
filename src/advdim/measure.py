"""Measurements on a model: per-example input gradients and their norms, losses, damage, vulnerability.

All take images in pixel units, [0, 1], leave the model's parameters, their gradients and its training state as found,
and give results that do not depend on how the images are batched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import data, norms, passes
from .passes import Loss as Loss
from .passes import cross_entropy as cross_entropy


def logit(outputs: Tensor, y: Tensor) -> Tensor:
    """The logit f_y per example, [N]: as a loss, its gradient is that of one output of the network."""
    return outputs.gather(1, y[:, None]).squeeze(1)


def input_gradients(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: Loss = cross_entropy,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Gradient :math:`\nabla_x L(x_n, y_n)` of every example's own loss.

    One backward pass per batch through the sum of the losses gives all of them, exactly as long as examples do not
    interact: with batch-norm in eval mode.

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], floating point, in pixel units.
        y: [N], int64 labels.
        loss: a loss per example; default the cross-entropy, ``logit`` for an output of the network.
        batch_size: images per pass; default as many as run fast at this image size on this device.
        dtype: measure in this dtype, with a copy of the model; default that of x, which must then be the model's.

    Returns:
        Like x, in the dtype measured in, per pixel unit.

    Raises:
        TypeError: if x or y is not a tensor, or x not floating point.
        ValueError: if shapes do not match, y is not int64, x has a NaN or an infinity, or the loss is not per example.

    Warns:
        UserWarning: if a batch-norm or dropout layer is in train mode, or a batch-norm has no running statistics.
    """
    data.check(x, y)
    passes.warn_of_train_mode(model)
    if dtype is not None:
        model, x = copy.deepcopy(model).to(dtype), x.to(dtype)
    return _gradients_and_outputs(model, x, y, loss, batch_size)[0]


def _gradients_and_outputs(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss, batch_size: int | None
) -> tuple[Tensor, Tensor]:
    with passes.frozen(model) as net, _full_float32():
        pairs = passes.batches(x, y, batch_size=batch_size)
        found = [passes.input_gradient(net, xb, yb, loss) for xb, yb in pairs]
    return torch.cat([g for g, _ in found]), torch.cat([out for _, out in found])


def gradient_norms(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    q: Sequence[float] = (1, 2),
    *,
    loss: Loss = cross_entropy,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
) -> dict[float, Tensor]:
    r"""Norms :math:`\lVert \nabla_x L(x_n, y_n) \rVert_q` of every example, the first-order vulnerability of Lemma 2.

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], floating point, in pixel units.
        y: [N], int64 labels.
        q: the exponents, each in [1, inf].
        loss: as for :func:`input_gradients`.
        batch_size: as for :func:`input_gradients`.
        dtype: as for :func:`input_gradients`.

    Returns:
        {q: [N]}, per pixel unit, one entry per exponent.

    Raises:
        TypeError: as :func:`input_gradients`.
        ValueError: as :func:`input_gradients`, and for an exponent below 1.
    """
    g = input_gradients(model, x, y, loss=loss, batch_size=batch_size, dtype=dtype)
    return {exponent: norms.norm(g, exponent) for exponent in q}


def outputs(model: nn.Module, x: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Logits [N, K] of images x [N, C, H, W], without a graph."""
    data.check(x)
    with torch.no_grad(), passes.frozen(model) as net, _full_float32():
        return torch.cat([passes.forward(net, xb) for (xb,) in passes.batches(x, batch_size=batch_size)])


def losses(
    model: nn.Module, x: Tensor, y: Tensor, *, loss: Loss = cross_entropy, batch_size: int | None = None
) -> Tensor:
    """Loss of every example, [N], without a graph; arguments as for :func:`input_gradients`."""
    data.check(x, y)
    return passes.per_example(loss(outputs(model, x, batch_size=batch_size), y), y)


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
        [N]; its mean is the damage of the attack.
    """
    after = losses(model, attacked, y, loss=loss, batch_size=batch_size)
    return after - losses(model, x, y, loss=loss, batch_size=batch_size)


def zero_one(outputs: Tensor, y: Tensor) -> Tensor:
    """0-1 loss per example, [N]: 1 where the largest of the logits [N, K] is not that of the label."""
    return (outputs.argmax(1) != y).to(outputs.dtype)


def vulnerability(model: nn.Module, x: Tensor, attacked: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Whether each example's predicted class changes, [N] bool; the mean is Definition 1's vulnerability.

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], clean images.
        attacked: like x, the images after the attack.
        batch_size: images per pass.
    """
    before = outputs(model, x, batch_size=batch_size).argmax(1)
    return before != outputs(model, attacked, batch_size=batch_size).argmax(1)


@dataclass(frozen=True)
class Evaluation:
    """What an attack did to a model, with what makes one doubt it; see :func:`evaluate`.

    Attributes:
        accuracy: share of images classified right before the attack.
        attacked_accuracy: the same after it.
        vulnerability: share of images whose predicted class changes (Definition 1).
        damage: mean increase of the loss (Definition 1).
        accuracy_damage: accuracy lost, the damage of the 0-1 loss; at most the vulnerability.
        size: largest p-norm of a perturbation, in pixel units.
        flags: shares of images that speak against the measurement, 0 in the best case: ``saturated``, whose loss is so
            small that its gradient is rounding noise; ``no gradient``, whose gradient is exactly 0; ``not raised``,
            whose loss the attack did not raise though it moved them; ``too large``, whose perturbation is larger than
            eps by more than rounding; ``out of range``, which leave [0, 1] by more than rounding.
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
    passes.at_least(0, eps=eps)
    data.check(attacked, y)
    if attacked.shape != x.shape:
        raise ValueError(f"the attacked images are {tuple(attacked.shape)}, the clean ones {tuple(x.shape)}")
    data.check(x, y)
    passes.warn_of_train_mode(model)
    gradients, before = _gradients_and_outputs(model, x, y, loss, batch_size)
    after = outputs(model, attacked, batch_size=batch_size)
    clean, raised = loss(before, y), loss(after, y)
    right, still = before.argmax(1) == y, after.argmax(1) == y
    sizes = norms.norm(attacked - x, p)
    # What rounding may add: of the norm, relative to the images' own size, since attacked - x is a difference.
    rounding = 4 * torch.finfo(x.dtype).eps
    slack = rounding * (eps + norms.norm(x, p))
    outside = ((attacked < -rounding) | (attacked > 1 + rounding)).flatten(1).any(1)
    flags = {
        "saturated": clean < 10 * torch.finfo(x.dtype).eps,
        "no gradient": norms.norm(gradients, float("inf")) == 0,
        "not raised": (sizes > 0) & (raised <= clean),
        "too large": sizes > eps + slack,
        "out of range": outside,
    }
    return Evaluation(
        accuracy=_mean(right),
        attacked_accuracy=_mean(still),
        vulnerability=_mean(before.argmax(1) != after.argmax(1)),
        damage=_mean(raised - clean),
        accuracy_damage=_mean(right) - _mean(still),
        size=float(sizes.max()),
        flags={name: _mean(flag) for name, flag in flags.items()},
    )


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


@contextmanager
def _full_float32() -> Iterator[None]:
    """Float32 convolutions use all of it meanwhile: on a GPU the default is TF32, with 10 of its mantissa's 23 bits."""
    cudnn = torch.backends.cudnn
    try:
        before = cudnn.allow_tf32
    except RuntimeError:  # the caller has set the precision of each kind of layer
        yield
        return
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before
