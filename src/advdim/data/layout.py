"""How the images of a set lie in folders: CLASS/IMAGE, with or without splits, in one tree or in several shards."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # as torchvision's ImageFolder
SPLITS = ("train", "test", "val")
EXPECTED = "expected [NAME/][{train,test or val}/]CLASS/IMAGE"
TEST_SHARE = 5  # of a set without splits, every fifth image of each class is for testing
MANIFEST = ".advdim.json"  # beside the splits: which archives the files came from
SHARD = "shard-"  # begins the name of the folder of one archive, beside others of the same set


class ArchiveError(ValueError):
    """An archive that cannot or must not be unpacked; the data root is as it was."""


def manifest(folder: Path) -> dict[str, Any] | None:
    """Read ``{"archives": {name: checksum}, "files": count, ...}`` of a folder of images; None if it has none."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found["archives"], dict) or not isinstance(found["files"], int):
            raise ValueError("no archives and number of files in it")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArchiveError(f"{path} is damaged ({error}); remove {folder} and add it again") from error
    return dict(found)


def parts(folder: Path) -> list[Path]:
    """Return the trees that make up a set: its own folder, and those of its shards, in order."""
    shards = sorted(path for path in folder.glob(f"{SHARD}*") if (path / MANIFEST).is_file())
    return [folder, *shards]


def files(folder: Path) -> Iterator[Path]:
    """Yield every file of one tree, relative to it and sorted, but for its manifest and its shards."""
    for parent, folders, names in os.walk(folder):
        top = Path(parent) == folder
        folders[:] = sorted(name for name in folders if not (top and name.startswith(SHARD)))
        for name in sorted(names):
            if not (top and name.startswith(MANIFEST)):
                yield Path(parent, name).relative_to(folder)


def splits(folder: Path) -> dict[str, str]:
    """Return which folder holds each of "train" and "test"; "val" stands in for "test", "" for both without splits."""
    there = [name for name in SPLITS if any((part / name).is_dir() for part in parts(folder))]
    found = {name: name for name in there if name != "val"}
    if "val" in there:
        found.setdefault("test", "val")
    if not found and len(_subfolders(folder, "")) > 1:
        found = {"train": "", "test": ""}
    return found


def classes(folder: Path) -> list[str]:
    """Return the names of the classes, sorted: the folders of all splits together, so that labels agree."""
    return sorted({name for inside in set(splits(folder).values()) for name in _subfolders(folder, inside)})


def samples(folder: Path, split: str) -> list[tuple[str, int]]:
    """Return the images of a split with their labels, by class, then by name, whatever shard they lie in.

    Raises:
        ValueError: a class has no image in any split, or images lie beside the classes' folders.
    """
    inside, found = splits(folder)[split], []
    for label, name in enumerate(classes(folder)):
        images = _images(folder, inside, name)
        if not images and not any(_images(folder, other, name) for other in set(splits(folder).values())):
            raise ValueError(f"{folder / inside / name} holds no image ({', '.join(IMAGES)}): add some or remove it")
        if not inside:
            images = [path for i, path in enumerate(images) if (i % TEST_SHARE == TEST_SHARE - 1) == (split == "test")]
        found += [(path, label) for path in images]
    if not found:
        raise ValueError(f"{folder / inside} holds no image for the split {split!r}: {EXPECTED}")
    return found


def check_layout(folder: Path) -> None:
    """Refuse a tree that :func:`samples` would read only in part, or not at all.

    Raises:
        ValueError: it has no classes, a class without images, or images beside the classes' folders.
    """
    found = set(splits(folder).values())
    if not found:
        raise ValueError(f"it holds {sorted(path.name for path in folder.iterdir())[:5]}, {EXPECTED}")
    for inside in found:
        for entry in sorted((folder / inside).iterdir()):
            path = entry.relative_to(folder).as_posix()
            if entry.is_file() and is_image(entry.name):
                raise ValueError(f"the image {path} lies beside the classes, {EXPECTED}")
            if entry.is_dir() and not _holds_image(entry):
                raise ValueError(f"the class {path} holds no image ({', '.join(IMAGES)})")
        if not _subfolders(folder, inside):
            raise ValueError(f"{inside} holds no class, {EXPECTED}")


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return name.lower().endswith(IMAGES) and not name.startswith(".")


def require_file(path: Path) -> None:
    """Refuse to wait for a pipe, or to read a device without end.

    Raises:
        ValueError: it is there, and no file.
        FileNotFoundError: it is not there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'a pipe or a device'}, expected a file")


def _subfolders(folder: Path, inside: str) -> list[str]:
    """The folders that stand for classes: without splits, those with images in them, since any folder may be there."""
    found: set[str] = set()
    for part in parts(folder):
        there = os.scandir(part / inside) if (part / inside).is_dir() else ()
        found |= {entry.name for entry in there if entry.is_dir() and not entry.name.startswith(".")}
    if inside:
        return sorted(found)
    found = {name for name in found if not name.startswith(SHARD)}
    return sorted(name for name in found if any(_holds_image(part / name) for part in parts(folder)))


def _holds_image(folder: Path) -> bool:
    return any(is_image(name) for _, names in _walk(folder) for name in names)


def _images(folder: Path, inside: str, name: str) -> list[str]:
    """The images of a class in the order of torchvision's ImageFolder, had all shards been unpacked into one tree."""
    found: dict[tuple[str, str], str] = {}
    for part in parts(folder):
        for parent, names in _walk(part / inside / name):
            where = os.path.relpath(parent, part / inside / name)
            inner = "" if where == "." else where
            found |= {(inner, image): os.path.join(parent, image) for image in names if is_image(image)}
    return [found[place] for place in sorted(found)]


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Folders and the files in them, through links, and each once: a link may lead to a folder above."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(top, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield parent, names
