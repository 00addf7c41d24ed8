"""Archives that want to do harm, and downloads that break off, from a server on the loopback interface."""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from blockwise.data.sources.imagefolder import ImageFolder
from blockwise.errors import InputError
from blockwise.io.download import DownloadError, download, download_folder, making_folder, unpack


@pytest.fixture
def serve():
    """Serve `content` at the returned address; `length` is what the server claims that it sends."""
    servers = []

    def start(content, length=None):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(length or len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/flowers.tgz"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def tar(*members, mode="w:gz"):
    """Return an archive of these members: a name with content, or a TarInfo."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                name, content = member
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def sha256(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.endswith(".lock"))


def test_an_archive_becomes_a_folder(tmp_path, serve):
    for name, content in (
        ("one folder", tar(("flowers/rose/1.jpg", b"1"), ("flowers/tulip/2.jpg", b"2"))),
        ("no folder around", tar(("rose/1.jpg", b"1"), ("tulip/2.jpg", b"2"))),
    ):
        folder = tmp_path / name / "photos"
        download_folder(serve(content), folder, sha256(content))
        assert everything(tmp_path / name) == [
            "photos", "photos/rose", "photos/rose/1.jpg", "photos/tulip", "photos/tulip/2.jpg",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../../outside.txt", b"x")], "outside"),
        ([special("link", tarfile.SYMTYPE, "/etc"), ("link/outside.txt", b"x")], "'link', which is a link or a device"),
        ([special("link", tarfile.LNKTYPE, "../../outside.txt")], "'link', which is a link or a device"),
        ([special("zero", tarfile.CHRTYPE)], "'zero', which is a link or a device"),
        ([special("pipe", tarfile.FIFOTYPE)], "'pipe', which is a link or a device"),
        ([("zeros.jpg", bytes(10**6))], "more than 100 times its size"),
    ],
)
def test_an_archive_that_wants_to_do_harm_leaves_nothing(tmp_path, serve, members, message):
    content = tar(*members)
    with pytest.raises(InputError, match=message):
        download_folder(serve(content), tmp_path / "inner" / "deep" / "photos", sha256(content))
    assert everything(tmp_path) == ["inner", "inner/deep"]


def test_absolute_names_are_unpacked_below_the_folder(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar((f"{tmp_path}/outside.txt", b"x"), mode="w:"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(f"{tmp_path}/outside.txt", "x")
        archive.writestr("../../outside.txt", "x")
    for suffix in ("tar", "zip"):
        unpack(tmp_path / f"a.{suffix}", tmp_path / suffix / "inner" / "deep")
        assert not (tmp_path / "outside.txt").exists()
        assert not (tmp_path / suffix / "outside.txt").exists()
        assert list((tmp_path / suffix / "inner" / "deep").rglob("outside.txt"))


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive at all", tar(("a.jpg", b"1" * 10**4))[:60], b"PK\x03\x04" + bytes(99)],
    ids=["empty", "text", "tar", "zip"],  # gzip writes the time, which workers must not have in a name
)
def test_a_damaged_archive_is_one_sentence(tmp_path, content):
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(InputError, match=r"archive (is neither|cannot be unpacked)"):
        unpack(tmp_path / "archive", tmp_path / "content")


def test_a_download_that_breaks_off_leaves_nothing(tmp_path, serve):
    content = tar(("flowers/1.jpg", b"1"))
    with pytest.raises(InputError, match="could not be downloaded"):
        download_folder(serve(content, length=2 * len(content)), tmp_path / "photos", sha256(content))
    assert everything(tmp_path) == []
    download_folder(serve(content), tmp_path / "photos", sha256(content))  # the same again succeeds
    assert everything(tmp_path / "photos") == ["1.jpg"]


def test_other_content_than_expected_is_refused(tmp_path, serve):
    with pytest.raises(InputError, match="hash"):
        download(serve(b"something else"), tmp_path / "file", sha256(b"flowers"))
    assert everything(tmp_path) == []


def test_a_refused_archive_is_not_recommended(tmp_path, serve):
    url = serve(tar(("../../outside.txt", b"x")))
    source = ImageFolder(tmp_path / "photos", url=url, checksum=sha256(b"something else"))
    with pytest.raises(InputError, match="has another hash than sha256") as caught:
        source.splits()
    assert "unpack it" not in str(caught.value)


def test_passwords_are_not_shown(tmp_path, capsys):
    with pytest.raises(DownloadError) as caught:
        download("http://me:secret@127.0.0.1:9/a.tgz", tmp_path / "a", f"md5:{32 * '0'}")
    assert "secret" not in str(caught.value) + capsys.readouterr().err


@pytest.mark.parametrize("checksum", ["crc:12", "md5:00", "sha256:" + 64 * "x", "4c54"])
def test_a_checksum_that_is_none_is_refused_before_the_download(tmp_path, checksum):
    with pytest.raises(InputError, match="the checksum .* is not valid"):
        download("https://example.org/a.tgz", tmp_path / "a", checksum)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.org/flowers.tgz", "is not encrypted: use https:, or give the file's checksum"),
        ("file:///etc/passwd", "must start with https:"),
        ("/etc/passwd", "must start with https:"),
        ("", "must start with https:"),
    ],
)
def test_addresses_that_are_refused(tmp_path, url, message):
    with pytest.raises(InputError, match=message):
        download(url, tmp_path / "file")


def test_a_folder_is_made_once_and_whole(tmp_path):
    with pytest.raises(RuntimeError), making_folder(tmp_path / "made") as made:
        made.mkdir()
        raise RuntimeError
    assert everything(tmp_path) == []
    with making_folder(tmp_path / "made") as made:
        made.mkdir()
    with making_folder(tmp_path / "made") as made:
        assert made is None
