"""DeepFool, the attack that looks for the nearest decision boundary."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from .. import data
from ..measure.gradients import batches, check_classes, check_minimum, outputs_at_leaf, warn_of_train_mode
from ..models import fast
from ..models.device import full_float32
from ..theory import norms
from .perturbation import as_column, check_precision, check_range, refuse_non_finite


def deepfool(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    p: float = 2,
    steps: int = 50,
    overshoot: float = 0.02,
    clip: bool = False,
    candidates: int = 10,
    batch_size: int | None = None,
) -> Tensor:
    r"""DeepFool: steps to the nearest decision boundary of the linearised model, until the prediction changes.

    To a linear boundary :math:`f = 0` of gradient w the l_p distance is :math:`|f| / \lVert w \rVert_q`; the image ends
    beyond it by the factor 1 + overshoot. The perturbation has no bound, and its size is what is measured.

    Libraries differ over images that are misclassified already, and over when to stop. ART moves them as all others,
    away from their prediction; that is this function without y. Foolbox leaves them where they are; that is this
    function with y. Foolbox and this function step on until the prediction changes; torchattacks leaves some unchanged.

    Args:
        model: maps [N, C, H, W] to [N, K], K at least 2.
        x: [N, C, H, W], floating point, in pixel units; in [0, 1] if ``clip``.
        y: int64 [N]; images of another prediction stay where they are. Default: the predictions.
        p: exponent of the norm in which the boundary is nearest: 2 or inf.
        steps: largest number of steps.
        overshoot: how much farther than to the boundary, at least 0.
        clip: whether the attacked images are clipped to [0, 1].
        candidates: how many classes are in play, at least 2: the prediction and those of the next largest logits at x.
        batch_size: images per pass; default as many as run fast at this image size on this device.

    Returns:
        Like x, the attacked images. Where steps did not suffice the prediction is unchanged: see
        :func:`advdim.measure.vulnerability`.

    Raises:
        TypeError: as :func:`one_step`.
        ValueError: as :func:`one_step`; for another p, no steps, a negative overshoot, fewer than two candidates or
            classes.

    Warns:
        UserWarning: as :func:`one_step`.
    """
    if p not in (2, math.inf):
        raise ValueError(f"DeepFool is defined here for p = 2 and inf, got p = {p}; pgd takes p = 1 too")
    check_minimum(1, steps=steps)
    check_minimum(2, candidates=candidates)
    check_minimum(0, overshoot=overshoot)
    data.check(x, y)
    check_precision(x)
    check_range(x, clip)
    warn_of_train_mode(model)
    with fast.at_rest(model) as net, full_float32():
        labels = torch.full((len(x),), -1, device=x.device) if y is None else y  # -1: not known yet
        pairs = batches(x.detach(), labels, batch_size=batch_size)
        walk = partial(_walk, net, p=p, steps=steps, overshoot=overshoot, clip=clip, candidates=candidates)
        found = torch.cat([walk(xb, yb) for xb, yb in pairs])
    refuse_non_finite(found)
    return found


def _walk(
    net: nn.Module, x: Tensor, y: Tensor, *, p: float, steps: int, overshoot: float, clip: bool, candidates: int
) -> Tensor:
    eps = torch.finfo(x.dtype).eps
    # No step is below the resolution of numbers in [0, 1], or an image on a boundary would stay there.
    least = norms.threshold(2 * eps, p, x[0].numel())
    attacked, rows = x.clone(), torch.arange(len(x), device=x.device)
    point, total, rivals = x, torch.zeros_like(x), y[:, None]
    for step in range(steps):
        leaf, outputs = outputs_at_leaf(net, point)
        if step == 0:
            if outputs.shape[1] < 2:
                raise ValueError(f"DeepFool needs at least 2 classes, the model has {outputs.shape[1]}")
            check_classes(y, outputs.shape[1])
            y = torch.where(y < 0, outputs.argmax(1), y)
        others = outputs.detach().scatter(1, y[:, None], -math.inf)
        if step == 0:
            rivals = others.topk(min(candidates, outputs.shape[1]) - 1, dim=1).indices
        # Steps converge to the boundary, where logits differ in their last digits, and these depend on the batch, the
        # layout and the device: an image is across once another logit leads by more than such rounding.
        own, best = outputs.detach().gather(1, y[:, None])[:, 0], others.amax(1)
        left = best - own <= 16 * eps * (best.abs() + own.abs())
        attacked[rows[outputs.isnan().any(1)]] = math.nan
        if not left.all():  # another pass forward for the rest costs less than passes back for all
            rows, x, y, point, total, rivals = (t[left] for t in (rows, x, y, point, total, rivals))
            if len(rows) == 0:
                break
            leaf, outputs = outputs_at_leaf(net, point)
        with torch.enable_grad():
            gaps = outputs.gather(1, rivals) - outputs.gather(1, y[:, None])
        total = total + _to_boundary(gaps, leaf, p, least)
        point = x + (1 + overshoot) * total
        point = point.clamp(0, 1) if clip else point
        attacked[rows] = point
    return attacked


def _to_boundary(gaps: Tensor, leaf: Tensor, p: float, least: float) -> Tensor:
    """The shortest step that closes one of the gaps [N, k] of the linearised model, like leaf; 0 if none does."""
    shortest = torch.full_like(gaps[:, 0], math.inf)
    gradient = torch.zeros_like(leaf)
    for k in range(gaps.shape[1]):
        one = torch.zeros_like(gaps)
        one[:, k] = 1
        (g,) = torch.autograd.grad(gaps, leaf, one, retain_graph=k + 1 < gaps.shape[1])
        slope = norms.norm(g, norms.dual(p))
        length = torch.where(slope == 0, math.inf, gaps[:, k].detach().abs() / slope)
        closer = (length < shortest) | length.isnan()
        shortest = torch.where(closer, length, shortest)
        gradient = torch.where(as_column(closer), g, gradient)
    return as_column(torch.where(shortest == math.inf, 0, shortest.clamp(least))) * norms.steepest(gradient, p)
