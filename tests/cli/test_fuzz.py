"""Hostile input at every door ends in a result or in one line that names it: no traceback, no hang, nothing lost.

Seeded: every run tries the same. Each attempt has seconds, and all of them little memory.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import resource
import signal
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import THREE, TINY
from PIL import Image

from advdim import data
from advdim.analysis import records
from advdim.audit import cells
from advdim.cli import main, survey
from advdim.data import folders
from advdim.data.atomic import json_checksum
from advdim.experiments import grids, runner, spec, store
from advdim.experiments.engines import children
from advdim.train import checkpoint

pytestmark = pytest.mark.process

SECONDS = 30  # for one attempt; the slowest takes less than one on a quiet machine
MEGABYTES = 600  # more than before, at most, for all attempts of a test
NAME = spec.key(TINY)


@pytest.fixture(autouse=True)
def bounds(tmp_path, monkeypatch):
    """A folder and a data root of its own, three points that cost nothing, and a bound on memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADVDIM_DATA", str(tmp_path / "root"))
    monkeypatch.setitem(grids.GRIDS, "initialisation", lambda scale, name: THREE)
    monkeypatch.setattr(runner, "measure", lambda *_: {"l1": [1.0, 2.0]})
    data.sizes("digits")  # what it imports takes a busy machine seconds
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


class Hangs(BaseException):
    """No Exception, which the code under test might take for a damaged file."""


@contextlib.contextmanager
def in_time(what):
    def end(*_):
        raise Hangs(repr(what)[:500])

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def command(arguments):
    """Status, and what is on stdout and stderr, of a command that must end in one of three ways."""
    out, err = io.StringIO(), io.StringIO()
    with in_time(arguments), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as misuse:
            status = misuse.code
    assert status in (0, 1, 2), arguments
    assert "Traceback" not in err.getvalue()
    if status == 2:
        assert "usage:" in err.getvalue()
    elif status == 1 and err.getvalue():
        assert err.getvalue().splitlines()[-1].startswith("advdim: "), arguments
    return status, out.getvalue(), err.getvalue()


def mutated(content, rng):
    """Some bits flipped; or the end cut off; or a part written over, taken out, doubled, or from elsewhere."""
    content, kind = bytearray(content), rng.randrange(6)
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice((1, 4, 16, 200)))
    if kind == 0:
        for _ in range(rng.choice((1, 1, 3, 10))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del content[start:]
    elif kind == 2:
        content[start:end] = rng.choice((b"\0", b"\xff", b"9", b"\n", b"[")) * (end - start)
    elif kind == 3:
        del content[start:end]
    elif kind == 4:
        content[start:start] = content[start:end] * rng.choice((1, 50))
    else:
        content[start:end] = rng.randbytes(end - start)
    return bytes(content)


# The command line

HOSTILE = [
    "", "-", "--", ".", "..", "../..", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "a\0b", "a\nb", "é", "\udcff",
    "%s", "{}", "$(true)", "*", "~", "~nobody/x", "-1", "0", "1e9", "nan", "inf", "9" * 30, "²", "x" * 5000, "pipe",
    "digits", "initialisation", "quick", "cpu", "cuda:99", "runs",
]  # fmt: skip
COMMANDS = [
    ["data", "add"], ["data", "list"], ["data", "where"], ["data", "verify"], ["data", "remove"], ["run"], ["status"],
    ["record"], ["restore"], ["run", "initialisation", "--device", "cpu"], ["status", "initialisation"],
    ["record", "initialisation"], ["restore", "initialisation"], [],
]  # fmt: skip
OPTIONS = [
    "--root", "--sha256", "--data", "--scale", "--runs", "--out", "--record", "--jobs", "--threads", "--first",
    "--device", "--engine", "--address", "--gpus", "--partial", "--help", "--version", "--nonsense",
]  # fmt: skip


def test_command_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "run", lambda *_, **__: (nothing for nothing in ()))  # no processes
    monkeypatch.setattr(records, "__file__", str(tmp_path / "records.py"))  # where `record` writes by itself
    os.mkfifo("pipe")
    rng, statuses = random.Random(0), []
    for arguments in itertools.chain(
        ([*start, *end] for start in COMMANDS for end in ([], ["--help"], ["pipe"], ["a\0b"])),
        (["run", "initialisation", "--device", "cpu", option, "9" * n] for option in OPTIONS for n in (1, 30)),
        ([*rng.choice(COMMANDS), *rng.choices(OPTIONS + HOSTILE, k=rng.randrange(5))] for _ in range(150)),
    ):
        if "--engine" in arguments and "ray" in arguments:
            continue
        statuses.append(command(arguments)[0])
    assert {0, 1, 2} <= set(statuses)


# Archives

MEMBERS = {f"set/{s}/{c}/{i}.png": bytes([i]) * 700 for s in ("train", "test") for c in "ab" for i in range(3)}
NAMES = [
    "../out.png",
    "/out.png",
    "set/../../out.png",
    "a\0b.png",
    "a\nb.png",
    "x" * 300,
    "set/train",
    "",
    ".",
    "set/..",
]


def pack(path, members):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members.items():
                file.writestr(name or "empty", content)
        return
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_archives(tmp_path, suffix):
    rng, outside = random.Random(1), tmp_path / "archives"
    outside.mkdir()
    pack(outside / f"good{suffix}", MEMBERS)
    good = (outside / f"good{suffix}").read_bytes()
    pack(tmp_path / f"bad{suffix}", MEMBERS)
    bad, statuses = tmp_path / f"bad{suffix}", set()
    names = iter(NAMES)
    for _ in range(40):
        name = next(names, None)
        if name is None:
            bad.write_bytes(mutated(good, rng))
        else:
            pack(bad, {name: b"x"} | MEMBERS)
        status, _, err = command(["data", "add", str(bad)])
        statuses.add(status)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["archives", bad.name, "root"]
        left = {path.name for path in (tmp_path / "root").iterdir()} - {".advdim.lock"}
        if status == 1:
            assert err.count("\n") == 1
            assert str(bad) in err
            assert left == set()
        else:
            assert command(["data", "verify"])[0] == 0
            for name in folders.names():
                assert data.sizes(name)["train"] > 0
                assert command(["data", "remove", name])[0] == 0
    assert 1 in statuses


# Images


def test_images(tmp_path):
    rng = random.Random(2)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    folder, statuses = tmp_path / "photos" / "train" / "a", set()
    folder.mkdir(parents=True)
    for kind, mode in itertools.product(("png", "jpeg", "tiff", "bmp", "webp", "gif"), ("RGB", "L", "P", "I;16")):
        buffer = io.BytesIO()
        try:
            Image.fromarray(pixels).convert("I" if mode == "I;16" else mode).save(buffer, kind)
        except (OSError, ValueError):  # not every mode in every format
            continue
        for _ in range(8):
            (folder / "0.png").write_bytes(mutated(buffer.getvalue(), rng))
            with in_time(kind):
                try:
                    x, _ = data.load(f"{tmp_path}/photos")
                    assert x.isfinite().all()
                    assert 0 <= x.min() <= x.max() <= 1
                    said = ""
                except ValueError as error:
                    said = str(error)
                assert f"cannot read the image {folder}/0.png" in said or not said
                statuses.add(bool(said))
    assert statuses == {True, False}


# Points, records and checkpoints


def test_points_and_records(tmp_path):
    rng, folder = random.Random(3), tmp_path / "runs" / "initialisation"
    assert command(["run", "initialisation", "--device", "cpu"])[0] == 0
    assert command(["record", "initialisation", "--out", "r.jsonl"])[0] == 0
    point, record = (folder / f"{NAME}.json").read_bytes(), (tmp_path / "r.jsonl").read_bytes()
    whole, values = store.load(folder, NAME), (b"null", b"{}", b"[[]]", b"NaN", b'"x"', b"1e999", b"[" * 5000, b"true")
    for i in range(250):
        if i % 2:
            content = mutated(point, rng)
        else:  # another value in the place of a number or a string
            words = point.split(b'"')
            words[rng.randrange(1, len(words) - 1)] = rng.choice(values)
            content = b'"'.join(words)
        (folder / f"{NAME}.json").write_bytes(content)
        with in_time(content):
            try:
                assert store.load(folder, NAME) == whole
                said = NAME
            except store.DamagedPointError as error:
                said = str(error)
            assert NAME in said
        if i % 10 == 0:
            assert command(["status", "initialisation"])[0] == 0
            status, _, err = command(["record", "initialisation", "--out", "other.jsonl"])
            assert status == 0 or f"{NAME}.json" in err
    assert command(["run", "initialisation", "--device", "cpu"])[0] == 0
    assert store.load(folder, NAME)["metrics"] == whole["metrics"]
    for _ in range(60):
        (tmp_path / "bad.jsonl").write_bytes(mutated(record, rng))
        status, _, err = command(["restore", "initialisation", "--record", "bad.jsonl", "--runs", "elsewhere"])
        assert status == 0 or err.count("\n") == 1


def test_files_of_audits_and_surveys(tmp_path, capsys):
    rng, path, kept = random.Random(5), tmp_path / "cells.jsonl", tmp_path / "net.json"
    written = [cells.Cell(size, 0, {"l_q": [1.5, 0.1 * size]}, {"conv": [2.0]}, counted=0.3) for size in (8, 16)]
    store = cells.Store(tmp_path, {"network": "net", "images": 2})
    for cell in written:
        store.add(cell)
    asked, points = {"network": "net", "seeds": 8}, [{"spec": {"size": 8}, "metrics": {"l_1": [1.5, 0.25]}}]
    content = {"asked": asked, "points": points}
    kept.write_text(json.dumps(content | {"checksum": json_checksum(content)}))
    assert survey._kept(kept, asked) == points
    for file, content in ((path, path.read_bytes()), (kept, kept.read_bytes())):
        for _ in range(80):
            bad = mutated(content, rng)
            file.write_bytes(bad)
            with in_time(bad):
                try:
                    if file == kept:
                        assert survey._kept(kept, asked) == points
                        continue
                    found = list(cells.Store(tmp_path, {"network": "net", "images": 2}).cells.values())
                    assert all(cell in written for cell in found)
                    said = capsys.readouterr().err + (path.name if found == written else "")
                except ValueError as error:
                    said = str(error)
                assert file.name in said or str(tmp_path) in said


def test_an_empty_name_is_no_default(tmp_path, monkeypatch):
    """As of a variable of the shell that is not set: the package's own record would be replaced."""
    monkeypatch.setattr(records, "__file__", str(tmp_path / "package" / "records.py"))
    assert command(["run", "initialisation", "--device", "cpu"])[0] == 0
    for arguments in (["record", "initialisation", "--out", ""], ["restore", "initialisation", "--record", ""]):
        status, _, err = command(arguments)
        assert (status, err.partition(" is a folder")[0]) == (1, "advdim: .")
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize("word", ["NaN", "-Infinity", "1e999"])
def test_a_record_with_what_is_no_number_is_named(word):
    assert command(["run", "initialisation", "--device", "cpu"])[0] == 0
    assert command(["record", "initialisation", "--out", "r.jsonl"])[0] == 0
    text = Path("r.jsonl").read_text(encoding="utf-8")
    Path("bad.jsonl").write_text(text.replace("[1.0, 2.0]", f"[1.0, {word}]"), encoding="utf-8")
    status, _, err = command(["restore", "initialisation", "--record", "bad.jsonl", "--runs", "elsewhere"])
    assert status == 1
    assert f"bad.jsonl is no record of an experiment: ValueError: {word} is no finite number" in err
    assert command(["record", "initialisation", "--out", "bad.jsonl"])[0] == 1  # nor is it replaced


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_checkpoints(tmp_path):
    rng, path = random.Random(4), tmp_path / "run.pt"
    model, x = torch.nn.Linear(3, 2), torch.rand(4, 3)
    identity = checkpoint.identity({"lr": 0.1}, model, {"x": x})
    checkpoint.save(path, identity, {"model": model.state_dict(), "rows": [{"loss": 1.0}]})
    content, expected = path.read_bytes(), checkpoint.load(path, identity)
    payload = content.partition(b"\n")[2]

    def signed(payload):
        return checkpoint.MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload

    def same(found):
        weights = (loaded["model"] for loaded in (found, expected))
        return found["rows"] == expected["rows"] and all(
            torch.equal(*pair) for pair in zip(*(w.values() for w in weights), strict=True)
        )

    for i in range(200):
        # Every second one bears a right checksum: what is written into it on purpose must still not be run.
        bad = mutated(content, rng) if i % 2 else signed(mutated(payload, rng))
        path.write_bytes(bad)
        with in_time(bad):
            try:
                found = checkpoint.load(path, identity)
                assert i % 2 == 0 or same(found)
                said = path.name
            except ValueError as error:
                said = str(error)
            assert path.name in said
        assert path.read_bytes() == bad
    evil = io.BytesIO()
    torch.save(Evil(), evil)
    for payload in (pickle.dumps(Evil()), evil.getvalue()):
        path.write_bytes(signed(payload))
        with pytest.raises(checkpoint.DamagedCheckpointError):
            checkpoint.load(path, identity)
    assert not (tmp_path / "evil").exists()
