"""The benchmark runs: all its parts, on few small images, and its table says what was measured."""

import re

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import rivals, timing

TINY = ["--images", "4", "--train-images", "8", "--warm-up", "8", "--repeats", "1", "--nets", "4.1"]


@pytest.fixture(autouse=True)
def digits(monkeypatch, tmp_path):
    monkeypatch.setenv("ADVDIM_DATA", str(tmp_path))  # where nothing is


@pytest.fixture(autouse=True)
def _one_call_per_turn(monkeypatch):
    monkeypatch.setattr(timing, "TURN", 0.0)


def lines_of(printed):
    return [line for line in printed.splitlines() if re.match(r"4\.\d  ", line)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of other libraries, as they are imported
def test_attacks_and_gradients_do_equal_work(capsys):
    bench.main(["attacks", "gradients", *TINY])
    printed = capsys.readouterr().out
    assert "digits" in printed
    rows = lines_of(printed)
    rows = rows[len(rows) // 2 :]  # each is printed when it is there, and again in the table
    absent = rivals.missing()
    assert len(rows) == sum(name not in absent for names in bench.COMPARED.values() for name in names) + 3
    for row in rows:
        ours, theirs = (side.strip() for side in re.split(r"  +", row)[-1].split(" | "))
        if "DeepFool" not in row and "adv-lib" not in row:  # which returns the last image that was classified wrong
            numbers = [[float(number) for number in re.findall(r"[\d.]+", side)] for side in (ours, theirs)]
            assert numbers[0] == pytest.approx(numbers[1], rel=2e-3), row


def test_training_does_equal_work(capsys):
    bench.main(["training", *TINY, "--methods", "none", "gradient-l2"])
    rows = lines_of(capsys.readouterr().out)
    assert len(rows) == 4
    for row in rows:
        assert len(re.findall(r"loss (\d+\.\d+)", row)) == 2
        assert "roofline" in row


def test_a_ratio_is_of_medians_and_is_held_against_what_is_required():
    row = timing.Row("4.1", "PGD linf", "Foolbox", [1.0, 9.0, 2.0], [4.0, 3.0, 5.0], "")
    assert row.ratio == 2
    assert row.required == 1.9
    assert timing.lines([row])[1].endswith("  met")
    slower = timing.Row("4.1", "PGD linf", "Foolbox", [2.0], [2.0], "")
    assert "NOT MET" in timing.lines([slower])[1]
    assert timing.Row("4.2", "train pgd-linf", "plain loop", [1.0], [1.0], "").required == 2.5
    assert timing.Row("4.2", "train other", "plain loop", [1.0], [1.0], "").required is None


def test_contestants_take_turns_of_half_a_second(monkeypatch):
    monkeypatch.setattr(timing, "TURN", 0.5)
    clock, turns = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def contestant(name, seconds):
        turns.append(name)
        clock[0] += seconds

    contestants = {"a": lambda: contestant("a", 0.25), "b": lambda: contestant("b", 2.0)}
    seconds = timing.side_by_side(contestants, 3, torch.device("cpu"))
    assert "".join(turns) == "aa" + "b" + "aa" + "b" + "b" + "aa" + "aa" + "b"
    assert seconds == {"a": [0.25] * 3, "b": [2.0] * 3}


def test_operations_are_counted_backwards_too():
    layer = torch.nn.Linear(3, 5)
    with timing.Flops() as counted:
        layer(torch.ones(2, 3)).sum().backward()
    assert counted.total == 2 * (2 * 2 * 3 * 5)  # the product, and that for the weights' gradient


def test_a_missing_library_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(rivals, "missing", lambda: list(rivals.LIBRARIES))
    bench.main(["attacks", *TINY])
    printed = capsys.readouterr().out
    assert "left out, cannot be imported: Foolbox, Foolbox bare, ART, torchattacks, adv-lib, adv-lib DDN" in printed
    assert lines_of(printed) == []
