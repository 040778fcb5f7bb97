"""The command ``advdim survey``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEFAULTS = {"seeds": 8, "images": 16}


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
        "--seeds", type=int, default=DEFAULTS["seeds"], metavar="N", help="networks per size (default: 8)"
    )
    parser.add_argument("--images", type=int, default=DEFAULTS["images"], metavar="N", help="default: 16")
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps (default: the best at hand)")
    parser.add_argument("--out", default="survey", metavar="DIR", help="what is done is kept there (default: survey)")
    parser.add_argument("--record", metavar="FILE", help="write the record of what is done, and measure no more")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Audit what is not there yet; 0 done, 1 some networks were refused, 2 nothing is done, 130 interrupted."""
    from ..analysis.records import write_record
    from ..audit import Refusal, survey
    from ..data.atomic import json_checksum, write_text

    folder = Path(arguments.out)
    chosen = survey.ARCHITECTURES
    if arguments.specs:
        sizes = None if arguments.sizes is None else tuple(arguments.sizes)
        chosen = tuple(survey.Architecture(spec, sizes, "") for spec in arguments.specs)
    try:
        asked = _asked(chosen, arguments)
        done = {name: points for name in asked if (points := _kept(folder / f"{name}.json", asked[name])) is not None}
    except (Refusal, ValueError, OSError) as refusal:
        print("advdim:", " ".join(str(refusal).split()), file=sys.stderr)
        return 2
    command = _command(arguments)
    refused = 0
    for architecture in chosen:
        if architecture.name in done or arguments.record:
            continue
        try:
            points = _measure(architecture, folder / architecture.name, arguments, command)
        except Refusal as refusal:
            refused += 1
            print(f"advdim: {architecture.name}:", " ".join(str(refusal).split()), file=sys.stderr)
            continue
        except KeyboardInterrupt:
            print(f"advdim: interrupted; the same command goes on from {folder}", file=sys.stderr)
            return 130
        kept = {"asked": asked[architecture.name], "points": points}
        kept["checksum"] = json_checksum(kept)
        write_text(folder / f"{architecture.name}.json", json.dumps(kept, allow_nan=False) + "\n")
        done[architecture.name] = points
    if not done:
        print("advdim: no network is done", file=sys.stderr)
        return 2
    points = [point for name in asked for point in done.get(name, ())]
    if arguments.record:
        header = {"experiment": "architectures", "command": command}
        if len(done) < len(chosen):
            header["cut_short"] = f"{len(done)} of {len(chosen)} networks"
        write_record(Path(arguments.record), header, points)
    print(survey.table(survey.audits(points)))
    return 1 if refused else 0


def _command(arguments: argparse.Namespace) -> str:
    """What to type to get the same numbers: without options that have their default, or change no number."""
    words = ["advdim survey", *arguments.specs, f"--data {arguments.data}"]
    if arguments.specs and arguments.sizes:
        words.append(f"--sizes {' '.join(map(str, arguments.sizes))}")
    words += [f"--{name} {value}" for name, value in _numbers(arguments).items() if value != DEFAULTS[name]]
    return " ".join(words)


def _numbers(arguments: argparse.Namespace) -> dict[str, int]:
    return {name: getattr(arguments, name) for name in DEFAULTS}


def _asked(chosen: Sequence[Any], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What is asked for, by network: all that its numbers depend on."""
    from ..audit import Refusal
    from ..audit.images import gather

    if arguments.sizes and not arguments.specs:
        raise Refusal("--sizes are those of networks that are named: name some, or leave it out")
    checksum = gather(arguments.data, arguments.images).checksum
    asked: dict[str, dict[str, Any]] = {}
    for a in chosen:
        if a.name in asked:
            raise Refusal(f"two networks are called {a.name}, and would be kept in one file: survey one at a time")
        sizes = None if a.sizes is None else list(a.sizes)
        asked[a.name] = {"network": a.spec, "data": checksum, "sizes": sizes, **_numbers(arguments)}
    return asked


def _kept(file: Path, asked: dict[str, Any]) -> list[Any] | None:
    """The points of a network that is done, as it is asked for; None if it is not done."""
    from ..audit import Refusal
    from ..data.atomic import json_checksum
    from ..data.layout import require_file

    cure = f"name another folder by --out, or delete {file} and {file.with_suffix('')}"
    try:
        require_file(file)
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept.pop("checksum") != json_checksum(kept):
            raise ValueError("its checksum is another")
        theirs, points = kept["asked"], kept["points"]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {str(error)[:60]}"
        raise Refusal(f"{file} holds no result of a survey ({reason}): {cure}") from error
    different = [f"{n} {_short(theirs.get(n))}, asked for {_short(v)}" for n, v in asked.items() if theirs.get(n) != v]
    if different:
        raise Refusal(f"{file} was measured with {'; '.join(different)}: {cure}")
    return list(points)


def _short(value: Any) -> str:
    """A value in a message: lists without brackets, of a checksum the beginning."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "of its own" if value is None else str(value)[:40] if len(str(value)) != 64 else str(value)[:12]


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
