"""The images of an audit: from tensors, a DataLoader, a folder or a data set, and brought to each size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .. import data
from ..data import folders, layout
from .adapt import Refusal

Upsample = Literal["copy", "bilinear"]

CALIBRATION = 64  # images that set the running statistics of batch-norms


@dataclass(frozen=True)
class Images:
    """What is measured on.

    Attributes:
        x: [N, C, H, W], float32, in [0, 1], as large as they came.
        y: [N], int64 labels.
        calibration: [M, C, H, W], other images for batch-norm's statistics where there are enough, else those of x.
        name: where they came from.
    """

    x: Tensor
    y: Tensor
    calibration: Tensor
    name: str

    @property
    def native(self) -> int:
        """The shorter side, in pixels."""
        return int(min(self.x.shape[2:]))

    @property
    def checksum(self) -> str:
        """The sha256 of images and labels."""
        digest = hashlib.sha256(str(tuple(self.x.shape)).encode())
        for t in (self.x, self.y, self.calibration):
            digest.update(t.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def at(self, size: int, upsample: Upsample | None = None) -> Tensor:
        """The images x, square, of a side in pixels."""
        return resized(self.x, size, upsample)


def gather(source: Any, n: int) -> Images:
    """Take n images, and up to 64 others for calibration.

    Args:
        source: (x, y); a DataLoader or another iterable of batches; the path of a folder; or a data set's name.
        n: images to measure on, at least 1; fewer are taken if there are no more.
    """
    if n < 1:
        raise Refusal(f"images must be at least 1, got {n}")
    if isinstance(source, str | Path):
        return _of_name(source, n)
    if isinstance(source, tuple | list) and len(source) == 2 and isinstance(source[0], Tensor):
        x, y = source
        return _split(x, y, n, "tensors")
    if isinstance(source, Iterable):
        return _split(*_of_batches(source, n + CALIBRATION), n, "a loader")
    raise Refusal(f"data must be (x, y), a DataLoader, a folder or the name of a data set, got {type(source).__name__}")


def resized(x: Tensor, size: int, upsample: Upsample | None = None) -> Tensor:
    """Images [N, C, size, size]: reduced by exact area averages; enlarged only if asked to."""
    native = int(min(x.shape[2:]))
    if size <= native:
        return data.resize(x, size, "area")
    if upsample is None:
        raise Refusal(
            f"{size} px is more than the images' {native}: enlarged images have an exponent of their own. Leave it "
            "out, or say upsample='bilinear' (--upsample bilinear)"
        )
    return data.resize(data.resize(x, native, "area"), size, upsample)


def default_sizes(native: int) -> list[int]:
    """Up to four sizes, halving from the images' own side."""
    return sorted({size for size in (native // 8, native // 4, native // 2, native) if size >= 4})


def to_train_on(source: str | Path) -> Images:
    """The training split of a folder or a data set, which :func:`gather` does not measure on."""
    name = _name(source)
    try:
        counts = _counts(name)
        if not {"train", "test"} <= set(counts):
            raise Refusal(
                f"{source} has no images to train on beside those that are measured on: give five or more per class, "
                "or folders train and test"
            )
        x, y = _load(name, "train", counts["train"])
    except (OSError, ValueError) as error:
        raise Refusal(str(error)) from error
    return _checked(x, y, x[:CALIBRATION], Path(name).name)


def _name(source: str | Path) -> str:
    path = Path(source).expanduser()
    if isinstance(source, Path) or path.is_dir():
        return str(path.absolute())  # a path, to data.load, for its slashes
    if path.is_file():
        raise Refusal(f"{source} is a file: unpack it with advdim data add {source}, and give the set's name")
    return str(source)


def _of_name(source: str | Path, n: int) -> Images:
    name = _name(source)
    try:
        counts = _counts(name)
        split = "test" if "test" in counts else "train"
        x, y = _load(name, split, min(n, counts[split]))
        others = _load(name, "train", min(CALIBRATION, counts["train"]))[0] if "train" in counts else x
    except (OSError, ValueError) as error:
        raise Refusal(str(error)) from error
    return _checked(x, y, others if len(others) >= 2 else x, Path(name).name)


def _counts(name: str) -> dict[str, int]:
    try:
        return data.sizes(name)
    except ValueError as error:
        if "no image for the split 'test'" not in str(error):
            raise
        # Classes of fewer than five images, in a folder without splits: there is nothing to hold out.
        return {"train": len(layout.samples(folders.find(name), "train"))}


def _load(name: str, split: str, n: int) -> tuple[Tensor, Tensor]:
    try:
        return data.load(name, split, n=n)
    except ValueError as error:
        if "to squash" not in str(error) and "resize='area'" not in str(error):
            raise
        return data.load(name, split, n=n, size=_one_side(name), resize="area")  # of several shapes: to one square


def _one_side(name: str, most: int = 224) -> int:
    """The side of a square to which every image of a set can be reduced."""
    from PIL import Image

    folder = folders.find(name)
    for split in layout.splits(folder):
        with suppress(ValueError):  # an empty split
            for path, _ in layout.samples(folder, split):
                layout.require_file(Path(path))  # before anybody waits for a pipe
                with Image.open(path) as image:  # the header alone
                    most = min(most, *image.size)
    return most


def _of_batches(batches: Iterable[Any], n: int) -> tuple[Tensor, Tensor]:
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    for batch in batches:
        if isinstance(batch, Mapping):
            x = next((batch[key] for key in ("pixel_values", "image", "images", "x") if key in batch), None)
            y = next((batch[key] for key in ("labels", "label", "y", "target") if key in batch), None)
        else:
            x, y = batch[0], batch[1]
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            raise Refusal("a batch of the loader must be (images, labels), two tensors")
        xs.append(x)
        ys.append(y)
        if sum(map(len, ys)) >= n:
            break
    if not xs:
        raise Refusal("the loader gives no images")
    return torch.cat(xs), torch.cat(ys)


def _split(x: Tensor, y: Tensor, n: int, name: str) -> Images:
    others = x[n : n + CALIBRATION]
    return _checked(x[:n], y[:n], others if len(others) >= CALIBRATION // 2 else x[:CALIBRATION], name)


def _checked(x: Tensor, y: Tensor, calibration: Tensor, name: str) -> Images:
    try:
        data.check(x, y)
    except (TypeError, ValueError) as error:
        raise Refusal(str(error)) from error
    low, high = float(x.min()), float(x.max())
    if low < -1e-3 or high > 1 + 1e-3:
        cure = "divide by 255" if low >= 0 and high > 2 else "give the pixels, and mean= and std= beside them"
        raise Refusal(f"images must be in [0, 1], got values from {low:g} to {high:g}: {cure}")
    x, y, calibration = (t.detach().cpu() for t in (x, y, calibration))
    return Images(x.float(), y, calibration.float(), name)
