"""Points that cost nothing and behave as told, in other processes too; and the command line with three of them.

``plan.json`` in the folder of points says what each attempt at the point of a width does; ``log`` tells what was done.
"""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import torch

from advdim import cli
from advdim.data.folders import MissingDataError
from advdim.experiments import grids, runner, spec, store
from advdim.experiments.engines import children
from helpers.processes import TESTS, forked
from helpers.tiny import THREE

_measure = runner._measure
KEYS = [spec.key(s) for s in THREE]
TRAINED = "half of the training"


def plan(folder, **attempts):
    """Keywords ``w9=["die"]``: the first attempt at width 9 dies; attempts without a plan are done."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(attempts))


def log(folder):
    """Pairs of a width and what was begun or done, in order."""
    text = (folder / "log").read_text() if (folder / "log").exists() else ""
    return [tuple(line.split()) for line in text.splitlines()]


def run(point, device, root, checkpoint):
    folder, width = checkpoint.parent, f"w{point.network.width}"
    attempt = sum(w == width and what in ("begun", "resumed") for w, what in log(folder))
    note(folder, width, "resumed" if checkpoint.exists() else "begun")
    attempts = json.loads((folder / "plan.json").read_text()).get(width, [])
    what = attempts[attempt] if attempt < len(attempts) else "done"
    if what != "done":
        checkpoint.write_text(TRAINED)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang":
        time.sleep(600)
    while what == "wait" and not (folder / "go").exists():
        time.sleep(0.05)
    while what == "meet" and not {("w8", "begun"), ("w9", "begun")} <= set(log(folder)):
        time.sleep(0.05)
    if what == "full":
        os.fsync = full_disk
    if what == "lose the device":
        if multiprocessing.parent_process() is not None:
            os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
    if what == "raise":
        raise ValueError(f"l1 = nan for {width}")
    if what == "missing":
        raise MissingDataError("no split 'train'")
    note(folder, width, "done")
    return {"l1": [1.0, float(point.network.width)]}


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def note(folder, *words):
    with (folder / "log").open("a") as file:  # one short write in append mode is whole
        file.write(" ".join(words) + "\n")


def measure(job):
    """In place of the engine's own function: workers import this module, and with it the fake."""
    runner.measure = run
    return _measure(job)


def hang_in_the_middle_of_writing(folder):
    """Run the three points; the third result stays in its temporary file."""
    rename, calls = os.replace, []

    def hang(*paths):
        calls.append(paths)
        if len(calls) == 3:
            note(folder.parent, "hanging", "now")
            time.sleep(600)
        rename(*paths)

    os.replace = hang
    runner.measure = lambda s, device, root, checkpoint: {"l1": [1.0, 2.0]}
    runner.run(THREE, folder, device=torch.device("cpu"), command="advdim run test")


def ask_for_the_handler(tell, run):
    tell(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)


def die(tell, run):
    os._exit(3)


def main(arguments):
    runner._measure = measure
    grids.GRIDS["initialisation"] = lambda scale, data: THREE
    return cli.main(arguments)


def quick_main(arguments):
    """The same, in a process that need not import torch anew, and whose children need not either."""
    children.get_context = lambda _: multiprocessing.get_context("fork")
    return main(arguments)


def quick_command_line(folder, *options):
    """As :func:`command_line`, from arguments to exit, but for starting Python and importing."""
    return forked(quick_main, _arguments(folder, options))


def _arguments(folder, options):
    return ["run", "initialisation", "--device", "cpu", "--runs", str(folder.parent), *options]


def _hear_ctrl_c():
    """Tests may themselves run in the background, where a shell has its jobs ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def command_line(folder, *options):
    """The command line in a process group of its own, as a terminal starts it; killed in the end."""
    environment = {**os.environ, "PYTHONPATH": TESTS}
    process = subprocess.Popen(
        [sys.executable, __file__, *_arguments(folder, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
        preexec_fn=_hear_ctrl_c,
    )
    try:
        yield process
    finally:
        for p in family(process):
            p.kill()
        process.communicate()


def family(process):
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def eventually(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def states(folder):
    return [(store.load(folder, key) or {"status": "to do"})["status"] for key in KEYS]


if __name__ == "__main__":  # the module is imported by its name: processes find its functions by it
    from helpers import fakes

    sys.exit(fakes.main(sys.argv[1:]))
