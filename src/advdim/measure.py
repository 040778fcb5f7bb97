"""Measurements on a model: per-example input gradients and their norms, losses, damage, vulnerability.

All take images in pixel units, [0, 1], leave the model's parameters, their gradients and its training state as found,
and give results that do not depend on how the images are batched.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import data, norms

#: A loss per example: (outputs [N, K], labels [N]) to [N].
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per example, [N], of logits [N, K] and labels [N]."""
    return F.cross_entropy(outputs, y, reduction="none")


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
    _warn_of_train_mode(model)
    if dtype is not None:
        model, x = copy.deepcopy(model).to(dtype), x.to(dtype)
    gradients = []
    with _frozen(model):
        for xb, yb in _batches(x, y, batch_size=batch_size):
            leaf = xb.detach().requires_grad_()
            with torch.enable_grad():
                total = _per_example(loss(model(leaf), yb), yb).sum()
                gradients.append(torch.autograd.grad(total, leaf)[0])
    return torch.cat(gradients)


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
    with torch.no_grad():
        return torch.cat([model(xb) for (xb,) in _batches(x, batch_size=batch_size)])


def losses(
    model: nn.Module, x: Tensor, y: Tensor, *, loss: Loss = cross_entropy, batch_size: int | None = None
) -> Tensor:
    """Loss of every example, [N], without a graph; arguments as for :func:`input_gradients`."""
    data.check(x, y)
    return _per_example(loss(outputs(model, x, batch_size=batch_size), y), y)


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


def _per_example(values: Tensor, y: Tensor) -> Tensor:
    if values.shape != y.shape:  # a mean over the batch, say, would divide every gradient by the size of the batch
        raise ValueError(f"the loss must give one value per example, [{len(y)}], got shape {tuple(values.shape)}")
    return values


class _frozen:
    """Parameters need no gradient meanwhile: only the input's is computed, and theirs are left as found."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for p in self.parameters:
            p.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for p in self.parameters:
            p.requires_grad_(True)


def _batches(*tensors: Tensor, batch_size: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    first = tensors[0]
    if batch_size is None:
        # On a CPU, keep a map of 64 channels below the 32 MiB past which glibc maps each tensor's memory anew.
        room = 24 * 2**20 if first.device.type == "cpu" else 2**30
        batch_size = max(1, room // max(1, 64 * first.element_size() * first[0, 0].numel()))
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    yield from zip(*(torch.split(t, batch_size) for t in tensors), strict=True)


def _warn_of_train_mode(model: nn.Module) -> None:
    interacting = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for name, module in model.named_modules():
        batch_statistics = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
        if batch_statistics or (module.training and isinstance(module, interacting)):
            why = "has no running statistics" if batch_statistics else "is in train mode"
            cure = "build it with track_running_stats=True" if batch_statistics else "call model.eval() first"
            warnings.warn(
                f"{type(module).__name__} {name!r} {why}: the gradients are not each example's own; {cure}",
                stacklevel=3,
            )
            return
