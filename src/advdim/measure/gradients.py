"""Input gradients of every example and their norms; the passes through a model that all measurements share.

Images are in pixel units, [0, 1]. A model's parameters, their gradients and its training state are left as found, and
results do not depend on how the images are batched.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..models import fast
from ..models.device import full_float32
from ..theory import norms

#: A loss per example: (outputs [N, K], labels [N]) to [N].
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per example, [N], of logits [N, K] and labels [N]."""
    # By default torch takes -100 for no label, of loss 0; here it is out of bounds, as any other below 0.
    return F.cross_entropy(outputs, y, reduction="none", ignore_index=torch.iinfo(torch.int64).min)


def per_example(values: Tensor, y: Tensor) -> Tensor:
    """The values of a loss, refused unless there is one for each of the labels y [N]."""
    if values.shape != y.shape:  # a mean over the batch, say, would divide every gradient by the size of the batch
        raise ValueError(f"the loss must give one value per example, [{len(y)}], got shape {tuple(values.shape)}")
    return values


def check_classes(y: Tensor, classes: int) -> None:
    """Refuse labels [N] beyond the number of classes; on a GPU an index out of bounds would cost the whole process.

    Raises:
        ValueError: a label is not in 0, ..., classes - 1; the message names it and its example.
    """
    if (y >= classes).any():
        raise ValueError(
            f"y must be below {classes}, the model's outputs, got {int(y.max())} in example {int(y.argmax())}"
        )


def with_checked_labels(loss: Loss, y: Tensor) -> Loss:
    """The loss, which refuses labels y [N] beyond the outputs when it is first called, for all of its calls at once.

    Only of losses that take a label for an index: others may mean something else by it.
    """
    if loss not in (cross_entropy, logit):
        return loss
    unchecked = [y]

    def checked(outputs: Tensor, labels: Tensor) -> Tensor:
        if unchecked:
            check_classes(unchecked.pop(), outputs.shape[1])
        return loss(outputs, labels)

    return checked


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
        ValueError: if shapes do not match, y is not int64 or not below K, x has a NaN or an infinity, or the loss is
            not per example.
        RuntimeError: in ``torch.inference_mode``, or for images or a model made in it.

    Warns:
        UserWarning: if a batch-norm or dropout layer is in train mode, or a batch-norm has no running statistics.
    """
    data.check(x, y)
    warn_of_train_mode(model)
    if dtype is not None:
        model, x = copy.deepcopy(model).to(dtype), x.to(dtype)
    return gradients_and_outputs(model, x, y, loss=loss, batch_size=batch_size)[0]


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
        TypeError: as :func:`input_gradients`, and for exponents that are no numbers.
        ValueError: as :func:`input_gradients`, and for an exponent below 1.
    """
    if not isinstance(q, Iterable):
        raise TypeError(f"q must be several exponents, such as (1, 2), got {q!r}")
    q = tuple(q)
    for exponent in q:
        norms.dual(exponent)
    g = input_gradients(model, x, y, loss=loss, batch_size=batch_size, dtype=dtype)
    return {exponent: norms.norm(g, exponent) for exponent in q}


def gradients_and_outputs(
    model: nn.Module, x: Tensor, y: Tensor, *, loss: Loss = cross_entropy, batch_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Input gradients, like x, and the outputs [N, K] at x, by one pass forward and one back per batch."""
    with fast.at_rest(model) as net, full_float32():
        loss = with_checked_labels(loss, y)
        found = [input_gradient(net, xb, yb, loss) for xb, yb in batches(x, y, batch_size=batch_size)]
    return torch.cat([g for g, _ in found]), torch.cat([out for _, out in found])


def input_gradient(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Gradient of every example's own loss, like x, and the outputs [N, K], on one batch; NaN where the loss is."""
    refuse_inference("y", y)
    leaf, outputs = outputs_at_leaf(net, x)
    with torch.enable_grad():
        values = per_example(loss(outputs, y), y)
        total = values.sum()
    (g,) = torch.autograd.grad(total, leaf)
    # In the layout of x; and NaN where the loss is no number, whose gradient can be 0: the image would look robust.
    nothing = 0 * values.detach().to(g).view(-1, 1, 1, 1)
    return torch.add(g, nothing, out=torch.empty_like(x)), outputs.detach()


def outputs_at_leaf(net: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of x that needs a gradient, and the outputs [N, K] at it, with a graph."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError("gradients are needed here, and torch.inference_mode has none: use torch.no_grad instead")
    refuse_inference("x", x)
    refuse_inference("the model", *(net.parameters() if isinstance(net, nn.Module) else ()))
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        return leaf, net(leaf)


def refuse_inference(what: str, *tensors: Tensor) -> None:
    """Refuse tensors that have no part in a graph, in a line of our own: torch speaks of its internals."""
    if any(t.is_inference() for t in tensors):
        raise RuntimeError(f"{what} was made in torch.inference_mode, and allows no gradients: copy it outside of it")


def outputs(model: nn.Module, x: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Logits [N, K] of images x [N, C, H, W], without a graph.

    Raises:
        TypeError: if x is not a floating-point tensor.
        ValueError: if x has another shape, no image, or a NaN or an infinity.
    """
    data.check(x)
    with torch.no_grad(), fast.at_rest(model) as net, full_float32():
        return torch.cat([net(xb) for (xb,) in batches(x, batch_size=batch_size)])


def losses(
    model: nn.Module, x: Tensor, y: Tensor, *, loss: Loss = cross_entropy, batch_size: int | None = None
) -> Tensor:
    """Loss of every example, [N], without a graph; arguments as for :func:`input_gradients`."""
    data.check(x, y)
    loss = with_checked_labels(loss, y)
    return per_example(loss(outputs(model, x, batch_size=batch_size), y), y)


def batches(*tensors: Tensor, batch_size: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of equal length, split alike; by default into as many images as run fast on their device."""
    if batch_size is None:
        batch_size = fast.images_per_pass(tensors[0])
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    yield from zip(*(torch.split(t, batch_size) for t in tensors), strict=True)


def check_minimum(least: float, **values: float) -> None:
    """Refuse a value below the least."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _fresh(module: nn.Module) -> bool:
    """Whether it is a batch-norm whose running statistics have never seen an image."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_mean is None:
        return False
    return not bool(module.running_mean.any()) and bool((torch.as_tensor(module.running_var) == 1).all())


def warn_of_train_mode(model: nn.Module) -> None:
    """Warn the caller's caller of layers in which the examples of a batch interact."""
    interacting = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for name, module in model.named_modules():
        batch_statistics = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
        if batch_statistics or (module.training and isinstance(module, interacting)):
            why = "has no running statistics" if batch_statistics else "is in train mode"
            cure = "build it with track_running_stats=True" if batch_statistics else "call model.eval() first"
            if not batch_statistics and _fresh(module):
                cure += ", and models.calibrate_batch_norm(model, x) of a fresh network: else batch-norm does nothing"
            warnings.warn(
                f"{type(module).__name__} {name!r} {why}: the gradients are not each example's own; {cure}",
                stacklevel=3,
            )
            return
