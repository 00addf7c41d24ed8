"""Downloads: checked, and complete or not there at all."""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pooch
from filelock import FileLock

from blockwise.errors import InputError
from blockwise.io.names import printable

# seconds without a byte after which a download fails
PATIENCE = 30
# images hardly compress: an archive that unpacks to more than this many times its size is no archive of images
MOST_EXPANSION = 100
# digits of the hashes
LENGTHS = {"sha256": 64, "sha512": 128, "sha1": 40, "md5": 32}


class DownloadError(InputError):
    """A file cannot be downloaded, for a reason that has nothing to do with its content."""


def download(url: str, path: Path, checksum: str | None = None) -> None:
    """Download a file; if that fails or is interrupted, there is no file.

    Args:
        url: An address that starts with `https:`, or with `http:` if there is a checksum.
        path: The new file.
        checksum: Expected hash of the content, such as `sha256:4c54...`; None checks nothing.

    Raises:
        DownloadError: The file cannot be downloaded.
        InputError: The address or the checksum is refused, or the file has another hash.
    """
    parts = urlsplit(url)
    shown = url.replace(f"{parts.netloc.rpartition('@')[0]}@", "", 1) if "@" in parts.netloc else url  # no passwords
    if parts.scheme not in ("https", "http"):
        raise InputError(f"{shown} is not an address of the web: it must start with https:")
    if parts.scheme == "http" and checksum is None:
        raise InputError(f"{shown} is not encrypted: use https:, or give the file's checksum")
    if checksum is not None:
        _check_checksum(checksum)
    print(f"downloading {shown}", file=sys.stderr, flush=True)
    fetch = pooch.HTTPDownloader(timeout=PATIENCE, progressbar=sys.stderr.isatty())
    try:
        pooch.retrieve(url, checksum, fname=path.name, path=path.parent, downloader=fetch)
    except ValueError as error:
        if "hash" not in str(error):
            raise DownloadError(f"{shown} could not be downloaded ({error})") from error
        raise InputError(
            f"{shown} has another hash than {checksum}: it is damaged, or not what it should be"
        ) from error
    except Exception as error:  # requests and urllib3 raise errors of many types
        reason = str(error).strip().split("\n")[0].replace(url, shown) or type(error).__name__
        raise DownloadError(f"{shown} could not be downloaded ({reason})") from error


def _check_checksum(checksum: str) -> None:
    name, _, digits = checksum.rpartition(":")
    if name not in LENGTHS or not re.fullmatch(f"[0-9a-f]{{{LENGTHS[name]}}}", digits):
        raise InputError(f"the checksum {checksum} is not valid: write {' or '.join(LENGTHS)}, a colon, and the hash")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive, which may only contain files and folders, into a new folder.

    Raises:
        InputError: The archive is damaged, writes outside the folder, contains links or devices, or is too large.
    """
    folder.mkdir(parents=True)
    try:
        if tarfile.is_tarfile(archive):
            _unpack_tar(archive, folder)
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                _check_size(archive, sum(member.file_size for member in opened.infolist()), folder)
                opened.extractall(folder)  # noqa: S202 (zipfile keeps members inside the folder)
        else:
            raise InputError(f"{archive.name} is neither a tar nor a zip archive")
    except InputError:
        raise
    except Exception as error:  # tarfile, zipfile and what they decompress with raise errors of many types
        reason = printable(str(error)) or type(error).__name__
        raise InputError(f"{archive.name} cannot be unpacked ({reason})") from error


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        size = 0
        for member in opened:
            if member.size < 0:  # older versions of tarfile would read backwards, without an end
                raise InputError(f"{archive.name} is damaged: {member.name!r} has a negative size")
            # headers count too, or millions of empty files would be no size
            size += tarfile.BLOCKSIZE + member.size
            # links are how archives write outside their folder in spite of filters
            if not (member.isfile() or member.isdir()):
                raise InputError(f"{archive.name} contains {member.name!r}, which is a link or a device")
            _check_size(archive, size, folder)
        opened.extractall(folder, filter="data")


def _check_size(archive: Path, size: int, folder: Path) -> None:
    if size > MOST_EXPANSION * archive.stat().st_size:
        raise InputError(f"{archive.name} unpacks to more than {MOST_EXPANSION} times its size")
    if size > shutil.disk_usage(folder).free:
        raise InputError(f"{archive.name} unpacks to {size / 1e9:.1f} GB, and the disk of {folder} has less room")


@contextmanager
def making_folder(folder: Path) -> Iterator[Path | None]:
    """Yield a temporary path beside `folder`; what the `with` block makes there becomes `folder`, all at once.

    If another process is making the folder, wait for it. Yield None if the folder is there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            yield None
            return
        prefix = f".{folder.name}.unfinished-"
        for left in folder.parent.iterdir():  # by a process that was killed; no other one has the lock
            if left.name.startswith(prefix):
                shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as temporary:
            made = Path(temporary, folder.name)
            yield made
            made.rename(folder)


def download_folder(
    url: str, folder: Path, checksum: str | None = None, finish: Callable[[Path], None] = lambda _: None
) -> None:
    """Download an archive and unpack it as `folder`. If its only content is one folder, unpack what that contains.

    Args:
        url: The address of the archive.
        folder: The new folder; if it is there already, nothing is done.
        checksum: Expected hash of the archive; None checks nothing.
        finish: Called with the unpacked folder before it gets its name; an error leaves no folder.

    Raises:
        InputError: The archive cannot be downloaded or unpacked.
    """
    with making_folder(folder) as made:
        if made is None:
            return
        archive, content = made.with_name("archive"), made.with_name("content")
        download(url, archive, checksum)
        unpack(archive, content)
        entries = list(content.iterdir())
        if not entries:
            raise InputError(f"{url} contains no files")
        only = entries[0] if len(entries) == 1 and entries[0].is_dir() else content
        only.rename(made)
        finish(made)
