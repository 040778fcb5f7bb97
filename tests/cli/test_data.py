"""The commands `advdim data add`, `list` and `where`."""

import hashlib
import io
import runpy
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from advdim import data
from advdim.cli import main
from advdim.data import folders


@pytest.fixture
def archive(tmp_path):
    """One archive of a set with 4 training and 2 validation images."""
    path = tmp_path / "tiny-1.tar.gz"
    image = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(image, "PNG")
    with tarfile.open(path, "w:gz") as tar:
        for name in ("train/a/0", "train/a/1", "train/b/0", "train/b/1", "val/a/0", "val/b/0"):
            info = tarfile.TarInfo(f"tiny/{name}.png")
            info.size = len(image.getvalue())
            tar.addfile(info, io.BytesIO(image.getvalue()))
    return path


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVDIM_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


def test_add_list_load(archive, root, capsys):
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert main(["data", "add", str(archive)]) == 0
    out = capsys.readouterr().out
    assert f"6 files unpacked into {root / 'tiny'}" in out
    assert f"sha256 {sha256}, computed" in out
    assert main(["data", "add", str(archive), "--sha256", sha256]) == 0
    assert f"already in {root / 'tiny'} (sha256 {sha256}, verified)" in capsys.readouterr().out
    assert main(["data", "list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "digits: 1397 train, 400 test (embedded)",
        "tiny: 4 train, 2 test (tiny-1.tar.gz)",
    ]
    assert data.load("tiny")[0].shape == (4, 3, 4, 4)
    assert data.checksum("tiny") == f"tiny-1.tar.gz={sha256}"


def test_verify_and_remove(archive, root, capsys):
    assert main(["data", "add", str(archive)]) == 0
    assert main(["data", "verify"]) == 0
    assert capsys.readouterr().out.endswith("tiny: 6 files are as unpacked\n")
    (image,) = root.rglob("train/b/1.png")
    content = image.read_bytes()
    image.write_bytes(content[:-1] + b"!")
    assert main(["data", "verify", "digits", "tiny"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("digits: sha256:4edee4e4")
    assert f"{image} is not what was unpacked: remove {root / 'tiny'} and add it again" in lines[1]
    assert main(["data", "remove", "tiny"]) == 0
    assert capsys.readouterr().out == f"tiny: removed {root / 'tiny'}\n"
    assert [path.name for path in root.iterdir()] == [".advdim.lock"]
    assert main(["data", "remove", "tiny"]) == 1
    assert "no data set 'tiny'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mine", "digits", "../root/mine", "cifar10", "imagenette", "."])
def test_remove_refuses(name, root, capsys):
    """A folder of the user's own may be the only copy; and nothing is downloaded to be removed."""
    (root / "mine/train/a").mkdir(parents=True)
    Image.new("L", (2, 2)).save(root / "mine/train/a/0.png")
    assert main(["data", "remove", name]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert (root / "mine/train/a/0.png").exists()


def test_one_set_that_cannot_be_used_hides_no_other(archive, root, capsys):
    assert main(["data", "add", str(archive)]) == 0
    for name in ("a", "z"):
        (root / f"bad-{name}" / "train" / "empty").mkdir(parents=True)
    capsys.readouterr()
    assert main(["data", "list"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["digits", "bad-a", "bad-z", "tiny"]
    assert f"cannot be used: {root}/bad-a/train/empty holds no image" in lines[1]


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("advdim 0.")


def test_root_option(archive, root, tmp_path, capsys):
    assert main(["data", "add", str(archive), "--root", str(tmp_path / "other")]) == 0
    assert not root.exists()
    assert main(["data", "list", "--root", str(tmp_path / "other")]) == 0
    assert "tiny" in capsys.readouterr().out


def test_list_of_other_folders(root, capsys):
    """A folder of the user's own counts; hidden and foreign ones do not."""
    for name in ("mine/train/a", ".hidden/train/a", "other/stuff", "cifar10/train/a"):
        (root / name).mkdir(parents=True)
        Image.new("L", (2, 2)).save(root / name / "0.png")
    assert main(["data", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["mine: 1 train (no manifest)"]


def test_where(root, monkeypatch, capsys, tmp_path):
    def where(*arguments):
        assert main(["data", "where", *arguments]) == 0
        return capsys.readouterr().out

    assert where() == f"{root} (from the environment variable ADVDIM_DATA)\n"
    assert where("--root", str(tmp_path)) == f"{tmp_path} (as asked for)\n"
    monkeypatch.delenv("ADVDIM_DATA")
    assert "the default; the environment variable ADVDIM_DATA is not set" in where()


@pytest.mark.parametrize("content", [b"", b"no archive" * 100])
def test_failures_are_one_line_and_status_1(content, root, tmp_path, capsys):
    bad = tmp_path / "bad.tar"
    bad.write_bytes(content)
    assert main(["data", "add", str(bad)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("advdim: ")
    assert err.count("\n") == 1
    assert str(bad) in err


def test_missing_archive(root, tmp_path, capsys):
    assert main(["data", "add", str(tmp_path / "none.tar")]) == 1
    assert "none.tar" in capsys.readouterr().err


def test_good_archives_before_a_bad_one_stay(archive, root, tmp_path, capsys):
    assert main(["data", "add", str(archive), str(tmp_path / "none.tar")]) == 1
    assert folders.names() == ["tiny"]


def test_interruption(root, archive, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("advdim.data.archives.add", interrupt)
    assert main(["data", "add", str(archive)]) == 130
    assert capsys.readouterr().err == "advdim: interrupted\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["data"], ["data", "add"], ["data", "nonsense"], ["data", "add", "a.tar", "b.tar", "--sha256", "0"]],
)
def test_misuse_is_status_2(arguments, root, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_as_a_module(root, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["advdim", "data", "where"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("advdim", run_name="__main__")
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(str(root))
