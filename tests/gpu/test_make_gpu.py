"""`make gpu` ends a slice in time, and goes on from there when it is called again."""

import sys
import time

import one_gpu as gpu
import pytest
import torch

COUNT = """
import pathlib, sys, time
done = pathlib.Path(sys.argv[1])
print("begun", flush=True)
try:
    while not done.exists() or len(done.read_text()) < 4:
        with done.open("a") as file:
            file.write("x")
        time.sleep(0.15)
except KeyboardInterrupt:
    sys.exit(130)
"""


def counting(tmp_path, name="count", resumes=True):
    return gpu.Step(name, (sys.executable, "-c", COUNT, str(tmp_path / name)), resumes)


def python(name, code):
    return gpu.Step(name, (sys.executable, "-c", code))


def test_a_step_goes_on_over_slices_until_it_is_done(tmp_path):
    out = tmp_path / "out"
    steps = [counting(tmp_path), python("next", "print('next')")]
    assert gpu.work(steps, out, limit=0.35) == 0
    assert (tmp_path / "count").read_text() == "xxxx"
    assert (out / "count.log").read_text().count("begun") > 1
    assert (out / "next.log").read_text() == "next\n"
    before = (out / "next.log").stat().st_mtime_ns
    assert gpu.work(steps, out, limit=0.35) == 0
    assert (out / "next.log").stat().st_mtime_ns == before


def test_it_ends_after_so_many_slices(tmp_path, capsys):
    steps = [python("one", ""), python("two", ""), python("three", "")]
    assert gpu.work(steps, tmp_path, slices=2) == 1
    assert (tmp_path / "two.done").exists()
    assert not (tmp_path / "three.done").exists()
    assert "three: to do" in capsys.readouterr().out
    assert gpu.work(steps, tmp_path, slices=2) == 0


def test_a_failure_is_told_tried_again_and_ends_nothing_else(tmp_path, capsys):
    steps = [python("bad", "raise SystemExit(3)"), python("good", "")]
    for _ in range(2):
        assert gpu.work(steps, tmp_path) == 1
        assert "bad: failed with status 3" in capsys.readouterr().out
    assert (tmp_path / "good.done").exists()


def test_what_cannot_resume_has_to_fit_into_a_slice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.2)
    assert gpu.work([python("long", "import time; time.sleep(60)")], tmp_path, limit=0.2) == 1
    assert "long: took more than 0 s" in capsys.readouterr().out


def test_what_ignores_an_interrupt_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    start = time.monotonic()
    assert gpu.work([python("deaf", deaf)], tmp_path, limit=0.5) == 1
    assert time.monotonic() - start < 20


def test_a_slice_is_shorter_than_nine_minutes_and_all_grids_are_there(tmp_path):
    from advdim.experiments import grids

    assert gpu.SLICE + 2 * gpu.GRACE < 9 * 60
    names = [step.name for step in gpu.steps(tmp_path, "quick")]
    assert names[0] == "tests"
    assert {f"grid-{name}" for name in grids.GRIDS} < set(names)
    assert len(set(names)) == len(names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 2
    assert "no CUDA device here" in capsys.readouterr().err
