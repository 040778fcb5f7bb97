"""Put archives of images into the data root: checked, refused if unsafe, and swapped in whole or not at all."""

import ctypes
import errno
import filecmp
import hashlib
import lzma
import os
import shutil
import sys
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .folders import (
    KNOWN,
    MANIFEST,
    REPLACED,
    TORCHVISION,
    ArchiveError,
    files,
    locate,
    manifest,
    staging,
    write_manifest,
)


@dataclass(frozen=True)
class Added:
    """What became of one archive."""

    archive: str
    sha256: str
    verified: bool  # against the table above or the caller's checksum, not only computed
    folder: Path
    files: int  # unpacked now; 0 if the archive was there already


def add(archive: str | Path, root: str | Path | None = None, *, sha256: str | None = None) -> Added:
    """Unpack a local tar archive of images into the data root, merging with the archives added before.

    The archive holds ``<name>/{train,test or val}/<class>/<image>``; shards of one set share ``<name>``. Killed at
    any moment, the root holds either the old tree or the new one. Adding an archive again changes nothing.

    Args:
        archive: a tar file, plain or compressed by gzip, bzip2 or xz.
        root: where data lies, see :func:`advdim.data.root`.
        sha256: the checksum that the file must have; not needed for the archives in ``KNOWN``.

    Raises:
        FileNotFoundError: there is no such file.
        ArchiveError: a wrong checksum; a truncated or damaged archive; a member that is a link, a device, or
            leaves the folder; a folder of that name that did not come from archives; a file that is there already
            with other content.
        OSError: the file system refuses, for instance because the disk is full.
    """
    archive, root = Path(archive), locate(root)[0]
    if not hasattr(tarfile, "data_filter"):
        raise ArchiveError(f"unpacking safely needs Python 3.11.4 or later, this is {sys.version.split()[0]}")
    with archive.open("rb") as stream:
        computed = hashlib.file_digest(stream, "sha256").hexdigest()
    for expected in (sha256, KNOWN.get(archive.name)):
        if expected is not None and computed != expected.lower():
            raise ArchiveError(f"{archive} has sha256 {computed}, expected {expected}: fetch it again")
    verified = sha256 is not None or archive.name in KNOWN

    with staging(root) as temporary:
        for present in sorted(root.glob(f"*/{MANIFEST}")):
            if computed in (manifest(present.parent) or {}).get("archives", {}).values():
                return Added(archive.name, computed, verified, present.parent, 0)
        try:
            new = _unpack(archive, temporary / "new")
            target = root / new.name
            unpacked = sum(1 for _ in files(new))
            archives = {archive.name: computed}
            if target.exists():
                archives |= _link_old(target, new, archive.name)
            write_manifest(new, archives)
            _swap(new, target, temporary)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                text = f"no space left to unpack {archive.name}, nothing changed"
                raise OSError(error.errno, text, str(root)) from error
            raise
    return Added(archive.name, computed, verified, target, unpacked)


def _unpack(archive: Path, into: Path) -> Path:
    """Unpack into a new folder and return the one data set in it."""
    into.mkdir()
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                    raise ArchiveError(f"{archive}: refused {member.name!r}, which is no file or folder inside it")
                tar.extract(member, into, filter="data")
            # tarfile takes a file cut between two members, or a damaged header, for the end of the archive.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ArchiveError(f"{archive} is truncated or damaged: it has no end mark")
            while tar.fileobj.read(1 << 20):  # a compressed file's own checksum is compared at its very end
                pass
    except tarfile.FilterError as error:
        raise ArchiveError(f"{archive}: refused: {error}") from error
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, as a full disk; those of gzip and bz2 about bad data have no number
        raise ArchiveError(f"{archive} is truncated or damaged: {str(error).splitlines()[0]}") from error
    found = sorted(path.name for path in into.iterdir())
    if len(found) != 1 or not any((into / found[0] / split).is_dir() for split in ("train", "test", "val")):
        raise ArchiveError(f"{archive} holds {found[:5]}, expected one folder with train, test or val in it")
    if found[0].startswith(".") or found[0] in ("digits", *TORCHVISION):
        raise ArchiveError(f"{archive}: a data set cannot be called {found[0]!r}")
    return into / found[0]


def _link_old(old: Path, new: Path, archive: str) -> dict[str, str]:
    """Hard-link the files of the old tree into the new one, and return the archives that they came from."""
    known = manifest(old)
    if known is None:
        raise ArchiveError(f"{old} did not come from archives (it has no {MANIFEST}); move it away first")
    for path in files(old):
        if not (new / path).exists():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(old / path, new / path)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                shutil.copy2(old / path, new / path)  # a file system without hard links
        elif not filecmp.cmp(old / path, new / path, shallow=False):
            raise ArchiveError(f"{old / path} is there already, and {archive} holds another file under that name")
    archives: dict[str, str] = known["archives"]
    if archive in archives:
        raise ArchiveError(f"{old} already holds another archive named {archive} (sha256 {archives[archive]})")
    return archives


def _swap(new: Path, target: Path, temporary: Path) -> None:
    """Put ``new`` where ``target`` is; the old tree ends up inside ``temporary``."""
    if not target.exists():
        new.rename(target)
    elif not _exchange(new, target):
        (temporary / REPLACED).mkdir()
        target.rename(temporary / REPLACED / target.name)
        new.rename(target)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two folders in one step, where the system can (Linux, macOS); Python has no call for it."""
    first, second, exchange, here = os.fsencode(a), os.fsencode(b), 2, -100
    try:
        system = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(system.renamex_np(first, second, exchange) == 0)
        return bool(system.renameat2(here, first, here, second, exchange) == 0)
    except (AttributeError, OSError, TypeError):  # Windows, old C libraries
        return False
