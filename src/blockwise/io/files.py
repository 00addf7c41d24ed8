"""Files: atomic writes, and reads that cannot hang."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, FileIO
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; if the `with` block succeeds, that file replaces `path` atomically.

    Raises:
        OSError: The file cannot be written; its `filename` is `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # fails at the latest here if the disk is full
        temporary.replace(path)
    except OSError as error:  # Python does not name the file if a write fails
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file, or a link to one, to read its bytes.

    A pipe would block until something writes to it, and a device such as `/dev/zero` has no end.

    Raises:
        OSError: The file cannot be read, or is not a regular file.
    """
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return BufferedReader(FileIO(number))


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: The file cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        return file.read()
