"""Images in [0, 1] with integer labels: the embedded digits, CIFAR-10, Imagenette, and any folder of images.

A subset is chosen before anything is decoded, so a few examples of a large set cost little.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F

from . import folders
from .folders import MissingDataError

Resize = Literal["copy", "bilinear", "area"]
Array = np.ndarray[Any, Any]

IMAGENETTE_SIDE = 224  # its photographs vary in shape, so it needs a side of its own
_CHUNK = 256  # images decoded, then resized, at a time: bounds the memory needed beyond the result


@dataclass(frozen=True)
class _Source:
    """A split before decoding: labels [N], images as uint8 [N, H, W, C] or as paths, and the value of white."""

    labels: Array
    images: Array | list[str]
    white: int = 255
    squash: int | None = None


def root(root: str | Path | None = None) -> Path:
    """Return the folder that holds the data sets.

    It is the argument if given, else the environment variable ``ADVDIM_DATA``, else the user's cache folder
    (``platformdirs.user_cache_dir("advdim")``). It need not exist yet.
    """
    return folders.locate(root)[0]


def load(
    name: str = "digits",
    split: str = "train",
    *,
    size: int | None = None,
    resize: Resize = "copy",
    n: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Load a split of a data set, or a class-balanced subset of it.

    Args:
        name: ``"digits"`` (scikit-learn's 8x8 grey digits, embedded: 40 test examples per class, the rest for
            training), ``"cifar10"``, ``"imagenette"`` (both downloaded by torchvision when missing), or the name
            of a folder ``<root>/<name>/{train,test or val}/<class>/*`` of images, which become RGB. Imagenette's
            photographs are squashed to 224x224 by exact area average (a shorter side is stretched).
        split: ``"train"`` or ``"test"``.
        size: side of the images returned; None leaves the native one.
        resize: how to get there, see :func:`resize`. The images of a folder must share one shape, unless ``size``
            comes with ``resize="area"``: each is then squashed to that square, whatever its shape.
        n: number of examples, drawn without replacement and as balanced over classes as can be. Every prefix is as
            balanced, and a smaller ``n`` gives a prefix of a larger one. None returns the whole split as stored.
        seed: chooses the subset, in [0, 2**32); equal seeds give equal subsets on every machine.
        root: where data lies, see :func:`advdim.data.root`.

    Returns:
        ``x``, float32 [N, C, H, W] in [0, 1], and ``y``, int64 [N].

    Raises:
        MissingDataError: the data set is not there; the message names the cure.
        ValueError: an unknown split, ``n`` or ``size`` out of range, images of several shapes or unreadable.
    """
    source = _open(name, split, root)
    keep = np.arange(len(source.labels)) if n is None else _balanced(source.labels, n, seed)
    return _decode(source, keep, size, resize), torch.from_numpy(source.labels[keep])


def sizes(name: str, root: str | Path | None = None) -> dict[str, int]:
    """Return how many examples each split of a data set has; raises as :func:`load` does."""
    present = ("train", "test") if name in ("digits", "cifar10") else folders.splits(folders.find(name, root))
    return {split: len(_open(name, split, root).labels) for split in present}


def checksum(name: str, root: str | Path | None = None) -> str:
    """Return a string that identifies the data of a set, for the records: equal strings, equal images.

    It is the sha256 of the digits' array, the md5 that torchvision verifies of CIFAR-10's batches, the checksums of
    the archives that an unpacked set came from, or else the sha256 of all files of the folder.

    Raises:
        MissingDataError: the data set is not there.
        ValueError: files are missing from, or were added to, a set that came from archives.
    """
    if name == "digits":
        both = [_digits(split) for split in ("train", "test")]
        content = b"".join(np.asarray(part).astype(np.uint8).tobytes() for d in both for part in (d.images, d.labels))
        return f"sha256:{hashlib.sha256(content).hexdigest()}"
    folder = folders.find(name, root)
    if name != "cifar10":
        return folders.checksum(folder)
    _open(name, "test", root)  # refuses unless every batch has its md5
    from torchvision import datasets

    return f"md5:{datasets.CIFAR10.tgz_md5}"


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
        return _area(x, size)
    if height != width:
        raise ValueError(f"{method!r} needs square images, got {height}x{width}; use 'area'")
    if size < height:
        raise ValueError(f"{method!r} only enlarges: {height}x{height} to {size}x{size}; use 'area'")
    if method == "bilinear":
        return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    if size % height:
        raise ValueError(f"'copy' needs an integer factor: {size} is no multiple of {height}; use 'bilinear'")
    return x.repeat_interleave(size // height, dim=2).repeat_interleave(size // height, dim=3)


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


def _area(x: torch.Tensor, size: int) -> torch.Tensor:
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


def _balanced(labels: Array, n: int, seed: int) -> Array:
    if not 1 <= n <= len(labels):
        raise ValueError(f"n must be in [1, {len(labels)}], the number of examples there are, got {n}")
    # RandomState's stream is frozen by numpy for good; default_rng's may change between versions.
    draw = np.random.RandomState(seed).random_sample(len(labels))
    return np.lexsort((draw, _rank(labels, draw)))[:n]  # one of each class, then a second of each class, ...


def _rank(labels: Array, draw: Array) -> Array:
    """Return the place of each example among those of its class, ordered by ``draw``."""
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members[np.argsort(draw[members], kind="stable")]] = np.arange(len(members))
    return rank


def _decode(source: _Source, keep: Array, size: int | None, method: Resize) -> torch.Tensor:
    x, native = torch.empty(0), None
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
        for start in range(0, len(keep), _CHUNK):
            indices = keep[start : start + _CHUNK]
            if isinstance(source.images, list):
                paths = [source.images[i] for i in indices]
                blocks = [pixels[None] for pixels in pool.map(_read, paths)]
                native = native or blocks[0].shape
                odd = next((i for i, block in enumerate(blocks) if block.shape != native), None)
                if odd is None:
                    blocks = [np.concatenate(blocks)]
                elif source.squash is None and (size is None or method != "area"):
                    raise ValueError(
                        f"{paths[odd]} has {blocks[odd].shape[1:3]} pixels, the first image {native[1:3]}; "
                        "give a size together with resize='area' to squash all to one square"
                    )
            else:
                blocks = [source.images[indices]]
            images = torch.cat([_fit(block, source, size, method) for block in blocks])
            if start == 0:
                x = torch.empty(len(keep), *images.shape[1:])
            x[start : start + len(images)] = images
    return x


def _fit(pixels: Array, source: _Source, size: int | None, method: Resize) -> torch.Tensor:
    """Turn uint8 [N, H, W, C] into float32 [N, C, H, W] in [0, 1] of the size wanted."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / source.white
    if source.squash:
        x = _area(x, source.squash)
    return x if size is None else resize(x, size, method)


def _read(path: str) -> Array:
    from torchvision.datasets.folder import default_loader

    try:
        return np.array(default_loader(path))  # RGB, whatever is stored
    except OSError as error:  # Pillow's own errors are OSErrors, but do not always name the file
        raise ValueError(f"cannot read the image {path}: {error}") from error


def _open(name: str, split: str, root: str | Path | None) -> _Source:
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if name == "digits":
        return _digits(split)
    folder = folders.find(name, root)
    from torchvision import datasets

    if name == "cifar10":
        try:
            cifar = datasets.CIFAR10(folder.parent, train=split == "train")
        except RuntimeError as error:
            raise ValueError(f"{folder} fails torchvision's md5 check; remove it and load again") from error
        return _Source(np.array(cifar.targets, dtype=np.int64), cifar.data)
    inside = folders.splits(folder)
    if split not in inside:
        raise MissingDataError(f"{folder} has no split {split!r}, only {sorted(inside)}")
    samples = datasets.ImageFolder(inside[split]).samples
    labels = np.array([label for _, label in samples], dtype=np.int64)
    return _Source(labels, [path for path, _ in samples], squash=IMAGENETTE_SIDE if name == "imagenette" else None)


def _digits(split: str) -> _Source:
    from sklearn.datasets import load_digits

    found = load_digits()
    labels = found.target.astype(np.int64)
    rank = _rank(labels, np.arange(len(labels)))
    test = (rank % 4 == 3) & (rank < 160)  # every fourth, as neighbours share their writer: 40 of each class
    keep = test if split == "test" else ~test
    return _Source(labels[keep], found.images[keep].astype(np.uint8)[..., None], white=16)
