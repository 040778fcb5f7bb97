"""The command line. Each group of commands is a module that registers its parsers, and one function per command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata

from . import audit, data_sets, experiments, survey


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``advdim ARGV`` and return the exit status: 0 done, 1 failed (one line on stderr says why), 2 misused."""
    parser = argparse.ArgumentParser(prog="advdim", description="Adversarial vulnerability and input dimension.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {metadata.version('advdim')}")
    groups = parser.add_subparsers(required=True, metavar="COMMAND")
    for register in (data_sets.register, audit.register, survey.register, experiments.register):
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
