"""Results on disk: whole or not at all, refused by name when damaged, recorded as sorted text."""

import errno
import json
import os
import random
from pathlib import Path

import pytest
from helpers.tiny import THREE, TINY

from advdim.analysis import records
from advdim.experiments import recorded, spec, store

NAME = spec.key(TINY)


WHERE = dict.fromkeys(("command", "date", "commit", "device", "torch", "python"), "x") | {"seconds": 1.5}


def done(s=TINY, value=1.0):
    metrics = {"l1": [value, 1 / 3]}
    return {"spec": spec.as_dict(s), "status": "done", "metrics": metrics, "data": "sha256:a", "provenance": WHERE}


def test_round_trip_of_a_point(tmp_path):
    assert store.load(tmp_path, NAME) is None
    assert store.load(tmp_path / "none", NAME) is None
    store.save(tmp_path / "new" / "folder", NAME, done())
    assert store.load(tmp_path / "new" / "folder", NAME) == done()
    assert [f.name for f in (tmp_path / "new" / "folder").iterdir()] == [f"{NAME}.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"3",
        b'{"spec": {}}',
        json.dumps({**done(), "status": "half"}).encode(),
        json.dumps({"spec": spec.as_dict(TINY), "status": "done"}).encode(),
        json.dumps({"spec": spec.as_dict(TINY), "status": "failed"}).encode(),
        json.dumps(done(THREE[1])).encode(),
        json.dumps({**done(), "checksum": "0"}).encode(),
        json.dumps({**done(), "chfcksum": "0"}).encode(),
        json.dumps({**done(), "metrics": None}).encode(),
        json.dumps({**done(), "metrics": {}}).encode(),
        json.dumps({**done(), "metrics": []}).encode(),
        json.dumps({**done(), "metrics": {"l1": [1.0]}}).encode(),
        json.dumps({**done(), "metrics": {"l1": [1.0, 2.0], "l2": [1.0, 2.0, 3.0]}}).encode(),
        json.dumps({**done(), "metrics": {"l1": [1.0, "2"]}}).encode(),
        json.dumps({**done(), "metrics": {"l1": [1.0, float("nan")]}}).encode(),
        json.dumps({**done(), "data": None}).encode(),
        json.dumps({**done(), "provenance": {}}).encode(),
        json.dumps({**done(), "provenance": WHERE | {"seconds": "1"}}).encode(),
        b"[" * 100_000,
        json.dumps({**done(), "spec": [1]}).encode(),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_by_name(tmp_path, content):
    file = tmp_path / f"{NAME}.json"
    file.write_bytes(content)
    with pytest.raises(store.DamagedPointError, match=f"{NAME}.json.*the next run sets it aside"):
        store.load(tmp_path, NAME)
    assert file.read_bytes() == content


def test_one_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    """7 of 40 changed a record before."""
    store.save(tmp_path, NAME, done())
    file = tmp_path / f"{NAME}.json"
    content, noticed = file.read_bytes(), 0
    for bit in random.Random(0).sample(range(8 * len(content)), 400):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            assert store.load(tmp_path, NAME) == done()  # white space, or 0.5 for .5e0
        except store.DamagedPointError:
            noticed += 1
    assert noticed > 300


def test_a_point_of_an_earlier_version_has_no_checksum_and_is_validated(tmp_path):
    (tmp_path / f"{NAME}.json").write_text(json.dumps(done()))
    assert store.load(tmp_path, NAME) == done()


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_no_point(tmp_path, kind):
    {"pipe": os.mkfifo, "folder": os.mkdir}[kind](tmp_path / f"{NAME}.json")
    with pytest.raises(store.DamagedPointError, match=f"is a .*{kind}"):
        store.load(tmp_path, NAME)


def test_what_is_set_aside_stays(tmp_path):
    for content in ("a", "b"):
        (tmp_path / f"{NAME}.json").write_text(content)
        store.set_aside(tmp_path, tmp_path / f"{NAME}.json")
        store.clean(tmp_path)
    assert sorted(file.read_text() for file in (tmp_path / store.ASIDE).iterdir()) == ["a", "b"]


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch, function):
    record = tmp_path / "record.jsonl"
    store.save(tmp_path, NAME, done())
    records.write_record(record, {}, [done()])
    before = {f: f.read_bytes() for f in tmp_path.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, function, full)
    for name, write in (
        (f"{NAME}.json", lambda: store.save(tmp_path, NAME, done(value=2.0))),
        ("record.jsonl", lambda: records.write_record(record, {}, [done(value=2.0)])),
    ):
        with pytest.raises(OSError, match=f"{os.strerror(errno.ENOSPC)}.*{name}") as caught:
            write()
        assert caught.value.errno == errno.ENOSPC
    assert {f: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_a_file_cut_short_by_the_system_is_no_file(tmp_path):
    """The limit on the size of files stands for a full disk: the system takes the beginning and refuses the rest."""
    resource = pytest.importorskip("resource")
    store.save(tmp_path, NAME, done())
    before = (tmp_path / f"{NAME}.json").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=f"{NAME}.json") as caught:
            store.save(tmp_path, NAME, done(value=2.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == {f"{NAME}.json": before}


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(OSError, match="runs"):
        store.save(tmp_path / "runs", NAME, done())


def test_what_is_not_finite_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        store.save(tmp_path, NAME, done(value=float("nan")))
    for points in ([done(value=float("inf"))], [done(value=float("inf")), done(THREE[1])]):
        with pytest.raises(ValueError, match="JSON"):
            records.write_record(tmp_path / "record.jsonl", {}, points)
    assert list(tmp_path.iterdir()) == []


def test_stale_temporary_files_are_cleaned_and_young_ones_and_others_are_not(tmp_path):
    store.clean(tmp_path / "none")
    old = {name: tmp_path / name for name in (f".{NAME}.json-abc", f"{NAME}.json", ".keep", "notes.txt")}
    for file in old.values():
        file.write_text("")
        os.utime(file, (0, 0))
    young = tmp_path / f".{NAME}.json-def"
    young.write_text("")
    store.clean(tmp_path)
    assert not old.pop(f".{NAME}.json-abc").exists()
    assert all(file.exists() for file in (*old.values(), young))


# Records


def test_a_record_is_sorted_text_whatever_the_order(tmp_path):
    points = [done(s, value) for s, value in zip(THREE, (1.0, 2e-7 / 3, 12345678.9), strict=True)]
    header = {"command": "advdim run", "scale": "quick"}
    records.write_record(tmp_path / "a.jsonl", header, points)
    records.write_record(tmp_path / "new" / "b.jsonl", header, random.Random(0).sample(points, 3))
    text = (tmp_path / "a.jsonl").read_text()
    assert (tmp_path / "new" / "b.jsonl").read_text() == text
    records.write_record(tmp_path / "a.jsonl", header, points)
    assert (tmp_path / "a.jsonl").read_text() == text
    lines = text.splitlines()
    assert len(lines) == 4
    assert [json.loads(line)["spec"]["network"]["width"] for line in lines[1:]] == [10, 8, 9]  # as text
    shared = json.loads(lines[0])["shared"]
    assert shared["spec"]["images"] == points[0]["spec"]["images"]
    assert "images" not in lines[1]
    found, read = records.read_record(text)
    assert found == header
    by_key = {spec.key_of(p["spec"]): p for p in read}
    for s, p in zip(THREE, points, strict=True):
        assert by_key[spec.key(s)]["metrics"]["l1"] == pytest.approx(p["metrics"]["l1"], rel=5e-6)
        assert by_key[spec.key(s)]["spec"] == p["spec"]
    assert "6.66667e-08" in text
    records.write_record(tmp_path / "again.jsonl", found, read)  # rounding once is rounding for good
    assert (tmp_path / "again.jsonl").read_text() == text


def test_the_order_is_that_of_specs_and_not_of_times(tmp_path):
    points = [done(s) | {"provenance": WHERE | {"seconds": 1.0 + i}} for i, s in enumerate(THREE)]
    again = [done(s) | {"provenance": WHERE | {"seconds": 9.0 - i}} for i, s in enumerate(THREE)]
    texts = []
    for run in (points, again):
        records.write_record(tmp_path / "a.jsonl", {}, run)
        texts.append([json.loads(line)["spec"] for line in (tmp_path / "a.jsonl").read_text().splitlines()[1:]])
    assert texts[0] == texts[1]


def test_a_record_has_one_version_of_the_data(tmp_path):
    points = [done(), done(THREE[1]) | {"data": "sha256:b"}]
    with pytest.raises(ValueError, match="two versions of digits, sha256:a and sha256:b"):
        records.write_record(tmp_path / "a.jsonl", {}, points)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["text", "json", "empty", "folder", "pipe", "link", "device"])
def test_a_record_replaces_records_alone(tmp_path, kind):
    path = tmp_path / "notes"
    make = {
        "text": lambda: path.write_text("my thesis\n"),
        "json": lambda: path.write_text('{"shared": {}}\n{"a": 1}\n'),
        "empty": path.touch,
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(tmp_path / "elsewhere"),
        "device": lambda: None,
    }
    make[kind]()
    path = Path("/dev/null") if kind == "device" else path
    before = path.lstat()
    with pytest.raises(ValueError, match=f"{path} is .*another name|{path} is a link"):
        records.write_record(path, {}, [done()])
    assert (path.lstat().st_ino, path.lstat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", "[" * 100_000, '{"shared": {}}', '{"shared": {}}\n{"a": 1}'])
def test_what_is_no_record_is_one_line_that_names_it(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"a\.jsonl is no record of an experiment") as caught:
        records.read_record_file(tmp_path / "a.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", ["failed", "missing", "to do"])
def test_undone_points_are_not_recorded(tmp_path, status):
    points = [done(), {**done(THREE[1]), "status": status}, {**done(THREE[2]), "status": status}]
    with pytest.raises(ValueError, match=r"2 points are not done.*'width': 9"):
        records.write_record(tmp_path / "a.jsonl", {}, points)
    with pytest.raises(ValueError, match=r"no points.*a\.jsonl"):
        records.write_record(tmp_path / "a.jsonl", {}, [])
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_record_lists_those_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(records.resources, "files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match="'nothing': there are none"):
        recorded("nothing")
    for name in ("b", "a"):
        records.write_record(tmp_path / "recorded" / f"{name}.jsonl", {"name": name}, [done()])
    (tmp_path / "recorded" / "README.md").write_text("")
    with pytest.raises(FileNotFoundError, match=r"'nothing': there are a, b$"):
        recorded("nothing")
    header, points = recorded("a")
    assert header == {"name": "a"}
    assert points[0]["spec"] == spec.as_dict(TINY)
