"""Projected gradient ascent on the loss (PGD)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .. import data
from ..measure.gradients import (
    Loss,
    batches,
    check_minimum,
    cross_entropy,
    input_gradient,
    per_example,
    warn_of_train_mode,
    with_checked_labels,
)
from ..models import fast
from ..models.device import full_float32, to_device
from ..theory import norms
from .perturbation import as_column, check_precision, check_range, per_image, perturbed, refuse_non_finite

# The l_1 steps of PGD fall from FIRST to LAST times eps: long ones find the few pixels on which the projection leaves
# anything, short ones settle between them.
FIRST, LAST = 10.0, 0.05


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
        early_stop: whether an example stays where it is as soon as it is misclassified, and restarts pass it over;
            decided in full float32, as :mod:`advdim.measure` does.
        generator: draws the random starts, example after example, whatever the device and the batches.
        loss: a loss per example, of (outputs [N, K], y [N]) to [N].
        batch_size: images per pass; default as many as run fast at this image size on this device.

    Returns:
        Like x, the attacked images after the last step (not the best seen on the way).

    Raises:
        TypeError: as :func:`advdim.attacks.one_step`.
        ValueError: as :func:`advdim.attacks.one_step`; for another p, a step_size that is not positive, no steps, no
            restarts, a random start without a generator, or restarts without a random start.

    Warns:
        UserWarning: as :func:`advdim.attacks.one_step`.
    """
    if p not in (1, 2, math.inf):
        raise ValueError(f"PGD projects onto l_p balls for p = 1, 2 and inf, got p = {p}; one_step takes any p >= 1")
    check_minimum(1, steps=steps, restarts=restarts)
    if random_start and generator is None:
        raise ValueError("a random start needs generator=torch.Generator().manual_seed(...), got None")
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts = {restarts} would repeat one and the same attack: set random_start=True")
    data.check(x, y)
    check_precision(x)
    check_range(x, clip)
    warn_of_train_mode(model)
    radius = per_image(eps, "eps", x)
    lengths = step_lengths(radius, p, steps) if step_size is None else [per_image(step_size, "step_size", x)] * steps

    attacked, loss = [], with_checked_labels(loss, y)
    with fast.at_rest(model) as net:
        for xb, yb, rb, *lb in batches(x.detach(), y, radius, *lengths, batch_size=batch_size):
            starts = [torch.zeros_like(xb)]
            if generator is not None and random_start:
                starts = random_starts(xb, p, rb, generator, restarts)
            run = partial(ascend, net, xb, yb, radius=rb, lengths=lb, p=p, clip=clip, early_stop=early_stop, loss=loss)
            best = run(starts[0])
            score = _score(net, best, yb, loss, early_stop) if restarts > 1 else yb
            for start in starts[1:]:
                # One that is misclassified already starts from there, and so ends there, with early_stop.
                start = torch.where(as_column(score == math.inf), best - xb, start)
                other = run(start)
                reached = _score(net, other, yb, loss, early_stop)
                worse = reached > score
                best, score = torch.where(as_column(worse), other, best), torch.where(worse, reached, score)
            attacked.append(best)
    found = torch.cat(attacked)
    refuse_non_finite(found)
    return found


def step_lengths(radius: Tensor, p: float, steps: int) -> list[Tensor]:
    """The default length of each step, from the radii [N, 1, 1, 1]: see :func:`pgd`."""
    if p == 1:
        return [radius * (FIRST * (LAST / FIRST) ** (t / max(1, steps - 1))) for t in range(steps)]
    return [radius / (0.75 * steps)] * steps


def ascend(
    net: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    delta: Tensor,
    *,
    radius: Tensor,
    lengths: list[Tensor],
    p: float,
    clip: bool = False,
    early_stop: bool = False,
    loss: Loss = cross_entropy,
) -> Tensor:
    """One run of PGD on one batch, from the perturbation delta, without checks: a step per length.

    The network may be in train mode, as in PGD training. An image whose gradient is not finite becomes NaN.

    Args:
        net: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], clean images.
        y: [N], int64 labels.
        delta: like x, where to start.
        radius: [N, 1, 1, 1], of the l_p balls.
        lengths: of the steps, [N, 1, 1, 1] each.
        p: 1, 2 or inf.
        clip: as for :func:`pgd`.
        early_stop: as for :func:`pgd`.
        loss: as for :func:`pgd`.
    """
    point = perturbed(x, norms.project(delta, p, radius, check=False), p, radius, clip)
    delta = point - x
    finite = torch.ones(len(x), dtype=torch.bool, device=x.device)
    if early_stop:
        return _until_wrong(net, x, y, point, delta, finite, radius=radius, lengths=lengths, p=p, clip=clip, loss=loss)

    def step(point: Tensor, delta: Tensor, finite: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g, _ = input_gradient(net, point, y, loss)
        return *_step(x, point, delta, g, length, radius, p, clip), finite & _are_finite(g)

    step = fast.repeated(step, net)
    for length in lengths:
        point, delta, finite = step(point, delta, finite, length)
    return torch.empty_like(x).copy_(point.masked_fill(as_column(~finite), math.nan))  # in the layout of x


def _until_wrong(
    net: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    point: Tensor,
    delta: Tensor,
    finite: Tensor,
    *,
    radius: Tensor,
    lengths: list[Tensor],
    p: float,
    clip: bool,
    loss: Loss,
) -> Tensor:
    """The steps of :func:`ascend` for images that are classified right, by passes in full float32, as measurements."""
    attacked, left = point.clone(), torch.arange(len(x), device=x.device)
    for length in lengths:
        with full_float32():
            g, outputs = input_gradient(net, point, y, loss)
        finite[left] &= _are_finite(g)
        right = outputs.argmax(1) == y
        left, x, y, radius, point, delta, g = (t[right] for t in (left, x, y, radius, point, delta, g))
        if len(left) == 0:
            break
        point, delta = _step(x, point, delta, g, length[left], radius, p, clip)
        attacked[left] = point
    return attacked.masked_fill_(as_column(~finite), math.nan)


def _step(
    x: Tensor, point: Tensor, delta: Tensor, g: Tensor, length: Tensor, radius: Tensor, p: float, clip: bool
) -> tuple[Tensor, Tensor]:
    """The next point x + delta, and its delta, from the gradient g at this one."""
    if p == 1 and clip:
        g = g.masked_fill(((point >= 1) & (g > 0)) | ((point <= 0) & (g < 0)), 0)
    delta = norms.project(delta + length * norms.steepest(g, max(p, 2)), p, radius, check=False)
    point = perturbed(x, delta, p, radius, clip)
    return point, point - x if clip else delta


def _are_finite(g: Tensor) -> Tensor:
    """Whether all numbers of an image are finite, [N] bool."""
    return g.flatten(1).abs().amax(1).isfinite()


def _score(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, loss: Loss, early_stop: bool) -> Tensor:
    """Loss of every example, [N]; with early_stop, infinite where it is misclassified."""
    with torch.no_grad(), full_float32():
        outputs = net(x)
        values = per_example(loss(outputs, y), y)
    return values.masked_fill(outputs.argmax(1) != y, math.inf) if early_stop else values


def random_starts(
    x: Tensor, p: float, radius: Tensor, generator: torch.Generator | Tensor, restarts: int = 1
) -> list[Tensor]:
    """Points drawn uniformly from the balls, like x, example after example: one per restart; or what was drawn so."""
    drawn = generator if isinstance(generator, Tensor) else uniform((len(x), restarts, *x.shape[1:]), p, generator)
    return [radius * start for start in to_device(drawn, x.device).to(x.dtype).unbind(1)]


def uniform(shape: tuple[int, ...], p: float, generator: torch.Generator) -> Tensor:
    """Points drawn uniformly from the unit l_p ball, p = 1, 2 or inf, [N, restarts, C, H, W] in float32."""
    u = torch.empty(shape, dtype=torch.float32, device=generator.device)
    if p == math.inf:
        return 2 * u.uniform_(generator=generator) - 1
    direction, share = torch.empty_like(u), u.new_empty(shape[:2])
    points = [t.flatten(0, 1) for t in (u, direction, share)]
    for signs, sizes, radius in zip(*points, strict=True):  # of one point after the other, so that batches draw alike
        signs.uniform_(generator=generator)
        sizes.normal_(generator=generator) if p == 2 else sizes.exponential_(generator=generator)
        radius.uniform_(generator=generator)
    if p == 1:
        direction *= (u - 0.5).sign()
    radii = share ** (1 / math.prod(shape[2:]))
    # Each by itself: sums over several large images are added up in another order.
    lengths = torch.cat([norms.norm(sizes[None], p) for sizes in points[1]])
    return direction * (radii / lengths.view_as(radii))[:, :, None, None, None]
