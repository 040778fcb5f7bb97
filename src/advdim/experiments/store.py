"""Results on disk: one JSON file per point while an experiment runs, with a checksum, and validated when read."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from ..analysis.records import PROVENANCE, Record
from ..data.atomic import json_checksum, write_text
from ..data.layout import require_file
from .spec import key_of

#: Seconds after which a temporary file is one that a killed process left: writing takes milliseconds.
STALE = 600.0
#: Where damaged files are moved to, inside the folder of points.
ASIDE = "set-aside"
_FIELDS = {"spec", "status", "metrics", "error", "data", "provenance", "checksum"}


class DamagedPointError(ValueError):
    """A file that is not the record of its point; the message names it and says why."""


def path(folder: Path, name: str) -> Path:
    """The file of a point's record."""
    return folder / f"{name}.json"


def checkpoint(folder: Path, name: str) -> Path:
    """The file from which a point's training resumes."""
    return folder / f"{name}.checkpoint"


def save(folder: Path, name: str, record: Record) -> None:
    """Write a record atomically as ``folder/name.json``: whatever happens, the file is there whole or as it was.

    The checkpoint of a point that is done is deleted; that of one that failed stays, to resume from.

    Raises:
        ValueError: if a number is not finite.
        OSError: if the file cannot be written; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = record | {"checksum": _checksum(record)}
    write_text(path(folder, name), json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")
    if record["status"] == "done":
        _delete_checkpoint(folder, name)


def load(folder: Path, name: str) -> Record | None:
    """The record of a point, or None if there is none.

    Raises:
        DamagedPointError: if the file is not a record of this point, whole and unchanged; the message names it.
    """
    file = path(folder, name)
    try:
        require_file(file)
        record = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)
        _validate(record, name)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        reason = f"nested too deeply ({error})" if isinstance(error, RecursionError) else error
        raise DamagedPointError(f"{file} is no readable record ({reason}), and the next run sets it aside") from error
    record.pop("checksum", None)  # not there in files of earlier versions
    return dict(record)


def set_aside(folder: Path, file: Path) -> Path:
    """Move a damaged file out of the way, under a name that no other has; return where it is."""
    (folder / ASIDE).mkdir(exist_ok=True)
    target = folder / ASIDE / f"{file.name}-{time.time_ns()}"
    file.rename(target)
    return target


def check_metrics(spec: Record, metrics: Any) -> None:
    """Refuse what cannot be the metrics of a point.

    Raises:
        ValueError: if they are not names of numbers, of lists of numbers, or of names of such; if a number is not
            finite; if there is not one value for each seed of the spec, or the columns of a history differ in length.
    """
    if not isinstance(metrics, dict) or not metrics:
        raise ValueError(f"metrics must be names with values, got {str(metrics)[:80]}")
    _check_numbers("metrics", metrics)
    for name, values in metrics.items() if "seeds" in spec else ():
        if not isinstance(values, list) or len(values) != spec["seeds"]:
            raise ValueError(f"{name} must have {spec['seeds']} values, one per seed, got {str(values)[:80]}")
    columns = metrics.get("history", {})
    lengths = {len(column) if isinstance(column, list) else 0 for column in columns.values()}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"history must have one value per epoch in each column, got lengths {sorted(lengths)}")


def _check_numbers(name: str, value: Any) -> None:
    if isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _check_numbers(f"{name}.{key}", inner)
    elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {str(value)[:80]!r}: JSON has no other")


def _validate(record: Any, name: str) -> None:
    if not isinstance(record, dict) or not {"spec", "status"} <= record.keys():
        raise ValueError("no spec and status in it")
    if strange := record.keys() - _FIELDS:
        raise ValueError(f"unknown fields {sorted(strange)}")
    if "checksum" in record and record["checksum"] != _checksum(record):
        raise ValueError("its checksum is another")
    if not isinstance(record["spec"], dict) or key_of(record["spec"]) != name:
        raise ValueError("the record of another point")
    status, where = record["status"], record.get("provenance")
    if status == "failed" and isinstance(record.get("error"), str):
        return
    if status != "done":
        raise ValueError(f"status {str(status)[:80]!r} without what goes with it")
    check_metrics(record["spec"], record.get("metrics"))
    if not isinstance(record.get("data"), str) or not record["data"]:
        raise ValueError("no checksum of the data")
    if not isinstance(where, dict) or any(not isinstance(where.get(field), kind) for field, kind in PROVENANCE.items()):
        raise ValueError(f"no provenance with {', '.join(PROVENANCE)}")


def _checksum(record: Record) -> str:
    return json_checksum({name: value for name, value in record.items() if name != "checksum"})


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} in it")


def _delete_checkpoint(folder: Path, name: str) -> None:
    for file in folder.glob(f"{name}.checkpoint*"):  # one that is half written lies beside it
        file.unlink(missing_ok=True)


def clean(folder: Path) -> None:
    """Delete what killed processes left in a folder of points: temporary files, checkpoints of points that are done."""
    for file in folder.glob(".*.json-*"):
        try:
            if time.time() - file.stat().st_mtime > STALE:  # a younger one may be another process's, being written
                file.unlink()
        except FileNotFoundError:
            continue
    for name in {file.name.partition(".")[0] for file in folder.glob("*.checkpoint*")}:
        try:
            done = (load(folder, name) or {}).get("status") == "done"
        except DamagedPointError:
            continue
        if done:
            _delete_checkpoint(folder, name)


def restore(folder: Path, points: list[Record]) -> int:
    """Write the points of a record, as ``read_record`` gives them, into a folder that lacks them; return how many.

    Raises:
        ValueError: if a file of the folder is not a record, or one of the points is not.
        OSError: if a file cannot be written; the message names it.
    """
    restored = 0
    for point in points:
        name = key_of(point["spec"])
        try:
            _validate(point, name)
        except ValueError as error:
            raise ValueError(f"the recorded point {name} is not whole ({error})") from error
        if (load(folder, name) or {}).get("status") != "done":
            save(folder, name, point)
            restored += 1
    return restored
