"""Hashes of files' contents, remembered between runs, so that the content of 100,000 images is not read each time."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from io import BytesIO
from pathlib import Path

from blockwise.io.files import open_regular, replacing
from blockwise.io.images import orientation

# files per task of a thread
CHUNK = 64
# the coarsest clock of a file system: a file may change within it without another time
TICK_SECONDS = 2
UNREADABLE, TURNED = "unreadable: ", " turned "
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextmanager
def remembering(folder: Path | None) -> Iterator[None]:
    """Inside the `with` block, `hash_files` remembers hashes in a folder; None remembers nothing."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def hash_files(paths: Sequence[Path]) -> list[str]:
    """Return `hash_content` of each file, or `unreadable: <why>`.

    As in git's index, a remembered hash counts while size and times of the file are the same: the time of its content,
    which programs that copy files set back, and the time of its status, which they cannot set.
    """
    here = f"{Path.cwd()}{os.sep}"
    names = [name if name.startswith(os.sep) else here + name for name in map(str, paths)]
    memory, now = _memory(paths), time.time_ns()
    remembered = _read(memory)
    states = {name: _state(path) for name, path in zip(names, paths, strict=True)}
    hashes = {
        name: remembered[name].removeprefix(state)
        for name, state in states.items()
        if state and remembered.get(name, "").startswith(state)
    }
    if missing := [name for name in states if name not in hashes]:
        hashes.update(zip(missing, _hash_all(missing), strict=True))
        if memory is not None:
            settled = (
                name
                for name, state in states.items()
                if _settled(state, now) and not hashes[name].startswith(UNREADABLE)
            )
            _write(memory, {name: states[name] + hashes[name] for name in settled})
    return [hashes[name] for name in names]


def _state(path: Path) -> str:
    """Return what changes when a file changes, as text that ends with a space; empty if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} "


def _settled(state: str, now: int) -> bool:
    """Return whether another change of a file would change its state."""
    return bool(state) and max(int(number) for number in state.split()[1:]) < now - TICK_SECONDS * 10**9


def _hash_all(names: Sequence[str]) -> list[str]:
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    with ThreadPoolExecutor() as pool:
        return [value for values in pool.map(lambda chunk: [_hash(name) for name in chunk], chunks) for value in values]


def _hash(name: str) -> str:
    try:
        with open_regular(Path(name)) as file:
            return hash_content(file.read())
    except OSError as error:  # decoding reports the file; once it can be read, the hash changes
        return f"{UNREADABLE}{error.strerror}"


def hash_content(content: bytes) -> str:
    """Return the BLAKE2b hash of an image file and, if it is turned, its EXIF orientation.

    The first versions ignored orientations; images without one keep the hash of these versions.
    """
    digest, value = hashlib.blake2b(content).hexdigest(), orientation(BytesIO(content))
    return digest if value == 1 else f"{digest}{TURNED}{value}"


def turned(content: str) -> int:
    """Return the EXIF orientation that a hash of `hash_content` tells, 1 to 8."""
    return int(content.partition(TURNED)[2] or 1)


def _memory(paths: Sequence[Path]) -> Path | None:
    """Return the file that remembers the hashes of a data set, one per folder of its first image."""
    folder = _folder.get()
    if folder is None or not paths:
        return None
    return folder / f"hashes-{hashlib.sha256(os.fsencode(paths[0].absolute().parent)).hexdigest()[:32]}.json"


def _read(memory: Path | None) -> dict[str, str]:
    try:
        found = {} if memory is None else json.loads(memory.read_text())
    except (OSError, ValueError):  # missing or damaged
        return {}
    return found if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()) else {}


def _write(memory: Path, hashes: dict[str, str]) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with replacing(memory) as temporary:
            temporary.write_text(json.dumps(hashes))
    except OSError as error:
        warnings.warn(f"cannot remember hashes of images in {memory.parent} ({error.strerror})", stacklevel=2)
