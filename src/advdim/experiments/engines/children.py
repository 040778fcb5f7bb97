"""Child processes of this machine, each a runner by itself: they share the points by the locks of the folder."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Callable, Generator
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Any

import torch


def run(
    jobs: int, gpus: int, function: Callable[..., None], arguments: tuple[Any, ...], *, restarts: int
) -> Generator[Any]:
    """Call ``function(tell, run, *arguments)`` in processes, and yield what they tell until all have ended.

    A process that dies (killed, out of memory, without its device) is replaced. Leaving the iterator, by an
    exception for instance, kills them all; and each ends itself when this process dies, even by SIGKILL.

    Args:
        jobs: number of processes.
        gpus: number of CUDA devices, which the processes take in turn; 0 if they compute elsewhere.
        function: of a module; ``run`` is a name of this call, the same in all processes.
        arguments: for it.
        restarts: processes that are replaced at most.

    Raises:
        Exception: what ``function`` raised in a process; the others are killed.
        ChildProcessError: if more processes died than may be replaced.
    """
    context = get_context("spawn")  # a forked process has no CUDA, and inherits locked locks
    name = uuid.uuid4().hex
    alive: dict[connection.Connection, tuple[BaseProcess, int | None]] = {}

    def start(gpu: int | None) -> None:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_begin, args=(theirs, gpu, name, function, arguments))
        process.start()
        theirs.close()
        alive[ours] = (process, gpu)

    try:
        for i in range(jobs):
            start(i % gpus if gpus else None)
        while alive:
            for channel in connection.wait(list(alive)):
                assert isinstance(channel, connection.Connection)
                try:
                    told = channel.recv()
                except (EOFError, OSError):  # it has ended, or died, perhaps in the middle of a word
                    process, gpu = alive.pop(channel)
                    process.join()
                    if (code := process.exitcode) != 0:
                        restarts -= 1
                        if restarts < 0:
                            raise ChildProcessError(f"child processes die again and again, last with {code}") from None
                        start(gpu)
                    continue
                if isinstance(told, Exception):
                    raise told
                yield told
    finally:
        for process, _ in alive.values():
            process.kill()
        for channel, (process, _) in alive.items():
            process.join()
            channel.close()


def _begin(
    channel: connection.Connection, gpu: int | None, name: str, function: Callable[..., None], arguments: Any
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent kills its children
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    if gpu is not None:
        torch.cuda.set_device(gpu)
    try:
        function(channel.send, name, *arguments)
    except Exception as error:
        channel.send(error)


def _end_with_the_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
