"""A disk cache of decoded images, so that later runs on the same data start faster.

Each file holds the pixels of one split. Its name is a hash of everything that determines the pixels, including the
content of the images. Images are decoded straight into the file, so memory does not grow with their number.

    <hash>.npy                     all images of a split
    <hash>.partial, <hash>.seen    the same, while images are missing; and which ones are there
    <hash>.checked                 which images can be read, where the pixels are too many for the cache
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL
from filelock import FileLock, Timeout

from blockwise.data.pixels import Decoded
from blockwise.data.pixels.file import PixelFile, Shape
from blockwise.data.pixels.on_demand import decode_without_cache
from blockwise.data.pixels.seen import Seen, decode_missing
from blockwise.data.samples import Sample

FORMAT = 1  # increase it when a change to `decode` changes the pixels
BLOCK = 512  # bytes of a block in `st_blocks`
Report = Callable[[], None]


class PixelCache:
    """A folder of decoded images of at most `max_bytes`; the least recently used file is deleted first.

    Args:
        folder: The folder; it is created when needed.
        max_bytes: Maximum size of the folder in bytes.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self.folder = Path(folder).expanduser()
        self.max_bytes = max_bytes

    def decode(
        self, samples: Sequence[Sample], fingerprint: str, size: int, interpolation: str, report: Report
    ) -> Decoded:
        """Return the pixels of a split and the errors of broken images; decode what the cache lacks.

        Broken images are tried again each time.

        Args:
            samples: The samples to decode.
            fingerprint: A hash of the content of the data set.
            size: Side of the decoded images in pixels.
            interpolation: A key of `INTERPOLATIONS`.
            report: Called once per image.
        """
        shape = (len(samples), 3, size, size)
        in_memory = any(isinstance(sample.image, np.ndarray) for sample in samples)
        if in_memory or math.prod(shape) > self.max_bytes:
            return decode_without_cache(samples, size, interpolation, report)
        path = self._path(samples, fingerprint, size, interpolation)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):  # other processes wait and then read the file
                if (pixels := _load(path, shape)) is not None:
                    for _ in samples:
                        report()
                    return pixels, {}
                return self._fill(path, shape, samples, interpolation, report)
        except OSError as error:  # a full disk must not stop the run
            self._warn(error)
            return decode_without_cache(samples, size, interpolation, report)

    def check(
        self, samples: Sequence[Sample], fingerprint: str, size: int, interpolation: str, report: Report
    ) -> dict[int, str]:
        """Return the errors of broken images without keeping any pixels; later runs need not check again."""
        path = self._path(samples, fingerprint, size, interpolation).with_suffix(".checked")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                return decode_missing(samples, size, interpolation, report, seen=Seen(path, len(samples)))
        except OSError as error:
            self._warn(error)
            return decode_missing(samples, size, interpolation, report, seen=Seen(None, len(samples)))

    def _path(self, samples: Sequence[Sample], fingerprint: str, size: int, interpolation: str) -> Path:
        names = [sample.name for sample in samples]
        key = json.dumps([FORMAT, PIL.__version__, fingerprint, size, interpolation, names])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"

    def _warn(self, error: OSError) -> None:
        warnings.warn(f"cannot cache decoded images in {self.folder} ({error.strerror})", stacklevel=3)

    def _fill(self, path: Path, shape: Shape, samples: Sequence[Sample], interpolation: str, report: Report) -> Decoded:
        """Decode into a file, or go on where another run was interrupted; with all images, it gets its final name."""
        partial, flags = path.with_suffix(".partial"), path.with_suffix(".seen")
        self._make_room(path, math.prod(shape))
        if (file := _load(partial, shape)) is None:
            flags.unlink(missing_ok=True)  # first: they must not be believed of another file
            file = PixelFile.create(partial, shape)
        file.writable()
        seen = Seen(flags, len(samples))
        try:
            broken = decode_missing(
                samples, shape[-1], interpolation, report, seen=seen, keep=file.write, flush=file.flush
            )
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        if broken:
            return PixelFile(partial, shape), broken
        partial.replace(path)
        flags.unlink(missing_ok=True)
        return PixelFile(path, shape), {}

    def _make_room(self, path: Path, needed: int) -> None:
        """Delete what was unused for longest until a new file fits.

        Raises:
            OSError: The disk has no room for it.
        """
        own = path.with_suffix(".partial")
        others = [file for file in self._files() if file[2] != own]
        excess = sum(size for _, size, _ in others) + needed - self.max_bytes
        for _, size, file in others:
            if excess > 0 and file != path:
                excess -= size
                _delete(file)
        written = own.stat().st_blocks * BLOCK if own.exists() else 0
        if shutil.disk_usage(self.folder).free + written < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(own))

    def _files(self) -> list[tuple[float, int, Path]]:
        """Return time of last use, size and path of each file with pixels, the oldest first."""
        found = []
        for file in self.folder.iterdir():
            # another process may rename or delete it meanwhile
            with suppress(FileNotFoundError):
                if file.suffix in (".npy", ".partial"):
                    status = file.stat()
                    found.append((status.st_mtime, status.st_size, file))
        return sorted(found)


def _delete(file: Path) -> None:
    """Delete a file of the cache, unless another process is writing it; a run that has opened it can still read it."""
    lock = file.with_suffix(".lock")
    try:
        with FileLock(lock, timeout=0):
            file.unlink(missing_ok=True)
            file.with_suffix(".seen").unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    except Timeout:
        return


def _load(path: Path, shape: Shape) -> PixelFile | None:
    """Return the pixels in a file; None if the file is missing, damaged or has the wrong shape."""
    try:
        pixels = PixelFile(path, shape)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    os.utime(path)
    return pixels
