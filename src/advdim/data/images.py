"""Images in [0, 1] with integer labels: the embedded digits, CIFAR-10, Imagenette, and any folder of images.

A subset is chosen before anything is decoded, so a few examples of a large set cost little.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import folders, layout, manifest
from .folders import MissingDataError
from .resizing import Resize, area, resize

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
    mode: str = "RGB"


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
    grey: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Load a split of a data set, or a class-balanced subset of it.

    Args:
        name: ``"digits"`` (scikit-learn's 8x8 grey digits, embedded: 40 test examples per class, the rest for
            training), ``"cifar10"``, ``"imagenette"`` (both downloaded by torchvision when missing), the name of a
            folder ``<root>/<name>/{train,test or val}/<class>/*`` of images, or the path of such a folder, told by a
            slash in it. Where there are no splits, ``<name>/<class>/*``, every fifth image of a class, in order of
            their names, is for testing. Imagenette's photographs are squashed to 224x224 by exact area average (a
            shorter side is stretched).
        split: ``"train"``, ``"test"``, or ``"all"``: the one, then the other.
        size: side of the images returned; None leaves the native one.
        resize: how to get there, see :func:`resize`. The images of a folder must share one shape, unless ``size``
            comes with ``resize="area"``: each is then squashed to that square, whatever its shape.
        n: number of examples, drawn without replacement and as balanced over classes as can be. Every prefix is as
            balanced, and a smaller ``n`` gives a prefix of a larger one. None returns the whole split as stored.
        seed: chooses the subset, in [0, 2**32); equal seeds give equal subsets on every machine.
        root: where data lies, see :func:`advdim.data.root`.
        grey: load the images of a folder with one channel, their luma (ITU-R 601-2), in place of RGB.

    Returns:
        ``x``, float32 [N, C, H, W] in [0, 1], and ``y``, int64 [N], places in :func:`classes`.

    Raises:
        MissingDataError: the data set is not there; the message names the cure.
        ValueError: an unknown split, ``n`` or ``size`` out of range, images of several shapes, unreadable, or with
            pixels of more than 8 bits.
    """
    source = _open(name, split, root, "L" if grey else "RGB")
    keep = np.arange(len(source.labels)) if n is None else _balanced(source.labels, n, seed)
    return _decode(source, keep, size, resize), torch.from_numpy(source.labels[keep])


def sizes(name: str, root: str | Path | None = None) -> dict[str, int]:
    """Return how many examples each split of a data set has; raises as :func:`load` does."""
    present = ("train", "test") if name in ("digits", "cifar10") else layout.splits(folders.find(name, root))
    return {split: len(_open(name, split, root).labels) for split in present}


def classes(name: str = "digits", root: str | Path | None = None) -> list[str]:
    """Return the names of a data set's classes, in the order of the labels; raises as :func:`load` does."""
    if name == "digits":
        return [str(digit) for digit in range(10)]
    if name == "cifar10":
        return list(_cifar10(folders.find(name, root), train=False).classes)
    return layout.classes(folders.find(name, root))


def checksum(name: str, root: str | Path | None = None) -> str:
    """Return a string that identifies the data of a set, for the records: equal strings, equal images.

    It is the sha256 of the digits' array, the md5 that torchvision verifies of CIFAR-10's batches, the checksums of
    the archives that an unpacked set came from, or else the sha256 of all files of the folder.

    Raises:
        MissingDataError: the data set is not there.
        ValueError: files are missing from, were added to, or changed their size in, a set that came from archives.
    """
    if name == "digits":
        both = [_digits(split) for split in ("train", "test")]
        content = b"".join(np.asarray(part).astype(np.uint8).tobytes() for d in both for part in (d.images, d.labels))
        return f"sha256:{hashlib.sha256(content).hexdigest()}"
    folder = folders.find(name, root)
    if name != "cifar10":
        return manifest.checksum(folder)
    _cifar10(folder, train=False)  # refuses unless every batch has its md5
    from torchvision import datasets

    return f"md5:{datasets.CIFAR10.tgz_md5}"


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
                blocks = [pixels[None] for pixels in pool.map(partial(_read, mode=source.mode), paths)]
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
        x = area(x, source.squash)
    return x if size is None else resize(x, size, method)


def _read(path: str, mode: str = "RGB") -> Array:
    """Decode one image to uint8 [H, W, C], with the channels of Pillow's mode "RGB" or "L"."""
    from PIL import Image

    try:
        layout.require_file(Path(path))
        with Image.open(path) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;") or _is_cut(image):  # Pillow clips these to white
                raise ValueError(f"its pixels have more than 8 bits (mode {image.mode}): convert it to 8 bits first")
            pixels = np.array(image.convert(mode))
    except Exception as error:  # from a damaged file, Pillow raises whatever it stumbles over
        raise ValueError(f"cannot read the image {path}: {error}") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _is_cut(image: Any) -> bool:
    """Whether Pillow keeps the upper 8 of a colour's 16 bits, as it says in what it hands to its decoders."""
    handed = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in image.tile]
    of_16 = any(isinstance(word, str) and word[-4:-1] == ";16" for words in handed for word in words)  # RGB;16B
    return of_16 or (image.format == "PPM" and any(isinstance(most, int) and most > 255 for most in handed[0]))


def _open(name: str, split: str, root: str | Path | None, mode: str = "RGB") -> _Source:
    if split == "all":
        there = [_open(name, part, root, mode) for part in sizes(name, root)]
        labels = np.concatenate([part.labels for part in there])
        if isinstance(there[0].images, list):
            paths = [path for part in there for path in part.images]
            return _Source(labels, paths, squash=there[0].squash, mode=mode)
        return _Source(labels, np.concatenate([part.images for part in there]), there[0].white)
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train', 'test' or 'all', got {split!r}")
    if name == "digits":
        return _digits(split)
    folder = folders.find(name, root)
    if name == "cifar10":
        cifar = _cifar10(folder, train=split == "train")
        return _Source(np.array(cifar.targets, dtype=np.int64), cifar.data)
    inside = layout.splits(folder)
    if split not in inside:
        raise MissingDataError(f"{folder} has no split {split!r}, only {sorted(inside)}")
    samples = layout.samples(folder, split)
    labels = np.array([label for _, label in samples], dtype=np.int64)
    squash = IMAGENETTE_SIDE if name == "imagenette" else None
    return _Source(labels, [path for path, _ in samples], squash=squash, mode=mode)


def _cifar10(folder: Path, *, train: bool) -> Any:
    from torchvision import datasets

    try:
        return datasets.CIFAR10(folder.parent, train=train)
    except RuntimeError as error:
        raise ValueError(f"{folder} fails torchvision's md5 check; remove it and load again") from error


def _digits(split: str) -> _Source:
    from sklearn.datasets import load_digits

    found = load_digits()
    labels = found.target.astype(np.int64)
    rank = _rank(labels, np.arange(len(labels)))
    test = (rank % 4 == 3) & (rank < 160)  # every fourth, as neighbours share their writer: 40 of each class
    keep = test if split == "test" else ~test
    return _Source(labels[keep], found.images[keep].astype(np.uint8)[..., None], white=16)
