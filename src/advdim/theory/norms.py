"""The l_p norms of the theory: dual exponents, steepest directions, projections, calibrated thresholds.

Everything acts per example: the first axis counts examples, all the others are flattened into one vector.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dual(p: float) -> float:
    r"""Dual exponent q of p, that is :math:`1/p + 1/q = 1`.

    Args:
        p: an exponent in [1, inf].

    Returns:
        The dual exponent, in [1, inf].

    Raises:
        ValueError: if p is below 1 or not a number (l_p is no norm there).
    """
    if not p >= 1:
        raise ValueError(f"l_p is a norm for p in [1, inf] only, got p = {p}")
    if p == 1:
        return math.inf
    return 1.0 if math.isinf(p) else p / (p - 1)


def norm(x: Tensor, q: float) -> Tensor:
    r"""Norm :math:`\lVert x_n \rVert_q` of each example.

    Args:
        x: [N, ...], floating point.
        q: an exponent in [1, inf].

    Returns:
        [N], in the dtype of x.

    Raises:
        ValueError: if q is below 1, or x has no axis of examples.
    """
    dual(q)  # the same condition on the exponent
    flat = _flat(x)
    largest = _largest(flat)
    return (_length(flat / largest, q) * largest)[:, 0]


def steepest(g: Tensor, p: float) -> Tensor:
    r"""Direction :math:`\delta` of largest :math:`\langle g, \delta \rangle` in the unit l_p ball (Lemma 2).

    The maximum is the dual norm :math:`\lVert g \rVert_q`. For p = inf the direction is sign(g); for p = 1 all of it
    lies on the first largest :math:`|g_i|`; otherwise :math:`\delta_i \propto \mathrm{sign}(g_i) |g_i|^{q-1}`, scaled
    to :math:`\lVert \delta \rVert_p = 1`. Where a gradient vanishes, every direction is as good, and 0 is returned.

    Args:
        g: [N, ...], the gradients.
        p: exponent of the attacker's norm, in [1, inf].

    Returns:
        Same shape and dtype as g, with p-norm 1 (or 0 where g is 0).

    Raises:
        ValueError: if p is below 1, or g has no axis of examples.
    """
    q = dual(p)
    flat = _flat(g)
    if math.isinf(p):
        return g.sign()
    if p == 1:
        index = flat.abs().argmax(dim=1, keepdim=True)
        return torch.zeros_like(flat).scatter_(1, index, flat.gather(1, index).sign()).view_as(g)
    unit = flat / _largest(flat)
    direction = unit if q == 2 else unit.sign() * unit.abs() ** (q - 1)
    length = _length(direction, p)
    return (direction / torch.where(length > 0, length, torch.ones_like(length))).view_as(g)


def project(delta: Tensor, p: float, eps: float | Tensor, *, check: bool = True) -> Tensor:
    r"""Euclidean projection of each example onto the l_p ball of radius eps, exact for p = 1, 2 and inf.

    For p = 1 the projection soft-thresholds :math:`|\delta_i|` at the level that leaves a total of eps, found by
    sorting (Duchi et al., 2008).

    Args:
        delta: [N, ...], the perturbations, in pixel units.
        p: 1, 2 or inf.
        eps: the radius, in the units of delta: a number, or one per example, [N].
        check: whether to look at the radii; on a GPU, a look waits for the device.

    Returns:
        Same shape and dtype as delta; unchanged where it lies inside the ball already.

    Raises:
        ValueError: for another p, a negative radius, a wrong number of radii, or delta without an axis of examples.
    """
    flat = _flat(delta)
    radius = torch.as_tensor(eps, dtype=delta.dtype, device=delta.device).reshape(-1, 1)
    if check and not bool((radius >= 0).all()):
        raise ValueError(f"the radius eps must be at least 0, got {radius.min().item()}")
    if len(radius) not in (1, len(flat)):
        raise ValueError(f"eps must be one number, or one for each of the {len(flat)} examples, got {len(radius)}")
    if p == math.inf:
        return flat.clamp(-radius, radius).view_as(delta)
    if p == 2:
        length = norm(flat, 2)[:, None]
        return (flat * torch.where(length > radius, radius / length, torch.ones_like(length))).view_as(delta)
    if p == 1:
        size = flat.abs()
        total = size.sum(dim=1, keepdim=True)
        ordered = size.sort(dim=1, descending=True).values
        rank = torch.arange(1, flat.shape[1] + 1, device=flat.device, dtype=flat.dtype)
        level = (ordered.cumsum(dim=1) - radius) / rank
        kept = (ordered > level).sum(dim=1, keepdim=True).clamp(min=1)
        shrunk = flat.sign() * (size - level.gather(1, kept - 1)).clamp(min=0)
        return torch.where(total > radius, shrunk, flat).view_as(delta)
    raise ValueError(f"the projection is implemented for p = 1, 2 and inf, got p = {p}")


def threshold(eps_inf: float, p: float, d: int) -> float:
    r"""Calibrated size :math:`\varepsilon_p = \varepsilon_\infty d^{1/p}` of an l_p attack (section 2 of the paper).

    It holds the mean size per pixel fixed across norms and input dimensions: a perturbation of constant size
    eps_inf in every one of d coordinates has exactly this p-norm.

    Args:
        eps_inf: size of the l_inf attack, in pixel units.
        p: exponent of the attacker's norm, in [1, inf].
        d: input dimension, channels x height x width.

    Returns:
        The size of the l_p attack, in pixel units.

    Raises:
        ValueError: if eps_inf is negative, p below 1 or d below 1.
    """
    dual(p)
    if not eps_inf >= 0:
        raise ValueError(f"eps_inf must be at least 0, got {eps_inf}")
    if d < 1:
        raise ValueError(f"the input dimension d must be at least 1, got {d}")
    return float(eps_inf * d ** (1 / p))


def _flat(x: Tensor) -> Tensor:
    if x.ndim < 1:
        raise ValueError("expected examples along the first axis, got a tensor without axes: use x[None]")
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))  # and not -1, which no examples leave undetermined


def _largest(flat: Tensor) -> Tensor:
    """Size of each row's largest entry, [N, 1], or 1 if that is no unit, so that powers of flat / it stay finite."""
    largest = flat.detach().abs().amax(dim=1, keepdim=True)
    return torch.where((largest > 0) & largest.isfinite(), largest, torch.ones_like(largest))


def _length(unit: Tensor, q: float) -> Tensor:
    """The q-norm of each row, [N, 1], of entries at most 1 in size.

    By way of sum, which adds pairwise: on a CPU vector_norm adds one by one, and in float32 loses 1e-4 of 200,000.
    """
    if math.isinf(q):
        return unit.abs().amax(dim=1, keepdim=True)
    if q == 1:
        return unit.abs().sum(dim=1, keepdim=True)
    total = (unit.square() if q == 2 else unit.abs() ** q).sum(dim=1, keepdim=True)
    return torch.where(total > 0, total, 1) ** (1 / q) * (total > 0)  # the root has no derivative at 0
