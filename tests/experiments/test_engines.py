"""Runners and their processes: the same numbers, and nothing lost or done twice when they are killed."""

import errno
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from helpers import fakes
from helpers.fakes import KEYS, command_line, eventually, family, log, plan, quick_command_line, states
from helpers.processes import forking
from helpers.tiny import THREE

from advdim.data.folders import MissingDataError
from advdim.experiments import locks, runner, spec, store
from advdim.experiments.engines import children
from advdim.experiments.spec import AfterTraining, Images
from advdim.models import Network
from advdim.train import Recipe

pytestmark = pytest.mark.process

CPU = torch.device("cpu")


def run(folder, specs=THREE, jobs=1, **options):
    return runner.run(specs, folder, device=CPU, command="advdim run test", jobs=jobs, **options)


@pytest.fixture
def quick(monkeypatch):
    """Children that do not import torch anew; some tests below do without."""
    monkeypatch.setattr(children, "get_context", lambda _: forking)
    monkeypatch.setenv("PYTHONPATH", fakes.TESTS)


@pytest.fixture
def faked(quick, monkeypatch, tmp_path):
    """Fake points, here and in the processes started from here; the folder they leave their traces in."""
    monkeypatch.setattr(runner, "_measure", fakes.measure)
    monkeypatch.setattr(runner, "measure", fakes.run)
    return tmp_path


# One runner


def test_processes_measure_what_the_serial_engine_measures_bit_for_bit(tmp_path):
    assert runner.run(THREE, tmp_path / "serial", device=CPU, command="c") == 0
    assert run(tmp_path / "processes", jobs=2) == 0
    for key in KEYS:
        here, there = (store.load(tmp_path / name, key) for name in ("serial", "processes"))
        assert here["metrics"] == there["metrics"]
        for record in (here, there):
            assert record["provenance"].pop("seconds") > 0
            del record["provenance"]["command"]
        assert here == there
        assert here["provenance"]["device"].endswith(", 1 threads")


@pytest.mark.parametrize("jobs", [None, 1])
def test_the_number_of_threads_is_as_asked_for(quick, tmp_path, jobs):
    before = torch.get_num_threads()
    assert runner.run(THREE[:1], tmp_path, device=CPU, command="c", threads=before + 1, jobs=jobs) == 0
    assert torch.get_num_threads() == before
    assert store.load(tmp_path, KEYS[0])["provenance"]["device"].endswith(f", {before + 1} threads")


def test_ctrl_c_is_the_runners_alone(quick):
    assert list(children.run(2, 0, fakes.ask_for_the_handler, (), restarts=0)) == [True, True]


def test_processes_that_die_at_once_are_not_started_for_ever(quick):
    with pytest.raises(ChildProcessError, match="die again and again, last with 3"):
        list(children.run(1, 0, fakes.die, (), restarts=2))


def test_there_are_no_more_processes_than_points(faked, monkeypatch):
    asked = []
    run_children = children.run
    monkeypatch.setattr(
        children, "run", lambda jobs, *rest, **named: asked.append(jobs) or run_children(1, *rest, **named)
    )
    plan(faked)
    assert run(faked, jobs=99999999999) == 0
    assert asked == [3]


def test_a_lost_device_ends_its_process_and_the_point_begins_again_in_another(faked):
    plan(faked, w9=["lose the device"], w10=["lose the device"] * 9)
    assert run(faked) == 1
    assert states(faked) == ["done", "done", "failed"]
    assert log(faked).count(("w9", "resumed")) == 1
    assert (faked / "stderr").read_text().count("the device is lost: CUDA error") == 3


def test_a_lost_device_ends_a_run_in_this_process(faked):
    plan(faked, w9=["lose the device"])
    with pytest.raises(OSError, match=r"the device is lost .*the same command goes on"):
        runner.run(THREE, faked, device=CPU, command="c")
    assert states(faked) == ["done", "to do", "to do"]
    assert runner.run(THREE, faked, device=CPU, command="c") == 0


def test_a_killed_worker_is_replaced_and_its_point_resumed(faked, capsys):
    plan(faked, w9=["die"])
    assert run(faked) == 0
    assert states(faked) == ["done"] * 3
    assert [entry for entry in log(faked) if entry[0] == "w9"] == [
        ("w9", what) for what in ("begun", "resumed", "done")
    ]
    assert len(log(faked)) == 7  # and the others are done once
    assert list(faked.glob("*.checkpoint")) == []


def test_a_point_that_kills_its_workers_fails_and_the_rest_go_on(faked, capsys):
    plan(faked, w9=["die"] * 9)
    assert run(faked, jobs=2) == 1
    assert states(faked) == ["done", "failed", "done"]
    assert sum(what == ("w9", "resumed") for what in log(faked)) == runner.ATTEMPTS - 1
    record = store.load(faked, KEYS[1])
    assert "its worker died 2 times" in record["error"]
    assert record["provenance"]["command"] == "advdim run test"
    assert store.checkpoint(faked, KEYS[1]).read_text() == fakes.TRAINED
    plan(faked)
    assert run(faked) == 0
    assert states(faked) == ["done"] * 3
    assert log(faked)[-2:] == [("w9", "resumed"), ("w9", "done")]


def test_a_failure_in_a_process_is_kept_with_its_point(faked):
    plan(faked, w8=["raise"], w9=["raise"])
    assert run(faked, jobs=2) == 2
    assert states(faked) == ["failed", "failed", "done"]
    assert store.load(faked, KEYS[0])["error"] == "ValueError: l1 = nan for w8"


def test_what_cannot_be_called_in_a_process_ends_the_sweep(faked, monkeypatch):
    monkeypatch.setattr(runner, "_measure", lambda job: None)
    with pytest.raises(AttributeError, match="lambda"):
        run(faked)
    assert states(faked) == ["to do"] * 3


def test_missing_data_in_a_process_end_the_sweep(faked):
    plan(faked, w8=["missing"], w9=["hang"])
    start = time.monotonic()
    with pytest.raises(MissingDataError, match="train"):
        run(faked, jobs=2)
    assert time.monotonic() - start < 300  # the other process is stopped
    assert states(faked) == ["to do"] * 3
    assert not any(locks.is_held(faked, key) for key in KEYS)


def test_a_full_disk_stops_the_processes_and_leaves_the_store_whole(faked):
    plan(faked, w8=["full"], w9=["hang"])
    with pytest.raises(OSError, match=f"{os.strerror(errno.ENOSPC)}.*{KEYS[0]}.json"):
        run(faked, jobs=2)
    assert list(faked.glob("*.json*")) == [faked / "plan.json"]
    plan(faked)
    assert run(faked) == 0
    assert states(faked) == ["done"] * 3


def test_a_checkpoint_of_a_point_that_is_done_is_litter(faked):
    plan(faked)
    assert run(faked) == 0
    for key in KEYS:
        store.checkpoint(faked, key).write_text("")
        store.checkpoint(faked, key).with_suffix(".checkpoint.tmp").write_text("")
    (faked / f"{KEYS[2]}.json").unlink()
    assert runner.run(THREE[:2], faked, device=CPU, command="c") == 0
    assert sorted(f.name for f in faked.glob("*.checkpoint*")) == [
        f"{KEYS[2]}.checkpoint", f"{KEYS[2]}.checkpoint.tmp"
    ]  # fmt: skip


# Real training

TRAINED = AfterTraining(
    images=Images("digits", 8, "copy", 20),
    network=Network("mlp", width=8),
    recipe=Recipe("gradient-l1", 0.02, epochs=40, batch_size=16),
    train=60,
    by_epoch=20,
    eps=0.004,
    experiment="4.1",
)


def without_seconds(metrics):
    return metrics | {"history": {name: row for name, row in metrics["history"].items() if name != "seconds"}}


def test_a_training_run_that_is_killed_ends_as_the_uninterrupted_one(quick, tmp_path):
    key, folders = spec.key(TRAINED), {name: tmp_path / name for name in ("killed", "whole")}
    killed = []

    def kill():
        eventually(store.checkpoint(folders["killed"], key).exists)
        for child in multiprocessing.active_children():
            child.kill()
            killed.append(child)

    killer = threading.Thread(target=kill)
    killer.start()
    assert run(folders["killed"], [TRAINED]) == 0
    killer.join()
    assert len(killed) == 1
    assert runner.run([TRAINED], folders["whole"], device=CPU, command="c") == 0
    resumed, whole = (without_seconds(store.load(folder, key)["metrics"]) for folder in folders.values())
    assert resumed == whole
    assert len(whole["history"]["loss"]) == 40


@pytest.mark.parametrize("jobs", [None, 1])
def test_training_that_diverges_fails_and_a_damaged_checkpoint_is_set_aside(quick, tmp_path, jobs, capfd):
    short = replace(TRAINED, recipe=replace(TRAINED.recipe, epochs=1))
    damaged = replace(short, network=Network("mlp", width=9))
    diverging = replace(short, recipe=replace(short.recipe, method="none", strength=0.0, lr=1e30))
    file = store.checkpoint(tmp_path, spec.key(damaged))
    file.write_bytes(b"PK")
    assert run(tmp_path, [damaged, diverging, short], jobs) == 1
    records = [store.load(tmp_path, spec.key(s)) for s in (damaged, diverging, short)]
    assert [record["status"] for record in records] == ["done", "failed", "done"]
    assert records[1]["error"].startswith("DivergenceError: ")
    (aside,) = (tmp_path / store.ASIDE).iterdir()
    assert aside.read_bytes() == b"PK"
    assert jobs or f"{file} is no readable checkpoint" in capfd.readouterr().err
    assert not file.exists()


def test_a_flipped_bit_in_a_checkpoint_changes_no_result(tmp_path):
    """19 of 24 such flips ended as done before, with other metrics."""
    short = replace(TRAINED, recipe=replace(TRAINED.recipe, epochs=2))
    whole, key = tmp_path / "whole", spec.key(short)
    assert runner.run([short], whole, device=CPU, command="c") == 0
    expected = without_seconds(store.load(whole, key)["metrics"])
    file = store.checkpoint(tmp_path, key)
    kept = tmp_path / "kept"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_delete_checkpoint", lambda *_: None)
        assert runner.run([short], kept, device=CPU, command="c") == 0
    content = store.checkpoint(kept, key).read_bytes()
    for place in (60, len(content) // 3, len(content) // 2, len(content) - 40):
        (tmp_path / f"{key}.json").unlink(missing_ok=True)
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert runner.run([short], tmp_path, device=CPU, command="c") == 0
        assert without_seconds(store.load(tmp_path, key)["metrics"]) == expected
    assert len(list((tmp_path / store.ASIDE).iterdir())) == 4


def test_a_damaged_point_is_set_aside_and_measured_again(faked, capfd):
    plan(faked)
    assert run(faked) == 0
    file = store.path(faked, KEYS[1])
    bad = file.read_bytes().replace(b"9.0", b"8.0")
    file.write_bytes(bad)
    with pytest.raises(store.DamagedPointError, match=f"{file}.*checksum"):
        store.load(faked, KEYS[1])
    assert runner.run(THREE, faked, device=CPU, command="c") == 0
    assert states(faked) == ["done"] * 3
    assert log(faked).count(("w9", "begun")) == 2
    (aside,) = (faked / store.ASIDE).iterdir()
    assert aside.read_bytes() == bad
    assert str(aside) in capfd.readouterr().err
    assert [e for e in log(faked) if e[0] == "w8"] == [("w8", "begun"), ("w8", "done")]


# Several runners, and runners that are killed


@pytest.fixture
def points(tmp_path):
    return tmp_path / "initialisation"


PROCESSES = ["--engine", "processes", "--jobs"]


@pytest.mark.parametrize(
    ("line", "options", "number"),
    [
        (command_line, ["--engine", "serial"], signal.SIGINT),
        (command_line, [*PROCESSES, "3"], signal.SIGINT),  # one idle
        (quick_command_line, [*PROCESSES, "2"], signal.SIGKILL),
    ],
    ids=["serial-SIGINT", "processes-SIGINT", "processes-SIGKILL"],
)
def test_an_interrupted_run_stops_at_once_and_goes_on_where_it_was(points, line, options, number):
    plan(points, w8=["done"], w9=["hang"], w10=["hang"])
    with line(points, *options) as process:
        eventually(lambda: len(list(points.glob("*.checkpoint"))) == (1 if "serial" in options else 2))
        eventually(lambda: states(points)[0] == "done")
        processes = family(process)
        assert len(processes) > len(options) - 2
        assert locks.is_held(points, KEYS[1])
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as Ctrl-C does
        else:
            process.send_signal(number)
        output, _ = process.communicate(timeout=300)
        _, alive = psutil.wait_procs(processes, timeout=60)
        assert alive == []
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), output
    if number == signal.SIGINT:
        assert "resource_tracker" not in output
        assert output.endswith("advdim: interrupted; what is done is kept, and the same command goes on from there\n")
        assert "Traceback" not in output
    assert states(points) == ["done", "to do", "to do"]
    assert not any(locks.is_held(points, key) for key in KEYS)
    done = (points / f"{KEYS[0]}.json").read_bytes()
    plan(points)
    with quick_command_line(points, *options) as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.endswith("3 done, 0 failed, 0 running, 0 to do\n")
    assert (points / f"{KEYS[0]}.json").read_bytes() == done
    assert log(points).count(("w8", "begun")) == 1
    assert ("w9", "resumed") in log(points)
    assert list(points.glob("*.checkpoint*")) == []


def test_two_runners_share_the_points(points):
    plan(points, w8=["wait"], w9=["wait"])
    with quick_command_line(points) as one:
        eventually(lambda: log(points))
        with quick_command_line(points, *PROCESSES, "3") as two:
            eventually(lambda: states(points)[2] == "done")
            (points / "go").touch()
            outputs = [process.communicate(timeout=300)[0] for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), outputs
    assert sorted(log(points)) == sorted((f"w{w}", what) for w in (8, 9, 10) for what in ("begun", "done"))
    for output in outputs:
        assert output.count("done  ") == 3
        assert output.endswith("3 done, 0 failed, 0 running, 0 to do\n")
    assert sum(output.count("elsewhere") for output in outputs) == 3


def test_what_another_runner_failed_at_is_not_tried_twice(points):
    plan(points, w8=["wait"], w9=["raise"])
    with quick_command_line(points) as one:
        eventually(lambda: log(points))
        with quick_command_line(points) as two:
            eventually(lambda: states(points)[1:] == ["failed", "done"])
            (points / "go").touch()
            outputs = [process.communicate(timeout=300)[0] for process in (one, two)]
    assert [entry for entry in log(points) if entry[0] == "w9"] == [("w9", "begun")]
    assert (one.returncode, two.returncode) == (1, 1), outputs
    assert [output.count("l1 = nan for w9") for output in outputs] == [2, 2]  # in its line, and in the end


def test_a_runner_takes_over_from_one_that_is_killed(points):
    plan(points, w8=["hang"])
    with quick_command_line(points) as one:
        eventually(lambda: store.checkpoint(points, KEYS[0]).exists())
        with quick_command_line(points) as two:
            eventually(lambda: states(points)[1:] == ["done", "done"])
            assert two.poll() is None  # it waits for the first point
            assert states(points)[0] == "to do"
            one.kill()
            output, _ = two.communicate(timeout=300)
    assert two.returncode == 0, output
    assert states(points) == ["done"] * 3
    assert log(points)[-2:] == [("w8", "resumed"), ("w8", "done")]


def test_status_tells_what_is_running_and_what_is_begun(points, monkeypatch, capsys):
    monkeypatch.setitem(fakes.grids.GRIDS, "initialisation", lambda scale, data: THREE)
    status = ["status", "initialisation", "--runs", str(points.parent)]
    plan(points, w8=["raise"], w9=["hang"])
    with quick_command_line(points):
        eventually(lambda: store.checkpoint(points, KEYS[1]).exists())
        assert fakes.cli.main(status) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].endswith("0 done, 1 failed, 1 running, 1 to do")
        assert [line.split(":")[0] for line in lines[1:]] == ["  begun", "  failed"]
    assert fakes.cli.main(status) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("0 done, 1 failed, 0 running, 2 to do")
    assert [line.split(":")[0] for line in lines[1:]] == ["  begun", "  failed", "  begun"]


def test_a_claim_is_of_one_holder_and_ends_with_it(tmp_path):
    assert not locks.is_held(tmp_path, "a")
    assert list(tmp_path.iterdir()) == []
    claim = locks.acquire(tmp_path, "a")
    assert locks.acquire(tmp_path, "a") is None
    assert locks.is_held(tmp_path, "a")
    locks.acquire(tmp_path, "b").release()
    claim.release()
    assert not locks.is_held(tmp_path, "a")
    assert Path(tmp_path / locks.FOLDER / "a").read_bytes() == b""
