"""Loading, subsets, resizing and checks, on tiny data sets made here."""

import hashlib
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import scipy.ndimage
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, Imagenette

from advdim import data
from advdim.data import folders, layout, manifest
from advdim.data import images as images_module


def save(path, height=6, width=6, mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """Classes a, b, c with 5, 5, 2 training images, one grey; "val" stands in for "test"."""
    for label, count in {"a": 5, "b": 5, "c": 2}.items():
        for i in range(count):
            save(tmp_path / "tiny/train" / label / f"{i}.png", mode="L" if (label, i) == ("a", 1) else "RGB", seed=i)
        save(tmp_path / "tiny/val" / label / "0.png")
    return tmp_path


# Where data lies


def test_root_is_argument_then_environment_then_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("ADVDIM_DATA", raising=False)
    assert data.root() == Path(platformdirs.user_cache_dir("advdim"))
    monkeypatch.setenv("ADVDIM_DATA", str(tmp_path / "env"))
    assert data.root() == tmp_path / "env"
    assert data.root(tmp_path / "arg") == tmp_path / "arg"
    monkeypatch.setenv("ADVDIM_DATA", "~/there")
    assert data.root() == Path.home() / "there"


def test_environment_is_obeyed_by_load(monkeypatch, folder):
    monkeypatch.setenv("ADVDIM_DATA", str(folder))
    assert len(data.load("tiny")[0]) == 12


# Digits


def test_digits_are_the_default_and_split_without_overlap():
    from sklearn.datasets import load_digits

    x, y = data.load()
    x_test, y_test = data.load(split="test")
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert x.shape[1:] == (1, 8, 8)
    assert (x.min(), x.max()) == (0, 1)
    assert y_test.bincount().tolist() == [40] * 10
    everything = torch.cat([x, x_test]).flatten(1) * 16
    original = torch.from_numpy(load_digits().data).float()
    assert sorted(everything.tolist()) == sorted(original.tolist())


def test_digits_never_change():
    assert data.checksum("digits") == "sha256:4edee4e407e706b5b03f1107784ef1adf96f36a0127aee6e072d78162e65a6f5"


# Folders of images


def test_folder_pixels_labels_and_grey(folder):
    x, y = data.load("tiny", root=folder)
    assert y.tolist() == [0] * 5 + [1] * 5 + [2] * 2
    colour = save(folder / "same.png", seed=3)
    torch.testing.assert_close(x[3], torch.from_numpy(colour).permute(2, 0, 1) / 255.0, rtol=0, atol=0)
    assert (x[1] == x[1, :1]).all()
    assert (x[3] != x[3, :1]).any()


def test_val_stands_in_for_test_unless_there_is_one(folder):
    assert data.load("tiny", "test", root=folder)[1].tolist() == [0, 1, 2]
    save(folder / "tiny/test/a/0.png")
    assert data.load("tiny", "test", root=folder)[1].tolist() == [0]


def test_only_the_subset_is_decoded(folder, monkeypatch):
    read, seen = images_module._read, []
    monkeypatch.setattr(images_module, "_read", lambda path, mode: seen.append(path) or read(path))
    data.load("tiny", n=4, root=folder)
    assert len(seen) == 4


def test_many_chunks_keep_the_order(folder, monkeypatch):
    whole = data.load("tiny", n=11, root=folder)[0]
    monkeypatch.setattr(images_module, "_CHUNK", 3)
    assert torch.equal(data.load("tiny", n=11, root=folder)[0], whole)


def test_images_of_several_shapes(folder):
    save(folder / "tiny/train/b/9.png", 8, 12)
    for arguments in ({}, {"size": 12}, {"size": 12, "resize": "bilinear"}):
        with pytest.raises(ValueError, match=r"9\.png has \(8, 12\) pixels, the first image \(6, 6\)"):
            data.load("tiny", root=folder, **arguments)
    x, y = data.load("tiny", size=4, resize="area", root=folder)
    pixels = np.array(Image.open(folder / "tiny/train/b/9.png")).transpose(2, 0, 1) / 255
    expected = pixels.reshape(3, 4, 2, 4, 3).mean((2, 4))
    np.testing.assert_allclose(x[10].numpy(), expected, atol=1e-6)
    assert len(x) == len(y) == 13


def test_unreadable_image_is_named(folder):
    bad = folder / "tiny/train/a/2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cannot read the image .*2\.png"):
        data.load("tiny", root=folder)


def test_folder_checksum_follows_the_content(folder):
    before = data.checksum("tiny", folder)
    assert before == data.checksum("tiny", folder)
    save(folder / "tiny/val/a/0.png", seed=9)
    assert data.checksum("tiny", folder) != before


def test_checksum_of_archives_notices_a_lost_file(folder):
    manifest.write_manifest(folder / "tiny", {"two.tar": "bb", "one.tar": "aa"})
    assert data.checksum("tiny", folder) == "one.tar=aa two.tar=bb"
    (folder / "tiny/val/a/0.png").unlink()
    with pytest.raises(ValueError, match="has 14 files, unpacked were 15"):
        data.checksum("tiny", folder)


@pytest.mark.parametrize("change", ["other size", "same size", "renamed", "listing", "manifest"])
def test_what_was_unpacked_is_compared_by_name_and_size_and_slowly_by_content(folder, change):
    """An image overwritten in an unpacked set went unnoticed before."""
    manifest.write_manifest(folder / "tiny", {"one.tar": "aa"})
    assert data.checksum("tiny", folder) == "one.tar=aa"
    assert manifest.verify(folder / "tiny") == 15
    file = folder / "tiny/train/b/3.png"
    content = file.read_bytes()
    if change == "other size":
        file.write_bytes(content + b"\0")
    elif change == "same size":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif change == "renamed":
        file.rename(file.with_name("4b.png"))
    else:
        file = folder / "tiny" / {"listing": manifest.LISTING, "manifest": layout.MANIFEST}[change]
        file.write_text(file.read_text().replace("a", "b", 1))
    if change == "same size":
        assert data.checksum("tiny", folder) == "one.tar=aa"  # a look at names and sizes does not see it
    else:
        with pytest.raises(ValueError, match=r"3\.png|4b\.png|\.advdim\.json"):
            data.checksum("tiny", folder)
    with pytest.raises(ValueError, match=r"3\.png|4b\.png|\.advdim\.json"):
        manifest.verify(folder / "tiny")


# Images that Pillow reads wrong or not at all


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("grey16.png", np.full((6, 6), 30000, np.uint16)),
        ("grey16.tif", np.full((6, 6), 30000, np.uint16)),
        ("grey32.tif", np.full((6, 6), 30000, np.int32)),
        ("float.tif", np.full((6, 6), 0.5, np.float32)),
    ],
)
def test_pixels_of_more_than_8_bits_are_refused(folder, name, pixels):
    """They were clipped before: 30000 of 65535 became white, and 0.5 black."""
    Image.fromarray(pixels).save(folder / "tiny/train/a" / name)
    with pytest.raises(ValueError, match=rf"cannot read the image .*{name}.*more than 8 bits .*convert it"):
        data.load("tiny", root=folder)


def png16(kind, channels):
    """A PNG file of 16 bits per channel, which Pillow does not write: of colours (2), with alpha (6), of greys (4)."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + np.full(6 * channels, 30000, ">u2").tobytes() for _ in range(6))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 6, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16():
    """An uncompressed TIFF file of 3 colours of 16 bits."""
    tags = {256: 6, 257: 6, 258: 134, 259: 1, 262: 2, 273: 140, 277: 3, 278: 6, 279: 216}
    entries = b"".join(struct.pack("<HHII", tag, 3, 3 if tag == 258 else 1, value) for tag, value in tags.items())
    start = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    return start.ljust(134, b"\0") + struct.pack("<HHH", 16, 16, 16) + np.full(108, 30000, "<u2").tobytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((f"colours{kind}.png", png16(kind, channels)) for kind, channels in ((2, 3), (6, 4), (4, 2))),
        ("colours.ppm", b"P6 6 6 65535\n" + np.full(108, 30000, ">u2").tobytes()),
        ("words.ppm", b"P3 6 6 1023\n" + b"500 " * 108),
        ("colours.tif", tiff16()),
    ],
)
def test_colours_of_16_bits_are_refused(folder, name, content):
    """Pillow keeps the upper 8 bits, and says nothing."""
    (folder / "tiny/train/a" / name).write_bytes(content)
    with Image.open(folder / "tiny/train/a" / name) as image:
        assert image.convert("RGB").size == (6, 6)  # a file that Pillow reads
    with pytest.raises(ValueError, match=rf"cannot read the image .*{name}.*more than 8 bits .*convert it"):
        data.load("tiny", root=folder)


@pytest.mark.parametrize("name", ["5 bits.bmp", "7 bits.ppm"])
def test_colours_of_few_bits_are_read(folder, name):
    path = folder / "tiny/train/a" / name
    if name.endswith("ppm"):
        path.write_bytes(b"P6 6 6 127\n" + b"\x7f" * 108)
    else:  # 16 bits per pixel, of all colours together
        header = struct.pack("<IiiHHIIiiII", 40, 6, 6, 1, 16, 0, 72, 0, 0, 0, 0)
        path.write_bytes(b"BM" + struct.pack("<IHHI", 54 + 72, 0, 0, 54) + header + b"\xff\x7f" * 36)
    assert data.load("tiny", root=folder)[0][5].min() == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_of_8_bits_are_read(folder, mode):
    rgb = Image.fromarray(np.full((6, 6, 3), 255, np.uint8))
    rgb.convert(mode).save(folder / "tiny/train/a" / ("9.jpg" if mode in ("CMYK", "YCbCr") else "9.png"))
    assert data.load("tiny", root=folder)[0][5].min() > 0.98


@pytest.mark.parametrize("kind", ["bomb", "pipe", "no image", "empty"])
def test_what_is_no_image_is_named_and_nobody_waits_for_it(folder, kind, monkeypatch):
    bad = folder / "tiny/train/a/2.png"
    bad.unlink()
    if kind == "pipe":
        os.mkfifo(bad)
    elif kind == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        save(bad)
    else:
        bad.write_bytes(b"" if kind == "empty" else b"text")
    with pytest.raises(ValueError, match=r"cannot read the image .*\d\.png"):
        data.load("tiny", root=folder)


# One's own folders


def test_a_folder_by_its_path(folder, monkeypatch):
    x, y = data.load("tiny", root=folder)
    for name in (f"{folder}/tiny", f"{folder}/tiny/"):
        assert torch.equal(data.load(name)[0], x)
        assert data.checksum(name) == data.checksum("tiny", folder)
        assert data.sizes(name) == {"train": 12, "test": 3}
        assert data.classes(name) == ["a", "b", "c"]
    monkeypatch.chdir(folder)
    assert torch.equal(data.load("./tiny")[1], y)
    with pytest.raises(data.MissingDataError, match=r"no folder .*/nowhere"):
        data.load("./nowhere")
    with pytest.raises(ValueError, match="CLASS/IMAGE"):
        data.load("./tiny/train/a")


def test_a_folder_without_splits_is_divided_by_class(tmp_path):
    for label in ("cat", "dog"):
        for i in range(11):
            save(tmp_path / "pets" / label / f"{i:02}.png", 6, 9, seed=i)
    (tmp_path / "pets/notes").mkdir()
    pets = f"{tmp_path}/pets"
    assert data.sizes(pets) == {"train": 18, "test": 4}
    assert data.classes(pets) == ["cat", "dog"]
    x, y = data.load(pets, "test")
    assert y.tolist() == [0, 0, 1, 1]
    assert x.shape == (4, 3, 6, 9)
    expected = np.stack([save(tmp_path / "same.png", 6, 9, seed=i) for i in (4, 9, 4, 9)]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal((x * 255).round().numpy(), expected)
    both = data.load(pets, "all")[0]
    assert torch.equal(both, torch.cat([data.load(pets)[0], x]))
    assert data.load(pets, "test", size=3, resize="area")[0].shape == (4, 3, 3, 3)
    assert len(data.load("digits", "all")[0]) == 1797


def test_grey_images_have_one_channel_on_demand(folder):
    x, rgb = data.load("tiny", root=folder, grey=True)[0], data.load("tiny", root=folder)[0]
    assert x.shape == (12, 1, 6, 6)
    assert torch.equal(x[1], rgb[1, :1])  # the file itself is grey
    luma = (rgb * torch.tensor([299, 587, 114]).view(3, 1, 1) / 1000).sum(1, keepdim=True)
    torch.testing.assert_close(x, luma, atol=0.6 / 255, rtol=0)


def test_labels_agree_between_splits_that_have_other_classes(folder):
    """Counted in each split by itself, the test images of c would bear the label of b."""
    for file in (folder / "tiny/val/b").iterdir():
        file.unlink()
    (folder / "tiny/val/b").rmdir()
    save(folder / "tiny/val/d/0.png")
    assert data.load("tiny", "test", root=folder)[1].tolist() == [0, 2, 3]
    assert data.classes("tiny", folder) == ["a", "b", "c", "d"]


def test_an_empty_class_is_named(folder):
    (folder / "tiny/train/empty").mkdir()
    with pytest.raises(ValueError, match="train/empty holds no image"):
        data.load("tiny", root=folder)
    (folder / "tiny/train/.hidden").mkdir()
    (folder / "tiny/train/empty").rmdir()
    assert data.classes("tiny", folder) == ["a", "b", "c"]


def test_a_link_to_a_folder_above_ends(folder):
    (folder / "tiny/train/a/up").symlink_to(folder / "tiny/train/a")
    (folder / "tiny/train/linked").symlink_to(folder / "tiny/train/b")
    assert data.sizes("tiny", folder)["train"] == 17


# torchvision's own data sets


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10 in its own format, with 20 images per batch, and the md5 sums that go with it."""
    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    generator = np.random.default_rng(0)

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    def batch(name):
        pixels = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
        return write(name, {"data": pixels, "labels": [i % 10 for i in range(20)]})

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    meta = write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return tmp_path


def test_cifar10(cifar):
    x, y = data.load("cifar10", root=cifar)
    assert x.shape == (100, 3, 32, 32)
    raw = pickle.loads((cifar / CIFAR10.base_folder / "data_batch_2").read_bytes())["data"][3]
    assert torch.equal(x[23], torch.from_numpy(raw).reshape(3, 32, 32) / 255.0)
    assert data.load("cifar10", "test", n=10, root=cifar)[1].sort().values.tolist() == list(range(10))
    assert y.bincount().tolist() == [10] * 10
    assert data.checksum("cifar10", cifar) == f"md5:{CIFAR10.tgz_md5}"
    assert data.sizes("cifar10", cifar) == {"train": 100, "test": 20}


def test_damaged_cifar10(cifar):
    (cifar / CIFAR10.base_folder / "data_batch_3").write_bytes(b"")
    for call in (data.load, data.checksum):
        with pytest.raises(ValueError, match="md5 check; remove it"):
            call("cifar10", root=cifar)


def test_imagenette_is_squashed(tmp_path):
    wnids = sorted(Imagenette._WNID_TO_CLASS)
    for label, wnid in enumerate(wnids):
        for split in ("train", "val"):
            save(tmp_path / "imagenette2" / split / wnid / "x.JPEG", 448, 224 * (1 + label % 2), seed=label)
    x, y = data.load("imagenette", root=tmp_path)
    assert x.shape == (10, 3, 224, 224)
    assert y.tolist() == list(range(10))
    image, label = Imagenette(tmp_path, "train")[4]
    assert label == 4
    expected = np.array(image).transpose(2, 0, 1).reshape(3, 224, 2, 224).mean(2) / 255
    np.testing.assert_allclose(x[4].numpy(), expected, atol=1e-6)
    small = data.load("imagenette", "test", size=112, resize="area", root=tmp_path)[0]
    assert small.shape == (10, 3, 112, 112)


def test_download_is_staged(tmp_path, monkeypatch):
    """A download is complete in the root or not there at all; Imagenette's checked md5 is noted."""

    def download(self):
        assert not (tmp_path / "imagenette2").exists()
        for split in ("train", "val"):
            save(Path(self.root) / "imagenette2" / split / "n01440764" / "x.JPEG")

    monkeypatch.setattr(Imagenette, "_download", download)
    assert data.load("imagenette", root=tmp_path)[0].shape == (1, 3, 224, 224)
    assert data.checksum("imagenette", tmp_path) == f"imagenette2.tgz=md5:{Imagenette._ARCHIVES['full'][1]}"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["imagenette2"]


@pytest.mark.parametrize("name", ["cifar10", "imagenette"])
def test_offline_download(name, tmp_path, monkeypatch):
    def refuse(url, path):
        Path(path).write_bytes(b"half")
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", refuse)
    with pytest.raises(FileNotFoundError, match="no network") as caught:
        data.load(name, root=tmp_path / "new")
    assert isinstance(caught.value, data.MissingDataError)
    assert str(tmp_path / "new" / folders.TORCHVISION[name]) in str(caught.value)
    assert [p for p in (tmp_path / "new").rglob("*") if p.name != ".advdim.lock"] == []


# Errors of load


def test_missing_set_names_folder_setting_neighbours_and_cure(folder, monkeypatch):
    monkeypatch.setenv("ADVDIM_DATA", str(folder))
    with pytest.raises(data.MissingDataError) as caught:
        data.load("imagenette-224")
    for part in (str(folder), "ADVDIM_DATA", "tiny", "digits", "advdim data add imagenette-224-shard0.tar"):
        assert part in str(caught.value)
    with pytest.raises(data.MissingDataError, match="advdim data add ARCHIVE"):
        data.checksum("other", folder / "nowhere")


def test_missing_split(folder):
    (folder / "tiny/val").rename(folder / "tiny/extra")
    with pytest.raises(data.MissingDataError, match=r"no split 'test', only \['train'\]"):
        data.load("tiny", "test", root=folder)


@pytest.mark.parametrize("name", ["", "..", ".hidden"])
def test_names_that_are_none(name, folder):
    with pytest.raises(ValueError, match="named as its folder"):
        data.load(name, root=folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "'train', 'test' or 'all', got 'val'"),
        ({"n": 0}, r"n must be in \[1, 1397\].*got 0"),
        ({"n": 1398}, r"n must be in \[1, 1397\].*got 1398"),
        ({"size": 12}, "12 is no multiple of 8"),
        ({"size": 4}, "only enlarges: 8x8 to 4x4"),
        ({"size": 4, "resize": "bilinear"}, "only enlarges: 8x8 to 4x4"),
        ({"size": 16, "resize": "area"}, "only reduces: 8x8 to 16x16"),
        ({"size": 16, "resize": "cubic"}, "got 'cubic'"),
        ({"size": 0, "resize": "area"}, "at least 1 pixel, got 0"),
    ],
)
def test_load_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load("digits", **arguments)


# Subsets


def test_subset_is_balanced_without_replacement(folder):
    x, y = data.load("digits", n=103, seed=1)
    counts = y.bincount(minlength=10)
    assert counts.sum() == 103
    assert counts.max() - counts.min() == 1
    assert len(np.unique(x.flatten(1).numpy(), axis=0)) == 103
    for stop in range(10, 103, 10):
        assert y[:stop].bincount(minlength=10).tolist() == [stop // 10] * 10


def test_short_class_gives_its_share_to_the_others(folder):
    counts = [data.load("tiny", n=n, root=folder)[1].bincount(minlength=3).tolist() for n in (6, 10, 12)]
    assert counts == [[2, 2, 2], [4, 4, 2], [5, 5, 2]]


def test_seed_decides_the_subset():
    first, again, other = (data.load("digits", n=50, seed=seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(data.load("digits", n=20, seed=3)[0], first[:20])


def test_subset_is_the_same_on_every_machine():
    keep = images_module._balanced(np.arange(20) % 4, 8, seed=0)
    assert keep.tolist() == [16, 14, 15, 9, 4, 6, 11, 5]  # worked out by hand from the stream


# Resizing


def blocks(x, size):
    """Area average by an explicit loop in float64, each old pixel weighted by the part of it that is covered."""
    n, c, height, width = x.shape
    out = np.zeros((n, c, size, size))
    for i in range(size):
        for j in range(size):
            top, bottom, left, right = (
                edge * side / size for edge, side in ((i, height), (i + 1, height), (j, width), (j + 1, width))
            )
            total = 0.0
            for r in range(height):
                for k in range(width):
                    rows = max(0.0, min(bottom, r + 1) - max(top, r))
                    columns = max(0.0, min(right, k + 1) - max(left, k))
                    out[:, :, i, j] += rows * columns * x[:, :, r, k]
                    total += rows * columns
            out[:, :, i, j] /= total
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "size"), [((6, 6), 3), ((9, 9), 3), ((7, 7), 3), ((8, 8), 5), ((6, 9), 3), ((7, 10), 4)]
)
def test_area_is_the_exact_area_average(shape, size, dtype):
    x = torch.rand(2, 3, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    out = data.resize(x, size, "area")
    assert out.dtype == dtype
    np.testing.assert_allclose(
        out.numpy(), blocks(x.double().numpy(), size), atol=1e-6 if dtype == torch.float32 else 1e-14
    )
    torch.testing.assert_close(out.mean((2, 3)), x.mean((2, 3)))


def test_area_stays_in_the_unit_interval():
    for size in range(1, 30):
        assert (data.resize(torch.ones(1, 1, 30, 30), size, "area") == 1).all()


@pytest.mark.parametrize("factor", [2, 3, 7])
def test_copy_repeats_each_pixel_bit_for_bit(factor):
    x = torch.rand(2, 3, 5, 5)
    up = data.resize(x, 5 * factor, "copy")
    for i in range(factor):
        for j in range(factor):
            assert torch.equal(up[..., i::factor, j::factor], x)
    assert up.shape == (2, 3, 5 * factor, 5 * factor)


@pytest.mark.parametrize("size", [7, 10, 12])
def test_bilinear_against_scipy(size):
    x = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    centres = (np.arange(size) + 0.5) * 5 / size - 0.5
    grid = np.meshgrid(centres, centres, indexing="ij")
    expected = [[scipy.ndimage.map_coordinates(c, grid, order=1, mode="nearest") for c in image] for image in x.numpy()]
    np.testing.assert_allclose(data.resize(x, size, "bilinear").numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("method", ["copy", "bilinear", "area"])
def test_native_size_changes_nothing(method):
    x = torch.rand(2, 1, 5, 5)
    assert torch.equal(data.resize(x, 5, method), x)


@pytest.mark.parametrize("method", ["copy", "bilinear"])
def test_enlarging_needs_squares(method):
    with pytest.raises(ValueError, match="needs square images, got 4x6"):
        data.resize(torch.rand(1, 1, 4, 6), 12, method)


# Checks


def images(*changes):
    x = torch.zeros(4, 1, 2, 2)
    for index, value in changes:
        x[index] = value
    return x


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (np.zeros((4, 1, 2, 2)), None, TypeError, "x must be a tensor, got ndarray"),
        (images().long(), None, TypeError, "int64"),
        (images().to(torch.complex64), None, TypeError, "complex64"),
        (images()[0], None, ValueError, r"\[N, C, H, W\], got shape \(1, 2, 2\)"),
        (images()[:0], None, ValueError, r"empty: shape \(0, 1, 2, 2\)"),
        (images(((2, 0, 1), torch.nan), ((3, 0, 0, 0), -torch.inf)), None, ValueError, "3 values .* in example 2"),
        (images(), [0, 1, 2, 3], TypeError, "y must be a tensor, got list"),
        (images(), torch.zeros(4), ValueError, "y must be int64, got torch.float32"),
        (images(), torch.zeros(3, dtype=torch.int64), ValueError, r"y must be \[4\].*\(3,\)"),
        (images(), torch.zeros(4, 1, dtype=torch.int64), ValueError, r"y must be \[4\].*\(4, 1\)"),
        (images(), torch.tensor([0, 1, -2, 0]), ValueError, "got -2 in example 2"),
    ],
)
def test_check_refuses(x, y, error, message):
    with pytest.raises(error, match=message):
        data.check(x, y)


def test_check_of_the_shape():
    data.check(torch.zeros(3, 7), image_shape=(7,))
    with pytest.raises(ValueError, match=r"x must be \[N, 3, 2, 2\], got shape \(4, 1, 2, 2\)"):
        data.check(images(), image_shape=(3, 2, 2))


def test_check_accepts_values_outside_the_unit_interval():
    data.check(images((0, -3.0), (1, 5.0)).half().requires_grad_(), torch.arange(4))
