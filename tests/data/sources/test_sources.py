import hashlib
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from blockwise.data.sources import flowers102
from blockwise.data.sources.caltech101 import Caltech101
from blockwise.data.sources.digits import Digits
from blockwise.data.sources.flowers102 import Flowers102
from blockwise.data.sources.imagefolder import ImageFolder
from blockwise.errors import InputError
from blockwise.io.download import DownloadError


def fill(folder, counts):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (9, 7), (i, 0, 0)).save(folder / name / f"image_{i:04d}.jpg")


def counts(splits):
    return [len(part) for part in (splits.train, splits.val, splits.test)]


def test_digits():
    splits = Digits().splits()
    assert splits.classes == tuple("0123456789")
    assert counts(splits) == [200, 200, 800]
    assert splits.train[0].image.dtype == np.uint8
    assert max(sample.image.max() for sample in splits.train) == 255


def test_caltech101_leaves_the_background_out(tmp_path):
    folder = tmp_path / "caltech101" / "101_ObjectCategories"
    fill(folder, {"ant": 9, "BACKGROUND_Google": 9, "crab": 12})
    (folder / "ant" / ".DS_Store").write_text("")
    splits = Caltech101(tmp_path, train_per_class=6, val_per_class=2, test_per_class=4).splits()
    assert splits.classes == ("ant", "crab")
    assert counts(splits) == [8, 4, 7]  # 3 ant images are left to test, and 4 of 6 crab images are used


def test_caltech101_defaults_are_thirty_and_five(tmp_path):
    fill(tmp_path / "caltech101" / "101_ObjectCategories", {"ant": 33, "crab": 40})
    assert counts(Caltech101(tmp_path).splits()) == [50, 10, 13]


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise DownloadError("Network is unreachable")

    for module in ("caltech101.download", "flowers102.download", "imagefolder.download_folder"):
        monkeypatch.setattr(f"blockwise.data.sources.{module}", refuse)


@pytest.mark.parametrize(
    ("source", "place"),
    [
        (lambda root: Caltech101(root), "caltech101/101_ObjectCategories"),
        (lambda root: Flowers102(root), "flowers-102"),
        (lambda root: ImageFolder(root / "flowers", url="https://example.org/flowers.tgz"), "flowers"),
    ],
)
def test_missing_data_names_the_place_and_how_to_fetch_it(tmp_path, offline, source, place):
    with pytest.raises(InputError) as caught:
        source(tmp_path).splits()
    message = str(caught.value)
    assert str(tmp_path / place) in message
    assert "Network is unreachable" in message
    assert "download" in message
    assert "https://" in message
    assert "\n" not in message


def test_missing_data_is_not_fetched_where_the_user_says_so(tmp_path):
    with pytest.raises(InputError, match=r"data.download=false.*download"):
        Caltech101(tmp_path, download=False).splits()


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """Three images per class in torchvision's layout; their MD5 sums replace the official ones."""
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    total = 306
    for i in range(1, total + 1):
        Image.new("RGB", (4, 4)).save(folder / "jpg" / f"image_{i:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.arange(total) % 102 + 1})
    ids = np.arange(1, total + 1)
    savemat(folder / "setid.mat", {"trnid": ids[:102], "valid": ids[102:204], "tstid": ids[204:]})
    for name in flowers102.MD5:
        monkeypatch.setitem(flowers102.MD5, name, hashlib.md5((folder / name).read_bytes()).hexdigest())
    return tmp_path


def test_flowers102_keeps_the_official_split(flowers):
    splits = Flowers102(flowers, download=False).splits()
    assert counts(splits) == [102, 102, 102]
    assert splits.train[0].name == "image_00001.jpg"
    assert [sample.label for sample in splits.test] == list(range(102))


def test_flowers102_damaged_is_not_called_missing(flowers):
    (flowers / "flowers-102" / "setid.mat").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"setid.mat is damaged: remove it"):
        Flowers102(flowers).splits()


@pytest.mark.data
def test_flowers102_official_counts(photographs, tmp_path, monkeypatch):
    """The data set's real label files give 1,020, 1,020 and 6,149 images, with ten training images per class."""
    shutil.copytree(photographs / "flowers-102", tmp_path / "flowers-102")
    (tmp_path / "flowers-102" / "jpg").mkdir(exist_ok=True)  # without images
    splits = Flowers102(tmp_path, download=False).splits()
    assert counts(splits) == [1020, 1020, 6149]
    assert np.bincount([sample.label for sample in splits.train]).tolist() == [10] * 102
    capped = Flowers102(tmp_path, download=False, train_per_class=3, test_per_class=2).splits()
    assert counts(capped) == [306, 1020, 204]


def test_imagefolder_split_by_seed(tmp_path):
    fill(tmp_path, {"x": 10, "y": 20})
    assert counts(ImageFolder(tmp_path).splits()) == [6 + 12, 2 + 4, 2 + 4]
    hidden = tmp_path / "x" / ".thumbnails"
    hidden.mkdir()
    Image.new("L", (3, 3)).save(hidden / "copy.png")
    nested = tmp_path / "x" / "more"
    nested.mkdir()
    Image.new("L", (3, 3)).save(nested / "deep.PNG")
    everything = ImageFolder(tmp_path).splits()
    names = {s.name for part in (everything.train, everything.val, everything.test) for s in part}
    assert "x/more/deep.PNG" in names
    assert "x/.thumbnails/copy.png" not in names


def test_a_link_back_yields_no_image_twice(tmp_path):
    fill(tmp_path, {"x": 10, "y": 10})
    (tmp_path / "x" / "loop").symlink_to(tmp_path / "x")
    assert counts(ImageFolder(tmp_path).splits()) == [12, 4, 4]


def test_a_class_that_links_to_its_data_set_or_another_class_is_refused(tmp_path):
    for target, message in ((".", "contains the data set"), ("..", "contains the data set"), ("x", "the same folder")):
        folder = tmp_path / f"to {target}"
        fill(folder, {"x": 10, "y": 10})
        (folder / "z").symlink_to(folder / target)
        with pytest.raises(InputError, match=message):
            ImageFolder(folder).splits()


def test_a_class_that_links_to_nothing_is_refused(tmp_path):
    fill(tmp_path, {"x": 10, "y": 10})
    (tmp_path / "z").symlink_to("/nowhere")
    with pytest.raises(InputError, match="z is a link to something that does not exist"):
        ImageFolder(tmp_path).splits()


def test_a_link_to_the_whole_disk_is_not_followed(tmp_path):
    fill(tmp_path, {"x": 10, "y": 10})
    (tmp_path / "x" / "disk").symlink_to("/")
    (tmp_path / "x" / "parent").symlink_to(tmp_path.parent)
    assert counts(ImageFolder(tmp_path).splits()) == [12, 4, 4]


def test_names_may_be_no_utf_8(tmp_path):
    folder = tmp_path / os.fsdecode(b"rose-\xff")
    folder.mkdir()
    for i in range(10):
        Image.new("RGB", (4, 4)).save(folder / os.fsdecode(b"\xe9%d.png" % i))
    fill(tmp_path, {"x": 10})
    splits = ImageFolder(tmp_path).splits()
    assert splits.classes == ("rose-\\xff", "x")
    assert r"rose-\xff/\xe90.png" in {s.name for part in (splits.train, splits.val, splits.test) for s in part}


def test_imagefolder_with_given_splits(tmp_path):
    for split, size in (("train", 6), ("val", 2), ("test", 3)):
        fill(tmp_path / split, {"x": size, "y": size})
    assert counts(ImageFolder(tmp_path).splits()) == [12, 4, 6]
    assert counts(ImageFolder(tmp_path, train_per_class=5, test_per_class=1).splits()) == [10, 4, 2]
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "test").rename(tmp_path / "Test")  # names of split folders are case-insensitive
    held = ImageFolder(tmp_path, val_per_class=2).splits()
    assert counts(held) == [8, 4, 6]
    assert not {s.name for s in held.train} & {s.name for s in held.val}


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ({"train": {"x": 4}}, {}, "has train but no test"),
        ({"train": {"x": 4, "y": 4}, "test": {"x": 4, "z": 1}}, {}, "do not have the same classes: y, z"),
        (
            {"train": {"x": 4, "y": 1}, "test": {"x": 4, "y": 1}},
            {},
            "the smallest class has 1 training image, and none",
        ),
        ({"x": {}}, {}, "contains no images"),
        ({"x": {"": 3}, "y": {"": 9}}, {"train_per_class": 5}, "class 'x' has 3 images, so choose at most 2"),
    ],
)
def test_folders_that_are_not_as_they_must_be(tmp_path, layout, options, message):
    for outer, inner in layout.items():
        (tmp_path / outer).mkdir()
        fill_names = {name or ".": count for name, count in inner.items()}
        for name, count in fill_names.items():
            (tmp_path / outer / name).mkdir(exist_ok=True)
            for i in range(count):
                Image.new("RGB", (4, 4)).save(tmp_path / outer / name / f"{i}.png")
    with pytest.raises(InputError, match=message):
        ImageFolder(tmp_path, **options).splits()
