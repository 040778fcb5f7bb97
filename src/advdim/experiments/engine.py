"""Running the points of an experiment that are not there yet, and keeping what comes out."""

from __future__ import annotations

import datetime
import functools
import platform
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import allocator, data, folders
from . import claims, point, store
from .spec import Spec, as_dict, key
from .workers import Workers, serial

POLL = 1.0  # seconds between looks at the clock, and at points that other runners have claimed
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
    engine: AbstractContextManager[Workers] | None = None,
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
        engine: what computes, see :mod:`advdim.experiments.workers`; by default this process, one after the other,
            which then keeps its memory (:func:`advdim.allocator.keep_memory`).

    Returns:
        The number of points that failed.

    Raises:
        MissingDataError: if the data set is not there.
        ValueError: if a file of the folder is not a record, or the data are not what was unpacked.
        OSError: if a result cannot be written; the points before it are kept.
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
    flying: dict[Future[store.Record | Exception], tuple[Spec, int]] = {}
    claimed: dict[str, claims.Claim] = {}

    def submit(spec: Spec, attempt: int) -> None:
        bar.set_description(str(spec))
        checksum = checksums[spec.images.data] if workers.elsewhere else None
        job = Job(spec, str(device), threads, root, store.checkpoint(folder, key(spec)), checksum)
        flying[workers.submit(_measure, job)] = (spec, attempt)

    def finish(spec: Spec, record: store.Record, how: str) -> None:
        nonlocal failed
        claimed.pop(key(spec)).release()
        failed += record["status"] == "failed"
        tqdm.write(f"{record['status']:>6}  {how:>9}  {spec}  {record.get('error', '')}".rstrip())
        bar.update()

    with (
        ExitStack() as stack,
        engine or serial() as workers,
        tqdm(total=len(todo), unit="point", smoothing=0, disable=None, file=sys.stderr) as bar,
    ):
        stack.callback(_release, claimed)  # outermost: what is claimed stays so until the workers have stopped
        while todo or flying:
            for _ in range(len(todo)):
                if len(flying) >= workers.slots():
                    break
                spec = todo.popleft()
                claim = claims.take(folder, key(spec))
                if claim is None:  # by another runner, which may be killed: come back to it
                    todo.append(spec)
                    continue
                claimed[key(spec)] = claim
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


def _release(claimed: dict[str, claims.Claim]) -> None:
    for claim in claimed.values():
        claim.release()


def _measure(job: Job) -> store.Record | Exception:
    """In a worker: the record of a point, done or failed, or the exception that must end the sweep."""
    record: store.Record = {"spec": as_dict(job.spec)}
    device, threads = torch.device(job.device), torch.get_num_threads()
    torch.set_num_threads(job.threads)
    allocator.keep_memory()
    try:
        where = provenance(device)
        start = time.perf_counter()
        try:
            if job.checksum is not None and (found := data.checksum(job.spec.images.data, job.root)) != job.checksum:
                raise ValueError(f"on {platform.node()} the data are others: {found}, and not {job.checksum}")
            metrics = point.run(job.spec, device, job.root, checkpoint=job.checkpoint)
            record |= {"status": "done", "metrics": metrics}
        except folders.MissingDataError as error:
            return error
        except Exception as error:  # kept with the point: one failure must not end the sweep
            record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        return record | {"provenance": {**where, "seconds": round(time.perf_counter() - start, 2)}}
    finally:
        torch.set_num_threads(threads)


def _died(spec: Spec, error: BaseException) -> store.Record:
    what = f"its worker died {ATTEMPTS} times: killed, or out of memory? {' '.join(str(error).split())}"
    return {"spec": as_dict(spec), "status": "failed", "error": what, "provenance": {"seconds": 0.0}}


def provenance(device: torch.device) -> store.Record:
    """Where and when a number comes from: date, commit, device, versions."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type}, {platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _loaded(),
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


@functools.cache
def _loaded() -> str:
    """The commit when this process first asked: what is edited later does not run in it."""
    return _commit()


def _commit() -> str:
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        # A copy of the package in somebody else's checkout (a virtual environment, say) is none of its files.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", str(here.parent)], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not run from a git checkout"
    return commit.stdout.strip() + (" with changes" if changed.stdout.strip() else "")
