"""Damaged tables of images and files with class names: they are read, or refused in one sentence."""

import pytest
from fuzzing import check_line, damaged, examples, within_limits
from hypothesis import given
from PIL import Image

from blockwise.data.sources.table import CsvTable
from blockwise.errors import InputError
from blockwise.io.class_names import read_class_names

TABLES = [
    b"path,label,split\n" + b"".join(b"%d.png,%s,train\n" % (i, (b"cat", b"dog")[i % 2]) for i in range(8)),
    b'\xef\xbb\xbfpath;label\r\n"0.png";"a"\r\n1.png;b\r\n2.png;a\r\n3.png;b\r\n',
    b"path\tlabel\n0.png\t10\n1.png\t9\n",
]
NAMES = [b"tench\nshark\n", b"n01 tench\nn02 great white shark\n", b'["a", "b"]', b'{"n01": "a", "n02": "b"}']


@given(damaged(*TABLES))
@examples(0.5)
def test_tables(content):
    with within_limits() as folder:
        for number in range(8):
            Image.new("L", (2, 2), number).save(folder / f"{number}.png")
        (folder / "labels.csv").write_bytes(content)
        try:
            splits = CsvTable(folder / "labels.csv").splits()
            assert len(splits.fingerprint) == 16
        except InputError as error:
            check_line(str(error))


@pytest.mark.parametrize("name", ["names.txt", "names.json"])
def test_names_of_classes(name):
    @given(damaged(*NAMES))
    @examples(0.5)
    def test(content):
        with within_limits() as folder:
            (folder / name).write_bytes(content)
            try:
                names = read_class_names(folder / name, ["n01", "n02"])
                assert len(set(names)) == 2
            except InputError as error:
                check_line(str(error))

    test()
