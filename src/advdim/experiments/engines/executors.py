"""Where points are computed: in this process, or in others on this machine; :mod:`.ray_cluster` has other machines.

Each engine is a context manager of :class:`Executor`, and leaving it by an exception stops its workers at once.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch


@dataclass(frozen=True)
class Executor:
    """What computes.

    Attributes:
        submit: calls a function of a module with an argument; the future raises BrokenExecutor if the
            worker dies, and keeps what the function raises.
        slots: how many calls can be under way now.
        elsewhere: whether they run on other machines, which may have other data.
    """

    submit: Callable[[Callable[[Any], Any], Any], Future[Any]]
    slots: Callable[[], int]
    elsewhere: bool = False


@contextmanager
def serial() -> Iterator[Executor]:
    """One call after the other, in this process."""

    def submit(function: Callable[[Any], Any], argument: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(argument))
        return future

    yield Executor(submit, lambda: 1)


@contextmanager
def processes(jobs: int, *, gpus: int = 0) -> Iterator[Executor]:
    """Calls in processes of this machine.

    They are single-process pools, so that one killed process takes no other call with it. Each process ends itself
    when this one lets go of the pipe between them, which the kernel does for a process that is killed.

    Args:
        jobs: number of processes.
        gpus: number of CUDA devices, which the processes take in turn; 0 if they compute elsewhere.
    """
    context = get_context("spawn")  # a forked process has no CUDA, and inherits locked locks
    pools: dict[int, ProcessPoolExecutor] = {}
    pipes: dict[int, Connection] = {}
    idle: queue.SimpleQueue[int] = queue.SimpleQueue()

    def start(i: int) -> ProcessPoolExecutor:
        ours, theirs = context.Pipe()
        if i in pipes:
            pipes[i].close()
        pipes[i] = ours
        pools[i] = ProcessPoolExecutor(1, context, _begin, (theirs, i % gpus if gpus else None))
        return pools[i]

    def submit(function: Callable[[Any], Any], argument: Any) -> Future[Any]:
        i = idle.get()
        try:
            future = (pools.get(i) or start(i)).submit(function, argument)
        except BrokenExecutor:  # its process died
            future = start(i).submit(function, argument)
        future.add_done_callback(lambda _: idle.put(i))
        return future

    for i in range(jobs):
        idle.put(i)
    try:
        yield Executor(submit, lambda: jobs)
    except BaseException:
        for pipe in pipes.values():
            pipe.close()
        raise
    finally:
        for pool in pools.values():
            pool.shutdown(cancel_futures=True)
        for pipe in pipes.values():
            pipe.close()


def _begin(pipe: Connection, gpu: int | None) -> None:
    """What a process does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; what to do about it is said by pipe

    def end_with_the_runner() -> None:
        try:
            pipe.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=end_with_the_runner, daemon=True).start()
    if gpu is not None:
        torch.cuda.set_device(gpu)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
