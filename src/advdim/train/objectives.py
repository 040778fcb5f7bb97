r"""Training objectives of section 4.1: gradient penalties, augmentation, PGD training, cross-Lipschitz.

Each is a pure function of (model, x, y) and a strength :math:`\lambda \ge 0`, and returns the scalar to minimise, a
mean over the batch in the dtype of the outputs, with a graph to the parameters. :math:`L` is the cross-entropy, d the
input dimension, and :math:`\varepsilon_p = \lambda d^{1/p}` the calibrated size of an attack, so that :math:`\lambda`
is the same change per pixel in every norm. At :math:`\lambda = 0` all are the plain loss. Nothing is clipped to [0, 1].

To first order in :math:`\lambda`, the gradient penalty of exponent q and one-step augmentation of the dual exponent p
are one objective, and their gradients in the parameters agree as well (Proposition 3).

The parameters' ``.grad`` and the model's mode are left as found. With batch-norm, the mode matters. In eval mode every
example has its own loss and gradient. In train mode the examples of a batch share their statistics, so the gradient at
an example is that of the batch's total loss, and each pass forward, those inside an attack included, goes into the
running statistics: one pass of plain loss, gradient penalty and cross-Lipschitz, two of augmentation, one per step and
one more of PGD training. Attacks use the mode in which the model is trained, as the paper's experiments do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from .. import data
from ..attacks.projected_gradient import ascend, random_starts, step_lengths, uniform
from ..measure.gradients import check_minimum, cross_entropy, outputs_at_leaf, per_example, refuse_inference
from ..models import fast
from ..models.device import to_device
from ..theory import norms

PGD_STEPS = 7  # of training, as in the paper

#: What draws, or for "pgd-linf" what it has drawn.
Draws = torch.Generator | Tensor | None
#: Takes (model, x [N, C, H, W], y [N], strength, generator) to the scalar to minimise.
Objective = Callable[[nn.Module, Tensor, Tensor, float, Draws], Tensor]


@torch.enable_grad()
def plain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    r"""Mean loss :math:`\frac1N \sum_n L(x_n, y_n)`, of usual training.

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], floating point, in pixel units.
        y: [N], int64 labels.

    Raises:
        ValueError: unless y holds one label per example.
    """
    return _losses(model(x), y).mean()


@torch.enable_grad()
def gradient_penalty(model: nn.Module, x: Tensor, y: Tensor, *, strength: float, q: float) -> Tensor:
    r"""Mean of :math:`L + \frac{\lambda d^{1 - 1/q}}{2} \lVert \nabla_x L \rVert_q`, by double backpropagation.

    The factor is half the size :math:`\varepsilon_p` of the attack whose first-order damage the norm measures, as
    :math:`1/p = 1 - 1/q`. Where the gradient vanishes, the norm's subgradient is taken to be 0.

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], floating point, in pixel units.
        y: [N], int64 labels.
        strength: :math:`\lambda`, in pixel units.
        q: exponent of the norm of the gradient, in [1, inf]; 1 and 2 in the paper.

    Raises:
        ValueError: if the strength is negative or not finite, q below 1, or y does not hold one label per example.
    """
    size = _size(strength, norms.dual(q), x)
    if size == 0:
        return plain(model, x, y)
    layers = fast.double_backward(x.device)
    with layers:
        leaf, outputs = outputs_at_leaf(model, x)
    losses = _losses(outputs, y)
    return losses.mean() + size / 2 * norms.norm(layers.gradient(losses, leaf), q).mean()


@torch.enable_grad()
def one_step_augmentation(model: nn.Module, x: Tensor, y: Tensor, *, strength: float, p: float) -> Tensor:
    r"""Mean of :math:`\frac12 \bigl(L(x) + L(x + \delta)\bigr)`, with :math:`\delta` the one-step attack of Lemma 2.

    This is the paper's :math:`L(x) + \frac12 (L(x + \delta) - L(x))`. The perturbation is that of
    :func:`advdim.attacks.one_step`, of size :math:`\varepsilon_p`, and constant: no gradient passes through it.

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], floating point, in pixel units.
        y: [N], int64 labels.
        strength: :math:`\lambda`, in pixel units.
        p: exponent of the attacker's norm, in [1, inf]; inf and 2 in the paper.

    Raises:
        ValueError: if the strength is negative or not finite, p below 1, or y does not hold one label per example.
    """
    size = _size(strength, p, x)
    if size == 0:
        return plain(model, x, y)
    leaf, outputs = outputs_at_leaf(model, x)
    g, clean = fast.input_gradient_and_loss(_losses(outputs, y), leaf, model)
    return (clean / len(x) + plain(model, x.detach() + size * norms.steepest(g, p), y)) / 2


def pgd_training(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    strength: float,
    p: float = math.inf,
    steps: int = PGD_STEPS,
    step_size: float | None = None,
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Mean of :math:`L(x + \delta)`, the attacked loss alone, with :math:`\delta` found by :func:`advdim.attacks.pgd`.

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], floating point, in pixel units.
        y: [N], int64 labels.
        strength: :math:`\lambda`, in pixel units; the radius is :math:`\varepsilon_p = \lambda d^{1/p}`.
        p: exponent of the attacker's norm: 1, 2 or inf.
        steps: number of steps.
        step_size: in pixel units. Default: that of :func:`advdim.attacks.pgd`, 1 / (0.75 steps) of the radius.
        random_start: whether to start from a point drawn uniformly from the ball rather than from x.
        generator: draws the random starts.

    Raises:
        TypeError: if x or y is not a tensor, or x not floating point.
        ValueError: if the strength is negative or not finite, or as :func:`advdim.attacks.pgd`.
    """
    if p not in (1, 2, math.inf):
        raise ValueError(f"PGD projects onto l_p balls for p = 1, 2 and inf, got p = {p}")
    check_minimum(1, steps=steps)
    data.check(x, y)
    return _on_attacked(model, x, y, strength, p, steps, step_size, random_start, generator)


def _on_attacked(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    strength: float,
    p: float,
    steps: int,
    step_size: float | None,
    random_start: bool,
    generator: Draws,
) -> Tensor:
    """:func:`pgd_training` without checks of images and labels, for which the host would wait at each step."""
    size = _size(strength, p, x)
    if size == 0:
        return plain(model, x, y)
    radius = x.new_full((len(x), 1, 1, 1), size)
    if not random_start:
        start = torch.zeros_like(x)
    elif generator is None:
        raise ValueError("a random start needs generator=torch.Generator().manual_seed(...), got None")
    else:
        (start,) = random_starts(x, p, radius, generator)
    lengths = step_lengths(radius, p, steps) if step_size is None else [torch.full_like(radius, step_size)] * steps
    # In one batch: one that was split would have other statistics in batch-norm.
    with fast.at_rest(model) as net:
        attacked = ascend(net, x.detach(), y, start, radius=radius, lengths=lengths, p=p)
    return plain(model, attacked, y)


@torch.enable_grad()
def cross_lipschitz(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    strength: float,
    estimator: str = "exact",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Mean of :math:`L + \lambda \frac{2}{K^2} \sum_{l<m} \lVert \nabla_x f_l - \nabla_x f_m \rVert_2^2`.

    The regulariser of Hein and Andriushchenko (2017). Its squared norms are of the K logits f, not of the loss: here,
    :math:`\lambda` is no size of an attack, and d does not enter. Batch-norm in train mode removes what all images
    share, and with it most of the gradient of a total over the batch; signs that differ from image to image keep it.

    Args:
        model: maps [N, C, H, W] to [N, K].
        x: [N, C, H, W], floating point, in pixel units.
        y: [N], int64 labels.
        strength: :math:`\lambda`, in squared pixel units.
        estimator: "exact", by K backward passes, or "random-sign", by one: random signs, and the same expectation.
        generator: draws the signs.

    Raises:
        ValueError: if strength, estimator or y is none of the above, or random signs have no generator.
    """
    _check(strength)
    if estimator not in ("exact", "random-sign"):
        raise ValueError(f"estimator must be 'exact' or 'random-sign', got {estimator!r}")
    if strength == 0:
        return plain(model, x, y)
    layers = fast.double_backward(x.device)
    with layers:
        leaf, outputs = outputs_at_leaf(model, x)
    # With g_l = grad f_l, S = sum_l g_l and h_l = g_l - S/K = grad (f_l - mean f), half the sum over ordered pairs is
    #   sum_{l<m} |g_l - g_m|^2 = (1/2) sum_{l,m} (|g_l|^2 - 2 <g_l, g_m> + |g_m|^2) = K sum_l |g_l|^2 - |S|^2,
    # and as sum_l |h_l|^2 = sum_l |g_l|^2 - |S|^2 / K, it equals K sum_l |h_l|^2: nothing large is left to cancel.
    # Signs that alternate over the batch change no square, but see the docstring for batch-norm.
    turns = 1 - 2 * (torch.arange(len(x), device=x.device) % 2)
    centred = turns[:, None] * (outputs - outputs.mean(dim=1, keepdim=True))
    if estimator == "exact":
        directions = list(centred.unbind(dim=1))
    elif generator is None:
        raise ValueError("random signs need generator=torch.Generator().manual_seed(...), got None")
    else:
        # E s_l s_m = 1[l = m] for independent signs, so E |sum_l s_l h_l|^2 = sum_{l,m} E[s_l s_m] <h_l, h_m>
        # = sum_l |h_l|^2, and sum_l s_l h_l is the gradient of sum_l s_l (f_l - mean f).
        directions = [(_signs(outputs, generator) * centred).sum(dim=1)]
    squares = sum(layers.gradient(f, leaf).square().flatten(1).sum(dim=1) for f in directions)
    return (_losses(outputs, y) + strength * 2 / outputs.shape[1] * squares).mean()


def _usual(model: nn.Module, x: Tensor, y: Tensor, strength: float, generator: Draws) -> Tensor:
    if strength != 0:
        raise ValueError(f"the method 'none' has no penalty, got strength {strength}; set it to 0, or choose a method")
    return plain(model, x, y)


#: The training methods compared in the paper, by name.
#:
#: :meta hide-value:
METHODS: dict[str, Objective] = {
    "none": _usual,
    "gradient-l1": lambda m, x, y, strength, _: gradient_penalty(m, x, y, strength=strength, q=1),
    "gradient-l2": lambda m, x, y, strength, _: gradient_penalty(m, x, y, strength=strength, q=2),
    "augment-linf": lambda m, x, y, strength, _: one_step_augmentation(m, x, y, strength=strength, p=math.inf),
    "augment-l2": lambda m, x, y, strength, _: one_step_augmentation(m, x, y, strength=strength, p=2),
    "pgd-linf": lambda m, x, y, strength, g: _on_attacked(m, x, y, strength, math.inf, PGD_STEPS, None, True, g),
    "cross-lipschitz": lambda m, x, y, strength, _: cross_lipschitz(m, x, y, strength=strength),
    "cross-lipschitz-random": lambda m, x, y, strength, g: cross_lipschitz(
        m, x, y, strength=strength, estimator="random-sign", generator=cast(torch.Generator, g)
    ),
}


def objective(method: str) -> Objective:
    """The training objective of a method of :data:`METHODS`, by name.

    Args:
        method: "none", "gradient-l1", "gradient-l2", "augment-linf", "augment-l2", "pgd-linf", "cross-lipschitz" or,
            with random signs, "cross-lipschitz-random".

    Returns:
        A function of (model, x, y, strength, generator), all positional; only "pgd-linf" and
        "cross-lipschitz-random" draw from the generator.

    Raises:
        ValueError: for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    return METHODS[method]


def draws(method: str, x: Tensor, strength: float, generator: torch.Generator) -> Draws:
    """What the objective of a method takes for its generator on a batch x [N, C, H, W].

    For "pgd-linf" these are the draws themselves, [N, 1, C, H, W] on the device of x; None for what draws nothing.
    """
    if strength == 0 or method not in ("pgd-linf", "cross-lipschitz-random"):
        return None
    if method == "cross-lipschitz-random":
        return generator
    return to_device(uniform((len(x), 1, *x.shape[1:]), math.inf, generator), x.device)


def _check(strength: float) -> None:
    if not (strength >= 0 and math.isfinite(strength)):
        raise ValueError(f"the strength must be at least 0 and finite, got {strength}; 0 trains on the plain loss")


def _size(strength: float, p: float, x: Tensor) -> float:
    _check(strength)
    return norms.threshold(strength, p, x.shape[1:].numel())


def _losses(outputs: Tensor, y: Tensor) -> Tensor:
    refuse_inference("y", y)
    return per_example(cross_entropy(outputs, y), y)


def _signs(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Independent signs, -1 or 1 with equal chances, like outputs."""
    drawn = torch.randint(2, outputs.shape, generator=generator, device=generator.device)
    return to_device(drawn, outputs.device).to(outputs.dtype) * 2 - 1
