"""Files that are written whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def writing(path: Path, *, beside: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` when the context ends without an error.

    Args:
        path: the file.
        beside: the file written meanwhile, in the same folder; default one of a name that no other process takes. A
            process that is killed leaves it behind.

    Raises:
        OSError: if the file cannot be written; the error names ``path``, which is as it was.
    """
    try:
        if beside is None:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
            os.close(handle)
            beside = Path(name)
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except OSError as error:  # a full disk does not say which file it was
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; raises as :func:`writing` does."""
    with writing(path) as file:
        file.write(text.encode())


def json_checksum(content: Any) -> str:
    """The sha256 of what is written as JSON, whatever the order of its keys; kept beside it, it shows damage."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
