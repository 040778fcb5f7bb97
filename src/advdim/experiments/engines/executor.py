"""What computes points for a runner, in other processes or on other machines."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Executor:
    """What computes.

    Attributes:
        submit: calls a function of a module with an argument; the future raises BrokenExecutor if the
            worker dies, and keeps what the function raises.
        slots: how many calls can be under way now.
    """

    submit: Callable[[Callable[[Any], Any], Any], Future[Any]]
    slots: Callable[[], int]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
