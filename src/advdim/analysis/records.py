"""The records of experiments, as they are committed with the package: one text file each, a line per point."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from ..data.atomic import write_text

Record = dict[str, Any]


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
    write_text(path, "\n".join([first, *lines]) + "\n")


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
    folder = resources.files("advdim.analysis") / "recorded"
    file = folder / f"{name}.jsonl"
    if not file.is_file():
        files = folder.iterdir() if folder.is_dir() else []
        known = sorted(f.name.removesuffix(".jsonl") for f in files if f.name.endswith(".jsonl"))
        raise FileNotFoundError(f"no record {name!r}: there are {', '.join(known) or 'none'}")
    return read_record(file.read_text(encoding="utf-8"))


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
