"""The command line. Each group of commands is one function that registers its parsers and one per command."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .audit import command as audit_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``advdim ARGV`` and return the exit status: 0 done, 1 failed (one line on stderr says why), 2 misused."""
    parser = argparse.ArgumentParser(prog="advdim", description="Adversarial vulnerability and input dimension.")
    groups = parser.add_subparsers(required=True, metavar="COMMAND")
    for register in (_register_data, audit_command.register, _register_experiments):
        register(groups)
    arguments = parser.parse_args(argv)
    try:
        return arguments.command(arguments) or 0
    except (OSError, ValueError) as error:
        print("advdim:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("advdim: interrupted", file=sys.stderr)
        return 130


def _register_data(groups: Any) -> None:
    group = groups.add_parser("data", help="the data sets on this machine")
    commands = group.add_subparsers(required=True, metavar="COMMAND")
    root = argparse.ArgumentParser(add_help=False)
    root.add_argument(
        "--root", metavar="DIR", help="the data root; default: $ADVDIM_DATA, else the user's cache folder"
    )

    add = commands.add_parser("add", parents=[root], help="unpack archives of images into the data root")
    add.add_argument("archives", nargs="+", metavar="ARCHIVE", help="tar file of NAME/{train,test}/CLASS/IMAGE")
    add.add_argument("--sha256", metavar="HEX", help="the checksum that the archive must have (one archive only)")
    add.set_defaults(command=_data_add, misuse=add.error)

    listing = commands.add_parser("list", parents=[root], help="show the data sets that are there")
    listing.set_defaults(command=_data_list)

    where = commands.add_parser("where", parents=[root], help="show the data root, and the setting it comes from")
    where.set_defaults(command=_data_where)


def _data_add(arguments: argparse.Namespace) -> None:
    from .data.archives import add

    if arguments.sha256 and len(arguments.archives) > 1:
        arguments.misuse("--sha256 goes with one archive")
    for archive in arguments.archives:
        added = add(archive, arguments.root, sha256=arguments.sha256)
        trust = "verified" if added.verified else "computed: nothing to compare it with"
        done = f"{added.files} files unpacked into" if added.files else "already in"
        print(f"{added.archive}: {done} {added.folder} (sha256 {added.sha256}, {trust})", flush=True)


def _data_list(arguments: argparse.Namespace) -> None:
    from . import data
    from .data import folders

    for name in ["digits", *folders.names(arguments.root)]:
        counts = data.sizes(name, arguments.root)
        known = None if name == "digits" else folders.manifest(folders.find(name, arguments.root))
        origin = ", ".join(sorted(known["archives"])) if known else "embedded" if name == "digits" else "no manifest"
        print(f"{name}: {', '.join(f'{count} {split}' for split, count in counts.items())} ({origin})")


def _data_where(arguments: argparse.Namespace) -> None:
    from .data.folders import locate

    root, setting = locate(arguments.root)
    print(f"{root} ({setting})")


def _register_experiments(groups: Any) -> None:
    from .experiments import grids

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
        "--engine", choices=("serial", "processes", "ray"), default="serial", help="what computes (default: serial)"
    )
    run.add_argument("--jobs", type=_count, metavar="N", help="points at a time (default: what fits cores or GPUs)")
    run.add_argument("--threads", type=_count, metavar="N", default=1, help="threads per point (default: 1)")
    run.add_argument("--address", help="of a Ray cluster: HOST:PORT, or auto (default: start one on this machine)")
    run.add_argument("--gpus", type=_share, metavar="SHARE", help="of a GPU, per point on a Ray cluster, as 0.5")
    run.set_defaults(command=_run, misuse=run.error)

    status = groups.add_parser(
        "status", parents=[shared], help="count the points that are done, failed, running and to do"
    )
    status.set_defaults(command=_status)

    record = groups.add_parser("record", parents=[shared], help="write the points that are done into one sorted file")
    record.add_argument("--out", metavar="FILE", help="default: the package's own records")
    record.set_defaults(command=_record)


def _points(arguments: argparse.Namespace) -> tuple[list[Any], Path]:
    from .experiments.grids import DATA, GRIDS

    if arguments.experiment not in GRIDS:
        raise ValueError(f"no experiment {arguments.experiment!r}: there are {', '.join(GRIDS)}")
    arguments.data = arguments.data or DATA[arguments.experiment]
    points = list(GRIDS[arguments.experiment](arguments.scale, arguments.data))
    return points, Path(arguments.runs) / arguments.experiment


def _command(arguments: argparse.Namespace) -> str:
    return f"advdim run {arguments.experiment} --data {arguments.data} --scale {arguments.scale}"


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1, got {text!r}")
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
    from .experiments.runner import run

    if arguments.engine != "ray" and (arguments.address or arguments.gpus):
        arguments.misuse("--address and --gpus go with --engine ray")
    if arguments.engine == "serial" and arguments.jobs:
        arguments.misuse("--jobs goes with --engine processes or ray")
    points, folder = _points(arguments)
    engine, where = _engine(arguments)
    root = Path(arguments.root) if arguments.root else None
    try:
        failed = run(
            points,
            folder,
            device=where,
            command=_command(arguments),
            root=root,
            threads=arguments.threads,
            engine=engine,
        )
    except KeyboardInterrupt:
        print("advdim: interrupted; what is done is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    _status(arguments)
    return 1 if failed else 0


def _engine(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The engine and the device."""
    import torch

    from .experiments.engines import executors, ray_cluster

    jobs, threads = arguments.jobs, arguments.threads
    if arguments.engine == "ray":  # whose devices are not this machine's
        where = torch.device(arguments.device or ("cuda" if arguments.gpus else "cpu"))
        gpus = arguments.gpus or (1 if where.type == "cuda" else 0)
        return ray_cluster.ray_cluster(arguments.address, jobs=jobs, threads=threads, gpus=gpus), where
    where = _device(arguments.device)
    if arguments.engine == "serial":
        return executors.serial(), where
    devices = torch.cuda.device_count() if where.type == "cuda" and where.index is None else 0
    room = (executors.cores() // threads or 1) if where.type == "cpu" else devices or 1
    return executors.processes(jobs or room, gpus=devices), where


def _device(name: str | None) -> Any:
    import torch

    from .models import device

    try:
        where = torch.device(name) if name else device()
        torch.zeros(1, device=where).item()  # refused here, or else every point would fail of it
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise ValueError(f"cannot measure on the device {name!r}: {reason}; try --device cpu") from error
    return where


def _status(arguments: argparse.Namespace) -> None:
    from .experiments import locks, spec, store

    points, folder = _points(arguments)
    counts = dict.fromkeys(("done", "failed", "running", "to do"), 0)
    notes = []
    for p in points:
        name = spec.key(p)
        record = store.load(folder, name) or {"status": "to do"}
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
    from .analysis import records as recording
    from .experiments import spec, store

    points, folder = _points(arguments)
    name = f"{arguments.experiment}-{arguments.data}.jsonl"
    out = Path(arguments.out) if arguments.out else Path(recording.__file__).parent / "recorded" / name
    records = [store.load(folder, spec.key(p)) or {"spec": spec.as_dict(p), "status": "missing"} for p in points]
    header = {"experiment": arguments.experiment, "scale": arguments.scale, "command": _command(arguments)}
    recording.write_record(out, header, records)
    print(f"{len(records)} points recorded in {out}")
