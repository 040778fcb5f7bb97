"""Results on disk: whole or not at all, refused by name when damaged, recorded as sorted text."""

import errno
import json
import os
import random

import pytest
from helpers.tiny import THREE, TINY

from advdim.analysis import records
from advdim.experiments import recorded, spec, store

NAME = spec.key(TINY)


def done(s=TINY, value=1.0):
    return {"spec": spec.as_dict(s), "status": "done", "metrics": {"l1": [value, 1 / 3]}}


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
        json.dumps({**done(), "spec": [1]}).encode(),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_by_name(tmp_path, content):
    file = tmp_path / f"{NAME}.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{NAME}.json.*delete it"):
        store.load(tmp_path, NAME)
    assert file.read_bytes() == content


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
    assert lines[1:] == sorted(lines[1:])
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
