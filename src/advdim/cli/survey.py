"""The command ``advdim survey``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

COUNTS = {"seeds": 8, "images": 16}


def register(groups: Any) -> None:
    """Add the command to the program's."""
    parser = groups.add_parser(
        "survey",
        help="audit many fresh networks alike, and compare them",
        description="Audit fresh networks one after the other; what is done is kept, and the same command goes on.",
    )
    parser.add_argument("specs", metavar="SPEC", nargs="*", help="as for audit (default: 16 of torchvision's)")
    parser.add_argument("--data", required=True, metavar="DATA", help="a data set's name, or a folder CLASS/IMAGE")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="PX", help="of the networks that are named")
    parser.add_argument(
        "--seeds", type=int, default=COUNTS["seeds"], metavar="N", help="networks per size (default: 8)"
    )
    parser.add_argument("--images", type=int, default=COUNTS["images"], metavar="N", help="default: 16")
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps (default: the best at hand)")
    parser.add_argument("--out", default="survey", metavar="DIR", help="what is done is kept there (default: survey)")
    parser.add_argument("--record", metavar="FILE", help="write the record of what is done, and measure no more")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Audit what is not there yet; 0 done, 1 some networks were refused, 2 nothing is done, 130 interrupted."""
    from ..analysis.records import write_record
    from ..audit import Refusal, survey

    folder = Path(arguments.out)
    chosen = survey.ARCHITECTURES
    if arguments.specs:
        sizes = None if arguments.sizes is None else tuple(arguments.sizes)
        chosen = tuple(survey.Architecture(spec, sizes, "") for spec in arguments.specs)
    if len({a.name for a in chosen}) < len(chosen):
        raise ValueError(f"two networks have one name, of which one file is kept: {sorted(a.name for a in chosen)}")
    command = _command(arguments)
    refused, done = 0, {}
    for architecture in chosen:
        file = folder / f"{architecture.name}.json"
        asked = {"network": architecture.spec, "sizes": architecture.sizes and list(architecture.sizes)}
        asked |= {name: getattr(arguments, name) for name in ("data", "seeds", "images")}
        points = survey.load(file, asked)
        if points is None and not arguments.record:
            try:
                points = _measure(architecture, folder / architecture.name, arguments, command)
            except Refusal as refusal:
                refused += 1
                print(f"advdim: {architecture.name}:", " ".join(str(refusal).split()), file=sys.stderr)
                continue
            except KeyboardInterrupt:
                print(f"advdim: interrupted; the same command goes on from {folder}", file=sys.stderr)
                return 130
            survey.save(file, asked, points)
        if points is not None:
            done[architecture.name] = points
    if not done:
        print("advdim: no network is done", file=sys.stderr)
        return 2
    points = [point for of in done.values() for point in of]
    if arguments.record:
        header = {"experiment": "architectures", "command": command}
        if len(done) < len(chosen):
            header["cut_short"] = f"{len(done)} of {len(chosen)} networks"
        write_record(Path(arguments.record), header, points)
    print(survey.table(survey.audits(points)))
    return 1 if refused else 0


def _command(arguments: argparse.Namespace) -> str:
    words = ["advdim survey", *arguments.specs, f"--data {arguments.data}"]
    words += [f"--sizes {' '.join(map(str, arguments.sizes))}"] if arguments.sizes else []
    words += [f"--{name} {n}" for name, default in COUNTS.items() if (n := getattr(arguments, name)) != default]
    return " ".join(words)


def _measure(architecture: Any, folder: Path, arguments: argparse.Namespace, command: str) -> list[dict[str, Any]]:
    import torch

    from ..audit import audit, survey
    from ..audit.specs import factory
    from ..data import checksum
    from ..experiments.provenance import provenance
    from ..models import device

    where = device() if arguments.device == "auto" else torch.device(arguments.device)
    measured = provenance(where)
    start = time.perf_counter()
    found = audit(
        factory(architecture.spec),
        arguments.data,
        sizes=architecture.sizes,
        seeds=arguments.seeds,
        images=arguments.images,
        device=where,
        randomise_head=architecture.randomise_head,
        out=folder,
        say=lambda text: print(f"{architecture.name}: {text}", file=sys.stderr, flush=True),
    )
    if not found.complete:
        raise KeyboardInterrupt
    seconds = round(time.perf_counter() - start, 2)
    known = None if Path(arguments.data).is_dir() else checksum(arguments.data)
    data = arguments.data if known else found.data
    where_and_when = {**measured, "command": command, "seconds": seconds}
    return survey.points(architecture, found, data, known or found.settings["data"], where_and_when)
