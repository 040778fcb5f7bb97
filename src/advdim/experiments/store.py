"""Results on disk: one JSON file per point while an experiment runs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ..analysis.records import Record
from ..data.atomic import write_text
from .spec import key_of

#: Seconds after which a temporary file is one that a killed process left: writing takes milliseconds.
STALE = 600.0


def save(folder: Path, name: str, record: Record) -> None:
    """Write a record atomically as ``folder/name.json``: whatever happens, the file is there whole or as it was.

    The checkpoint of a point that is done is deleted; that of one that failed stays, to resume from.

    Raises:
        ValueError: if a number is not finite.
        OSError: if the file cannot be written; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.json", json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")
    if record["status"] == "done":
        _delete_checkpoint(folder, name)


def checkpoint(folder: Path, name: str) -> Path:
    """The file from which a point's training resumes."""
    return folder / f"{name}.checkpoint"


def _delete_checkpoint(folder: Path, name: str) -> None:
    for file in folder.glob(f"{name}.checkpoint*"):  # one that is half written lies beside it
        file.unlink(missing_ok=True)


def load(folder: Path, name: str) -> Record | None:
    """The record of a point, or None if there is none.

    Raises:
        ValueError: if the file is not a record of this point; the message names it.
    """
    path = folder / f"{name}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no readable record ({error}): delete it to measure the point again") from error
    wrong = _what_is_wrong(record, name)
    if wrong:
        raise ValueError(f"{path} {wrong}: delete it to measure the point again")
    return dict(record)


def _what_is_wrong(record: Any, name: str) -> str | None:
    if not isinstance(record, dict) or not {"spec", "status"} <= record.keys():
        return "has no spec and status"
    result = {"done": "metrics", "failed": "error"}.get(str(record["status"]))
    if result is None or result not in record:
        return f"has status {record['status']!r} and no result that goes with it"
    if key_of(record["spec"]) != name:
        return f"is of another point, {key_of(record['spec'])}"
    return None


def clean(folder: Path) -> None:
    """Delete what killed processes left in a folder of points: temporary files, checkpoints of points that are done."""
    for file in folder.glob(".*.json-*"):
        try:
            if time.time() - file.stat().st_mtime > STALE:  # a younger one may be another process's, being written
                file.unlink()
        except FileNotFoundError:
            continue
    for name in {file.name.partition(".")[0] for file in folder.glob("*.checkpoint*")}:
        if (load(folder, name) or {}).get("status") == "done":
            _delete_checkpoint(folder, name)


def restore(folder: Path, points: list[Record]) -> int:
    """Write the points of a record, as ``read_record`` gives them, into a folder that lacks them; return how many.

    Raises:
        ValueError: if a file of the folder is not a record.
        OSError: if a file cannot be written; the message names it.
    """
    restored = 0
    for point in points:
        name = key_of(point["spec"])
        if (load(folder, name) or {}).get("status") != "done":
            save(folder, name, point)
            restored += 1
    return restored
