"""The command line. Each group of commands is one function that registers its parsers and one per command."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``advdim ARGV`` and return the exit status: 0 done, 1 failed (one line on stderr says why), 2 misused."""
    parser = argparse.ArgumentParser(prog="advdim", description="Adversarial vulnerability and input dimension.")
    groups = parser.add_subparsers(required=True, metavar="COMMAND")
    for register in (_register_data,):
        register(groups)
    arguments = parser.parse_args(argv)
    try:
        arguments.command(arguments)
    except (OSError, ValueError) as error:
        print("advdim:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("advdim: interrupted", file=sys.stderr)
        return 130
    return 0


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
    from .archives import add

    if arguments.sha256 and len(arguments.archives) > 1:
        arguments.misuse("--sha256 goes with one archive")
    for archive in arguments.archives:
        added = add(archive, arguments.root, sha256=arguments.sha256)
        trust = "verified" if added.verified else "computed: nothing to compare it with"
        done = f"{added.files} files unpacked into" if added.files else "already in"
        print(f"{added.archive}: {done} {added.folder} (sha256 {added.sha256}, {trust})", flush=True)


def _data_list(arguments: argparse.Namespace) -> None:
    from . import data, folders

    for name in ["digits", *folders.names(arguments.root)]:
        counts = data.sizes(name, arguments.root)
        known = None if name == "digits" else folders.manifest(folders.find(name, arguments.root))
        origin = ", ".join(sorted(known["archives"])) if known else "embedded" if name == "digits" else "no manifest"
        print(f"{name}: {', '.join(f'{count} {split}' for split, count in counts.items())} ({origin})")


def _data_where(arguments: argparse.Namespace) -> None:
    from .folders import locate

    root, setting = locate(arguments.root)
    print(f"{root} ({setting})")
