"""File locks, so that only one process trains a cell. The system releases a lock when its process ends or crashes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from blockwise.errors import InputError


@contextmanager
def claim(paths: Sequence[Path]) -> Iterator[list[bool]]:
    """Lock the files that no other process has locked; yield one flag per file, True if this process has locked it.

    Deadlocks are impossible, since a process that waits holds no lock. The file system must support flock.

    Raises:
        InputError: There is something else in place of a lock.
    """
    with ExitStack() as locks:
        yield [_try(path, locks) for path in paths]


def wait(path: Path, seconds: float = -1) -> bool:
    """Wait until no process holds the lock of a file; return False after so many seconds, if they are not negative."""
    try:
        with FileLock(path, timeout=seconds):
            return True
    except Timeout:
        return False


def _try(path: Path, locks: ExitStack) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    if path.is_symlink():  # locking would empty the file that it links to
        raise InputError(f"{path} is a link: remove it")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except OSError as error:
        raise InputError(f"{path} cannot be locked ({error.strerror}): remove it") from error
    locks.callback(lock.release)
    return True
