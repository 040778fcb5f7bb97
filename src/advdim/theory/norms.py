"""The l_p norms of the theory: dual exponents, steepest directions, projections, calibrated thresholds.

Everything acts per example: the first axis counts examples, all the others are flattened into one vector.

Nothing is lost in silence. An example with a NaN or an infinity has no steepest direction and no projection, and comes
out NaN throughout; its norm is NaN or infinite. In half precision (float16, bfloat16) sums over many entries overflow
or stand still, so all is computed in float32: norms stay in it, directions are rounded to the caller's dtype, and
projections are rounded towards 0, which keeps them in the ball.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor


def dual(p: float) -> float:
    r"""Dual exponent q of p, that is :math:`1/p + 1/q = 1`.

    Args:
        p: an exponent in [1, inf].

    Returns:
        The dual exponent, in [1, inf].

    Raises:
        TypeError: if p is not a number, such as the name of a norm.
        ValueError: if p is below 1 or NaN (l_p is no norm there).
    """
    if isinstance(p, bool) or not isinstance(p, Real):
        raise TypeError(f"the exponent of a norm must be a number, such as 1, 2 or math.inf, got {p!r}")
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
        [N], in the dtype of x, or in float32 if that is half precision.

    Raises:
        TypeError: if x is not a floating-point tensor, or q not a number.
        ValueError: if q is below 1, or x has no axis of examples.
    """
    dual(q)  # the same condition on the exponent
    flat = _wide(_flat(x))
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
        TypeError: if g is not a floating-point tensor, or p not a number.
        ValueError: if p is below 1, or g has no axis of examples.
    """
    q = dual(p)
    flat = _flat(g)
    nothing = _zero_if_finite(flat)
    if math.isinf(p):
        return (flat.sign() + nothing).view_as(g)
    if p == 1:
        index = flat.abs().argmax(dim=1, keepdim=True)
        return (torch.zeros_like(flat).scatter_(1, index, flat.gather(1, index).sign()) + nothing).view_as(g)
    flat = _wide(flat)
    unit = flat / _largest(flat)
    direction = unit if q == 2 else unit.sign() * unit.abs() ** (q - 1)
    length = _length(direction, p)
    return (direction / torch.where(length > 0, length, torch.ones_like(length)) + nothing).to(g.dtype).view_as(g)


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
        TypeError: if delta is not a floating-point tensor.
        ValueError: for another p, a radius that is negative or NaN, a wrong number of radii, or delta without an axis
            of examples.
    """
    if p not in (1, 2, math.inf):
        raise ValueError(f"the projection is implemented for p = 1, 2 and inf, got p = {p}")
    flat = _wide(_flat(delta))
    radius = torch.as_tensor(eps, dtype=flat.dtype, device=delta.device).reshape(-1, 1)
    if check and not bool((radius >= 0).all()):
        raise ValueError(f"the radius eps must be at least 0, got {radius.min().item()}")
    if len(radius) not in (1, len(flat)):
        raise ValueError(f"eps must be one number, or one for each of the {len(flat)} examples, got {len(radius)}")
    if p == math.inf:
        inside = flat.clamp(-radius, radius)
    elif p == 2:
        length = norm(flat, 2)[:, None]
        inside = flat * torch.where(length > radius, radius / length, torch.ones_like(length))
    else:
        size = flat.abs()
        total = size.sum(dim=1, keepdim=True)
        ordered = size.sort(dim=1, descending=True).values
        rank = torch.arange(1, flat.shape[1] + 1, device=flat.device, dtype=flat.dtype)
        level = (ordered.cumsum(dim=1) - radius) / rank
        kept = (ordered > level).sum(dim=1, keepdim=True).clamp(min=1)
        shrunk = flat.sign() * (size - level.gather(1, kept - 1)).clamp(min=0)
        inside = torch.where(total > radius, shrunk, flat)
    return towards_zero(inside + _zero_if_finite(flat), delta.dtype).view_as(delta)


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
        TypeError: if p is not a number.
        ValueError: if eps_inf is negative or not finite, p below 1, or d no whole number of at least 1.
    """
    dual(p)
    if not 0 <= eps_inf < math.inf:
        raise ValueError(f"eps_inf must be at least 0 and finite, got {eps_inf}")
    if not (d >= 1 and d == int(d)):
        raise ValueError(f"the input dimension d must be a whole number of at least 1, got {d}")
    return float(eps_inf * d ** (1 / p))


def towards_zero(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Each number of x rounded to a dtype so that none grows."""
    if x.dtype == dtype:
        return x
    near = x.to(dtype)
    return torch.where(near.abs() > x.abs(), torch.nextafter(near, torch.zeros_like(near)), near)


def _flat(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"expected a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"expected floating-point numbers, got {x.dtype}: convert with .float()")
    if x.ndim < 1:
        raise ValueError("expected examples along the first axis, got a tensor without axes: use x[None]")
    if 0 in x.shape[1:]:
        raise ValueError(f"examples without a number have no norm, got shape {tuple(x.shape)}")
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))  # and not -1, which no examples leave undetermined


def _wide(flat: Tensor) -> Tensor:
    """The same numbers in a dtype that can add many of them."""
    return flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat


def _zero_if_finite(flat: Tensor) -> Tensor:
    """For each row, [N, 1]: 0, or NaN if it has a NaN or an infinity."""
    flat = flat.detach()
    return 0 * flat.amax(dim=1, keepdim=True) + 0 * flat.amin(dim=1, keepdim=True)


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
    return torch.where(total != 0, total, 1) ** (1 / q) * (total != 0)  # no derivative at 0; what is NaN stays NaN
