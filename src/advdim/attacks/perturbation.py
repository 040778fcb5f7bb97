"""Perturbations: what they may be, and how an image is moved by one without exceeding it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def perturbed(x: Tensor, delta: Tensor, p: float, radius: Tensor, clip: bool) -> Tensor:
    """The images x moved by delta, each number rounded towards x, and no farther than the radius."""
    if p != math.inf:
        size = delta  # axis by axis: a single sum over all of a large image is off by up to 1e-4 in float32
        for _ in delta.shape[1:]:
            size = torch.linalg.vector_norm(size, p, dim=-1)
        delta = delta * (radius / as_column(size)).clamp(max=1)
    moved = x + delta
    excess = (moved - x).abs() - delta.abs()  # then one number back: a comparison and a choice take thrice the time
    moved = torch.lerp(moved, torch.nextafter(moved, x), excess.sign().clamp(min=0))
    return moved.clamp(0, 1) if clip else moved


def per_image(value: float | Tensor, name: str, x: Tensor) -> Tensor:
    """A positive number, or one per example, as [N, 1, 1, 1]."""
    values = torch.as_tensor(value, dtype=x.dtype, device=x.device).detach()
    if values.shape not in ((), x.shape[:1]):
        raise ValueError(f"{name} must be one number, or [{len(x)}], one per example, got shape {tuple(values.shape)}")
    if not ((values > 0) & values.isfinite()).all():
        raise ValueError(f"{name} must be above 0 and finite, got {value}")
    return as_column(values.expand(len(x)))


def as_column(values: Tensor) -> Tensor:
    """One value per example, [N], as [N, 1, 1, 1], to go with images."""
    return values.view(-1, 1, 1, 1)


def check_range(x: Tensor, clip: bool) -> None:
    """Refuse images that clipping itself would move."""
    if clip and not (x.min() >= 0 and x.max() <= 1):
        low, high = x.min().item(), x.max().item()
        raise ValueError(f"clip=True needs x in [0, 1], got values from {low:g} to {high:g}; rescale x, or clip=False")


def refuse_non_finite(g: Tensor) -> None:
    """Refuse gradients with a NaN, whose sign would be 0, so that the image would look robust, or an infinity."""
    if not g.sum().isfinite() and not g.isfinite().all():  # the sum is quicker, and finite only of finite numbers
        raise ValueError(f"the loss has a gradient with {int((~g.isfinite()).sum())} NaN or infinite values")
