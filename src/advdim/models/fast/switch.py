"""One switch for all of this folder: off, every function here leaves PyTorch to do what it does by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_off = os.environ.get("ADVDIM_FAST", "1") == "0"


def enabled() -> bool:
    """Whether the fast paths are taken: they are, unless ``ADVDIM_FAST=0`` was set before Python started."""
    return not _off


@contextmanager
def disable() -> Iterator[None]:
    """Take no fast path meanwhile, in any thread."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before
