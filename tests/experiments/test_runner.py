"""Running the points of an experiment, also when points fail, data are missing, or the process is killed."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from helpers import fakes
from helpers.processes import forked
from helpers.tiny import THREE, TINY

import advdim as ad
from advdim.data.folders import MissingDataError
from advdim.experiments import locks, provenance, runner, spec, store
from advdim.experiments.spec import Images

CPU = torch.device("cpu")


def run(folder, specs=THREE, root=None):
    return runner.run(specs, folder, device=CPU, command="advdim run test", root=root)


def states(folder, specs=THREE):
    return [(store.load(folder, spec.key(s)) or {"status": "to do"})["status"] for s in specs]


@pytest.fixture
def measured(monkeypatch):
    """The specs that were measured, in order, by a measurement that costs nothing; ``fail[width]`` is raised."""

    def fake(s, device, root, checkpoint):
        measured.append(s)
        if s.network.width in measured.fail:
            raise measured.fail[s.network.width]
        return {"l1": [1.0, float(s.network.width)]}

    class Measured(list):
        fail: dict = {}  # noqa: RUF012

    measured = Measured()
    measured.fail = {}
    monkeypatch.setattr(runner, "measure", fake)
    return measured


def test_done_points_are_not_measured_again_and_failed_ones_are(tmp_path, measured):
    measured.fail = {9: RuntimeError("out of memory")}
    assert run(tmp_path) == 1
    assert states(tmp_path) == ["done", "failed", "done"]
    assert store.load(tmp_path, spec.key(THREE[1]))["error"] == "RuntimeError: out of memory"
    assert len(measured) == 3
    measured.fail = {}
    assert run(tmp_path) == 0
    assert states(tmp_path) == ["done"] * 3
    assert measured[3:] == [THREE[1]]
    before = {f.name: f.read_bytes() for f in tmp_path.glob("*.json")}
    assert run(tmp_path) == 0
    assert len(measured) == 4
    assert {f.name: f.read_bytes() for f in tmp_path.glob("*.json")} == before


def test_all_points_may_fail(tmp_path, measured):
    measured.fail = {w: ValueError(f"l1 = nan, {w}") for w in (8, 9, 10)}
    assert run(tmp_path) == 3
    assert states(tmp_path) == ["failed"] * 3


def test_whoever_measures_keeps_memory(tmp_path, measured, monkeypatch):
    kept = []
    monkeypatch.setattr(runner.fast, "keep_memory", lambda: kept.append(len(measured)))
    assert run(tmp_path) == 0
    assert kept == [0, 1, 2]


def test_provenance_is_complete(tmp_path):
    assert run(tmp_path, [TINY]) == 0
    record = store.load(tmp_path, spec.key(TINY))
    assert record["spec"] == spec.as_dict(TINY)
    assert record["data"] == ad.data.checksum("digits")
    provenance = record["provenance"]
    assert set(provenance) == {"command", "date", "commit", "device", "torch", "python", "seconds"}
    assert provenance["command"] == "advdim run test"
    assert provenance["device"].startswith("cpu")
    assert provenance["torch"] == torch.__version__
    assert time.strptime(provenance["date"], "%Y-%m-%d")
    assert provenance["seconds"] > 0


def test_a_commit_is_the_packages_own(tmp_path, monkeypatch):
    """A package installed inside another project's checkout must not claim that project's commit."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *command], check=True)
    file = tmp_path / "advdim" / "experiments" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(file))
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert provenance._commit().startswith("unknown")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "now ours"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert provenance._commit() == head[:12]
    file.write_text("changed")
    assert provenance._commit() == f"{head[:12]} with changes"
    monkeypatch.setenv("PATH", "")
    assert provenance._commit().startswith("unknown")


def test_missing_data_stop_before_the_first_point(tmp_path, measured):
    """No sweep of failures, and nothing measured that would have no checksum."""
    elsewhere = [replace(s, images=Images("cifar10-none", 32, "copy", 4)) for s in THREE]
    with pytest.raises(MissingDataError, match="cifar10-none"):
        run(tmp_path / "runs", [TINY, *elsewhere], tmp_path)
    assert measured == []
    assert not (tmp_path / "runs").exists()


def test_a_missing_split_stops_at_once(tmp_path, measured):
    measured.fail = {9: MissingDataError("no split 'train'")}
    with pytest.raises(MissingDataError, match="train"):
        run(tmp_path)
    assert states(tmp_path) == ["done", "to do", "to do"]


def test_an_interruption_loses_the_point_in_flight(tmp_path, measured):
    measured.fail = {9: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert states(tmp_path) == ["done", "to do", "to do"]
    assert len(list(tmp_path.glob("*.json"))) == 1
    measured.fail = {}
    assert run(tmp_path) == 0
    assert measured[2:] == THREE[1:]


def test_the_bar_tells_the_time_left_and_each_point_has_a_line(tmp_path, measured, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    measured.fail = {9: RuntimeError("out of memory")}
    assert run(tmp_path) == 1
    assert re.search(r"digits 8 px copy, mlp he: +33%.* 1/3 \[\d\d:\d\d<\d\d:\d\d", terminal.getvalue())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["done", "failed", "done"]
    assert lines[1][-4:] == ["RuntimeError:", "out", "of", "memory"]


def test_other_data_on_a_workers_machine_are_a_failure(tmp_path, measured):
    for checksum, status in ((ad.data.checksum("digits"), "done"), ("sha256:other", "failed"), (None, "done")):
        outcome = runner._measure(runner.Job(TINY, "cpu", 1, None, tmp_path / "checkpoint", checksum))
        assert outcome.record["status"] == status
    assert len(measured) == 2


def test_points_of_other_data_are_not_mixed_with_new_ones(tmp_path, measured, monkeypatch):
    """One record could hold two versions of the data, a shard having been added between two runs."""
    assert run(tmp_path, THREE[:2]) == 0
    monkeypatch.setattr(ad.data, "checksum", lambda name, root: "one.tar=aa two.tar=bb")
    with pytest.raises(ValueError, match=rf"{spec.key(TINY)}\.json was measured on other data .*sha256:.*two\.tar=bb"):
        run(tmp_path)
    assert states(tmp_path) == ["done", "done", "to do"]
    assert run(tmp_path, THREE[:2]) == 0  # nothing to do, for which nobody needs the data


@pytest.mark.parametrize(
    "metrics",
    [None, {}, [1.0], {"l1": 1.0}, {"l1": [1.0]}, {"l1": [1.0, float("nan")]}, {"l1": [1.0, None]}, {"l1": ["1", "2"]},
     {"l1": [True, 1.0]}],
)  # fmt: skip
def test_metrics_that_are_none_fail_with_their_point(tmp_path, monkeypatch, metrics):
    """Such went through before, or ended the sweep without the name of the point."""
    monkeypatch.setattr(runner, "measure", lambda s, *_: metrics if s == TINY else {"l1": [1.0, 2.0]})
    assert run(tmp_path) == 1
    assert states(tmp_path) == ["failed", "done", "done"]


@pytest.mark.process
def test_kill_9_in_the_middle_of_writing(tmp_path, measured):
    """The worst moment: the third result is in its temporary file, and not yet in place."""
    log, tmp_path = tmp_path, tmp_path / "points"
    with forked(fakes.hang_in_the_middle_of_writing, tmp_path) as process:
        fakes.eventually(lambda: fakes.log(log) or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, output
    (litter,) = tmp_path.glob(".*.json-*")
    assert states(tmp_path) == ["done", "done", "to do"]
    assert run(tmp_path) == 0
    assert measured == THREE[2:]
    assert litter.exists()  # young, it may be that of another process
    long_ago = time.time() - 2 * store.STALE
    os.utime(litter, (long_ago, long_ago))
    assert run(tmp_path) == 0
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted([locks.FOLDER, *(f"{spec.key(s)}.json" for s in THREE)])
    assert states(tmp_path) == ["done"] * 3
