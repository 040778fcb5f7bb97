"""Perturbations: what they may be, and how an image is moved by one without exceeding it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..theory import norms


def perturbed(x: Tensor, delta: Tensor, p: float, radius: Tensor, clip: bool) -> Tensor:
    """The images x moved by delta, each number rounded towards x, and no farther than the radius, exactly."""
    if p != math.inf:
        size = delta  # axis by axis: a single sum over all of a large image is off by up to 1e-4 in float32
        for _ in delta.shape[1:]:
            size = torch.linalg.vector_norm(size, p, dim=-1)
        within = radius * (1 - 16 * torch.finfo(delta.dtype).eps)  # as the size itself is rounded
        delta = delta * (within / as_column(size)).clamp(max=1)
    moved = x + delta
    # What rounding took from the sum, exactly (Knuth's two-sum). If it took what leads back to x, then one number back:
    # a comparison and a choice would take thrice the time.
    step = moved - x
    lost = (x - (moved - step)) + (delta - step)
    moved = torch.lerp(moved, torch.nextafter(moved, x), -(lost * delta).sign().clamp(max=0))
    return moved.clamp(0, 1) if clip else moved


def per_image(value: float | Tensor, name: str, x: Tensor) -> Tensor:
    """A positive number, or one per example, as [N, 1, 1, 1], rounded towards 0 to the dtype of x."""
    exact = value.detach().cpu() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    values = norms.towards_zero(exact.double(), x.dtype)  # on the CPU: not every accelerator has float64
    if values.shape not in ((), x.shape[:1]):
        raise ValueError(f"{name} must be one number, or [{len(x)}], one per example, got shape {tuple(values.shape)}")
    if not ((values > 0) & values.isfinite()).all():
        raise ValueError(f"{name} must be above 0 and finite, got {value}")
    return as_column(values.expand(len(x)).to(x.device))


def as_column(values: Tensor) -> Tensor:
    """One value per example, [N], as [N, 1, 1, 1], to go with images."""
    return values.view(-1, 1, 1, 1)


def check_precision(x: Tensor) -> None:
    """Refuse images in half precision, in which an attack could not keep its size."""
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"attacks need images in float32 or float64, got {x.dtype}, in which small perturbations are rounded away: "
            "pass x.float(), and for a network in half precision a module that converts, or torch.autocast"
        )


def check_range(x: Tensor, clip: bool) -> None:
    """Refuse images that clipping itself would move."""
    if clip and not (x.min() >= 0 and x.max() <= 1):
        low, high = x.min().item(), x.max().item()
        raise ValueError(f"clip=True needs x in [0, 1], got values from {low:g} to {high:g}; rescale x, or clip=False")


def refuse_non_finite(attacked: Tensor) -> None:
    """Refuse what came of a NaN or infinite loss or gradient: its image would seem robust."""
    if not attacked.sum().isfinite() and not attacked.isfinite().all():  # the sum is quicker, and finite only of such
        bad = ~attacked.isfinite().flatten(1).all(1)
        raise ValueError(
            f"the model has NaN or infinite outputs, losses or gradients at {int(bad.sum())} of {len(bad)} images, "
            f"first at example {int(bad.nonzero()[0])}: no attack can follow them, and the images would seem robust"
        )
