"""The commands of experiments: ``run``, ``status`` and ``record``."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

MOST_THREADS = 256  # of one point


def register(groups: Any) -> None:
    """Add the group of commands to the parser."""
    from ..experiments import grids

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("experiment", help=f"the experiment: {', '.join(grids.GRIDS)}")
    own = ", ".join(f"{data} for {experiment}" for experiment, data in grids.DATA.items())
    shared.add_argument("--data", help=f"data set (default: {own}), see `advdim data list`")
    shared.add_argument("--scale", choices=grids.SCALES, default="quick", help="default: quick")
    shared.add_argument("--runs", default="runs", metavar="DIR", help="folder of the points' files (default: runs)")

    run = groups.add_parser("run", parents=[shared], help="measure the points of an experiment that are not there yet")
    run.add_argument("--device", help="cpu, cuda or mps (default: the best at hand)")
    run.add_argument("--root", metavar="DIR", help="the data root; default: $ADVDIM_DATA, else the user's cache folder")
    run.add_argument(
        "--engine",
        choices=("serial", "processes", "ray"),
        help="what computes (default: serial; with --jobs processes)",
    )
    run.add_argument("--jobs", type=_count, metavar="N", help="points at a time (default: what fits cores or GPUs)")
    run.add_argument("--threads", type=_threads, metavar="N", default=1, help="threads per point (default: 1)")
    run.add_argument("--address", help="of a Ray cluster: HOST:PORT, or auto (default: start one on this machine)")
    run.add_argument("--gpus", type=_share, metavar="SHARE", help="of a GPU, per point on a Ray cluster, as 0.5")
    run.add_argument("--first", type=_count, metavar="N", help="only the first N points of the grid (default: all)")
    run.set_defaults(command=_run, misuse=run.error)

    status = groups.add_parser(
        "status", parents=[shared], help="count the points that are done, failed, running and to do"
    )
    status.set_defaults(command=_status)

    record = groups.add_parser("record", parents=[shared], help="write the points that are done into one sorted file")
    record.add_argument("--out", metavar="FILE", help="default: the package's own records")
    record.add_argument("--partial", action="store_true", help="record what is done of a grid that is not complete")
    record.set_defaults(command=_record)

    restore = groups.add_parser(
        "restore", parents=[shared], help="put the recorded points back into the folder, for a run to go on from"
    )
    restore.add_argument("--record", metavar="FILE", help="default: the package's own record")
    restore.set_defaults(command=_restore)


def _points(arguments: argparse.Namespace) -> tuple[list[Any], Path]:
    from ..experiments.grids import DATA, GRIDS

    if arguments.experiment not in GRIDS:
        raise ValueError(f"no experiment {arguments.experiment!r}: there are {', '.join(GRIDS)}")
    arguments.data = arguments.data or DATA[arguments.experiment]
    points = list(GRIDS[arguments.experiment](arguments.scale, arguments.data))
    return points, Path(arguments.runs) / arguments.experiment


def _command(arguments: argparse.Namespace) -> str:
    return f"advdim run {arguments.experiment} --data {arguments.data} --scale {arguments.scale}"


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1, got {text!r}")
    return int(text)


def _threads(text: str) -> int:
    if _count(text) > MOST_THREADS:  # a process has to start them all
        raise argparse.ArgumentTypeError(f"must be at most {MOST_THREADS}, got {text}")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return share


def _run(arguments: argparse.Namespace) -> int:
    from ..experiments.runner import run

    if arguments.engine != "ray" and (arguments.address or arguments.gpus):
        arguments.misuse("--address and --gpus go with --engine ray")
    if arguments.engine == "serial" and arguments.jobs:
        arguments.misuse("--jobs goes with --engine processes or ray")
    grid, folder = _points(arguments)
    points = grid[: arguments.first]
    where, how = _engine(arguments)
    root = Path(arguments.root) if arguments.root else None
    command = _command(arguments)
    try:
        run(points, folder, device=where, command=command, root=root, threads=arguments.threads, **how)
    except KeyboardInterrupt:
        print("advdim: interrupted; what is done is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    _show_status(grid, folder)
    done = [(p, record) for p in points if (record := _load(folder, p)) and record["status"] == "done"]
    _compare_hours(done)
    return 0 if len(done) == len(points) else 1


def _load(folder: Path, point: Any) -> Any:
    from ..experiments import spec, store

    return store.load(folder, spec.key(point))


def _compare_hours(done: list[tuple[Any, Any]]) -> None:
    """Print what the training runs that are done were predicted to take on one core of a CPU, and what they took."""
    from ..experiments import cost, spec

    trained = [(p, r["provenance"]["seconds"] / 3600) for p, r in done if isinstance(p, spec.AfterTraining)]
    if trained:
        predicted, actual = sum(cost.core_hours([p for p, _ in trained])), sum(hours for _, hours in trained)
        print(f"{len(trained)} training runs: {actual:.2f} h; predicted for one core of a CPU: {predicted:.2f} h")


def _engine(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The device, and what computes, as :func:`advdim.experiments.runner.run` takes it."""
    import torch

    from ..experiments.engines import executor, ray_cluster

    jobs, threads = arguments.jobs, arguments.threads
    if arguments.engine == "ray":  # whose devices are not this machine's
        where = torch.device(arguments.device or ("cuda" if arguments.gpus else "cpu"))
        gpus = arguments.gpus or (1 if where.type == "cuda" else 0)
        return where, {"engine": ray_cluster.ray_cluster(arguments.address, jobs=jobs, threads=threads, gpus=gpus)}
    where = _device(arguments.device)
    if not (arguments.engine == "processes" or jobs):
        return where, {}
    devices = torch.cuda.device_count() if where.type == "cuda" and where.index is None else 0
    room = (executor.cores() // threads or 1) if where.type == "cpu" else devices or 1
    return where, {"jobs": jobs or room, "gpus": devices}


def _device(name: str | None) -> Any:
    import torch

    from ..models import device

    try:
        where = torch.device(name) if name else device()
        torch.zeros(1, device=where).item()  # refused here, or else every point would fail of it
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise ValueError(f"cannot measure on the device {name!r}: {reason}; try --device cpu") from error
    return where


def _status(arguments: argparse.Namespace) -> None:
    _show_status(*_points(arguments))


def _show_status(points: list[Any], folder: Path) -> None:
    """Print how many points are in which state."""
    from ..experiments import locks, spec, store

    counts = dict.fromkeys(("done", "failed", "running", "to do"), 0)
    notes = []
    for p in points:
        name = spec.key(p)
        try:
            record = store.load(folder, name) or {"status": "to do"}
        except store.DamagedPointError as error:
            record = {"status": "to do"}
            notes.append(f"  damaged: {p}: {error}")
        state = record["status"]
        if state != "done" and locks.is_held(folder, name):
            state = "running"
        counts[state] += 1
        if state in ("failed", "to do") and store.checkpoint(folder, name).exists():
            notes.append(f"  begun: {p}")
        if state == "failed":
            notes.append(f"  failed: {p}: {record['error']}")
    print(f"{folder}: " + ", ".join(f"{n} {state}" for state, n in counts.items()))
    for note in notes:
        print(note)


def _record(arguments: argparse.Namespace) -> None:
    from ..analysis import records
    from ..experiments import spec

    points, folder = _points(arguments)
    out = Path(arguments.out) if arguments.out is not None else _package_record(arguments)
    found = [_load(folder, p) or {"spec": spec.as_dict(p), "status": "missing"} for p in points]
    header: dict[str, Any] = {"experiment": arguments.experiment, "scale": arguments.scale}
    header["command"] = _command(arguments)
    if arguments.partial:
        if failed := [f"{p}: {r['error']}" for p, r in zip(points, found, strict=True) if r["status"] == "failed"]:
            header["failed"] = failed
        found = [record for record in found if record["status"] == "done"]
        if len(found) < len(points):
            header["cut_short"] = f"{len(found)} of {len(points)} points"
    records.write_record(out, header, found)
    print(f"{header.get('cut_short', f'{len(found)} points')} recorded in {out}")


def _restore(arguments: argparse.Namespace) -> None:
    from ..analysis import records
    from ..experiments import spec, store

    points, folder = _points(arguments)
    record = Path(arguments.record) if arguments.record is not None else _package_record(arguments)
    known = {spec.key(p) for p in points}
    own = [point for point in records.read_record_file(record)[1] if spec.key_of(point["spec"]) in known]
    print(f"{store.restore(folder, own)} points restored from {record}")
    _show_status(points, folder)


def _package_record(arguments: argparse.Namespace) -> Path:
    from ..analysis import records

    return Path(records.__file__).parent / "recorded" / f"{arguments.experiment}-{arguments.data}.jsonl"
