"""The commands ``advdim data ...``: which data sets there are, and putting them there."""

from __future__ import annotations

import argparse
from typing import Any


def register(groups: Any) -> None:
    """Add the group of commands to the parser."""
    group = groups.add_parser("data", help="the data sets on this machine")
    commands = group.add_subparsers(required=True, metavar="COMMAND")
    root = argparse.ArgumentParser(add_help=False)
    root.add_argument(
        "--root", metavar="DIR", help="the data root; default: $ADVDIM_DATA, else the user's cache folder"
    )

    add = commands.add_parser("add", parents=[root], help="unpack archives of images into the data root")
    add.add_argument(
        "archives", nargs="+", metavar="ARCHIVE", help="tar or zip file of [NAME/][{train,test}/]CLASS/IMAGE"
    )
    add.add_argument("--sha256", metavar="HEX", help="the checksum that the archive must have (one archive only)")
    add.set_defaults(command=_data_add, misuse=add.error)

    listing = commands.add_parser("list", parents=[root], help="show the data sets that are there")
    listing.set_defaults(command=_data_list)

    verify = commands.add_parser(
        "verify", parents=[root], help="read every file, and compare it with what was unpacked"
    )
    verify.add_argument("names", nargs="*", metavar="NAME", help="data set (default: all)")
    verify.set_defaults(command=_data_verify)

    remove = commands.add_parser("remove", parents=[root], help="delete data sets that came from archives or downloads")
    remove.add_argument("names", nargs="+", metavar="NAME", help="data set")
    remove.set_defaults(command=_data_remove)

    where = commands.add_parser("where", parents=[root], help="show the data root, and the setting it comes from")
    where.set_defaults(command=_data_where)


def _data_add(arguments: argparse.Namespace) -> None:
    from ..data.archives import add

    if arguments.sha256 and len(arguments.archives) > 1:
        arguments.misuse("--sha256 goes with one archive")
    for archive in arguments.archives:
        added = add(archive, arguments.root, sha256=arguments.sha256)
        trust = "verified" if added.verified else "computed: nothing to compare it with"
        done = f"{added.files} files unpacked into" if added.files else "already in"
        print(f"{added.archive}: {done} {added.folder} (sha256 {added.sha256}, {trust})", flush=True)


def _data_list(arguments: argparse.Namespace) -> int:
    from .. import data
    from ..data import folders, manifest

    bad = 0
    for name in ["digits", *folders.names(arguments.root)]:
        try:
            counts = data.sizes(name, arguments.root)
            known = None if name == "digits" else manifest.archives(folders.find(name, arguments.root))
        except (OSError, ValueError) as error:  # of this set: the others are listed all the same
            print(f"{name}: cannot be used: {' '.join(str(error).split())}")
            bad += 1
            continue
        origin = ", ".join(sorted(known)) if known else "embedded" if name == "digits" else "no manifest"
        print(f"{name}: {', '.join(f'{count} {split}' for split, count in counts.items())} ({origin})")
    return 1 if bad else 0


def _data_verify(arguments: argparse.Namespace) -> int:
    from .. import data
    from ..data import folders, manifest

    bad = 0
    for name in arguments.names or folders.names(arguments.root):
        try:
            found = data.checksum(name, arguments.root)  # for CIFAR-10 and the digits, this is of the content
            content = None if name in ("digits", "cifar10") else manifest.verify(folders.find(name, arguments.root))
        except (OSError, ValueError) as error:
            print(f"{name}: {' '.join(str(error).split())}", flush=True)
            bad += 1
            continue
        if content is not None:
            print(f"{name}: {content} files are as unpacked", flush=True)
        elif found.startswith(("sha256:", "md5:")):
            print(f"{name}: {found}, to compare with what a record says", flush=True)
        else:
            print(f"{name}: unpacked before contents were noted: `advdim data remove {name}`, and add it again")
            bad += 1
    return 1 if bad else 0


def _data_remove(arguments: argparse.Namespace) -> None:
    from ..data.folders import remove

    for name in arguments.names:
        print(f"{name}: removed {remove(name, arguments.root)}", flush=True)


def _data_where(arguments: argparse.Namespace) -> None:
    from ..data.folders import locate

    root, setting = locate(arguments.root)
    print(f"{root} ({setting})")
