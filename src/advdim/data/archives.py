"""Put archives of images into the data root: checked, refused if unsafe, each in a folder of its own by one rename."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from .folders import KNOWN, TORCHVISION, locate, staging
from .layout import EXPECTED, MANIFEST, SHARD, SPLITS, ArchiveError, check_layout, files, manifest, parts, require_file
from .manifest import archives, write_manifest

DEPTH = 32  # folders inside each other, at most
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db")  # what systems add to an archive by themselves
OF_NAMES = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EILSEQ, errno.EINVAL)
Member = tuple[str, int, IO[bytes] | None]  # name, size in bytes, content; None of a folder


@dataclass(frozen=True)
class Added:
    """What became of one archive."""

    archive: str
    sha256: str
    verified: bool  # against the table of known archives or the caller's checksum, not only computed
    folder: Path
    files: int  # unpacked now; 0 if the archive was there already


def add(archive: str | Path, root: str | Path | None = None, *, sha256: str | None = None) -> Added:
    """Unpack a local archive of images into the data root, beside the archives of the same set added before.

    The archive holds ``<name>/{train,test or val}/<class>/<image>``, or less: without the splits, every fifth image of
    a class is for testing; without the name, the set is called as the archive. Shards of one set share the name.
    Killed at any moment, the root holds the archive whole or not at all. Adding an archive again changes nothing.

    Args:
        archive: a tar file, plain or compressed by gzip, bzip2 or xz, or a zip file.
        root: where data lies, see :func:`advdim.data.root`.
        sha256: the checksum that the file must have; not needed for the archives in ``KNOWN``.

    Raises:
        FileNotFoundError: there is no such file.
        ArchiveError: a wrong checksum; a truncated or damaged archive; a member that is a link, a device, or
            leaves the folder; images that do not lie in folders by class; a folder of that name that did not come from
            archives; a file that is there already with other content.
        OSError: the file system refuses, for instance because the disk is full.
    """
    archive, root = Path(archive), locate(root)[0]
    try:
        require_file(archive)
    except ValueError as error:
        cure = f"; images in a folder need no adding: their data set is called {archive}{os.sep}"
        raise ArchiveError(f"{error}{cure if archive.is_dir() else ''}") from error
    with archive.open("rb") as stream:
        computed = hashlib.file_digest(stream, "sha256").hexdigest()
    for expected in (sha256, KNOWN.get(archive.name)):
        if expected is not None and computed != expected.lower():
            raise ArchiveError(f"{archive} has sha256 {computed}, expected {expected}: fetch it again")
    verified = sha256 is not None or archive.name in KNOWN

    with staging(root) as temporary:
        for present in sorted([*root.glob(f"*/{MANIFEST}"), *root.glob(f"*/{SHARD}*/{MANIFEST}")]):
            if computed in (manifest(present.parent) or {}).get("archives", {}).values():
                there = present.parent
                return Added(archive.name, computed, verified, there.parent if there.parent != root else there, 0)
        try:
            name, new = _unpack(archive, temporary)
            shard, target = f"{SHARD}{computed[:12]}", root / name
            if target.exists():
                _check_beside(target, new, archive.name)
            write_manifest(new, {archive.name: computed})
            unpacked = sum(1 for _ in files(new))
            new.rename(temporary / shard)
            if target.exists():
                (temporary / shard).rename(target / shard)
            else:
                (temporary / "set").mkdir()
                (temporary / shard).rename(temporary / "set" / shard)
                (temporary / "set").rename(target)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                text = f"no space left to unpack {archive.name}, nothing changed"
                raise OSError(error.errno, text, str(root)) from error
            raise
    return Added(archive.name, computed, verified, target, unpacked)


def _unpack(archive: Path, temporary: Path) -> tuple[str, Path]:
    """Unpack into a new folder; return the name of the data set, and the folder of its splits or classes."""
    into, free = temporary / "new", shutil.disk_usage(temporary).free
    into.mkdir()
    try:
        with archive.open("rb") as file, _members(file, archive) as members:
            for name, size, content in members:
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts or not name.isprintable() or "\\" in name:
                    raise ArchiveError(f"{archive}: refused {name!r}, which is no file or folder inside it")
                if len(path.parts) > DEPTH:
                    raise ArchiveError(f"{archive}: refused {name[:80]!r}..., {len(path.parts)} folders deep")
                free -= size
                if free < 0:  # said at once, and not after hours of zeros
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if any(part in LITTER or part.startswith("._") for part in path.parts):
                    continue
                _write(into / path, content)
    except ArchiveError:
        raise
    except Exception as error:  # from bytes that are no archive, the readers raise whatever they stumble over
        if isinstance(error, OSError) and error.errno not in (None, *OF_NAMES):
            raise  # the system's, as a full disk; those of gzip and bz2 about bad data have no number
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ArchiveError(f"{archive} is truncated or damaged: {reason}") from error
    name, found = _locate_set(archive, into)
    if name.startswith(".") or name in ("digits", *TORCHVISION, *TORCHVISION.values()):
        raise ArchiveError(f"{archive}: a data set cannot be called {name!r}")
    try:
        check_layout(found)
    except ValueError as error:
        raise ArchiveError(f"{archive} cannot be used: {error}") from error
    return name, found


def _locate_set(archive: Path, into: Path) -> tuple[str, Path]:
    """The name of the set is that of the one folder around its splits or classes, or else the archive's."""
    found = sorted(path for path in into.iterdir() if path.is_dir())
    inside = sorted(path.name for path in found[0].iterdir() if path.is_dir()) if found else []
    own_name = archive.name.split(".")[0] or archive.name
    if set(SPLITS) & {path.name for path in found}:
        return own_name, into
    if len(found) == 1 and inside:
        return found[0].name, found[0]
    if any((path / split).is_dir() for path in found for split in SPLITS):
        raise ArchiveError(f"{archive} holds several sets, {[path.name for path in found][:5]}: {EXPECTED}")
    return own_name, into


def _write(path: Path, content: IO[bytes] | None) -> None:
    if content is None:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:  # a new file, with neither the archive's owner nor its permissions
        shutil.copyfileobj(content, file, 1 << 20)


@contextmanager
def _members(file: IO[bytes], archive: Path) -> Iterator[Iterator[Member]]:
    magic = file.read(4)
    file.seek(0)
    if magic in (b"PK\x03\x04", b"PK\x05\x06"):
        with zipfile.ZipFile(file) as zipped:
            yield _in_zip(zipped, archive)
    else:
        with tarfile.open(fileobj=file) as tar:
            yield _in_tar(tar, archive)


def _in_tar(tar: tarfile.TarFile, archive: Path) -> Iterator[Member]:
    for member in tar:
        if not (member.isfile() or member.isdir()):
            raise ArchiveError(f"{archive}: refused {member.name!r}, which is no file or folder inside it")
        yield member.name, member.size, tar.extractfile(member)
    # tarfile takes a file cut between two members, or a damaged header, for the end of the archive.
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ArchiveError(f"{archive} is truncated or damaged: it has no end mark")
    while tar.fileobj.read(1 << 20):  # a compressed file's own checksum is compared at its very end
        pass


def _in_zip(zipped: zipfile.ZipFile, archive: Path) -> Iterator[Member]:
    for member in zipped.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ArchiveError(f"{archive}: refused {member.filename!r}, which is no file or folder inside it")
        if member.is_dir():
            yield member.filename, 0, None
            continue
        with zipped.open(member) as content:
            yield member.filename, member.file_size, content


def _check_beside(old: Path, new: Path, archive: str) -> None:
    """Refuse a shard of a set that is there, if the two do not go together."""
    known = archives(old)
    if known is None:
        raise ArchiveError(f"{old} did not come from archives (it has no {MANIFEST}); move it away first")
    if archive in known:
        raise ArchiveError(
            f"{old} already holds another archive named {archive} (sha256 {known[archive]}): to replace it, first "
            f"`advdim data remove {old.name}`"
        )
    for path in files(new):
        for part in parts(old):
            if (part / path).exists() and not filecmp.cmp(part / path, new / path, shallow=False):
                raise ArchiveError(f"{part / path} is there already, and {archive} holds another file under that name")
