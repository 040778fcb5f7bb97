"""Locks on points: which points are being measured, so that several runners share one folder.

Each is a lock of the operating system on a file of its own, which the kernel drops with the process that holds it,
even one killed by SIGKILL. The folder has to be on a file system with locks (network file systems mostly have them; of
one that has not, filelock warns). The process that writes a point's record holds it, not the one that computes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import filelock

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
    """Whether a runner is measuring a point right now."""
    if not (folder / FOLDER / name).exists():
        return False
    lock = acquire(folder, name)  # for a moment: a runner that comes just now sees it taken, and comes back
    if lock is not None:
        lock.release()
    return lock is None
