"""The fast gradient method, one step in any l_p norm: the fast gradient sign method (FGSM) for p = inf."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import data
from ..measure.gradients import (
    Loss,
    batches,
    cross_entropy,
    input_gradient,
    warn_of_train_mode,
    with_checked_labels,
)
from ..models import fast
from ..theory import norms
from .perturbation import check_precision, check_range, per_image, perturbed, refuse_non_finite


def one_step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    p: float,
    eps: float | Tensor,
    clip: bool = False,
    loss: Loss = cross_entropy,
    batch_size: int | None = None,
) -> Tensor:
    r"""Fast gradient method (FGM): one step of size eps along the steepest l_p direction, the maximiser of Lemma 2.

    To first order it raises the loss by :math:`\varepsilon \lVert \nabla_x L \rVert_q`, which no perturbation of that
    size exceeds. It is the fast gradient sign method for p = inf, and moves a single pixel for p = 1.

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], floating point, in pixel units; in [0, 1] if ``clip``.
        y: [N], int64 labels.
        p: exponent of the attacker's norm, in [1, inf].
        eps: size of the perturbation in the p-norm, in pixel units, above 0: a number, or one per example, [N].
        clip: whether the attacked images are clipped to [0, 1].
        loss: a loss per example, of (outputs [N, K], y [N]) to [N].
        batch_size: images per pass; default as many as run fast at this image size on this device.

    Returns:
        Like x, the attacked images.

    Raises:
        TypeError: if x or y is not a tensor, or x not floating point.
        ValueError: if shapes do not match, a label is not below K, x is in half precision, has a NaN or an infinity or,
            with ``clip``, leaves [0, 1], p is below 1, eps not positive, the loss not per example, or the loss or a
            gradient not finite.
        RuntimeError: in ``torch.inference_mode``, or for tensors made in it.

    Warns:
        UserWarning: if a batch-norm or dropout layer is in train mode, or a batch-norm has no running statistics.
    """
    norms.dual(p)
    data.check(x, y)
    check_precision(x)
    check_range(x, clip)
    warn_of_train_mode(model)
    radius = per_image(eps, "eps", x)
    attacked, loss = [], with_checked_labels(loss, y)
    with fast.at_rest(model) as net:
        for xb, yb, rb in batches(x.detach(), y, radius, batch_size=batch_size):
            g = input_gradient(net, xb, yb, loss)[0]
            attacked.append(perturbed(xb, rb * norms.steepest(g, p), p, rb, clip))
    found = torch.cat(attacked)
    refuse_non_finite(found)
    return found
