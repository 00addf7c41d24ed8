"""A disk cache of decoded images, so that later runs on the same data start faster.

Each file holds the pixels of one split. It is memory-mapped, so several runs on one machine share its memory. Its name
is a hash of everything that determines the pixels, including the content of the images.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import PIL
from filelock import FileLock

from blockwise.data.decode import decode_all
from blockwise.data.samples import Sample

FORMAT = 1  # increase it when a change to `decode` changes the pixels
Decoded = tuple[np.ndarray, dict[int, str]]


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
        self, samples: Sequence[Sample], fingerprint: str, size: int, interpolation: str, report: Callable[[], None]
    ) -> Decoded:
        """Return the result of `decode_all`, from the cache if possible; a split with broken images is not cached.

        Args:
            samples: The samples to decode.
            fingerprint: A hash of the content of the data set.
            size: Side of the decoded images in pixels.
            interpolation: A key of `INTERPOLATIONS`.
            report: Called once per image.
        """
        shape = (len(samples), 3, size, size)
        in_memory = any(isinstance(sample.image, np.ndarray) for sample in samples)
        if in_memory or np.prod(shape) > self.max_bytes:
            return decode_all(samples, size, interpolation, report)
        names = [sample.name for sample in samples]
        key = json.dumps([FORMAT, PIL.__version__, fingerprint, size, interpolation, names])
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):  # other processes wait and then read the file
                if (pixels := _load(path, shape)) is not None:
                    for _ in samples:
                        report()
                    return pixels, {}
                return self._decode_into(path, decode_all(samples, size, interpolation, report))
        except OSError as error:
            warnings.warn(f"cannot cache decoded images in {self.folder} ({error.strerror})", stacklevel=2)
            return decode_all(samples, size, interpolation, report)

    def _decode_into(self, path: Path, decoded: Decoded) -> Decoded:
        pixels, broken = decoded
        if broken:
            return decoded
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                np.save(file, pixels)
            temporary.replace(path)
        except OSError as error:  # a full disk must not stop the run
            warnings.warn(f"cannot cache decoded images in {self.folder} ({error.strerror})", stacklevel=2)
        finally:
            temporary.unlink(missing_ok=True)
        self._prune(keep=path)
        return decoded

    def _prune(self, keep: Path) -> None:
        files = sorted(self.folder.glob("*.npy"), key=lambda file: file.stat().st_mtime)
        excess = sum(file.stat().st_size for file in files) - self.max_bytes
        for file in files:
            if excess > 0 and file != keep:
                excess -= file.stat().st_size
                file.unlink(missing_ok=True)  # a run that has mapped the file can still read it
                file.with_suffix(".lock").unlink(missing_ok=True)


def _load(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the pixels in a file; None if the file is missing, damaged or has the wrong shape."""
    try:
        pixels = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError, BadZipFile):
        return None
    # an archive of several arrays is no array
    if not isinstance(pixels, np.ndarray) or pixels.shape != shape or pixels.dtype != np.uint8:
        return None
    os.utime(path)
    return pixels
