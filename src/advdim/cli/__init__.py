"""The command line, ``advdim COMMAND``; ``advdim --help`` lists the commands."""

from .entry import main

__all__ = ["main"]
