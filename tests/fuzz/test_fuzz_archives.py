"""Damaged and hostile archives: unpacked inside their folder, or refused in one line."""

import gzip
import io
import tarfile
import zipfile

import pytest
from fuzzing import check_line, damaged, examples, within_limits
from hypothesis import given
from hypothesis import strategies as st

from blockwise.errors import InputError
from blockwise.io.download import unpack

PHOTOS = [("rose/1.jpg", b"photo" * 20), ("rose/2.jpg", bytes(range(256))), ("tulip/3.jpg", b"")]


def tar(members, mode="w:", form=tarfile.PAX_FORMAT):
    """Return an archive of these members: name, content and changes to its header."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=form) as archive:
        for name, content, *changes in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in changes[0].items() if changes else ():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped(members, compression=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode() or "x")
            info.compress_type = compression
            archive.writestr(info, content)
    return file.getvalue()


def check(content):
    """Unpack an archive; nothing but the archive and its folder may be there afterwards."""
    with within_limits() as root:
        archive, target = root / "archive", root / "deep" / "content"
        archive.write_bytes(content)
        try:
            unpack(archive, target)
        finally:
            assert sorted(path.name for path in root.iterdir()) == ["archive", "deep"]
            assert [path.name for path in target.parent.iterdir()] == ["content"]
            assert archive.read_bytes() == content
            for path in target.rglob("*"):
                assert not path.is_symlink()
                assert path.is_file() or path.is_dir()


TARS = [tar(PHOTOS), tar(PHOTOS, form=tarfile.GNU_FORMAT), tar([("x" * 200, b"long"), ("ü" * 90, b"1")])]
PACKED = [tar(PHOTOS, mode) for mode in ("w:gz", "w:bz2", "w:xz")]
ZIPS = [
    zipped(PHOTOS, kind) for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
]


def with_checksums(content):
    """Return a tar archive of which all headers have the right checksum: without it, none would be read."""
    data = bytearray(content)
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


HEADED = damaged(*TARS).map(with_checksums)


@given(st.one_of(HEADED, damaged(*TARS)))
@examples(0.6)
def test_a_damaged_tar_archive_stays_inside_its_folder(content):
    check(content)


@given(st.one_of(damaged(*PACKED), HEADED.map(lambda content: gzip.compress(content, 1))))
@examples(0.6)
def test_a_damaged_packed_archive_stays_inside_its_folder(content):
    check(content)


@given(damaged(*ZIPS))
@examples()
def test_a_damaged_zip_archive_stays_inside_its_folder(content):
    check(content)


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=99).map(lambda end: b"PK\x05\x06" + end)))
@examples(0.5)
def test_bytes_are_no_archive(content):
    check(content)


PART = st.one_of(
    st.sampled_from(("..", ".", "", "a", "b", "link", "C:", "\\..", "con", "~", "\x1b[31m", "\n", "x" * 300, "%2e%2e")),
    st.text(st.characters(exclude_characters="\0"), max_size=5),
)
NAME = st.one_of(
    st.lists(PART, min_size=1, max_size=4).map("/".join),
    st.sampled_from(("/blockwise-outside", "../archive", "../../archive", "//x", "a", "a/b", "link/x", "a/../../../x")),
)
TYPE = st.sampled_from([bytes([kind]) for kind in b"\x000012345567ADKLMNSVXgx"])
NUMBER = st.one_of(st.sampled_from((0, 0, 1, 0o7777, 2**31, 2**40)), st.integers(-(2**33), 2**33))
HEADERS = st.dictionaries(
    st.sampled_from(
        ("path", "linkpath", "size", "mtime", "uid", "GNU.sparse.major", "GNU.sparse.realsize", "hdrcharset")
    ),
    st.one_of(NAME, NUMBER.map(str), st.sampled_from(("1e99", "nan", "-1", "BINARY"))),
    max_size=2,
)
CHANGES = st.fixed_dictionaries(
    {"type": TYPE},
    optional={"linkname": NAME, "mode": NUMBER, "mtime": NUMBER, "uid": NUMBER, "pax_headers": HEADERS},
)
MEMBER = st.tuples(NAME, st.binary(max_size=30), CHANGES)


@st.composite
def hostile_tars(draw):
    members, form = draw(st.lists(MEMBER, max_size=5)), draw(st.sampled_from((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)))
    try:
        return tar(members, draw(st.sampled_from(("w:", "w:gz"))), form)
    except (ValueError, UnicodeError, tarfile.TarError, OverflowError):  # no header can say that
        return b""


@given(hostile_tars())
@examples()
def test_a_hostile_tar_archive_stays_inside_its_folder(content):
    check(content)


@given(st.lists(st.tuples(NAME, st.binary(max_size=30)), max_size=5))
@examples(0.6)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_zip_archive_stays_inside_its_folder(members):
    check(zipped(members))


def negative(size):
    """Return an archive whose only member has a negative size, as tar writes numbers in base 256."""
    content = bytearray(tar([("a.jpg", b"1")]))
    content[124:136] = (2**96 + size).to_bytes(12, "big")
    return with_checksums(content)


DAMAGED_DEFLATE = bytearray(zipped([("a.jpg", bytes(range(256)) * 8)]))
DAMAGED_DEFLATE[40:60] = bytes(20)


@pytest.mark.parametrize(
    "content",
    [
        negative(-1),
        negative(-1024),
        bytes(DAMAGED_DEFLATE),
        tar([("a.jpg", b"1", {"pax_headers": {"mtime": "1e99"}})]),
        tar([("a.jpg", b"1", {"pax_headers": {"mtime": "nan"}})]),
        tar([(f"{number}.jpg", b"") for number in range(3000)], "w:gz"),
        tar([("\x1b[31m\n", b"", {"type": tarfile.FIFOTYPE})]),
    ],
    ids=["size -1", "size -1024", "deflate", "far future", "no time", "empty files", "commands"],
)
def test_archives_that_once_raised_other_errors_are_refused(content):
    with within_limits() as root:
        (root / "archive").write_bytes(content)
        with pytest.raises(InputError) as caught:
            unpack(root / "archive", root / "content")
        check_line(str(caught.value))
