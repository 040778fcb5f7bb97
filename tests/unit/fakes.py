"""Points that cost nothing and behave as told, in other processes too; and the command line with three of them.

``plan.json`` in the folder of points says what each attempt at the point of a width does; ``log`` tells what was done.
"""

import json
import os
import signal
import sys
import time

from tiny import THREE

from advdim import cli
from advdim.experiments import engine, grids, point
from advdim.folders import MissingDataError

_measure = engine._measure
TRAINED = "half of the training"


def plan(folder, **attempts):
    """Keywords ``w9=["die"]``: the first attempt at width 9 dies; attempts without a plan are done."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(attempts))


def log(folder):
    """Pairs of a width and what was begun or done, in order."""
    text = (folder / "log").read_text() if (folder / "log").exists() else ""
    return [tuple(line.split()) for line in text.splitlines()]


def run(spec, device, root, checkpoint):
    folder, width = checkpoint.parent, f"w{spec.network.width}"
    attempt = sum(w == width and what in ("begun", "resumed") for w, what in log(folder))
    note(folder, width, "resumed" if checkpoint.exists() else "begun")
    attempts = json.loads((folder / "plan.json").read_text()).get(width, [])
    what = attempts[attempt] if attempt < len(attempts) else "done"
    if what != "done":
        checkpoint.write_text(TRAINED)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang":
        time.sleep(120)
    while what == "wait" and not (folder / "go").exists():
        time.sleep(0.05)
    if what == "raise":
        raise ValueError(f"l1 = nan for {width}")
    if what == "missing":
        raise MissingDataError("no split 'train'")
    note(folder, width, "done")
    return {"l1": [1.0, float(spec.network.width)]}


def note(folder, *words):
    with (folder / "log").open("a") as file:  # one short write in append mode is whole
        file.write(" ".join(words) + "\n")


def measure(job):
    """In place of the engine's own function: workers import this module, and with it the fake."""
    point.run = run
    return _measure(job)


def main(arguments):
    engine._measure = measure
    grids.GRIDS["initialisation"] = lambda scale, data: THREE
    return cli.main(arguments)


if __name__ == "__main__":  # the module is imported by its name: processes find its functions by it
    import fakes

    sys.exit(fakes.main(sys.argv[1:]))
