import os

import pytest
from PIL import Image

from blockwise.data.sources.table import CsvTable
from blockwise.errors import InputError
from blockwise.study.study import Study

PLAIN, SPLIT = "path,label", "path,label,split"
MISSING = (30, 40, 50, 60)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(24):
        Image.new("RGB", (9, 7), (i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def write(folder, rows, header=PLAIN, name="labels.csv", encoding="utf-8"):
    (folder / name).write_text("\n".join([header, *rows, ""]), encoding=encoding)
    return folder / name


def rows(numbers=range(24), *more):
    return [",".join((f"images/{i}.png", ("cat", "dog")[i % 2], *more)) for i in numbers]


def given(train=12, val=4, test=8, words=("train", "val", "test")):
    counts = zip(words, (train, val, test), strict=True)
    splits = [word for word, count in counts for _ in range(count)]
    return [f"{row},{split}" for row, split in zip(rows(), splits, strict=True)]


def counts(splits):
    return [len(part) for part in (splits.train, splits.val, splits.test)]


def everything(splits):
    return [sample for part in (splits.train, splits.val, splits.test) for sample in part]


def test_without_a_split_it_is_split_by_seed(folder):
    file = write(folder, rows())
    splits = CsvTable(file).splits()
    assert splits.classes == ("cat", "dog")
    assert counts(splits) == [14, 4, 6]
    sample = next(sample for sample in everything(splits) if sample.name == "images/3.png")
    assert (sample.label, sample.image) == (1, folder / "images" / "3.png")
    assert CsvTable(file).splits() == splits
    assert [s.name for s in CsvTable(file, seed=1).splits().train] != [s.name for s in splits.train]
    assert counts(CsvTable(file, train_per_class=6, val_per_class=2, test_per_class=3).splits()) == [8, 4, 6]


@pytest.mark.parametrize(
    "words", [("train", "val", "test"), ("Training", "VALIDATION", "testing"), ("train", "valid", "test")]
)
def test_the_split_of_the_table_is_used(folder, words):
    splits = CsvTable(write(folder, given(words=words), SPLIT)).splits()
    assert counts(splits) == [12, 4, 8]
    assert [sample.name for sample in splits.val] == [f"images/{i}.png" for i in range(12, 16)]
    assert splits.listed


def test_the_split_of_the_table_is_part_of_the_settings(folder, small):
    def settings(lines, header=SPLIT, *overrides):
        file = write(folder, lines, header)
        cfg = small("data=csv", f"data.file={file}", "data.batch_size=4", "data.train_per_class=null", *overrides)
        return Study.from_config(cfg).settings["data"]

    moved = [*given()[1:], given()[0].replace("train", "test")]
    found = [settings(given()), settings(moved), settings(rows(), PLAIN)]
    assert found[0]["fingerprint"] == found[1]["fingerprint"]
    assert found[0]["splits"] != found[1]["splits"]
    assert "splits" not in found[2]
    # a seed of the source alone is in no other setting
    other = settings(rows(), PLAIN, "data.source.seed=5")
    assert other["fingerprint"] == found[2]["fingerprint"]
    assert "splits" in other


def test_validation_images_are_held_out_by_seed(folder):
    splits = CsvTable(write(folder, given(16, 0, 8), SPLIT), val_per_class=3).splits()
    assert counts(splits) == [10, 6, 8]
    assert len({sample.name for sample in everything(splits)}) == 24


def test_a_split_column_that_is_not_wanted_is_ignored(folder):
    file = write(folder, given(), SPLIT)
    plain = write(folder, rows(), name="plain.csv")
    assert CsvTable(file, split_column=None).splits() == CsvTable(plain).splits()
    assert CsvTable(write(folder, rows(range(24), ""), SPLIT)).splits() == CsvTable(plain).splits()


def test_columns_may_have_other_names_and_be_in_any_order(folder):
    file = write(folder, [f"{i},{'ab'[i % 2]},{i}.png" for i in range(24)], "id,species, photo")
    splits = CsvTable(file, images=folder / "images", path_column="photo", label_column="species").splits()
    assert splits.classes == ("a", "b")
    assert {sample.name for sample in everything(splits)} == {f"{i}.png" for i in range(24)}
    with pytest.raises(InputError, match="has no column 'path' and no column 'label', but id, species, photo"):
        CsvTable(file).splits()
    with pytest.raises(InputError, match="has no column 'fold'"):
        CsvTable(write(folder, rows()), split_column="fold").splits()


@pytest.mark.parametrize("delimiter", [";", "\t", ", "])
def test_what_spreadsheets_write(folder, delimiter):
    (folder / "images" / "with, comma.png").write_bytes((folder / "images" / "0.png").read_bytes())
    lines = [PLAIN, *rows(), '"images/with, comma.png","cat"', ""]
    text = "\r\n".join(line if line[:1] == '"' else line.replace(",", delimiter) for line in lines)
    text = text.replace('","', f'"{delimiter}"')
    (folder / "excel.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    splits = CsvTable(folder / "excel.csv").splits()
    assert splits.classes == ("cat", "dog")
    assert "images/with, comma.png" in {sample.name for sample in everything(splits)}


def test_labels_that_are_numbers_are_ordered_as_numbers(folder):
    file = write(folder, [f"images/{i}.png,{(10, 9, 2)[i % 3]}" for i in range(24)])
    (folder / "names.txt").write_text("two\nnine\nten\n")
    assert CsvTable(file).splits().classes == ("2", "9", "10")
    assert CsvTable(file, classes=folder / "names.txt").splits().classes == ("two", "nine", "ten")


def test_names_do_not_depend_on_the_machine_or_the_order_of_rows(folder, tmp_path_factory):
    here = CsvTable(write(folder, rows())).splits()
    there = tmp_path_factory.mktemp("there") / "data"
    folder.rename(there)
    moved = CsvTable(write(there, [f"./{row}" for row in reversed(rows())])).splits()
    assert moved.fingerprint == here.fingerprint
    assert [sample.name for sample in moved.train] == [sample.name for sample in here.train]


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        ([], PLAIN, "has no rows"),
        ([], "", "has no column 'path' and no column 'label', but no header"),
        (["images/0.png,", *rows(range(1, 9))], PLAIN, r"1 row\(s\) have no label: line 2"),
        (["images/0.png", *rows(range(1, 9))], PLAIN, r"1 row\(s\) have no label: line 2"),
        ([",cat", *rows(range(1, 9))], PLAIN, r"1 row\(s\) have no path: line 2"),
        (["images/0.png,cat,dog"], PLAIN, r"1 row\(s\) have more fields than the header: line 2"),
        (rows([1, 2, 3, *MISSING]), PLAIN, r"4 row\(s\) name .*: line 5 \(images/30.png\), .*line 7 .* and 1 more"),
        (["..,cat"], PLAIN, "name a file that is not in"),
        ([f"{'x' * 5000}.png,cat"], PLAIN, "name a file that is not in"),
        (["images/1.png,cat", "images//1.png,dog"], PLAIN, "in lines 2 and 3, as 'cat' and 'dog': each"),
        (["images/1.png,cat", "images/1.png,cat"], PLAIN, "lists images/1.png in lines 2 and 3: each image"),
        (rows([1, 2], "train") + rows([3], "holdout"), SPLIT, r"are in no split, .*: line 4 \('holdout'\)"),
        (rows([1, 2], "train") + rows([3], ""), SPLIT, r"are in no split, .*: line 4 \(''\)"),
        (rows([1, 2], "train") + rows([3], "val"), SPLIT, "has no images to test: its column 'split' must"),
        (rows([1, 3], "train") + rows([2, 4], "test"), SPLIT, "has no training images of cat"),
        (rows([0, 1], "train") + rows([2, 3], "test"), SPLIT, "or add a val split"),
        (rows([0, 1]), PLAIN, "class 'cat' has 1 image"),
    ],
)  # fmt: skip
def test_tables_that_are_not_as_they_must_be_are_one_sentence(folder, lines, header, message):
    with pytest.raises(InputError, match=message) as caught:
        CsvTable(write(folder, lines, header)).splits()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"labels.csv cannot be read \(No such file or directory\)"),
        (b"PK\x03\x04\xff\xfe workbook", "is not text in UTF-8: save the table as CSV in UTF-8"),
        ("path,label\nx,y\n".encode("utf-16"), "is not text in UTF-8"),
        (b"path,label\n" + b"x" * 200_000, "is not a CSV file"),
    ],
)
def test_files_that_are_no_table_are_one_sentence(tmp_path, content, message):
    if content is not None:
        (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        CsvTable(tmp_path / "labels.csv").splits()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match="not a regular file"):
        CsvTable(tmp_path / "pipe.csv").splits()
