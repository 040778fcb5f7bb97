"""Where data sets lie, which are there, and how one is put there: staged beside the others, then renamed."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

SETTING = "ADVDIM_DATA"  # environment variable that names the data root
TORCHVISION = {"cifar10": "cifar-10-batches-py", "imagenette": "imagenette2"}  # the folders it unpacks them to
MANIFEST = ".advdim.json"  # beside train/ and test/, where torchvision's ImageFolder does not look
# The archives that the recorded results were computed from.
KNOWN = {
    "cifar10-jpeg.tar.xz": "fbee1725ffcd06fd203c9d60bafc911f8c0d91ba44631ca2fdac134c6374799b",
    "imagenette-224-shard0.tar": "81984182ad30e1d2206bf068578a92b48a7a0d6453d6c65923becf96f9247d44",
    "imagenette-224-shard1.tar": "fd7528121c17aadf2f9fd062c1f37fc3bc39059e48204bad454a54a68f0dcb6a",
    "imagenette-224-shard2.tar": "1fc05088b53ff579c3318c432f8f0f1158502ce7532af2fcd92ff79b3c259c55",
    "imagenette-224-shard3.tar": "990da26ef9082c90c30f39ea32fa21e00a801a381490ab27a667630c81299ad3",
}
LOCK_SECONDS = 600.0  # how long to wait for another process that writes to the same root
_STAGING = ".advdim-staging-"
REPLACED = "replaced"  # inside a staging folder: where the old tree waits when it cannot be exchanged in one step


class MissingDataError(FileNotFoundError):
    """A data set is neither in the data root nor downloadable; the message says how to get it."""


class ArchiveError(ValueError):
    """An archive that cannot or must not be unpacked; the data root is as it was."""


def locate(root: str | Path | None = None) -> tuple[Path, str]:
    """Return the data root and, in words, the setting that it came from (see :func:`advdim.data.root`)."""
    if root is not None:
        return Path(root).expanduser().absolute(), "as asked for"
    if os.environ.get(SETTING):
        return Path(os.environ[SETTING]).expanduser().absolute(), f"from the environment variable {SETTING}"
    import platformdirs

    return Path(platformdirs.user_cache_dir("advdim")), f"the default; the environment variable {SETTING} is not set"


def manifest(folder: Path) -> dict[str, Any] | None:
    """Read ``{"archives": {name: checksum}, "files": count}`` of an unpacked data set; None if it has none."""
    try:
        found: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ArchiveError(f"{folder / MANIFEST} is damaged ({error}); remove {folder} and add it again") from error
    return found


def write_manifest(folder: Path, archives: dict[str, str]) -> None:
    """Note which archives, by checksum, a data set came from, and how many files it has."""
    text = json.dumps({"archives": archives, "files": sum(1 for _ in files(folder))}, indent=1, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def files(folder: Path) -> Iterator[Path]:
    """Yield every file of a data set but its manifest, sorted, relative to ``folder``."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name).relative_to(folder)
            if path != Path(MANIFEST):
                yield path


@contextmanager
def staging(root: Path) -> Iterator[Path]:
    """Yield an empty folder inside ``root``, to be filled and renamed from, while no other process writes there.

    What a killed process left behind is cleaned up first, and this folder is removed in the end.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock = root / ".advdim.lock"
    try:
        with filelock.FileLock(lock, timeout=LOCK_SECONDS):  # the system drops it with the process, even if killed
            for leftover in root.glob(_STAGING + "*"):
                _clear(leftover)
            temporary = Path(tempfile.mkdtemp(prefix=_STAGING, dir=root))
            try:
                yield temporary
            finally:
                _clear(temporary)
    except filelock.Timeout as error:
        raise ArchiveError(f"waited {LOCK_SECONDS:.0f} s for another process that writes to {root}") from error


def _clear(temporary: Path) -> None:
    for old in temporary.glob(f"{REPLACED}/*"):
        if not (temporary.parent / old.name).exists():  # stopped between the two renames of _swap
            old.rename(temporary.parent / old.name)
    shutil.rmtree(temporary)


def splits(folder: Path) -> dict[str, Path]:
    """Return the folders of the splits "train" and "test" that a data set has; "val" stands in for "test"."""
    found = {split: folder / split for split in ("train", "val", "test") if (folder / split).is_dir()}
    if "val" in found:
        found.setdefault("test", found.pop("val"))
        found.pop("val", None)
    return found


def names(root: str | Path | None = None) -> list[str]:
    """Return the names of the data sets in the root, sorted; the embedded digits are not among them."""
    there = locate(root)[0]
    downloaded = [name for name, folder in TORCHVISION.items() if (there / folder).is_dir()]
    inside = sorted(there.iterdir()) if there.is_dir() else []
    skip = (*TORCHVISION.values(), *TORCHVISION, "digits")
    return sorted(downloaded + [f.name for f in inside if f.name[0] != "." and f.name not in skip and splits(f)])


def checksum(folder: Path) -> str:
    """Identify a data set by the archives it came from, or else by the sha256 of all its files."""
    known, found = manifest(folder), list(files(folder))
    if known is None:
        tree = hashlib.sha256()
        for path in found:
            tree.update(path.as_posix().encode() + b"\0" + hashlib.sha256((folder / path).read_bytes()).digest())
        return f"sha256:{tree.hexdigest()}"
    if len(found) != known["files"]:
        raise ValueError(f"{folder} has {len(found)} files, unpacked were {known['files']}; remove it and add it again")
    return " ".join(f"{archive}={known['archives'][archive]}" for archive in sorted(known["archives"]))


def find(name: str, root: str | Path | None = None) -> Path:
    """Return the folder of a data set, having torchvision download CIFAR-10 or Imagenette if it is not there.

    Raises:
        ValueError: ``name`` is no name of a folder.
        MissingDataError: it is not there; the message names the cure.
    """
    if not name or name != Path(name).name or name.startswith("."):
        raise ValueError(f"a data set is named as its folder in the data root, got {name!r}")
    there, setting = locate(root)
    folder = there / TORCHVISION.get(name, name)
    if name in TORCHVISION and not folder.is_dir():
        _download(name, folder, setting)
    if name in TORCHVISION or splits(folder):
        return folder
    known = [archive for archive in KNOWN if archive.startswith(name)]
    raise MissingDataError(
        f"no data set {name!r} in {there} ({setting}); there: {', '.join(names(root)) or 'nothing'}; always: digits, "
        f"and by download {', '.join(TORCHVISION)}. Unpack it with: advdim data add {' '.join(known) or 'ARCHIVE'}"
    )


def _download(name: str, folder: Path, setting: str) -> None:
    from torchvision import datasets

    try:
        with staging(folder.parent) as temporary:
            if folder.is_dir():  # another process was faster
                return
            if name == "cifar10":
                datasets.CIFAR10(temporary, download=True)
            else:
                url, md5 = datasets.Imagenette._ARCHIVES["full"]
                datasets.Imagenette(temporary, download=True)
                write_manifest(temporary / folder.name, {Path(url).name: f"md5:{md5}"})
            (temporary / folder.name).rename(folder)
    except (OSError, RuntimeError, EOFError) as error:  # offline, refused, cut short, wrong md5, full disk
        raise MissingDataError(
            f"{name!r} is not in {folder.parent} ({setting}), and torchvision could not download it ({error}). "
            f"Load it once where there is a network and copy its folder to {folder}, or set {SETTING} to where it is"
        ) from error
