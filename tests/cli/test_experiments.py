"""The commands `advdim run`, `status` and `record`."""

import errno
import os

import pytest
import torch
from helpers.tiny import THREE, TINY

import advdim as ad
from advdim.analysis import records, tables
from advdim.cli import main
from advdim.experiments import cost, grids, locks, runner, spec, store
from advdim.experiments.engines import executor

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working folder of its own, an empty data root, and a grid of three points."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADVDIM_DATA", str(tmp_path / "data"))
    initialisation = grids.GRIDS["initialisation"]
    monkeypatch.setitem(
        grids.GRIDS, "initialisation", lambda scale, data: THREE if data == "digits" else initialisation(scale, data)
    )
    return tmp_path


@pytest.fixture
def free(monkeypatch):
    """Measuring costs nothing."""
    monkeypatch.setattr(runner, "measure", lambda s, device, root, checkpoint: {"l1": [1.0, 2.0]})


@pytest.fixture
def failing(free, monkeypatch):
    """The second point fails."""
    measure = runner.measure

    def fail(s, device, root, checkpoint):
        if s == THREE[1]:
            raise ValueError("l1 = nan at seed 3")
        return measure(s, device, root, checkpoint)

    monkeypatch.setattr(runner, "measure", fail)


def refused(arguments, capsys):
    """The one line on stderr of a command that returns 1."""
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("advdim: ")
    assert error.count("\n") == 1
    return error


def test_run_status_record(elsewhere, capsys):
    assert main(["status", "initialisation"]) == 0
    assert capsys.readouterr().out == "runs/initialisation: 0 done, 0 failed, 0 running, 3 to do\n"
    assert not (elsewhere / "runs").exists()
    assert main(["run", "initialisation", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("runs/initialisation: 3 done, 0 failed, 0 running, 0 to do\n")
    assert out.count("digits 8 px copy, mlp he") == 3
    assert main(["run", "initialisation", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "runs/initialisation: 3 done, 0 failed, 0 running, 0 to do\n"
    assert main(["record", "initialisation", "--out", "new/record.jsonl"]) == 0
    assert capsys.readouterr().out == "3 points recorded in new/record.jsonl\n"
    header, points = records.read_record((elsewhere / "new" / "record.jsonl").read_text())
    assert header == {
        "command": "advdim run initialisation --data digits --scale quick",
        "experiment": "initialisation",
        "scale": "quick",
    }
    assert {spec.key_of(p["spec"]) for p in points} == {spec.key(s) for s in THREE}
    assert {p["provenance"]["command"] for p in points} == {header["command"]}
    (one,) = (s for s in tables.series(points[:1]))
    assert one.metrics["l1"].shape == (1, TINY.seeds)


def test_the_default_device_and_folder_of_runs(free, elsewhere, monkeypatch):
    monkeypatch.setattr(ad, "device", lambda: torch.device("cpu"))
    assert main(["run", "initialisation", "--runs", "elsewhere"]) == 0
    assert len(list((elsewhere / "elsewhere" / "initialisation").glob("*.json"))) == 3


def test_the_default_record_is_the_packages_own(free, elsewhere, monkeypatch):
    monkeypatch.setattr(records, "__file__", str(elsewhere / "store.py"))
    assert main(["run", "initialisation", "--device", "cpu"]) == 0
    assert main(["record", "initialisation"]) == 0
    assert (elsewhere / "recorded" / "initialisation-digits.jsonl").is_file()


def test_a_failed_point_is_status_1_and_is_shown(failing, elsewhere, capsys):
    assert main(["run", "initialisation", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "runs/initialisation: 2 done, 1 failed, 0 running, 0 to do\n" in out
    assert "failed: digits 8 px copy, mlp he: ValueError: l1 = nan at seed 3" in out
    assert main(["status", "initialisation"]) == 0
    assert "l1 = nan at seed 3" in capsys.readouterr().out
    assert "1 points are not done" in refused(["record", "initialisation", "--out", "record.jsonl"], capsys)
    assert not (elsewhere / "record.jsonl").exists()


def test_missing_points_are_not_recorded(free, elsewhere, capsys):
    assert "3 points are not done" in refused(["record", "initialisation", "--out", "record.jsonl"], capsys)
    assert main(["run", "initialisation", "--device", "cpu"]) == 0
    (elsewhere / "runs" / "initialisation" / f"{spec.key(TINY)}.json").unlink()
    capsys.readouterr()
    assert "1 points are not done" in refused(["record", "initialisation", "--out", "record.jsonl"], capsys)
    assert [f.name for f in elsewhere.iterdir()] == ["runs"]


@pytest.mark.parametrize("command", ["run", "status", "record"])
def test_unknown_names_are_one_line_and_status_1(command, elsewhere, capsys):
    error = refused([command, "nothing"], capsys)
    assert "'nothing'" in error
    assert "there are initialisation" in error
    assert "'mnist'" in refused([command, "initialisation", "--data", "mnist"], capsys)
    assert list(elsewhere.iterdir()) == []


def test_missing_data_is_one_line_with_the_cure(elsewhere, capsys):
    error = refused(["run", "initialisation", "--data", "cifar10-jpeg", "--device", "cpu"], capsys)
    assert "'cifar10-jpeg'" in error
    assert "advdim data add cifar10-jpeg.tar.xz" in error
    assert str(elsewhere / "data") in error
    error = refused(["run", "initialisation", "--data", "imagenette-224", "--root", "there"], capsys)
    assert str(elsewhere / "there") in error
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_one_line_and_no_point(device, elsewhere, capsys):
    error = refused(["run", "initialisation", "--device", device], capsys)
    assert f"'{device}'" in error
    assert "try --device cpu" in error
    assert list(elsewhere.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(elsewhere, capsys):
    assert "'cuda'" in refused(["run", "initialisation", "--device", "cuda"], capsys)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "initialisation", "--scale", "huge"],
        ["run", "initialisation", "--engine", "threads"],
        ["run", "initialisation", "--engine", "processes", "--jobs", "0"],
        ["run", "initialisation", "--engine", "ray", "--gpus", "-1"],
        ["run", "initialisation", "--engine", "processes", "--gpus", "0.5"],
        ["run", "initialisation", "--engine", "processes", "--address", "auto"],
        ["run", "initialisation", "--engine", "serial", "--jobs", "2"],
        ["run", "initialisation", "--jobs", "9" * 99],
        ["run", "initialisation", "--threads", "100000"],
        ["run", "initialisation", "--threads", "one"],
        ["run", "initialisation", "--first", "0"],
        ["status", "--device", "cpu"],
        ["record", "a", "b"],
    ],
)
def test_misuse_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


PROCESSES = ["--engine", "processes"]


@pytest.mark.parametrize(
    ("options", "jobs"),
    [
        ([], None),
        (PROCESSES, 6),
        ([*PROCESSES, "--threads", "2"], 3),
        ([*PROCESSES, "--jobs", "2"], 2),
        (["--jobs", "2"], 2),
        ([*PROCESSES, "--threads", "9"], 1),
    ],
)
def test_the_default_number_of_processes_fills_the_cores(elsewhere, monkeypatch, options, jobs):
    asked = []
    monkeypatch.setattr(executor, "cores", lambda: 6)
    monkeypatch.setattr(runner, "run", lambda *_, **named: asked.append(named.get("jobs")) or 0)
    assert main(["run", "initialisation", "--device", "cpu", *options]) == 1  # the points are still to do
    assert asked == [jobs]


def test_a_run_that_leaves_points_to_do_is_status_1(elsewhere, monkeypatch, capsys):
    """As when the folder is taken away meanwhile: its last line said "3 to do", and its status 0, before."""
    monkeypatch.setattr(runner, "run", lambda *_, **__: 0)
    assert main(["run", "initialisation", "--device", "cpu"]) == 1
    assert capsys.readouterr().out.endswith("0 done, 0 failed, 0 running, 3 to do\n")


def test_a_damaged_file_is_named_set_aside_and_measured_again(free, elsewhere, capsys):
    file = elsewhere / "runs" / "initialisation" / f"{spec.key(THREE[2])}.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    assert main(["status", "initialisation"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("runs/initialisation: 0 done, 0 failed, 0 running, 3 to do\n  damaged: ")
    assert str(file.relative_to(elsewhere)) in out
    assert file.name in refused(["record", "initialisation", "--out", "r.jsonl"], capsys)
    assert main(["run", "initialisation", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("3 done, 0 failed, 0 running, 0 to do\n")
    assert file.name in err
    (aside,) = (file.parent / store.ASIDE).iterdir()
    assert aside.read_text() == "{"


def test_status_of_a_folder_that_may_only_be_read(free, elsewhere, monkeypatch, capsys):
    assert main(["run", "initialisation", "--device", "cpu", "--first", "2"]) == 0
    capsys.readouterr()
    folder = elsewhere / "runs" / "initialisation"
    lock = locks.acquire(folder, spec.key(THREE[2]))
    real = os.open

    def read_only(path, flags, *rest, **named):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", read_only)
    assert main(["status", "initialisation"]) == 0
    assert capsys.readouterr().out == "runs/initialisation: 2 done, 0 failed, 1 running, 0 to do\n"
    monkeypatch.undo()
    lock.release()


@pytest.mark.parametrize("content", ["my thesis", '{"shared": {}}'])
def test_a_record_is_written_where_one_may_be(free, elsewhere, content, capsys):
    assert main(["run", "initialisation", "--device", "cpu"]) == 0
    (elsewhere / "notes.txt").write_text(content)
    assert "notes.txt is no record" in refused(["record", "initialisation", "--out", "notes.txt"], capsys)
    assert (elsewhere / "notes.txt").read_text() == content
    for _ in range(2):
        assert main(["record", "initialisation", "--out", "record.jsonl"]) == 0


def test_a_full_disk_is_one_line_that_names_the_file(free, elsewhere, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    error = refused(["run", "initialisation", "--device", "cpu"], capsys)
    assert os.strerror(errno.ENOSPC) in error
    assert f"{spec.key(THREE[0])}.json" in error
    assert [f.name for f in (elsewhere / "runs" / "initialisation").iterdir()] == [locks.FOLDER]


def test_an_interruption_is_status_130(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "measure", interrupt)
    assert main(["run", "initialisation", "--device", "cpu"]) == 130
    assert capsys.readouterr().err.endswith("the same command goes on from there\n")


def test_the_first_points_alone(free, elsewhere, capsys):
    assert main(["run", "initialisation", "--device", "cpu", "--first", "2"]) == 0
    assert capsys.readouterr().out.endswith("runs/initialisation: 2 done, 0 failed, 0 running, 1 to do\n")
    done = {file.stem for file in (elsewhere / "runs" / "initialisation").glob("*.json")}
    assert done == {spec.key(s) for s in THREE[:2]}


def test_a_grid_cut_short_is_recorded_as_such_and_goes_on_from_its_record(free, elsewhere, capsys):
    """As on another machine, where there is the record and no folder of points."""
    record = ["record", "initialisation", "--out", "record.jsonl", "--partial"]
    assert main(["run", "initialisation", "--device", "cpu", "--first", "2"]) == 0
    capsys.readouterr()
    assert main(record) == 0
    assert capsys.readouterr().out == "2 of 3 points recorded in record.jsonl\n"
    header, points = records.read_record((elsewhere / "record.jsonl").read_text())
    assert header["cut_short"] == "2 of 3 points"
    assert len(points) == 2
    for file in (elsewhere / "runs" / "initialisation").glob("*.json"):
        file.unlink()
    assert main(["restore", "initialisation", "--record", "record.jsonl"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 points restored from record.jsonl\n")
    assert "2 done, 0 failed, 0 running, 1 to do" in out
    assert main(["run", "initialisation", "--device", "cpu"]) == 0
    assert main(record) == 0
    header, points = records.read_record((elsewhere / "record.jsonl").read_text())
    assert "cut_short" not in header
    assert {spec.key_of(p["spec"]) for p in points} == {spec.key(s) for s in THREE}


def test_a_record_cut_short_names_what_failed(failing, elsewhere):
    """A run that diverges is reported, and not replaced."""
    assert main(["run", "initialisation", "--device", "cpu"]) == 1
    assert main(["record", "initialisation", "--out", "record.jsonl", "--partial"]) == 0
    header, points = records.read_record((elsewhere / "record.jsonl").read_text())
    assert header["failed"] == [f"{THREE[1]}: ValueError: l1 = nan at seed 3"]
    assert header["cut_short"] == "2 of 3 points"
    assert len(points) == 2


def test_points_of_another_grid_are_not_restored(free, elsewhere, capsys):
    assert main(["run", "initialisation", "--device", "cpu"]) == 0
    assert main(["record", "initialisation", "--out", "record.jsonl"]) == 0
    (elsewhere / "runs" / "initialisation" / f"{spec.key(TINY)}.json").unlink()
    capsys.readouterr()
    assert main(["restore", "4.1", "--data", "digits", "--record", "record.jsonl"]) == 0
    assert capsys.readouterr().out.startswith("0 points restored")
    assert "none.jsonl" in refused(["restore", "initialisation", "--record", "none.jsonl"], capsys)


def test_training_runs_are_compared_with_their_prediction(elsewhere, monkeypatch, capsys):
    grid = grids.GRIDS["4.1"]("quick", "digits")[:2]
    monkeypatch.setitem(grids.GRIDS, "4.1", lambda scale, data: grid)
    monkeypatch.setattr(runner, "measure", lambda s, device, root, checkpoint: {"l1": 1.0})
    assert main(["run", "4.1", "--data", "digits", "--device", "cpu"]) == 0
    predicted = sum(cost.core_hours(grid))
    line = f"2 training runs: 0.00 h; predicted for one core of a CPU: {predicted:.2f} h\n"
    assert capsys.readouterr().out.endswith(line)


def test_a_partial_record_of_nothing_is_refused(free, elsewhere, capsys):
    assert "no points to record" in refused(["record", "initialisation", "--out", "r.jsonl", "--partial"], capsys)
