"""What a set came from, and whether it is still that: archives by checksum, files by name, size and sha256."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .layout import MANIFEST, files, manifest, parts, require_file

LISTING = MANIFEST + ".files"  # beside the manifest: a line "sha256 size path" per file


def write_manifest(folder: Path, archives: dict[str, str]) -> None:
    """Note which archives, by checksum, a tree came from, and the names, sizes and contents of its files."""
    lines = [f"{_sha256(folder / p)} {(folder / p).stat().st_size} {p.as_posix()}\n" for p in files(folder)]
    (folder / LISTING).write_text("".join(lines), encoding="utf-8")
    listing = hashlib.sha256("".join(lines).encode()).hexdigest()
    text = json.dumps({"archives": archives, "files": len(lines), "listing": listing}, indent=1, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def archives(folder: Path) -> dict[str, str] | None:
    """Return the archives by name, with their checksums, that a set came from; None if it did not."""
    found = [known for part in parts(folder) if (known := manifest(part)) is not None]
    return {name: checksum for known in found for name, checksum in known["archives"].items()} if found else None


def checksum(folder: Path) -> str:
    """Identify a set by the archives it came from, or else by the sha256 of all its files.

    Raises:
        ValueError: files of a set that came from archives are missing, were added, or have another size; or a file is
            a pipe or a device.
    """
    known = archives(folder)
    if known is None:
        tree = hashlib.sha256()
        for path in files(folder):
            tree.update(path.as_posix().encode() + b"\0" + bytes.fromhex(_sha256(folder / path)))
        return f"sha256:{tree.hexdigest()}"
    for part in parts(folder):
        _check_sizes(folder, part)
    return " ".join(f"{archive}={known[archive]}" for archive in sorted(known))


def verify(folder: Path) -> int | None:
    """Compare the content of every file with what was unpacked; return how many, or None if nobody noted it.

    Raises:
        ValueError: as :func:`checksum`, or a file has another content; the message names the first.
    """
    checksum(folder)
    compared = 0
    for part in parts(folder):
        listing = _listing(part)
        if listing is None:
            if manifest(part) is not None or (part == folder and any(True for _ in files(part))):
                return None
            continue
        for path, (sha256, _) in listing.items():
            if _sha256(part / path) != sha256:
                raise ValueError(f"{part / path} is not what was unpacked: {_cure(folder)}")
        compared += len(listing)
    return compared


def _check_sizes(folder: Path, part: Path) -> None:
    known, listing = manifest(part), _listing(part)
    found = [path.as_posix() for path in files(part)]
    if known is None:
        if found:  # beside shards
            raise ValueError(f"{part / found[0]} came from no archive, as the rest of {folder} did: move it away")
        return
    if len(found) != known["files"]:
        raise ValueError(f"{part} has {len(found)} files, unpacked were {known['files']}: {_cure(folder)}")
    for path in found if listing is not None else ():  # unpacked by a version that noted their number alone
        assert listing is not None
        if path not in listing:
            raise ValueError(f"{part / path} was not unpacked there: {_cure(folder)}")
        if (size := (part / path).stat().st_size) != listing[path][1]:
            raise ValueError(f"{part / path} has {size} bytes, unpacked were {listing[path][1]}: {_cure(folder)}")


def _listing(part: Path) -> dict[str, tuple[str, int]] | None:
    known = manifest(part)
    if known is None or "listing" not in known:
        return None
    path = part / LISTING
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != known["listing"]:
            raise ValueError("another checksum than that of its manifest")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): {_cure(part)}") from error
    lines = [line.split(" ", 2) for line in content.decode().splitlines()]
    return {name: (sha256, int(size)) for sha256, size, name in lines}


def _cure(folder: Path) -> str:
    return f"remove {folder} and add it again"


def _sha256(path: Path) -> str:
    require_file(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
