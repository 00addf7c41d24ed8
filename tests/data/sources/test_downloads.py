"""The three data sets that are downloaded, from a server on the same machine, with small archives of their layout.

However a download ends, there is a whole data set or none, and the next attempt succeeds.
"""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pooch
import pytest
from PIL import Image
from scipy.io import savemat

from blockwise.data.sources import caltech101, flowers102
from blockwise.data.sources.caltech101 import Caltech101
from blockwise.data.sources.flowers102 import Flowers102
from blockwise.data.sources.imagefolder import ImageFolder
from blockwise.data.sources.whole import MARKER, check_whole
from blockwise.errors import InputError


def photograph(number):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def tar(names):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for number, name in enumerate(names):
            content = photograph(number) if name.endswith(".jpg") else b"text"
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def caltech_zip():
    classes = ("BACKGROUND_Google", "ant", "crab")
    names = [f"101_ObjectCategories/{name}/image_{i:04d}.jpg" for name in classes for i in range(1, 6)]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("caltech-101/101_ObjectCategories.tar.gz", tar(names))
        archive.writestr("caltech-101/Annotations.tar", b"none")
    return {"caltech-101.zip": file.getvalue()}


def flowers_files():
    count = 306
    labels, split = io.BytesIO(), io.BytesIO()
    savemat(labels, {"labels": np.arange(count) % 102 + 1})
    ids = np.arange(1, count + 1)
    savemat(split, {"trnid": ids[:102], "valid": ids[102:204], "tstid": ids[204:]})
    images = tar([f"jpg/image_{i:05d}.jpg" for i in ids])
    return {"102flowers.tgz": images, "imagelabels.mat": labels.getvalue(), "setid.mat": split.getvalue()}


def photos_tgz():
    names = [f"flower_photos/{name}/{i}.jpg" for name in ("daisy", "roses") for i in range(5)]
    return {"flower_photos.tgz": tar([*names, "flower_photos/LICENSE.txt"])}


class Server:
    """Serves files by name; `broken` ends the answers halfway, `waiting` stops there for ever."""

    def __init__(self, files):
        self.files, self.broken, self.waiting = files, False, False
        self.halfway = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                content = outer.files[self.path.rpartition("/")[2]]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                archive = not self.path.endswith(".mat")
                self.wfile.write(
                    content[: len(content) // 2] if archive and (outer.broken or outer.waiting) else content
                )
                if archive and outer.waiting:
                    self.wfile.flush()
                    outer.halfway.set()
                    threading.Event().wait(60)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture(params=["caltech101", "flowers102", "tf_flowers"])
def data_set(request, tmp_path, monkeypatch):
    """A data set: how to make its source, what to patch for it in this or another process, and its server."""
    files = {"caltech101": caltech_zip, "flowers102": flowers_files, "tf_flowers": photos_tgz}[request.param]()
    server = Server(files)
    root = tmp_path / "data"
    if request.param == "caltech101":
        url, checksum = f"{server.url}caltech-101.zip", f"md5:{md5(files['caltech-101.zip'])}"
        patches = {"caltech101.URL": url, "caltech101.CHECKSUM": checksum}
        patches |= {"caltech101.IMAGES": 15, "caltech101.FOLDERS": 3, "caltech101.IMAGES_WITHOUT_BACKGROUND": 10}
        made = SimpleNamespace(
            code=f"Caltech101({str(root)!r}, train_per_class=3, val_per_class=1)",
            place=root / "caltech101" / "101_ObjectCategories",
        )
    elif request.param == "flowers102":
        sums = {name: md5(files[name]) for name in flowers102.MD5}
        patches = {"flowers102.URL": server.url, "flowers102.ARCHIVE_MD5": md5(files["102flowers.tgz"])}
        patches |= {"flowers102.MD5": sums, "flowers102.IMAGES": 306}
        made = SimpleNamespace(code=f"Flowers102({str(root)!r})", place=root / "flowers-102" / "jpg")
    else:
        url, checksum = f"{server.url}flower_photos.tgz", f"sha256:{hashlib.sha256(*files.values()).hexdigest()}"
        patches = {}
        options = {"url": url, "checksum": checksum, "num_images": 10, "name": "tf_flowers"}
        made = SimpleNamespace(code=f"ImageFolder({str(root / 'photos')!r}, **{options})", place=root / "photos")
    for name, value in patches.items():
        monkeypatch.setattr(f"blockwise.data.sources.{name}", value)
    made.name, made.server, made.patches = request.param, server, patches
    made.splits = lambda: eval(made.code).splits()  # the same in another process
    yield made
    server.http.shutdown()
    server.http.server_close()


SOURCES = (Caltech101, Flowers102, ImageFolder, caltech101)  # what `code` names


def left(data_set):
    """What there is of the images, finished or not."""
    folder = data_set.place.parent
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [name for name in names if not name.endswith((".lock", ".mat"))]


def check_second_attempt(data_set, capsys):
    splits = data_set.splits()
    assert len(splits.classes) >= 2
    assert all(sample.image.is_file() for part in (splits.train, splits.val, splits.test) for sample in part)
    assert left(data_set) == [data_set.place.name]
    capsys.readouterr()
    data_set.server.http.shutdown()
    again = data_set.splits()  # without a server
    assert again == splits
    assert capsys.readouterr().err == ""


def test_a_data_set_is_downloaded_once_and_marked_as_whole(data_set, capsys):
    check_second_attempt(data_set, capsys)
    assert json.loads((data_set.place / MARKER).read_text())["images"] in (10, 15, 306)


def test_broken_off_while_fetching(data_set, capsys):
    data_set.server.broken = True
    with pytest.raises(InputError, match="could not be downloaded"):
        data_set.splits()
    assert left(data_set) == []
    data_set.server.broken = False
    check_second_attempt(data_set, capsys)


CHILD = """
import os, sys, tarfile
import blockwise.data.sources as sources
from blockwise.data.sources import caltech101, flowers102
from blockwise.data.sources.caltech101 import Caltech101
from blockwise.data.sources.flowers102 import Flowers102
from blockwise.data.sources.imagefolder import ImageFolder
patches, code, kill_at = {patches!r}, {code!r}, {kill_at!r}
for name, value in patches.items():
    module, _, constant = name.partition(".")
    setattr(getattr(sources, module), constant, value)
original, unpacked = tarfile.TarFile.makefile, []
def makefile(self, *arguments):
    unpacked.append(1)
    if len(unpacked) == kill_at:
        os.kill(os.getpid(), 9)
    return original(self, *arguments)
tarfile.TarFile.makefile = makefile
eval(code).splits()
"""


# a process takes seconds to import torch
KILLED = pytest.mark.parametrize(
    "data_set",
    [pytest.param(name, marks=pytest.mark.slow) for name in ("caltech101", "flowers102", "tf_flowers")],
    indirect=True,
)


def start(data_set, kill_at=None):
    code = CHILD.format(patches=data_set.patches, code=data_set.code, kill_at=kill_at)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


@KILLED
def test_killed_while_fetching(data_set, capsys):
    data_set.server.waiting = True
    child = start(data_set)
    assert data_set.server.halfway.wait(60)
    child.kill()
    child.wait()
    assert not data_set.place.exists()
    data_set.server.waiting = False
    check_second_attempt(data_set, capsys)


@KILLED
def test_killed_while_unpacking(data_set, capsys):
    assert start(data_set, kill_at=4).wait() == -signal.SIGKILL
    assert not data_set.place.exists()
    assert left(data_set)  # what was unpacked so far, under another name
    check_second_attempt(data_set, capsys)


def test_a_wrong_checksum(data_set, capsys):
    name = next(name for name in data_set.server.files if not name.endswith(".mat"))
    content = data_set.server.files[name]
    data_set.server.files[name] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(InputError, match="has another hash than"):
        data_set.splits()
    assert left(data_set) == []
    data_set.server.files[name] = content
    check_second_attempt(data_set, capsys)


def test_no_space_to_unpack(data_set, capsys):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="unpacks to .* has less room"):
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        data_set.splits()
    assert left(data_set) == []
    check_second_attempt(data_set, capsys)


def test_no_space_to_download(data_set, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="No space left on device"):
        patch.setattr(pooch.HTTPDownloader, "__call__", full)
        data_set.splits()
    assert left(data_set) == []
    check_second_attempt(data_set, capsys)


def test_an_archive_with_too_few_images_is_not_used(data_set, monkeypatch):
    if data_set.name == "tf_flowers":
        data_set.code = data_set.code.replace("'num_images': 10", "'num_images': 11")
    else:
        monkeypatch.setattr(f"blockwise.data.sources.{data_set.name}.IMAGES", 9999)
    with pytest.raises(InputError, match=r"contains [\d,]+ images, not [\d,]+: it is not used"):
        data_set.splits()
    assert left(data_set) == []


def test_what_was_lost_after_unpacking_is_noticed(data_set):
    data_set.splits()
    image = next(data_set.place.rglob("*.jpg"))
    content = image.read_bytes()
    for change in (lambda: image.write_bytes(content[:20]), image.unlink):
        change()
        with pytest.raises(InputError, match="is not as it was unpacked, .* remove it, and it is downloaded again"):
            data_set.splits()
    (data_set.place / MARKER).unlink()  # the user takes it as it is
    data_set.splits()


def test_a_half_unpacked_folder_of_others_is_used_with_one_notice(data_set, capsys):
    data_set.splits()
    (data_set.place / MARKER).unlink()
    capsys.readouterr()
    data_set.splits()
    assert capsys.readouterr().err == ""  # it has all images
    next(path for path in data_set.place.rglob("*.jpg") if "Google" not in str(path)).unlink()
    data_set.splits()
    found = {"caltech101": "14 of 15", "flowers102": "305 of 306", "tf_flowers": "9 of 10"}[data_set.name]
    assert capsys.readouterr().err == f"{data_set.name} has {found} images (a subset, or half-unpacked)\n"


def test_caltech_without_the_background_is_whole(tmp_path, capsys):
    for name in ("ant", "crab"):
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.jpg").write_bytes(b"")
    check_whole(tmp_path, "caltech101", 15, 10)
    assert capsys.readouterr().err == ""
    check_whole(tmp_path, "caltech101", 15, 11)
    assert "10 of 15" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", '{"images": null}'])
def test_a_damaged_marker_is_one_sentence(tmp_path, content):
    (tmp_path / MARKER).write_text(content)
    with pytest.raises(InputError, match="instead of an unknown number of images"):
        check_whole(tmp_path, "photos")


def test_the_real_addresses_are_encrypted_and_their_archives_known():
    assert caltech101.URL.startswith("https://")
    assert caltech101.CHECKSUM.startswith("md5:")
    assert flowers102.URL.startswith("https://")
    assert len(flowers102.ARCHIVE_MD5) == 32
    assert (caltech101.IMAGES, caltech101.FOLDERS, flowers102.IMAGES) == (9144, 102, 8189)
