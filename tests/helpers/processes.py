"""Processes that start at once: forked from one that has imported torch and the package, and done nothing with them."""

import multiprocessing
import os
import signal
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

import advdim

#: Where processes find these helpers, by their names, and the package that is tested.
TESTS = os.pathsep.join(str(path) for path in (Path(__file__).parents[1], Path(advdim.__file__).parents[1]))

#: In place of the context "spawn", in which every process imports torch for itself.
forking = multiprocessing.get_context("forkserver")
forking.set_forkserver_preload(["helpers.fakes", "helpers.training", "sklearn.datasets", "torch._dynamo"])


class Forked:
    """A function in a process and a session of its own, as a terminal starts a command; used as a Popen is."""

    def __init__(self, function, *arguments):
        descriptor, self._output = tempfile.mkstemp()
        os.close(descriptor)
        self._process = forking.Process(target=_begin, args=(self._output, function, arguments))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", TESTS)  # of the process that all are forked from
            self._process.start()
        self.pid = self._process.pid
        self.kill = self._process.kill

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def output(self):
        return Path(self._output).read_text()

    def communicate(self, timeout=None):
        self._process.join(timeout)
        assert not self._process.is_alive(), f"still there after {timeout} s: {self.output()}"
        return self.output(), None

    def remove(self):
        self.kill()
        self._process.join()
        os.remove(self._output)


@contextmanager
def forked(function, *arguments):
    """``function(*arguments)``, of a module of helpers, in a process that exits with its result; killed in the end."""
    process = Forked(function, *arguments)
    try:
        yield process
    finally:
        process.remove()


def python(script, *arguments):
    """As ``python -c script arguments``, to its end: the status, and all that was printed."""
    with forked(_run, script, [str(a) for a in arguments]) as process:
        output, _ = process.communicate(timeout=300)
        return process.returncode, output


def _begin(output, function, arguments):
    os.setsid()
    # Tests may themselves run in the background, where a shell has its jobs ignore Ctrl-C; and so does the server.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.exit(function(*arguments))


def _run(script, arguments):
    sys.argv = ["-c", *arguments]
    exec(script, {"__name__": "__main__"})
