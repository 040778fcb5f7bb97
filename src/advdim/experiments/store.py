"""Results on disk: one JSON file per point while an experiment runs, one text file per experiment in the record."""

from __future__ import annotations

import json
import os
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

from .spec import key_of

Record = dict[str, Any]

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
    _write(folder / f"{name}.json", json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")
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


def write_record(path: Path, header: Record, points: list[Record]) -> None:
    """Write the compact record of an experiment: a header line, then one line per point, sorted.

    The fields that all points agree on (their provenance, mostly) stand once, in the header's ``shared``.

    Args:
        path: the text file, JSON lines.
        header: what the record is of.
        points: the records of points, all done.

    Raises:
        ValueError: if there are no points, or one of them is not done.
        OSError: if the file cannot be written; the message names it, and an older file stays as it was.
    """
    if not points:
        raise ValueError(f"no points to record in {path.name}")
    undone = [p for p in points if p["status"] != "done"]
    if undone:
        raise ValueError(f"{len(undone)} points are not done, the first of them {undone[0]['spec']}: run them again")
    flat = [_flat(_rounded(point)) for point in points]
    shared = {k: v for k, v in flat[0].items() if all(k in point and point[k] == v for point in flat)}
    own = [{k: v for k, v in point.items() if k not in shared} for point in flat]
    lines = sorted(json.dumps(_nested(point), sort_keys=True, allow_nan=False) for point in own)
    path.parent.mkdir(parents=True, exist_ok=True)
    first = json.dumps(header | {"shared": _nested(shared)}, sort_keys=True, allow_nan=False)
    _write(path, "\n".join([first, *lines]) + "\n")


def restore(folder: Path, points: list[Record]) -> int:
    """Write the points of a record, as :func:`read_record` gives them, into a folder that lacks them; return how many.

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


def read_record(text: str) -> tuple[Record, list[Record]]:
    """Header and points of the text that :func:`write_record` wrote, each point whole again."""
    header, *points = (json.loads(line) for line in text.splitlines())
    shared = _flat(header.pop("shared"))
    return header, [_nested(shared | _flat(point)) for point in points]


def recorded(name: str) -> tuple[Record, list[Record]]:
    """Header and points of a recorded experiment, as committed with the package.

    Args:
        name: "EXPERIMENT-DATA", for example "initialisation-cifar10-jpeg".

    Raises:
        FileNotFoundError: if there is no such record; the message lists those that there are.
    """
    folder = resources.files("advdim.experiments") / "recorded"
    file = folder / f"{name}.jsonl"
    if not file.is_file():
        files = folder.iterdir() if folder.is_dir() else []
        known = sorted(f.name.removesuffix(".jsonl") for f in files if f.name.endswith(".jsonl"))
        raise FileNotFoundError(f"no record {name!r}: there are {', '.join(known) or 'none'}")
    return read_record(file.read_text(encoding="utf-8"))


def _write(path: Path, text: str) -> None:
    try:
        _replace(path, text)
    except OSError as error:  # a full disk does not say which file it was
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _rounded(value: Any) -> Any:
    """Floats to six significant digits: more is not reproducible, and the diffs stay readable."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _flat(record: Record, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The leaves of nested dictionaries by their paths."""
    leaves: dict[tuple[str, ...], Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            leaves |= _flat(value, (*path, key))
        else:
            leaves[*path, key] = value
    return leaves


def _nested(leaves: dict[tuple[str, ...], Any]) -> Record:
    """The inverse of :func:`_flat`."""
    record: Record = {}
    for path, value in leaves.items():
        inner = record
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    return record
