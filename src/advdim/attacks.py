"""Attacks: one step in any l_p norm (Lemma 2), projected gradient ascent (PGD) and DeepFool.

All take images in pixel units, [0, 1], and eps in the same units, return the attacked images, and leave the model's
parameters, their gradients and its training state as found. What they give for an image does not depend on how the
images are batched. Perturbations are rounded towards the clean image, so that none exceeds its eps. An image whose
gradient vanishes stays where it is. Clipping to [0, 1] is off by default, as in the paper's protocol.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from . import data, norms, passes
from .deepfool import deepfool as deepfool
from .passes import Loss, cross_entropy

# The l_1 steps of PGD fall from FIRST to LAST times eps: long ones find the few pixels on which the projection leaves
# anything, short ones settle between them.
FIRST, LAST = 10.0, 0.05


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
    r"""One step of size eps along the steepest l_p direction, the maximiser of Lemma 2.

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
        ValueError: if shapes do not match, x has a NaN or an infinity or, with ``clip``, leaves [0, 1], p is below 1,
            eps not positive, the loss not per example, or a gradient not finite.

    Warns:
        UserWarning: if a batch-norm or dropout layer is in train mode, or a batch-norm has no running statistics.
    """
    norms.dual(p)
    data.check(x, y)
    passes.check_range(x, clip)
    passes.warn_of_train_mode(model)
    radius = _per_image(eps, "eps", x)
    attacked = []
    with passes.frozen(model) as net:
        for xb, yb, rb in passes.batches(x.detach(), y, radius, batch_size=batch_size):
            delta = rb * norms.steepest(_gradient(net, xb, yb, loss)[0], p)
            attacked.append(_perturbed(xb, delta, p, rb, clip))
    return torch.cat(attacked)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    p: float,
    eps: float | Tensor,
    steps: int = 10,
    step_size: float | Tensor | None = None,
    random_start: bool = False,
    restarts: int = 1,
    clip: bool = False,
    early_stop: bool = False,
    generator: torch.Generator | None = None,
    loss: Loss = cross_entropy,
    batch_size: int | None = None,
) -> Tensor:
    r"""Projected gradient ascent on the loss over the l_p ball of radius eps (Madry et al., 2018).

    For p = 2 and p = inf each step has length step_size in the attacker's norm, along the steepest direction of
    Lemma 2, and is projected back onto the ball. For p = 1 that direction is a single pixel: T steps would change T
    pixels at most, and one pixel at the end of its range would block all others. There, the step follows the gradient
    itself, with Euclidean length step_size, and the projection leaves changed as many pixels as it pays to change.
    (Tramer and Boneh, 2019, fix the share of pixels that a step changes instead.)

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], floating point, in pixel units; in [0, 1] if ``clip``.
        y: [N], int64 labels.
        p: exponent of the attacker's norm: 1, 2 or inf.
        eps: radius in the p-norm, in pixel units, above 0: a number, or one per example, [N].
        steps: number of steps.
        step_size: of each step, in pixel units, a number or one per example. Default: eps / (0.75 steps), as in the
            paper; for p = 1, from 10 eps in the first step falling geometrically to eps / 20 in the last.
        random_start: whether to start from a point drawn uniformly from the ball rather than from x.
        restarts: number of random starts; per example, the attack of largest final loss is kept.
        clip: whether the images are clipped to [0, 1], after each step. With p = 1, pixels at the end of the range
            are then not pushed beyond it.
        early_stop: whether an example stays where it is as soon as it is misclassified, and restarts pass it over.
        generator: draws the random starts, example after example, whatever the device and the batches.
        loss: a loss per example, of (outputs [N, K], y [N]) to [N].
        batch_size: images per pass; default as many as run fast at this image size on this device.

    Returns:
        Like x, the attacked images after the last step (not the best seen on the way).

    Raises:
        TypeError: as :func:`one_step`.
        ValueError: as :func:`one_step`; for another p, a step_size that is not positive, no steps, no restarts, a
            random start without a generator, or restarts without a random start.

    Warns:
        UserWarning: as :func:`one_step`.
    """
    if p not in (1, 2, math.inf):
        raise ValueError(f"PGD projects onto l_p balls for p = 1, 2 and inf, got p = {p}; one_step takes any p >= 1")
    passes.at_least(1, steps=steps, restarts=restarts)
    if random_start and generator is None:
        raise ValueError("a random start needs generator=torch.Generator().manual_seed(...), got None")
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts = {restarts} would repeat one and the same attack: set random_start=True")
    data.check(x, y)
    passes.check_range(x, clip)
    passes.warn_of_train_mode(model)
    radius = _per_image(eps, "eps", x)
    factors = [1.0] * steps
    if step_size is not None:
        length = _per_image(step_size, "step_size", x)
    elif p == 1:
        length, factors = radius, [FIRST * (LAST / FIRST) ** (t / max(1, steps - 1)) for t in range(steps)]
    else:
        length = radius / (0.75 * steps)

    attacked = []
    with passes.frozen(model) as net:
        for xb, yb, rb, lb in passes.batches(x.detach(), y, radius, length, batch_size=batch_size):
            starts = [torch.zeros_like(xb)]
            if generator is not None and random_start:
                draws = [[_uniform(xb.shape[1:], p, generator) for _ in range(restarts)] for _ in xb]
                starts = [rb * torch.stack(draw).to(xb) for draw in zip(*draws, strict=True)]

            run = partial(_ascend, net, (xb, yb, rb, lb), factors, p, clip, loss, early_stop)
            best = run(starts[0])
            score = _score(net, best, yb, loss, early_stop) if restarts > 1 else yb
            for start in starts[1:]:
                # One that is misclassified already starts from there, and so ends there, with early_stop.
                start = torch.where(passes.rows(score == math.inf), best - xb, start)
                other = run(start)
                reached = _score(net, other, yb, loss, early_stop)
                worse = reached > score
                best, score = torch.where(passes.rows(worse), other, best), torch.where(worse, reached, score)
            attacked.append(best)
    return torch.cat(attacked)


def _ascend(
    model: nn.Module,
    batch: tuple[Tensor, ...],
    factors: list[float],
    p: float,
    clip: bool,
    loss: Loss,
    early_stop: bool,
    delta: Tensor,
) -> Tensor:
    """One run of PGD on a batch of images, labels, radii and lengths of steps, from delta; one step per factor."""
    x, y, radius, length = batch
    point = _perturbed(x, norms.project(delta, p, radius), p, radius, clip)
    delta = point - x
    attacked, where = point.clone(), torch.arange(len(x), device=x.device)
    for factor in factors:
        g, outputs = _gradient(model, point, y, loss)
        if early_stop:
            left = outputs.argmax(1) == y
            where, x, y, radius, length = (t[left] for t in (where, x, y, radius, length))
            point, delta, g = point[left], delta[left], g[left]
            if len(where) == 0:
                break
        if p == 1 and clip:
            g = g.masked_fill(((point >= 1) & (g > 0)) | ((point <= 0) & (g < 0)), 0)
        delta = norms.project(delta + factor * length * norms.steepest(g, max(p, 2)), p, radius)
        point = _perturbed(x, delta, p, radius, clip)
        delta = point - x if clip else delta
        attacked[where] = point
    return attacked


def _gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    g, outputs = passes.input_gradient(model, x, y, loss)
    # The sign of a NaN would be 0, and the image look robust. The sum is quicker, and finite only of finite numbers.
    if not g.sum().isfinite() and not g.isfinite().all():
        raise ValueError(f"the loss has a gradient with {int((~g.isfinite()).sum())} NaN or infinite values")
    return g, outputs


def _score(model: nn.Module, x: Tensor, y: Tensor, loss: Loss, early_stop: bool) -> Tensor:
    """Loss of every example, [N]; with early_stop, infinite where it is misclassified."""
    with torch.no_grad():
        outputs = passes.forward(model, x)
        values = passes.per_example(loss(outputs, y), y)
    return values.masked_fill(outputs.argmax(1) != y, math.inf) if early_stop else values


def _perturbed(x: Tensor, delta: Tensor, p: float, radius: Tensor, clip: bool) -> Tensor:
    """The images x moved by delta, each number rounded towards x, and no farther than the radius."""
    if p != math.inf:
        size = delta  # axis by axis: a single sum over all of a large image is off by up to 1e-4 in float32
        for _ in delta.shape[1:]:
            size = torch.linalg.vector_norm(size, p, dim=-1)
        delta = delta * (radius / passes.rows(size)).clamp(max=1)
    moved = x + delta
    excess = (moved - x).abs() - delta.abs()  # then one number back: a comparison and a choice take thrice the time
    moved = torch.lerp(moved, torch.nextafter(moved, x), excess.sign().clamp(min=0))
    return moved.clamp(0, 1) if clip else moved


def _uniform(shape: torch.Size, p: float, generator: torch.Generator) -> Tensor:
    """A point drawn uniformly from the unit l_p ball, p = 1, 2 or inf, in float32."""
    u = torch.rand(shape, generator=generator, device=generator.device)
    if p == math.inf:
        return 2 * u - 1
    if p == 2:
        direction = torch.randn(shape, generator=generator, device=generator.device)
    else:
        direction = torch.empty_like(u).exponential_(generator=generator) * (u - 0.5).sign()
    radius = torch.rand((), generator=generator, device=generator.device) ** (1 / u.numel())
    return direction * (radius / norms.norm(direction[None], p))


def _per_image(value: float | Tensor, name: str, x: Tensor) -> Tensor:
    """A positive number, or one per example, as [N, 1, 1, 1]."""
    values = torch.as_tensor(value, dtype=x.dtype, device=x.device).detach()
    if values.shape not in ((), x.shape[:1]):
        raise ValueError(f"{name} must be one number, or [{len(x)}], one per example, got shape {tuple(values.shape)}")
    if not ((values > 0) & values.isfinite()).all():
        raise ValueError(f"{name} must be above 0 and finite, got {value}")
    return passes.rows(values.expand(len(x)))
