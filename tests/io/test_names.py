"""Names that would be markup, commands or paths in what the program writes."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwise.io.names import LONGEST, decodable, file_name, markdown, printable, spreadsheet

USUAL = ["vgg16", "resnet50.a1_in1k", "Oxford Flowers", "fleur-été", "test_resnet", "3+7", "top-1 (%)", "雏菊"]


@pytest.mark.parametrize("name", USUAL)
def test_usual_names_stay(name):
    assert [f(name) for f in (decodable, printable, file_name, markdown, spreadsheet)] == [name] * 5


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (decodable, "rose-\udcff", r"rose-\xff"),
        (printable, "\x1b[31mred\x07", r"\x1b[31mred\x07"),
        (printable, "two\nlines\u202e", r"two\nlines\u202e"),
        (file_name, "../../etc/passwd", "__.._etc_passwd"),
        (file_name, "a/b\\c:d*", "a_b_c_d_"),
        (file_name, ".hidden", "_hidden"),
        (file_name, "", "_"),
        (file_name, "..", "_"),
        (markdown, "a|b", r"a\|b"),
        (markdown, "<script>", r"\<script>"),
        (markdown, "[click](javascript:x)", r"[click\](javascript:x)"),
        (spreadsheet, "=cmd()", "'=cmd()"),
        (spreadsheet, "@SUM(A1)", "'@SUM(A1)"),
        (spreadsheet, "-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
        (spreadsheet, "+1 cmd|' /C calc'!A0", "'+1 cmd|' /C calc'!A0"),
        (spreadsheet, "+3.1", "+3.1"),
        (spreadsheet, "-0.2 points to head (1 of 6)", "-0.2 points to head (1 of 6)"),
    ],
)
def test_what_is_no_name_for_its_target_is_changed(function, name, expected):
    assert function(name) == expected


NAMES = st.text(st.characters(codec=None, min_codepoint=0, max_codepoint=0x10FFFF, exclude_categories=()), max_size=400)


@given(NAMES)
def test_every_name_has_a_file(name):
    made = file_name(name)
    assert 0 < len(made.encode("utf-8")) <= LONGEST
    assert made not in (".", "..")
    assert made[0] != "."
    assert not set(made) & set('/\\\0:*?"<>|\n\x1b')


@given(NAMES)
def test_every_name_has_a_line_without_commands(name):
    shown = printable(name)
    shown.encode("utf-8")
    assert shown.isprintable() or not any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 for letter in shown)
    assert shown.count("\n") == 0
    assert printable(shown) == shown


@given(NAMES)
def test_a_cell_of_a_spreadsheet_is_text(name):
    file = io.StringIO()
    csv.writer(file).writerow([spreadsheet(printable(name))])
    (cell,) = next(csv.reader(io.StringIO(file.getvalue())), [""])
    assert cell[:1] not in ("=", "@")
