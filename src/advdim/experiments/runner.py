"""Running the points of an experiment that are not there yet, and keeping what comes out."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path

import torch

from .. import data
from ..analysis.records import Record
from ..models import fast
from . import after_training, at_initialisation, locks, store
from .engines.executors import Executor, serial
from .provenance import provenance
from .spec import AfterTraining, Spec, as_dict, key

#: What PyTorch raises from a CUDA error on, whatever it is asked; before 2.8 it cannot be told from other errors.
DEVICE_LOST: tuple[type[Exception], ...] = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
POLL = 1.0  # seconds between looks at the clock, and at points that other runners have locked
ATTEMPTS = 2  # at a point whose worker dies: it may have been killed for the memory that its neighbours took


@dataclass(frozen=True)
class Job:
    """What a worker is asked for; see :func:`run`."""

    spec: Spec
    device: str
    threads: int
    root: Path | None
    checkpoint: Path
    checksum: str | None  # of the data; None where they cannot be others


def run(
    specs: Sequence[Spec],
    folder: Path,
    *,
    device: torch.device,
    command: str,
    root: Path | None = None,
    threads: int = 1,
    engine: AbstractContextManager[Executor] | None = None,
) -> int:
    """Measure the points that the folder does not hold yet; a point that fails is kept as failed, and the rest go on.

    Several runners may share a folder: each point is measured by one of them, and each returns once all are measured.
    On a CPU the numbers depend on ``threads``, and not on the engine.

    Args:
        specs: the points.
        folder: one file per point is written here, as soon as the point is done. An interrupted training run leaves a
            checkpoint beside them, from which the next call resumes.
        device: where to measure.
        command: the command that re-makes the points, for their provenance.
        root: the data folder, see :func:`advdim.data.root`.
        threads: threads of the CPU per point.
        engine: what computes, see :mod:`advdim.experiments.engines.executors`; by default this process, one after the
            other, which then keeps its memory (:func:`advdim.models.fast.keep_memory`).

    Returns:
        The number of points that failed.

    Raises:
        MissingDataError: if the data set is not there.
        ValueError: if a file of the folder is not a record, or the data are not what was unpacked.
        OSError: if a result cannot be written, or the device is lost; the points before it are kept.
    """
    from tqdm import tqdm

    folder = folder.absolute()  # the working folder of a worker may be another
    before = {key(spec): store.load(folder, key(spec)) for spec in specs}
    todo = deque(spec for spec in specs if (before[key(spec)] or {}).get("status") != "done")
    checksums = {name: data.checksum(name, root) for name in sorted({spec.images.data for spec in todo})}
    store.clean(folder)
    if not todo:
        return 0
    failed = 0
    flying: dict[Future[Record | Exception], tuple[Spec, int]] = {}
    locked: dict[str, locks.Lock] = {}

    def submit(spec: Spec, attempt: int) -> None:
        bar.set_description(str(spec))
        checksum = checksums[spec.images.data] if workers.elsewhere else None
        job = Job(spec, str(device), threads, root, store.checkpoint(folder, key(spec)), checksum)
        flying[workers.submit(_measure, job)] = (spec, attempt)

    def finish(spec: Spec, record: Record, how: str) -> None:
        nonlocal failed
        locked.pop(key(spec)).release()
        failed += record["status"] == "failed"
        tqdm.write(f"{record['status']:>6}  {how:>9}  {spec}  {record.get('error', '')}".rstrip())
        bar.update()

    with (
        ExitStack() as stack,
        engine or serial() as workers,
        tqdm(total=len(todo), unit="point", smoothing=0, disable=None, file=sys.stderr) as bar,
    ):
        stack.callback(_release, locked)  # outermost: what is locked stays so until the workers have stopped
        while todo or flying:
            for _ in range(len(todo)):
                if len(flying) >= workers.slots():
                    break
                spec = todo.popleft()
                lock = locks.acquire(folder, key(spec))
                if lock is None:  # by another runner, which may be killed: come back to it
                    todo.append(spec)
                    continue
                locked[key(spec)] = lock
                record = store.load(folder, key(spec))
                if record is None or record == before[key(spec)]:
                    submit(spec, 1)
                else:
                    finish(spec, record, "elsewhere")
            landed = wait(flying, POLL, FIRST_COMPLETED).done
            for future in landed:
                spec, attempt = flying.pop(future)
                death = future.exception()
                if death and not isinstance(death, BrokenExecutor):
                    raise death  # of how workers are called, and no point's own
                if death and attempt < ATTEMPTS:
                    submit(spec, attempt + 1)
                    continue
                outcome = _died(spec, death) if death else future.result()
                if isinstance(outcome, Exception):  # every other point would fail of it too
                    raise outcome
                outcome |= {"data": checksums[spec.images.data]}
                outcome["provenance"]["command"] = command
                store.save(folder, key(spec), outcome)
                finish(spec, outcome, f"{outcome['provenance']['seconds']:.1f} s")
            if todo and not flying and not landed:  # all that is left is other runners'
                time.sleep(POLL)
            bar.refresh()
    return failed


def _release(locked: dict[str, locks.Lock]) -> None:
    for lock in locked.values():
        lock.release()


def _measure(job: Job) -> Record | Exception:
    """In a worker: the record of a point, done or failed, or the exception that must end the sweep."""
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
            metrics = measure(job.spec, device, job.root, job.checkpoint)
            record |= {"status": "done", "metrics": metrics}
        except data.MissingDataError as error:
            return error
        except DEVICE_LOST as error:  # in this process nothing can be computed on the device any more
            if parent_process() is None:
                lost = OSError(f"{job.spec}: the device is lost ({error}); the same command goes on, in a new process")
                lost.__cause__ = error
                return lost
            print(f"{job.spec}: the device is lost: {error}", file=sys.stderr, flush=True)
            os._exit(1)  # as if killed: a process of its own begins the point again
        except Exception as error:  # kept with the point: one failure must not end the sweep
            record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        return record | {"provenance": {**where, "seconds": round(time.perf_counter() - start, 2)}}
    finally:
        torch.set_num_threads(threads)


def measure(spec: Spec, device: torch.device, root: Path | None = None, checkpoint: Path | None = None) -> Record:
    """The metrics of a point: those of the ``run`` of its experiment's module, with the same arguments."""
    if isinstance(spec, AfterTraining):
        return after_training.run(spec, device, root, checkpoint)
    return dict(at_initialisation.run(spec, device, root))


def _died(spec: Spec, error: BaseException) -> Record:
    what = f"its worker died {ATTEMPTS} times: killed, or out of memory? {' '.join(str(error).split())}"
    return {"spec": as_dict(spec), "status": "failed", "error": what, "provenance": {"seconds": 0.0}}
