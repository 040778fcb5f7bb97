"""Where data sets lie, which are there, and how one is put there: staged beside the others, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from .layout import EXPECTED, ArchiveError, splits
from .manifest import archives, write_manifest

SETTING = "ADVDIM_DATA"  # environment variable that names the data root
TORCHVISION = {"cifar10": "cifar-10-batches-py", "imagenette": "imagenette2"}  # the folders it unpacks them to
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


class MissingDataError(FileNotFoundError):
    """A data set is neither in the data root nor downloadable; the message says how to get it."""


def locate(root: str | Path | None = None) -> tuple[Path, str]:
    """Return the data root and, in words, the setting that it came from (see :func:`advdim.data.root`)."""
    if root is not None:
        return Path(root).expanduser().absolute(), "as asked for"
    if os.environ.get(SETTING):
        return Path(os.environ[SETTING]).expanduser().absolute(), f"from the environment variable {SETTING}"
    import platformdirs

    return Path(platformdirs.user_cache_dir("advdim")), f"the default; the environment variable {SETTING} is not set"


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
                shutil.rmtree(leftover)
            temporary = Path(tempfile.mkdtemp(prefix=_STAGING, dir=root))
            try:
                yield temporary
            finally:
                shutil.rmtree(temporary)
    except filelock.Timeout as error:
        raise ArchiveError(f"waited {LOCK_SECONDS:.0f} s for another process that writes to {root}") from error


def names(root: str | Path | None = None) -> list[str]:
    """Return the names of the data sets in the root, sorted; the embedded digits are not among them."""
    there = locate(root)[0]
    downloaded = [name for name, folder in TORCHVISION.items() if (there / folder).is_dir()]
    inside = sorted(there.iterdir()) if there.is_dir() else []
    skip = (*TORCHVISION.values(), *TORCHVISION, "digits")
    return sorted(downloaded + [f.name for f in inside if f.name[0] != "." and f.name not in skip and splits(f)])


def find(name: str, root: str | Path | None = None) -> Path:
    """Return the folder of a data set, having torchvision download CIFAR-10 or Imagenette if it is not there.

    Args:
        name: of a folder in the data root; or the path of any folder of images, told by a slash in it (as "./photos").
        root: see :func:`locate`.

    Raises:
        ValueError: ``name`` is no name of a folder, or a path at which no images lie in classes.
        MissingDataError: it is not there; the message names the cure.
    """
    if is_path(name):
        folder = Path(name).expanduser().absolute()
        if not folder.is_dir():
            raise MissingDataError(f"there is no folder {folder}; a data set in the data root is named without slashes")
        if not splits(folder):
            raise ValueError(f"{folder} holds no images by classes: {EXPECTED}")
        return folder
    if not name or name.startswith("."):
        raise ValueError(f"a data set is named as its folder in the data root, or by a path with a slash, got {name!r}")
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


def is_path(name: str) -> bool:
    """Whether a data set is named by the path of its folder."""
    return os.sep in name or "/" in name


def remove(name: str, root: str | Path | None = None) -> Path:
    """Delete a data set from the data root, in whole even if killed, and return the folder that it was in.

    Raises:
        ValueError: ``name`` is no name of a folder, or its files came from no archive and no download, so that they
            may be the only ones.
        MissingDataError: it is not there.
    """
    if name == "digits" or is_path(name):
        raise ValueError(f"only data sets in the data root can be removed, got {name!r}")
    if name in TORCHVISION and not (locate(root)[0] / TORCHVISION[name]).is_dir():
        raise MissingDataError(f"no data set {name!r} in {locate(root)[0]}")
    folder = find(name, root)
    if name not in TORCHVISION and archives(folder) is None:
        raise ValueError(f"{folder} came from no archive: its files may be the only ones, so remove it yourself")
    with staging(locate(root)[0]) as temporary:
        folder.rename(temporary / folder.name)
    return folder


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
