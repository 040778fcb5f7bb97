"""Running the points of an experiment, one after the other, and keeping what comes out."""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import data, folders
from . import point, store
from .spec import AtInitialisation, as_dict, key


def run(
    specs: Sequence[AtInitialisation], folder: Path, *, device: torch.device, command: str, root: Path | None = None
) -> int:
    """Measure the points that the folder does not hold yet; a point that fails is kept as failed, and the rest go on.

    Args:
        specs: the points.
        folder: one file per point is written here, as soon as the point is done.
        device: where to measure.
        command: the command that re-makes the points, for their provenance.
        root: the data folder, see :func:`advdim.data.root`.

    Returns:
        The number of points that failed.

    Raises:
        MissingDataError: if the data set is not there.
        ValueError: if a file of the folder is not a record, or the data are not what was unpacked.
        OSError: if a result cannot be written; the points before it are kept.
    """
    from tqdm import tqdm

    todo = [spec for spec in specs if (store.load(folder, key(spec)) or {}).get("status") != "done"]
    checksums = {name: data.checksum(name, root) for name in sorted({spec.images.data for spec in todo})}
    store.clean(folder)
    shared = {"command": command, **provenance(device)}
    failed = 0
    bar = tqdm(todo, unit="point", disable=None, file=sys.stderr)
    for spec in bar:
        bar.set_description(str(spec))
        start = time.perf_counter()
        record: store.Record = {"spec": as_dict(spec)}
        try:
            record |= {"status": "done", "metrics": point.run(spec, device, root)}
        except folders.MissingDataError:
            raise  # every other point would fail of it too
        except Exception as error:  # kept with the point: one failure must not end the sweep
            failed += 1
            record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        seconds = time.perf_counter() - start
        record["data"] = checksums[spec.images.data]
        record["provenance"] = {**shared, "seconds": round(seconds, 2)}
        store.save(folder, key(spec), record)
        tqdm.write(f"{record['status']:>6}  {seconds:7.1f} s  {spec}" + (f"  {record.get('error', '')}").rstrip())
    return failed


def provenance(device: torch.device) -> dict[str, str]:
    """Where and when a number comes from: date, commit, device, versions."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type}, {platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


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
