"""Archives reach the data root whole, checked, and safely, or not at all."""

import errno
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from advdim.data import archives, folders
from advdim.data.archives import add
from advdim.data.folders import ArchiveError

A = {"set/train/a/0.png": b"a0", "set/train/b/0.png": b"b0", "set/val/a/0.png": b"v0"}
B = {"set/train/a/1.png": b"a1", "set/test/b/1.png": b"t1"}


def pack(path, members, special=()):
    """Write a tar, compressed as its name says, of files {name: content} and of ready-made members."""
    mode = {".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in special:
            tar.addfile(info)
    return path


def tree(root):
    """Every file in the root with its content, but the lock."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.name != ".advdim.lock")
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def images(root):
    return {name: content for name, content in tree(root).items() if not name.endswith(folders.MANIFEST)}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz", ".tar.bz2"])
def test_unpack_and_manifest(tmp_path, root, suffix):
    archive = pack(tmp_path / f"one{suffix}", A)
    added = add(archive, root)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert added == archives.Added(archive.name, sha256, False, root / "set", 3)
    assert images(root) == A
    manifest = json.loads((root / "set" / folders.MANIFEST).read_text())
    assert manifest == {"archives": {archive.name: sha256}, "files": 3}


def test_shards_merge(tmp_path, root):
    add(pack(tmp_path / "one.tar", A), root)
    assert add(pack(tmp_path / "two.tar", B), root).files == 2
    assert images(root) == A | B
    manifest = folders.manifest(root / "set")
    assert sorted(manifest["archives"]) == ["one.tar", "two.tar"]
    assert manifest["files"] == 5


def test_adding_again_changes_nothing(tmp_path, root):
    archive = pack(tmp_path / "one.tar", A)
    add(archive, root)
    add(pack(tmp_path / "two.tar", B), root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.name != ".advdim.lock" and path != root}
    assert add(archive, root).files == 0
    assert add(archive.rename(tmp_path / "renamed.tar"), root).files == 0
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.name != ".advdim.lock" and p != root} == before


# Checksums


def test_checksum_of_the_caller(tmp_path, root):
    archive = pack(tmp_path / "one.tar", A)
    with pytest.raises(ArchiveError, match=f"expected {'0' * 64}"):
        add(archive, root, sha256="0" * 64)
    assert not root.exists()
    assert add(archive, root, sha256=hashlib.sha256(archive.read_bytes()).hexdigest().upper()).verified


def test_known_name_must_have_its_checksum(tmp_path, root, monkeypatch):
    archive = pack(tmp_path / "cifar10-jpeg.tar.xz", A)
    computed = hashlib.sha256(archive.read_bytes()).hexdigest()
    for sha256 in (None, computed):  # the caller's word does not overrule the table
        with pytest.raises(ArchiveError, match=f"expected {folders.KNOWN[archive.name]}"):
            add(archive, root, sha256=sha256)
    monkeypatch.setitem(folders.KNOWN, archive.name, computed)
    assert add(archive, root).verified


def test_table_of_checksums():
    assert len(folders.KNOWN) == 5
    assert all(len(bytes.fromhex(sha256)) == 32 for sha256 in folders.KNOWN.values())


# Unsafe archives


def member(name, kind, target="", **values):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    for key, value in values.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "special",
    [
        member("../out", tarfile.REGTYPE),
        member("set/../../out", tarfile.REGTYPE),
        member("/tmp/out", tarfile.REGTYPE),
        member("../out", tarfile.DIRTYPE),
        member("set/train/link", tarfile.SYMTYPE, "/etc"),
        member("set/train/link", tarfile.SYMTYPE, "../../../out"),
        member("set/train/link", tarfile.LNKTYPE, "../../out"),
        member("set/train/pipe", tarfile.FIFOTYPE),
        member("set/train/device", tarfile.CHRTYPE, devmajor=1, devminor=3),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)
def test_members_that_leave_the_folder(tmp_path, root, special):
    add(pack(tmp_path / "good.tar", A), root)
    before = tree(root)
    with pytest.raises(ArchiveError, match="refused"):
        add(pack(tmp_path / "bad.tar", B, [special]), root)
    assert tree(root) == before
    assert not (tmp_path / "out").exists()


def test_data_filter_is_in_force(tmp_path, root):
    """The set-user-id bit and write permission for all, which the explicit checks let pass, are dropped by it."""
    archive = pack(tmp_path / "one.tar", A, [member("set/train/a/s.png", tarfile.REGTYPE, mode=0o6777)])
    add(archive, root)
    assert (root / "set/train/a/s.png").stat().st_mode & 0o7022 == 0


def test_python_without_the_filter(tmp_path, root, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(ArchiveError, match=r"needs Python 3\.11\.4"):
        add(pack(tmp_path / "one.tar", A), root)
    assert not root.exists()


@pytest.mark.parametrize(
    "members", [{"set/readme": b""}, {"one/train/a/0.png": b"", "two/train/a/0.png": b""}, {}, {"train/a/0.png": b""}]
)
def test_not_one_data_set(tmp_path, root, members):
    with pytest.raises(ArchiveError, match="expected one folder"):
        add(pack(tmp_path / "one.tar", members), root)
    assert tree(root) == {}


@pytest.mark.parametrize("name", ["digits", "cifar10", ".advdim-staging-x"])
def test_reserved_names(tmp_path, root, name):
    with pytest.raises(ArchiveError, match="cannot be called"):
        add(pack(tmp_path / "one.tar", {f"{name}/train/a/0.png": b""}), root)


# Damaged archives


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz", ".tar.bz2"])
@pytest.mark.parametrize("damage", ["cut early", "cut late", "flipped", "empty"])
def test_damaged_archive(tmp_path, root, suffix, damage):
    big = A | {f"set/train/a/big{i}.png": os.urandom(40_000) for i in range(3)}
    archive = pack(tmp_path / f"one{suffix}", big)
    content = archive.read_bytes()
    if damage == "flipped":  # in a plain tar a header is hit, as its data bears no checksum
        where = 1024 if suffix == ".tar" else len(content) // 2
        content = content[:where] + bytes(255 - byte for byte in content[where : where + 64]) + content[where + 64 :]
    else:
        content = content[: {"cut early": 600, "cut late": len(content) - 15_000, "empty": 0}[damage]]
    archive.write_bytes(content)
    add(pack(tmp_path / "good.tar", B), root)
    before = tree(root)
    with pytest.raises(ArchiveError, match="truncated or damaged"):
        add(archive, root)
    assert tree(root) == before
    assert sorted(p.name for p in root.iterdir()) == [".advdim.lock", "set"]


def test_tar_cut_between_two_members(tmp_path, root):
    """Here tarfile itself sees nothing wrong."""
    archive = pack(tmp_path / "one.tar", A)
    archive.write_bytes(archive.read_bytes()[: 1024 * 2])  # a header and a block of data per member
    with tarfile.open(archive) as tar:
        assert len(tar.getmembers()) == 2
    with pytest.raises(ArchiveError, match="no end mark"):
        add(archive, root)


def test_gzip_cut_between_two_members(tmp_path, root):
    archive = pack(tmp_path / "one.tar", A)
    archive.with_suffix(".tgz").write_bytes(gzip.compress(archive.read_bytes()[:2048]))
    with pytest.raises(ArchiveError, match="no end mark"):
        add(archive.with_suffix(".tgz"), root)


def test_missing_archive(tmp_path, root):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tar"):
        add(tmp_path / "nowhere.tar", root)
    assert not root.exists()


# Conflicts with what is there


def test_same_file_with_other_content(tmp_path, root):
    add(pack(tmp_path / "one.tar", A), root)
    before = tree(root)
    with pytest.raises(ArchiveError, match="another file under that name"):
        add(pack(tmp_path / "two.tar", B | {"set/train/a/0.png": b"other"}), root)
    assert tree(root) == before
    assert add(pack(tmp_path / "three.tar", B | {"set/train/a/0.png": b"a0"}), root).files == 3


def test_same_archive_name_with_other_content(tmp_path, root):
    add(pack(tmp_path / "one.tar", A), root)
    with pytest.raises(ArchiveError, match=r"another archive named one\.tar"):
        add(pack(tmp_path / "one.tar", B), root)
    assert images(root) == A


def test_folder_of_the_users_own(tmp_path, root):
    (root / "set/train/a").mkdir(parents=True)
    (root / "set/train/a/mine.png").write_bytes(b"mine")
    with pytest.raises(ArchiveError, match="did not come from archives"):
        add(pack(tmp_path / "one.tar", A), root)
    assert tree(root) == {"set/train/a/mine.png": b"mine"}


def test_damaged_manifest(tmp_path, root):
    add(pack(tmp_path / "one.tar", A), root)
    (root / "set" / folders.MANIFEST).write_text("{")
    with pytest.raises(ArchiveError, match=r"is damaged .*; remove"):
        add(pack(tmp_path / "two.tar", B), root)


# Refusals of the system


def test_no_hard_links(tmp_path, root, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    add(pack(tmp_path / "one.tar", A), root)
    monkeypatch.setattr(os, "link", refuse)
    add(pack(tmp_path / "two.tar", B), root)
    assert images(root) == A | B


@pytest.mark.parametrize("where", ["extract", "link", "manifest"])
def test_full_disk(tmp_path, root, monkeypatch, where):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    add(pack(tmp_path / "one.tar", A), root)
    before = tree(root)
    two = pack(tmp_path / "two.tar", B)
    places = {"extract": (tarfile, "copyfileobj"), "link": (os, "link"), "manifest": (archives, "write_manifest")}
    monkeypatch.setattr(*places[where], refuse)
    with pytest.raises(OSError, match=r"no space left to unpack two\.tar, nothing changed") as caught:
        add(two, root)
    assert caught.value.errno == errno.ENOSPC
    assert tree(root) == before
    assert sorted(p.name for p in root.iterdir()) == [".advdim.lock", "set"]


@pytest.mark.parametrize("failing", [1, 2])
def test_swap_without_exchange(tmp_path, root, monkeypatch, failing):
    """Two renames instead; if one fails, or the process is stopped between them, the old tree returns."""
    monkeypatch.setattr(archives, "_exchange", lambda a, b: False)
    add(pack(tmp_path / "one.tar", A), root)
    rename, calls = type(root).rename, []

    def stop(self, target):
        calls.append(self)
        if len(calls) == failing:
            raise KeyboardInterrupt
        return rename(self, target)

    before = tree(root)
    with monkeypatch.context() as patch:
        patch.setattr(type(root), "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            add(pack(tmp_path / "two.tar", B), root)
    assert tree(root) == before
    add(pack(tmp_path / "two.tar", B), root)
    assert images(root) == A | B


# Killed, and at the same time


# Imports the package's modules without its __init__, thus without torch, so that a process starts fast.
BARE = f"""
import sys, types
data = {str(Path(archives.__file__).parent)!r}
for name, folder in (("advdim", data.removesuffix("/data")), ("advdim.data", data)):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from advdim.data import archives
"""

# Forks once for every k, and kills the child by SIGKILL just before its k-th change of the file system.
KILLER = """
import json, os, shutil, signal, pathlib
root, one, two, exchange = sys.argv[1:]
if exchange == "no":
    archives._exchange = lambda a, b: False

def child(k):
    steps = 0
    def hook(event, arguments):
        nonlocal steps
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.mkdir", "os.rename", "os.link", "os.chmod", "os.remove", "os.rmdir", "ctypes.dlsym"):
            steps += 1
            if steps == k:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    archives.add(two, root)
    os._exit(0)

k = 0
while True:
    k += 1
    shutil.rmtree(root, ignore_errors=True)
    archives.add(one, root)
    pid = os.fork()
    if not pid:
        child(k)
    status = os.waitpid(pid, 0)[1]
    there = sorted(str(p.relative_to(root)) for p in pathlib.Path(root, "set").rglob("*.png"))
    left = len(list(pathlib.Path(root).glob(".advdim-staging-*")))
    archives.add(two, root)
    clean = not list(pathlib.Path(root).glob(".advdim-staging-*"))
    after = sorted(str(p.relative_to(root)) for p in pathlib.Path(root, "set").rglob("*.png"))
    print(json.dumps([status, there, left, clean, after]))
    if status == 0:
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("exchange", ["yes", "no"])
def test_killed_at_every_step(tmp_path, root, exchange):
    command = [
        sys.executable,
        "-c",
        BARE + KILLER,
        root,
        pack(tmp_path / "one.tar", A),
        pack(tmp_path / "two.tar", B),
        exchange,
    ]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True, timeout=100)
    rounds = [json.loads(line) for line in result.stdout.splitlines()]
    old, new = sorted(A), sorted(A | B)
    assert len(rounds) > 15
    assert sum(left for _, _, left, _, _ in rounds) > 5  # some kills did leave something to clean
    for status, there, _, clean, after in rounds:
        if exchange == "yes" and sys.platform == "linux":
            assert there in (old, new)
        else:
            assert there in (old, new, [])  # between the two renames, until the next run
        assert clean
        assert after == new
        assert status in (0, 9)
    assert {tuple(there) for _, there, *_ in rounds} >= {tuple(old), tuple(new)}


def test_tree_between_two_renames_is_recovered(tmp_path, root):
    """A run that adds something else brings the old tree back."""
    add(pack(tmp_path / "one.tar", A), root)
    stranded = root / ".advdim-staging-x" / folders.REPLACED
    stranded.mkdir(parents=True)
    (root / "set").rename(stranded / "set")
    add(pack(tmp_path / "else.tar", {"else/train/a/0.png": b""}), root)
    assert images(root) == A | {"else/train/a/0.png": b""}


def test_two_processes_lose_nothing(tmp_path, root):
    shards = [
        pack(tmp_path / f"{i}.tar", {f"set/train/{c}/{i}-{j}.png": bytes([i, j]) for c in "abc" for j in range(60)})
        for i in range(4)
    ]
    script = BARE + "input(); [archives.add(a, sys.argv[1]) for a in sys.argv[2:]]"
    halves = (shards[:3], shards[2:])  # the third is in both
    running = [
        subprocess.Popen([sys.executable, "-c", script, root, *half], stdin=subprocess.PIPE, text=True)
        for half in halves
    ]
    for process in running:
        process.stdin.write("\n")
        process.stdin.close()
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    assert len(images(root)) == 4 * 3 * 60
    assert sorted(folders.manifest(root / "set")["archives"]) == [f"{i}.tar" for i in range(4)]


def test_waiting_ends(tmp_path, root, monkeypatch):
    monkeypatch.setattr(folders, "LOCK_SECONDS", 0.2)
    inside, done = threading.Event(), threading.Event()

    def hold():
        with folders.staging(root):
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert inside.wait(10)
        with pytest.raises(ArchiveError, match="another process that writes"):
            add(pack(tmp_path / "one.tar", A), root)
    finally:
        done.set()
        thread.join()
    add(pack(tmp_path / "one.tar", A), root)
