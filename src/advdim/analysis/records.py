"""The records of experiments, as they are committed with the package: one text file each, a line per point."""

from __future__ import annotations

import json
import math
import os
from importlib import resources
from pathlib import Path
from typing import Any

from ..data.atomic import write_text
from ..data.layout import require_file

Record = dict[str, Any]

#: What is told of where and when a number comes from, and of which type.
PROVENANCE: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("command", "date", "commit", "device", "torch", "python"), str),
    "seconds": (int, float),
}


def write_record(path: Path, header: Record, points: list[Record]) -> None:
    """Write the compact record of an experiment: a header line, then one line per point, in order of their specs.

    The fields that all points agree on (their provenance, mostly) stand once, in the header's ``shared``.

    Args:
        path: the text file, JSON lines.
        header: what the record is of.
        points: the records of points, all done.

    Raises:
        ValueError: if there are no points, one of them is not done or has a number that is not finite, two were
            measured on different versions of a data set, or ``path`` is something else than a record.
        OSError: if the file cannot be written; the message names it, and an older file stays as it was.
    """
    if not points:
        raise ValueError(f"no points to record in {path.name}")
    undone = [p for p in points if p["status"] != "done"]
    if undone:
        raise ValueError(f"{len(undone)} points are not done, the first of them {undone[0]['spec']}: run them again")
    _check_data(points)
    _check_replaceable(path)
    points = sorted(points, key=lambda point: json.dumps(point["spec"], sort_keys=True))
    flat = [_flat(_rounded(point)) for point in points]
    shared = {k: v for k, v in flat[0].items() if all(k in point and point[k] == v for point in flat)}
    own = [{k: v for k, v in point.items() if k not in shared} for point in flat]
    try:
        lines = [json.dumps(_nested(point), sort_keys=True, allow_nan=False) for point in own]
        first = json.dumps(header | {"shared": _nested(shared)}, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path.name}: a number is not finite, and JSON has no such ({error})") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join([first, *lines]) + "\n")


def read_record(text: str) -> tuple[Record, list[Record]]:
    """Header and points of the text that :func:`write_record` wrote, each point whole again.

    Raises:
        ValueError: if it is no such text.
    """
    try:
        header, *points = (json.loads(s, parse_constant=_finite, parse_float=_finite) for s in text.splitlines())
        shared = _flat(header.pop("shared"))
        points = [_nested(shared | _flat(point)) for point in points]
        if not points or not all(isinstance(point["spec"], dict) for point in points):
            raise ValueError("no points in it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no record of an experiment: {type(error).__name__}: {str(error)[:80]}") from error
    return header, points


def read_record_file(path: Path) -> tuple[Record, list[Record]]:
    """As :func:`read_record`; the error names the file."""
    require_file(path)
    try:
        return read_record(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from error
    except OSError as error:  # of reading, which does not say which file it was
        raise OSError(error.errno, error.strerror, str(path)) from error


def _finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"{word} is no finite number")
    return number


def _check_data(points: list[Record]) -> None:
    versions: dict[str, str] = {}
    for point in points:
        name, now = point["spec"].get("images", {}).get("data", ""), str(point.get("data"))
        if versions.setdefault(name, now) != now:
            raise ValueError(
                f"points were measured on two versions of {name}, {versions[name]} and {now}: run them "
                "again on one, in another folder"
            )


def _check_replaceable(path: Path) -> None:
    """A typing error must cost no file: what is there already is another record, or stays."""
    if os.path.lexists(path):
        if path.is_symlink():
            raise ValueError(f"{path} is a link: give the name of the record itself")
        try:
            read_record_file(path)
        except ValueError as error:
            raise ValueError(f"{error}: it is not replaced, give another name") from error


def recorded(name: str) -> tuple[Record, list[Record]]:
    """Header and points of a recorded experiment, as committed with the package.

    Args:
        name: "EXPERIMENT-DATA", for example "initialisation-cifar10-jpeg".

    Raises:
        FileNotFoundError: if there is no such record; the message lists those that there are.
    """
    file = resources.files("advdim.analysis") / "recorded" / f"{name}.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"no record {name!r}: there are {', '.join(names()) or 'none'}")
    return read_record(file.read_text(encoding="utf-8"))


def names() -> list[str]:
    """Names of the records committed with the package, sorted."""
    folder = resources.files("advdim.analysis") / "recorded"
    files = folder.iterdir() if folder.is_dir() else []
    return sorted(f.name.removesuffix(".jsonl") for f in files if f.name.endswith(".jsonl"))


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
