"""One runner's view of an experiment: the points to do, those it has locked, and keeping what comes out."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .. import data
from ..analysis.records import Record
from . import locks, store
from .spec import Spec, as_dict, key

ATTEMPTS = 2  # at a point whose worker dies: it may have been killed for the memory that its neighbours took

Tell = Callable[[Spec, Record, str], None]  # of a point that is done or failed, and how long it took or who did it


@dataclass(frozen=True)
class Outcome:
    """What a worker gives back: the record of a point, done or failed, and an error that must end the sweep."""

    record: Record | None
    error: Exception | None = None


@dataclass
class Sweep:
    """One runner's view of the points: what is to do, what was there when it began, and what it has locked.

    Attributes:
        run: name of the run that this runner is a child of; of the points it begins, those that its siblings died of
            are known by it. Empty of a runner by itself.
    """

    folder: Path
    todo: deque[Spec]
    before: dict[str, Record | None]
    checksums: dict[str, str]
    command: str
    device: torch.device
    root: Path | None
    threads: int
    tell: Tell
    run: str = ""
    failed: int = 0
    locked: dict[str, locks.Lock] = field(default_factory=dict)


def quiet(spec: Spec, record: Record, how: str) -> None:
    """Tell nobody."""


def begin(
    specs: Sequence[Spec], folder: Path, device: torch.device, command: str, root: Path | None, threads: int
) -> Sweep:
    """Look at what the folder holds, and at the data; raises as :func:`advdim.experiments.runner.run` does."""
    before = {key(spec): _load(folder, key(spec)) for spec in specs}
    todo = deque(spec for spec in specs if (before[key(spec)] or {}).get("status") != "done")
    checksums = {name: data.checksum(name, root) for name in sorted({spec.images.data for spec in todo})}
    for spec in specs:
        done, now = before[key(spec)] or {}, checksums.get(spec.images.data)
        if done.get("status") == "done" and now not in (None, done["data"]):
            raise ValueError(
                f"{store.path(folder, key(spec))} was measured on other data ({done['data']}) than there are now "
                f"({now}): give another folder with --runs, or the data as they were"
            )
    store.clean(folder)
    return Sweep(folder, todo, before, checksums, command, device, root, threads, quiet)


def _load(folder: Path, name: str) -> Record | None:
    try:
        return store.load(folder, name)
    except store.DamagedPointError:  # set aside by whoever locks the point
        return None


def next_point(sweep: Sweep) -> Spec | None:
    """Lock the next point that nobody has; those that are done meanwhile are told, those locked come last."""
    for _ in range(len(sweep.todo)):
        spec = sweep.todo.popleft()
        name = key(spec)
        lock = locks.acquire(sweep.folder, name)
        if lock is None:  # by another runner, which may be killed: come back to it
            sweep.todo.append(spec)
            continue
        sweep.locked[name] = lock
        try:
            record = store.load(sweep.folder, name)
        except store.DamagedPointError as error:
            aside = store.set_aside(sweep.folder, store.path(sweep.folder, name))
            print(f"advdim: {error}: now it is {aside}", file=sys.stderr, flush=True)
            record = None
        if record is not None and record != sweep.before[name]:
            _finish(sweep, spec, record, "elsewhere")
        elif sweep.run and locks.begin(sweep.folder, name, sweep.run) >= ATTEMPTS:
            keep(sweep, spec, Outcome(died(spec, None)))
        else:
            return spec
    return None


def keep(sweep: Sweep, spec: Spec, outcome: Outcome) -> None:
    """Write the record of a point that this runner has locked, and raise the error that ends the sweep, if any."""
    if outcome.record is not None:
        record = outcome.record | {"data": sweep.checksums[spec.images.data]}
        record["provenance"]["command"] = sweep.command
        store.save(sweep.folder, key(spec), record)
        _finish(sweep, spec, record, f"{record['provenance']['seconds']:.1f} s")
    if outcome.error is not None:  # every other point would fail of it too
        raise outcome.error


def _finish(sweep: Sweep, spec: Spec, record: Record, how: str) -> None:
    locks.end(sweep.folder, key(spec))
    sweep.locked.pop(key(spec)).release()
    count(sweep, spec, record, how)


def count(sweep: Sweep, spec: Spec, record: Record, how: str) -> None:
    """Tell of a point that is done or failed."""
    sweep.failed += record["status"] == "failed"
    sweep.tell(spec, record, how)


def died(spec: Spec, error: BaseException | None) -> Record:
    """The record of a point that its workers died of."""
    what = f"its worker died {ATTEMPTS} times: killed, or out of memory? {' '.join(str(error or '').split())}"
    return {"spec": as_dict(spec), "status": "failed", "error": what.rstrip(), "provenance": {"seconds": 0.0}}
