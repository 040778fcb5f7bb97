"""Bringing images to another size: by copying pixels, by interpolation, or by exact area average."""

from typing import Literal

import torch
from torch.nn import functional as F

Resize = Literal["copy", "bilinear", "area"]


def resize(x: torch.Tensor, size: int, method: Resize = "copy") -> torch.Tensor:
    """Bring images to ``size`` x ``size`` pixels; images that have this size already are returned as they are.

    Args:
        x: floating-point images [N, C, H, W]; squares, except for ``"area"``.
        size: the side wanted, in pixels.
        method: ``"copy"`` repeats each pixel, by an integer factor, bit for bit (enlarges only);
            ``"bilinear"`` interpolates between pixel centres, as torch with ``align_corners=False`` (enlarges only);
            ``"area"`` averages over the exact area of each new pixel (reduces only). Where the ratio is no integer
            an old pixel that straddles two new ones counts in each by the fraction it covers, so every old pixel
            weighs the same in total and the mean of the image is kept. (torch's ``mode="area"`` rounds the
            area outwards to whole pixels instead.)

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: wrong shape, unknown method, or a method asked to go the wrong way.
    """
    if not x.is_floating_point():
        raise TypeError(f"images must be floating point, got {x.dtype}; convert with x.float() / 255")
    if x.ndim != 4:
        raise ValueError(f"images must be [N, C, H, W], got shape {tuple(x.shape)}")
    if method not in ("copy", "bilinear", "area"):
        raise ValueError(f"resize must be 'copy', 'bilinear' or 'area', got {method!r}")
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    height, width = x.shape[2:]
    if height == width == size:
        return x
    if method == "area":
        if size > min(height, width):
            raise ValueError(f"'area' only reduces: {height}x{width} to {size}x{size}; use 'copy' or 'bilinear'")
        return area(x, size)
    if height != width:
        raise ValueError(f"{method!r} needs square images, got {height}x{width}; use 'area'")
    if size < height:
        raise ValueError(f"{method!r} only enlarges: {height}x{height} to {size}x{size}; use 'area'")
    if method == "bilinear":
        return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    if size % height:
        raise ValueError(f"'copy' needs an integer factor: {size} is no multiple of {height}; use 'bilinear'")
    return x.repeat_interleave(size // height, dim=2).repeat_interleave(size // height, dim=3)


def area(x: torch.Tensor, size: int) -> torch.Tensor:
    """The exact area average of [N, C, H, W] on ``size`` x ``size`` pixels, whatever the shape."""
    height, width = x.shape[2:]
    if height % size == 0 and width % size == 0:
        return F.avg_pool2d(x, (height // size, width // size))
    # In float64 (thus on the CPU: not every accelerator has it), so that white stays exactly white.
    return (_overlap(height, size) @ x.cpu().double() @ _overlap(width, size).T).to(x)


def _overlap(old: int, new: int) -> torch.Tensor:
    """Return [new, old]: the fraction of each new pixel that each old one covers, along one axis."""
    # Counted in 1/(old * new) of the side, so that both grids fall on integers and the overlaps are exact.
    new_pixels, old_pixels = (torch.arange(n, device="cpu") for n in (new, old))
    start_new, start_old = new_pixels[:, None] * old, old_pixels[None, :] * new
    shared = torch.minimum(start_new + old, start_old + new) - torch.maximum(start_new, start_old)
    return shared.clamp(min=0).double() / old
