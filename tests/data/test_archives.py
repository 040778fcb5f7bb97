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
import zipfile
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from advdim import data
from advdim.data import archives, folders, layout, manifest
from advdim.data.archives import add
from advdim.data.layout import ArchiveError

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


def zipped(path, members):
    """Write a zip of files {name: content}."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def sha_of(archive):
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def tree(root):
    """Every file in the root with its content, but the lock."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.name != ".advdim.lock")
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def images(root):
    """Every image in the root with its content, by its name in the set, whichever shard it lies in."""
    found = {name: content for name, content in tree(root).items() if layout.MANIFEST not in name}
    return {"/".join(p for p in name.split("/") if not p.startswith(layout.SHARD)): found[name] for name in found}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".zip"])
def test_unpack_and_manifest(tmp_path, root, suffix):
    archive = (zipped if suffix == ".zip" else pack)(tmp_path / f"one{suffix}", A)
    added = add(archive, root)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert added == archives.Added(archive.name, sha256, False, root / "set", 3)
    assert images(root) == A
    shard = root / "set" / f"shard-{sha256[:12]}"
    found = layout.manifest(shard)
    assert (found["archives"], found["files"]) == ({archive.name: sha256}, 3)
    lines = (shard / manifest.LISTING).read_text().splitlines()
    assert f"{hashlib.sha256(b'a0').hexdigest()} 2 train/a/0.png" in lines
    assert data.checksum("set", root) == f"{archive.name}={sha256}"


def test_shards_merge(tmp_path, root):
    one, two = (pack(tmp_path / f"{name}.tar", members) for name, members in (("one", A), ("two", B)))
    add(one, root)
    before = data.checksum("set", root)
    assert add(two, root).files == 2
    assert images(root) == A | B
    assert sorted(manifest.archives(root / "set")) == ["one.tar", "two.tar"]
    assert data.checksum("set", root).split()[0] == before
    assert data.checksum("set", root).split()[1].startswith("two.tar=")
    assert data.sizes("set", root) == {"train": 3, "test": 1}  # test/ is there, so val/ is not it


def test_shards_read_as_one_tree_would(tmp_path, root):
    """In the order of torchvision's ImageFolder over the merged tree, on which the recorded subsets depend."""
    names = ["b/x/1.png", "a/2.png", "b/10.png", "a-b/0.JPEG", "b/2.png", "a/0.png", "b/x-y/0.png", "a/B.png"]
    members = {f"set/train/{name}": bytes([i]) for i, name in enumerate(names)}
    for i in range(3):
        add(pack(tmp_path / f"{i}.tar", dict(list(members.items())[i::3])), root)
    merged = tmp_path / "merged"
    for name, content in members.items():
        (merged / name).parent.mkdir(parents=True, exist_ok=True)
        (merged / name).write_bytes(content)
    expected = ImageFolder(merged / "set/train").samples
    found = layout.samples(root / "set", "train")
    content = [[(Path(path).read_bytes(), label) for path, label in samples] for samples in (found, expected)]
    assert content[0] == content[1]
    assert data.classes("set", root) == ["a", "a-b", "b"]


def old_layout(root, archive, members):
    """What an earlier version unpacked: one tree, and a manifest with the number of files."""
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    sha256 = sha_of(archive)
    text = json.dumps({"archives": {archive.name: sha256}, "files": len(members)})
    (root / "set" / layout.MANIFEST).write_text(text)


def test_a_root_of_the_old_layout_reads_and_takes_shards(tmp_path, root):
    one, two = pack(tmp_path / "one.tar", A), pack(tmp_path / "two.tar", B)
    old_layout(root, one, A)
    assert data.checksum("set", root) == f"one.tar={hashlib.sha256(one.read_bytes()).hexdigest()}"
    assert data.sizes("set", root) == {"train": 2, "test": 1}
    before = tree(root)
    assert add(one, root) == archives.Added("one.tar", sha_of(one), False, root / "set", 0)
    assert tree(root) == before
    with pytest.raises(ArchiveError, match="another file under that name"):
        add(pack(tmp_path / "bad.tar", {"set/train/a/0.png": b"other"}), root)
    assert add(two, root).files == 2
    assert data.checksum("set", root) == f"one.tar={sha_of(one)} two.tar={sha_of(two)}"
    assert data.sizes("set", root) == {"train": 3, "test": 1}
    assert manifest.verify(root / "set") is None  # nobody noted the content of the old tree


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


def test_permissions_of_the_archive_are_not_taken_over(tmp_path, root):
    archive = pack(tmp_path / "one.tar", A, [member("set/train/a/s.png", tarfile.REGTYPE, mode=0o6777)])
    add(archive, root)
    (found,) = root.rglob("s.png")
    assert found.stat().st_mode & 0o7022 == 0


def linked(path):
    info = zipfile.ZipInfo("set/train/link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(info, "/etc/passwd")
    return path


def test_a_zip_that_leaves_the_folder_or_links(tmp_path, root):
    for archive in (
        zipped(tmp_path / "1.zip", A | {"../out.png": b""}),
        zipped(tmp_path / "2.zip", {"/tmp/out.png": b""}),
        zipped(tmp_path / "3.zip", {"set\\..\\..\\out.png": b""}),
        linked(tmp_path / "4.zip"),
    ):
        with pytest.raises(ArchiveError, match="refused"):
            add(archive, root)
    assert tree(root) == {}


def test_an_archive_larger_than_the_disk_is_refused_at_once(tmp_path, root):
    """A sparse file of 8 EiB in 2 kB: unpacking it would write zeros for hours."""
    content = bytearray(pack(tmp_path / "one.tar", {}, [member("set/train/a/0.png", tarfile.REGTYPE)]).read_bytes())
    huge = tarfile.TarInfo("set/train/a/0.png")
    huge.size = 2**62
    content[:512] = huge.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "one.tar").write_bytes(content)
    with pytest.raises(OSError, match="no space left") as caught:
        add(tmp_path / "one.tar", root)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("pax", "depth"), [({"mtime": "inf"}, 1), ({"mtime": "nan"}, 1), ({"size": "nan"}, 1), ({}, 1500), ({}, 31)]
)
def test_what_made_python_stumble_is_refused_or_read(tmp_path, root, pax, depth):
    """Times that are not finite, sizes that are no number, and folders deeper than functions can call each other."""
    info = tarfile.TarInfo(f"set/train/{'a/' * depth}0.png")
    info.pax_headers = pax
    archive = tmp_path / "odd.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO())
    if depth > 20:
        with pytest.raises(ArchiveError, match=r"odd\.tar"):
            add(archive, root)
        assert tree(root) == {}
    else:
        assert add(archive, root).files == 1


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_is_no_archive(tmp_path, root, kind):
    path = {"device": Path("/dev/zero")}.get(kind, tmp_path / "odd")
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "device": lambda: None}[kind]()
    with pytest.raises(ArchiveError, match=f"is a .*{kind}"):
        add(path, root)
    assert not root.exists()


# What the archive holds


@pytest.mark.parametrize("pack_it", [pack, zipped])
@pytest.mark.parametrize(
    ("members", "name"),
    [
        ({"train/a/0.png": b"", "test/a/0.png": b""}, "photos"),
        ({f"{c}/{i}.png": b"" for c in ("cat", "dog") for i in range(5)}, "photos"),
        ({f"pets/{c}/{i}.png": b"" for c in ("cat", "dog") for i in range(5)}, "pets"),
        ({"pets/train/a/0.png": b"", "pets/test/a/0.png": b"", "__MACOSX/pets/._0.png": b"", ".DS_Store": b""}, "pets"),
    ],
)
def test_sets_without_name_or_splits(tmp_path, root, members, name, pack_it):
    archive = pack_it(tmp_path / ("photos.tar" if pack_it == pack else "photos.v2.zip"), members)
    added = add(archive, root)
    assert added.folder == root / name
    assert folders.names(root) == [name]
    splits = any("train" in member for member in members)
    assert data.sizes(name, root) == ({"train": 1, "test": 1} if splits else {"train": 8, "test": 2})
    assert data.classes(name, root) == (["a"] if splits else ["cat", "dog"])
    assert "MACOSX" not in str(tree(root))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"set/readme": b""}, "expected"),
        ({"one/train/a/0.png": b"", "two/train/a/0.png": b""}, "several sets"),
        ({}, "expected"),
        ({"0.png": b""}, "expected"),
        ({"set/train/0.png": b"", "set/train/a/0.png": b""}, "train/0.png lies beside the classes"),
        ({"set/train/a/0.png": b"", "set/train/b/readme.txt": b""}, "train/b holds no image"),
        ({"set/train/0.png": b""}, "lies beside the classes"),
        ({"a/0.png": b"", "b/0.png": b"", "c/x.txt": b""}, "the class c holds no image"),
        ({"set/train/x.txt": b""}, "train holds no class"),
    ],
)
def test_archives_of_no_use_are_refused(tmp_path, root, members, message):
    """The first five would have been unpacked before, and then `advdim data list` failed for all sets."""
    with pytest.raises(ArchiveError, match=rf"one\.tar.*{message}"):
        add(pack(tmp_path / "one.tar", members), root)
    assert tree(root) == {}


@pytest.mark.parametrize("name", ["digits", "cifar10", ".advdim-staging-x"])
def test_reserved_names(tmp_path, root, name):
    with pytest.raises(ArchiveError, match="cannot be called"):
        add(pack(tmp_path / "one.tar", {f"{name}/train/a/0.png": b""}), root)


# Damaged archives


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".zip"])
@pytest.mark.parametrize("damage", ["cut early", "cut late", "flipped", "empty"])
def test_damaged_archive(tmp_path, root, suffix, damage):
    big = A | {f"set/train/a/big{i}.png": os.urandom(40_000) for i in range(3)}
    archive = (zipped if suffix == ".zip" else pack)(tmp_path / f"one{suffix}", big)
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
    (path,) = root.rglob(layout.MANIFEST)
    path.write_text("{")
    with pytest.raises(ArchiveError, match=r"is damaged .*; remove"):
        add(pack(tmp_path / "two.tar", B), root)


# Refusals of the system


@pytest.mark.parametrize("where", ["unpack", "manifest"])
def test_full_disk(tmp_path, root, monkeypatch, where):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    add(pack(tmp_path / "one.tar", A), root)
    before = tree(root)
    two = pack(tmp_path / "two.tar", B)
    places = {"unpack": (archives.shutil, "copyfileobj"), "manifest": (archives, "write_manifest")}
    monkeypatch.setattr(*places[where], refuse)
    with pytest.raises(OSError, match=r"no space left to unpack two\.tar, nothing changed") as caught:
        add(two, root)
    assert caught.value.errno == errno.ENOSPC
    assert tree(root) == before
    assert sorted(p.name for p in root.iterdir()) == [".advdim.lock", "set"]


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
root, one, two, first = sys.argv[1:]

def child(k):
    steps = 0
    def hook(event, arguments):
        nonlocal steps
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            steps += 1
            if steps == k:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    archives.add(two, root)
    os._exit(0)

def present():
    shards = [p for p in pathlib.Path(root).glob("set/shard-*") if (p / ".advdim.json").is_file()]
    return sorted(f"set/{p.relative_to(s)}" for s in shards for p in s.rglob("*.png"))

k = 0
while True:
    k += 1
    shutil.rmtree(root, ignore_errors=True)
    if first == "no":
        archives.add(one, root)
    pid = os.fork()
    if not pid:
        child(k)
    status = os.waitpid(pid, 0)[1]
    there = present()
    left = len(list(pathlib.Path(root).glob(".advdim-staging-*")))
    archives.add(two, root)
    clean = not list(pathlib.Path(root).glob(".advdim-staging-*"))
    after = present()
    print(json.dumps([status, there, left, clean, after]))
    if status == 0:
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.process
@pytest.mark.parametrize("first", ["yes", "no"])
def test_killed_at_every_step(tmp_path, root, first):
    """The shard that is killed is the first of its set, or the second."""
    command = [
        sys.executable,
        "-c",
        BARE + KILLER,
        root,
        pack(tmp_path / "one.tar", A),
        pack(tmp_path / "two.tar", B),
        first,
    ]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True, timeout=100)
    rounds = [json.loads(line) for line in result.stdout.splitlines()]
    old, new = ([], sorted(B)) if first == "yes" else (sorted(A), sorted(A | B))
    assert len(rounds) > 15
    assert sum(left for _, _, left, _, _ in rounds) > 5  # some kills did leave something to clean
    for status, there, _, clean, after in rounds:
        assert there in (old, new)
        assert clean
        assert after == new
        assert status in (0, 9)
    assert {tuple(there) for _, there, *_ in rounds} == {tuple(old), tuple(new)}


@pytest.mark.process
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
    assert sorted(manifest.archives(root / "set")) == [f"{i}.tar" for i in range(4)]


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
