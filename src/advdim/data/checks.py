"""What is no batch of images with labels is refused, before any measurement comes from it."""

from collections.abc import Sequence

import torch


def check(x: torch.Tensor, y: torch.Tensor | None = None, image_shape: Sequence[int] | None = None) -> None:
    """Refuse inputs from which no measurement can come. Values outside [0, 1] are allowed.

    Args:
        x: images [N, C, H, W], or ``[N, *image_shape]`` if that is given; floating point, finite.
        y: labels, int64 [N], none negative.
        image_shape: the shape that one example must have.

    Raises:
        TypeError: ``x`` or ``y`` is not a tensor, or ``x`` is not floating point.
        ValueError: a wrong shape, no example at all, values that are not finite, or wrong labels.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}; convert with x.float() / 255")
    if x.ndim != 4 if image_shape is None else tuple(x.shape[1:]) != tuple(image_shape):
        expected = ", ".join(map(str, image_shape or "CHW"))
        raise ValueError(f"x must be [N, {expected}], got shape {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x is empty: shape {tuple(x.shape)}")
    bad = ~torch.isfinite(x.detach()).flatten(1)
    if bad.any():
        first = int(bad.any(1).nonzero()[0])
        raise ValueError(f"{int(bad.sum())} values of x are NaN or infinite, first in example {first}")
    if y is None:
        return
    if not isinstance(y, torch.Tensor):
        raise TypeError(f"y must be a tensor, got {type(y).__name__}")
    if y.dtype != torch.int64:
        raise ValueError(f"y must be int64, got {y.dtype}; convert with y.long()")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must be [{len(x)}], one label per example, got shape {tuple(y.shape)}")
    if (y < 0).any():
        raise ValueError(f"y must not be negative, got {int(y.min())} in example {int(y.argmin())}")
