"""Locks on points: which points are being measured, so that several runners share one folder.

Each is a lock of the operating system on a file of its own, which the kernel drops with the process that holds it,
even one killed by SIGKILL. The folder has to be on a file system with locks (network file systems mostly have them; of
one that has not, filelock warns). The process that writes a point's record holds it, not the one that computes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import filelock

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Lock: TypeAlias = filelock.BaseFileLock

FOLDER = ".locks"  # inside the folder of points; its empty files stay, since deleting a lock's file is a race


def acquire(folder: Path, name: str) -> Lock | None:
    """Lock a point until ``release()`` is called or the process ends; None if another runner has it.

    Raises:
        OSError: if its file cannot be made.
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / FOLDER / name)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return None
    return lock


def is_held(folder: Path, name: str) -> bool:
    """Whether a runner is measuring a point right now; also of a folder that this process may only read."""
    path = folder / FOLDER / name
    if not path.exists():
        return False
    if fcntl is not None:
        with path.open("rb") as file:
            try:
                # For a moment: a runner that comes just now sees it taken, and comes back.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False
    lock = acquire(folder, name)
    if lock is not None:
        lock.release()
    return lock is None


def begin(folder: Path, name: str, run: str) -> int:
    """Note that one of several processes of a run begins a point that it has locked.

    Returns:
        How often processes of this run began it before: each has died of it, or else :func:`end` would have come.
    """
    path = folder / FOLDER / f"{name}.begun"
    before = path.read_text(encoding="utf-8").split().count(run) if path.exists() else 0
    path.write_text(f"{run}\n" * (before + 1), encoding="utf-8")
    return before


def end(folder: Path, name: str) -> None:
    """Note that a point has a record, done or failed."""
    (folder / FOLDER / f"{name}.begun").unlink(missing_ok=True)
