import pytest

from blockwise.errors import InputError
from blockwise.io.class_names import read_class_names

CLASSES = ["n01", "n02"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "tench\ngreat white shark\n"),
        ("names.txt", "\ufefftench\r\n\r\n  great white shark  \r\n"),  # as Windows writes it
        ("synsets.txt", "n02 great white shark\nn03 hammerhead\nn01 tench\n"),
        ("pairs.tsv", "n01\ttench\nn02\tgreat white shark\n"),
        ("names.json", '["tench", "great white shark"]'),
        ("names.json", '{"n02": "great white shark", "n01": "tench", "n03": "hammerhead"}'),
    ],
)
def test_names_are_in_the_order_of_the_classes(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert read_class_names(tmp_path / name, CLASSES) == ("tench", "great white shark")


def test_names_may_be_given_at_once():
    assert read_class_names(["tench", "shark"], CLASSES) == ("tench", "shark")
    with pytest.raises(InputError, match=r"data.classes=\['tench'\] has 1 names for 2 classes"):
        read_class_names(["tench"], CLASSES)


def test_classes_with_spaces_are_told_from_their_names_by_tabs(tmp_path):
    (tmp_path / "names.txt").write_text("red rose\trosa rubra\nlily\tlilium\n")
    assert read_class_names(tmp_path / "names.txt", ["lily", "red rose"]) == ("lilium", "rosa rubra")


def test_names_of_several_words_are_no_pairs(tmp_path):
    (tmp_path / "names.txt").write_text("red rose\nwhite lily\n")
    assert read_class_names(tmp_path / "names.txt", CLASSES) == ("red rose", "white lily")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"one\n", "has 1 names for 2 classes: give one for each, in the order n01, n02"),
        ("x.txt", b"same\nsame\n", "names two classes 'same'"),
        ("x.txt", b"\xff\xfeo\0", "is not text in UTF-8"),
        ("x.txt", b"a\0b", "is not text in UTF-8"),
        ("x.json", b"{", "is not JSON"),
        ("x.json", b"[" * 100_000, "is not JSON"),
        ("x.json", b"3", "is neither a list of names nor a dictionary"),
        ("x.json", b'{"n01": "a"}', "has no name for n02"),
        ("x.json", b'{"n01": "a", "n02": ["b"]}', r"has \['b'\] in place of a name"),
    ],
)
def test_files_that_do_not_fit_are_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_class_names(tmp_path / name, CLASSES)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.txt cannot be read \(No such file"):
        read_class_names(tmp_path / "nowhere.txt", CLASSES)
