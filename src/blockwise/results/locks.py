"""Locks: one process at a time trains a cell. The system releases a lock when its process ends, also by a crash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def claim(paths: Sequence[Path]) -> Iterator[list[bool]]:
    """Lock those files that no other process has locked, and yield for each whether it is locked now.

    Processes cannot deadlock here, since a process that waits holds no lock. The file system must support flock.
    """
    with ExitStack() as locks:
        yield [_try(path, locks) for path in paths]


def wait(path: Path) -> None:
    """Wait until no process has locked a file."""
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
