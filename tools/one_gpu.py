"""`make gpu`: all that one GPU has to show. Its tests, the benchmark with shares of the roofline, then the grids.

The work is cut into slices, each shorter than nine minutes. A slice that reaches its limit is interrupted as by Ctrl-C,
which experiments survive: the next slice goes on from their points and checkpoints. What is done stays done, so that
the same command, called again after whatever ended it, goes on from there. All results lie under one folder::

    STEP.log             what a step printed, all its slices
    STEP.done            that it succeeded, and in how many seconds
    points/EXPERIMENT/   the points of an experiment, see `advdim record`
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SLICE = 490  # seconds; with both signals' grace less than nine minutes
GRACE = 20  # seconds from an interrupt to a kill
PYTHON = sys.executable


@dataclass(frozen=True)
class Step:
    """A command.

    Attributes:
        name: of its log.
        command: and its arguments.
        resumes: whether a second call goes on where the first was interrupted; else it has to fit into one slice.
    """

    name: str
    command: tuple[str, ...]
    resumes: bool = False


def steps(out: Path, scale: str) -> list[Step]:
    """What `make gpu` does, in order: what may fail soon comes first."""
    from advdim.experiments import grids

    found = [Step("tests", (PYTHON, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "--durations=20"))]
    for net in ("4.1", "4.2"):
        for part in ("attacks", "gradients", "training"):
            command = (PYTHON, "-W", "ignore", "-m", "benchmarks", part, "--nets", net, "--device", "cuda")
            found.append(Step(f"benchmark-{part}-{net}", command))
    for experiment in grids.GRIDS:
        run = (PYTHON, "-m", "advdim", "run", experiment, "--device", "cuda", "--scale", scale)
        found.append(Step(f"grid-{experiment}", (*run, "--runs", str(out / "points")), resumes=True))
    return found


def work(todo: list[Step], out: Path, slices: int | None = None, limit: float = SLICE) -> int:
    """Do steps that are not done yet, and return how many of those tried failed or are left.

    Args:
        todo: the steps.
        out: folder of results.
        slices: how many slices at most; None goes on until all steps are done or have failed.
        limit: of a slice, in seconds.
    """
    out.mkdir(parents=True, exist_ok=True)
    bad = 0
    for step in todo:
        done = out / f"{step.name}.done"
        while not done.exists():
            if slices == 0:
                print(f"{step.name}: to do; the same command goes on here", flush=True)
                return bad + 1
            slices = None if slices is None else slices - 1
            print(f"{step.name}: {' '.join(step.command)}", flush=True)
            start = time.monotonic()
            status = one_slice(step, out, limit)
            seconds = time.monotonic() - start
            if status == 0:
                done.write_text(json.dumps({"seconds": round(seconds, 1)}) + "\n")
            elif status is not None or not step.resumes:
                bad += 1
                why = f"failed with status {status}" if status is not None else f"took more than {limit:.0f} s"
                print(f"{step.name}: {why}; see {out / step.name}.log", flush=True)
                break
    return bad


def one_slice(step: Step, out: Path, limit: float) -> int | None:
    """Run a step for as long as a slice lasts; its exit status, or None if it was interrupted."""
    with (out / f"{step.name}.log").open("ab") as log:
        process = subprocess.Popen(step.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:  # by Ctrl-C, too
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process and its children as a terminal does, and kill those that go on."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, sign)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if all is done."""
    import torch

    parser = argparse.ArgumentParser(prog="make gpu ARGS=...", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of results (default: runs/gpu)")
    parser.add_argument("--scale", default="medium", help="of the grids: quick, medium or full (default: medium)")
    parser.add_argument("--slices", type=int, help="end after so many slices of nine minutes (default: when done)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("make gpu: no CUDA device here; `make test` runs the same tests on a pretended one", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; results in {options.out}", flush=True)
    return 1 if work(steps(options.out, options.scale), options.out, options.slices) else 0


if __name__ == "__main__":
    sys.exit(main())
