"""Running the points of an experiment that are not there yet, and keeping what comes out."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import data
from ..analysis.records import Record
from ..models import fast
from ..train.checkpoint import DamagedCheckpointError
from . import after_training, at_initialisation, store
from .engines import children
from .engines.executor import Executor
from .provenance import provenance
from .spec import AfterTraining, Spec, as_dict, key
from .sweep import ATTEMPTS, Outcome, Sweep, begin, count, died, keep, next_point, quiet

#: What PyTorch raises from a CUDA error on, whatever it is asked; before 2.8 it cannot be told from other errors.
DEVICE_LOST: tuple[type[Exception], ...] = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
POLL = 1.0  # seconds between looks at the clock, and at points that other runners have locked


@dataclass(frozen=True)
class Job:
    """What a worker is asked for; see :func:`run`."""

    spec: Spec
    device: str
    threads: int
    root: Path | None
    checkpoint: Path
    checksum: str | None = None  # of the data; None where they cannot be others
    expendable: bool = False  # whether the worker's process can be replaced


def run(
    specs: Sequence[Spec],
    folder: Path,
    *,
    device: torch.device,
    command: str,
    root: Path | None = None,
    threads: int = 1,
    jobs: int | None = None,
    gpus: int = 0,
    engine: AbstractContextManager[Executor] | None = None,
) -> int:
    """Measure the points that the folder does not hold yet; a point that fails is kept as failed, and the rest go on.

    Several runners may share a folder: each point is measured by one of them, and each returns once all are measured.
    On a CPU the numbers depend on ``threads``, and not on what computes. A point's file that is damaged is set aside
    (:func:`advdim.experiments.store.set_aside`), and the point measured again.

    Args:
        specs: the points.
        folder: one file per point is written here, as soon as the point is done. An interrupted training run leaves a
            checkpoint beside them, from which the next call resumes.
        device: where to measure.
        command: the command that re-makes the points, for their provenance.
        root: the data folder, see :func:`advdim.data.root`.
        threads: threads of the CPU per point.
        jobs: number of child processes, each a runner by itself on the same folder; None measures in this process,
            one point after the other, which then keeps its memory (:func:`advdim.models.fast.keep_memory`).
        gpus: number of CUDA devices that the children take in turn; 0 if ``device`` says which.
        engine: what computes in place of both, see :mod:`advdim.experiments.engines.ray_cluster`.

    Returns:
        The number of points that failed.

    Raises:
        MissingDataError: if the data set is not there.
        ValueError: if points of the folder were measured on other data, or the data are not what was unpacked.
        OSError: if a result cannot be written, or the device is lost; the points before it are kept.
    """
    from tqdm import tqdm

    sweep = begin(specs, folder.absolute(), device, command, root, threads)
    if not sweep.todo:
        return 0
    with tqdm(total=len(sweep.todo), unit="point", smoothing=0, disable=None, file=sys.stderr) as bar:
        sweep.tell = partial(_print_line, bar)
        try:
            if engine is not None:
                with engine as workers:
                    _run_on(workers, sweep, bar)
            elif jobs is not None:
                _run_children(min(jobs, len(sweep.todo)), gpus, sweep)
            else:
                _run_here(sweep, bar)
        finally:
            for lock in sweep.locked.values():  # after the workers have stopped
                lock.release()
    return sweep.failed


def _print_line(bar: Any, spec: Spec, record: Record, how: str) -> None:
    bar.write(f"{record['status']:>6}  {how:>9}  {spec}  {record.get('error', '')}".rstrip())
    bar.update()


def _run_here(sweep: Sweep, bar: Any = None) -> None:
    while sweep.todo:
        spec = next_point(sweep)
        if spec is None:  # all that is left is other runners'
            time.sleep(POLL)
        else:
            if bar is not None:
                bar.set_description(str(spec))
            keep(sweep, spec, _measure(_job(sweep, spec)))
        if bar is not None:
            bar.refresh()


def _run_on(workers: Executor, sweep: Sweep, bar: Any) -> None:
    flying: dict[Future[Outcome], tuple[Spec, int]] = {}
    while sweep.todo or flying:
        while len(flying) < workers.slots() and (spec := next_point(sweep)) is not None:
            bar.set_description(str(spec))
            flying[workers.submit(_measure, _job(sweep, spec, elsewhere=True))] = (spec, 1)
        landed = wait(flying, POLL, FIRST_COMPLETED).done
        for future in landed:
            spec, attempt = flying.pop(future)
            death = future.exception()
            if death and not isinstance(death, BrokenExecutor):
                raise death  # of how workers are called, and no point's own
            if death and attempt < ATTEMPTS:
                again = workers.submit(_measure, _job(sweep, spec, elsewhere=True))
                flying[again] = (spec, attempt + 1)
                continue
            keep(sweep, spec, Outcome(died(spec, death)) if death else future.result())
        if sweep.todo and not flying and not landed:
            time.sleep(POLL)
        bar.refresh()


def _run_children(jobs: int, gpus: int, sweep: Sweep) -> None:
    """Child runners on the folder; this process prints what they tell, and what other runners did."""
    open_points = {key(spec): spec for spec in sweep.todo}
    arguments = (replace(sweep, tell=quiet), _measure)
    with closing(children.run(jobs, gpus, _run_as_child, arguments, restarts=ATTEMPTS * len(open_points))) as told:
        for name, record, how in told:
            count(sweep, open_points.pop(name), record, how)
    for name, spec in open_points.items():
        theirs = store.load(sweep.folder, name)
        if theirs is None:
            raise FileNotFoundError(f"{store.path(sweep.folder, name)} is gone, which another runner wrote: run again")
        count(sweep, spec, theirs, "elsewhere")


def _run_as_child(tell: Callable[[Any], None], run: str, sweep: Sweep, measure: Callable[[Job], Outcome]) -> None:
    """In a child process; ``measure`` is :func:`_measure`, or a fake one in tests, which travels by its name."""
    global _measure
    _measure = measure  # type: ignore[assignment]

    def tell_own(spec: Spec, record: Record, how: str) -> None:
        if how != "elsewhere":  # by a sibling, perhaps, who tells
            tell((key(spec), {name: record[name] for name in ("status", "error") if name in record}, how))

    _run_here(replace(sweep, tell=tell_own, run=run))


def _job(sweep: Sweep, spec: Spec, *, elsewhere: bool = False) -> Job:
    checksum = sweep.checksums[spec.images.data] if elsewhere else None
    checkpoint = store.checkpoint(sweep.folder, key(spec))
    expendable = elsewhere or bool(sweep.run)
    return Job(spec, str(sweep.device), sweep.threads, sweep.root, checkpoint, checksum, expendable)


def _measure(job: Job) -> Outcome:
    """In a worker: a point, done or failed; see :class:`advdim.experiments.sweep.Outcome`."""
    record: Record = {"spec": as_dict(job.spec)}
    device, threads = torch.device(job.device), torch.get_num_threads()
    torch.set_num_threads(job.threads)
    fast.keep_memory()
    try:
        where = provenance(device)
        start = time.perf_counter()
        try:
            if job.checksum is not None and (found := data.checksum(job.spec.images.data, job.root)) != job.checksum:
                raise ValueError(f"on {platform.node()} the data are others: {found}, and not {job.checksum}")
            metrics = _from_checkpoint(job, device)
            store.check_metrics(record["spec"], metrics)
            record |= {"status": "done", "metrics": metrics}
        except data.MissingDataError as error:
            return Outcome(None, error)
        except DEVICE_LOST as error:  # in this process nothing can be computed on the device any more
            if job.expendable:
                print(f"{job.spec}: the device is lost: {error}", file=sys.stderr, flush=True)
                os._exit(1)  # as if killed: another process begins the point again
            lost = OSError(f"{job.spec}: the device is lost ({error}); the same command goes on, in a new process")
            lost.__cause__ = error
            return Outcome(None, lost)
        except Exception as error:  # kept with the point: one failure must not end the sweep
            record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        return Outcome(record | {"provenance": {**where, "seconds": round(time.perf_counter() - start, 2)}})
    finally:
        torch.set_num_threads(threads)


def _from_checkpoint(job: Job, device: torch.device) -> Record:
    try:
        return measure(job.spec, device, job.root, job.checkpoint)
    except DamagedCheckpointError as error:
        aside = store.set_aside(job.checkpoint.parent, job.checkpoint)
        print(f"advdim: {error}: now it is {aside}, and training starts again", file=sys.stderr, flush=True)
        return measure(job.spec, device, job.root, job.checkpoint)


def measure(spec: Spec, device: torch.device, root: Path | None = None, checkpoint: Path | None = None) -> Record:
    """The metrics of a point: those of the ``run`` of its experiment's module, with the same arguments."""
    if isinstance(spec, AfterTraining):
        return after_training.run(spec, device, root, checkpoint)
    return dict(at_initialisation.run(spec, device, root))
