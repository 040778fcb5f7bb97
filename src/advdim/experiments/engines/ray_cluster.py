"""The engine past one machine: a Ray cluster.

Every machine needs this package with its extra ``ray``, in the same versions, and the data. The runner alone claims
points and writes their records; its folder must be seen by all machines, or else a point whose worker died on one
starts over on another. On one machine's CPU the numbers are those of the other engines, bit for bit.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager
from functools import partial
from typing import Any

from .executor import Executor, cores


@contextmanager
def ray_cluster(
    address: str | None = None, *, jobs: int | None = None, threads: int = 1, gpus: float = 0
) -> Iterator[Executor]:
    """Calls in the workers of a Ray cluster.

    Args:
        address: of a running cluster, ``HOST:PORT``, or "auto" for that of this machine; None starts one on this
            machine, and ends it.
        jobs: number of calls at a time; None takes as many as the cluster has room for, also when that changes.
        threads: processor cores of each.
        gpus: share of a GPU that each takes, for example 0.25.

    Raises:
        ValueError: if Ray is not installed, or the cluster has no room for a single call.
        ConnectionError: if there is no cluster at the address.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here reports to nobody
        import ray
    except ImportError as error:
        raise ValueError(f"the engine ray needs Ray ({error}): pip install 'advdim[ray]'") from error
    if address and address.rpartition(":")[2].isdecimal():  # Ray itself tries for minutes
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConnectionError(f"there is no Ray cluster at {address}: {error}") from error
    own: dict[str, Any] = {}
    if not address:
        own = {"num_cpus": (jobs or cores() // threads or 1) * threads, "include_dashboard": False}
        own["object_store_memory"] = 10**8  # bytes: what travels is small
    ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **own)
    try:

        def slots() -> int:
            there = ray.cluster_resources()
            room = there.get("CPU", 0) / threads
            if gpus:
                room = min(room, there.get("GPU", 0) / gpus)
            return min(int(room + 1e-6), jobs or int(room + 1e-6))

        def submit(function: Callable[[Any], Any], argument: Any) -> Future[Any]:
            # Tried again by the engine, which counts: Ray's own retries have no end where memory is short.
            options = {"num_cpus": threads, "num_gpus": gpus, "max_retries": 0}
            future: Future[Any] = Future()
            ray.remote(**options)(function).remote(argument).future().add_done_callback(partial(_pass_on, to=future))
            return future

        if slots() < 1:
            there = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
            raise ValueError(f"the cluster has {there}, and a point takes {threads} CPU and {gpus:g} GPU")
        yield Executor(submit, slots)
    finally:
        ray.shutdown()


def _pass_on(done: Future[Any], to: Future[Any]) -> None:
    from ray.exceptions import RayTaskError

    error = done.exception()
    if error is None:
        to.set_result(done.result())
    elif isinstance(error, RayTaskError):  # not of the function, which keeps its errors: it could not be called
        to.set_exception(ValueError(f"a worker of the Ray cluster cannot run {__package__}: {error.cause}"))
    else:
        to.set_exception(BrokenExecutor(f"{type(error).__name__}: {error}"))
