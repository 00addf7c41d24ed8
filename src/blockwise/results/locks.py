"""File locks, so that only one process trains a cell. The system releases a lock when its process ends or crashes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def claim(paths: Sequence[Path]) -> Iterator[list[bool]]:
    """Lock the files that no other process has locked; yield one flag per file, True if this process has locked it.

    Deadlocks are impossible, since a process that waits holds no lock. The file system must support flock.
    """
    with ExitStack() as locks:
        yield [_try(path, locks) for path in paths]


def wait(path: Path) -> None:
    """Wait until no process holds the lock of a file."""
    with FileLock(path):
        pass


def _try(path: Path, locks: ExitStack) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    locks.callback(lock.release)
    return True
