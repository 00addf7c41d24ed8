"""Who trains a cell: one process at a time. The system lets go of a lock when its process ends, however it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def claim(paths: Sequence[Path]) -> Iterator[list[bool]]:
    """Lock those of some files that no other process has locked, and tell which; a file system must support locks.

    No two processes can wait for each other here, since nobody waits who holds a lock.
    """
    with ExitStack() as held:
        yield [_try(path, held) for path in paths]


def wait(path: Path) -> None:
    """Return when no process has locked a file."""
    with FileLock(path):
        pass


def _try(path: Path, held: ExitStack) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    held.callback(lock.release)
    return True
