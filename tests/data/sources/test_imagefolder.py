"""Several folders, and names of classes from a file; test_sources.py tests the rest."""

import shutil

import pytest
from PIL import Image

from blockwise.data.sources.imagefolder import ImageFolder
from blockwise.errors import InputError
from blockwise.study.study import Study


def fill(folder, counts):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (9, 7), (i, len(name), 0)).save(folder / name / f"{i}.png")


def everything(splits):
    return [sample for part in (splits.train, splits.val, splits.test) for sample in part]


def test_class_folders_of_the_same_name_are_one_class(tmp_path):
    fill(tmp_path / "a" / "photos", {"cat": 5, "dog": 5})
    fill(tmp_path / "b" / "photos", {"bird": 5, "dog": 7})
    splits = ImageFolder([tmp_path / "a" / "photos", str(tmp_path / "b" / "photos")]).splits()
    assert splits.classes == ("bird", "cat", "dog")
    found = {sample.name: (sample.label, sample.image) for sample in everything(splits)}
    assert len(found) == 22
    assert found["1/dog/0.png"] == (2, tmp_path / "a" / "photos" / "dog" / "0.png")
    assert found["2/dog/0.png"] == (2, tmp_path / "b" / "photos" / "dog" / "0.png")
    assert found["2/bird/4.png"][0] == 0


def test_names_and_fingerprint_do_not_depend_on_where_the_folders_are(tmp_path):
    fill(tmp_path / "a", {"cat": 5, "dog": 5})
    fill(tmp_path / "b", {"cat": 5})
    shutil.copytree(tmp_path, tmp_path.parent / "elsewhere", dirs_exist_ok=True)
    (tmp_path.parent / "elsewhere" / "b").rename(tmp_path.parent / "elsewhere" / "0")
    here = ImageFolder([tmp_path / "a", tmp_path / "b"]).splits()
    there = ImageFolder([tmp_path.parent / "elsewhere" / name for name in ("a", "0")]).splits()
    assert here.fingerprint == there.fingerprint
    assert [sample.name for sample in everything(here)] == [sample.name for sample in everything(there)]


def test_a_list_of_one_folder_is_that_folder(tmp_path):
    fill(tmp_path, {"cat": 5, "dog": 5})
    assert ImageFolder([tmp_path]).splits() == ImageFolder(tmp_path).splits()


def test_several_folders_with_splits(tmp_path):
    for root in ("a", "b"):
        for split, size in (("train", 6), ("val", 2), ("test", 3)):
            fill(tmp_path / root / split, {"cat": size, "dog": size} if root == "a" else {"dog": size})
    splits = ImageFolder([tmp_path / "a", tmp_path / "b"]).splits()
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [18, 6, 9]
    assert {sample.name.split("/")[1] for sample in splits.val} == {"val"}
    shutil.rmtree(tmp_path / "b" / "val")
    with pytest.raises(InputError, match="do not have the same folders for the splits"):
        ImageFolder([tmp_path / "a", tmp_path / "b"]).splits()
    shutil.rmtree(tmp_path / "b" / "test")
    with pytest.raises(InputError, match="b has train but no test"):
        ImageFolder([tmp_path / "a", tmp_path / "b"]).splits()


@pytest.mark.parametrize(
    ("roots", "message"),
    [
        (["a", "nowhere"], "nowhere is not a folder"),
        (["a", "empty"], "empty contains no images"),
        (["a", "a"], "share images: leave one of them out"),
        (["a", "a/cat"], "share images: leave one of them out"),
        (["a/cat", "a"], "share images: leave one of them out"),
    ],
)
def test_folders_that_do_not_fit_together(tmp_path, roots, message):
    fill(tmp_path / "a", {"cat": 5, "dog": 5})
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        ImageFolder([tmp_path / root for root in roots]).splits()


def test_groups_are_part_of_what_tells_splits_apart(tmp_path, small):
    fill(tmp_path / "a", {"cat": 12, "dog": 12})
    own = [
        "data=imagefolder",
        f"data.root={tmp_path / 'a'}",
        "data.batch_size=4",
        "data.folds=2",
        "data.train_per_class=6",
    ]
    plain, grouped = (
        Study.from_config(small(*own, *more)).settings["data"] for more in ([], ["data.groups='(\\w+)\\.'"])
    )
    assert "splits" not in plain
    assert "splits" in grouped


def test_two_folders_of_one_split_are_refused(tmp_path):
    for split in ("train", "val", "Validation", "test"):
        fill(tmp_path / "a" / split, {"cat": 3, "dog": 3})
    with pytest.raises(InputError, match="Validation and .*val are both the val split: remove one of them"):
        ImageFolder(tmp_path / "a").splits()


def test_names_of_classes_change_nothing_else(tmp_path):
    fill(tmp_path / "images", {"n01": 5, "n02": 5})
    (tmp_path / "names.txt").write_text("tench\nshark\n")
    plain = ImageFolder(tmp_path / "images").splits()
    named = ImageFolder(tmp_path / "images", classes=tmp_path / "names.txt").splits()
    assert named.classes == ("tench", "shark")
    assert everything(named) == everything(plain)
    assert named.fingerprint == plain.fingerprint
