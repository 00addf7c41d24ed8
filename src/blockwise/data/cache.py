"""Decoded images on disk, so that the next run on the same data begins at once.

A file holds the pixels of one split, mapped into memory when it is used: several runs on one machine share it. Its name
is a hash of everything that decides the pixels, the content of the images among it.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
from filelock import FileLock

from blockwise.data.decode import decode_all
from blockwise.data.samples import Sample

FORMAT = 1  # to be raised when `decode` comes to other pixels
Decoded = tuple[np.ndarray, dict[int, str]]


class PixelCache:
    """A folder of decoded images, never larger than `max_bytes`; what was used longest ago goes first.

    Args:
        folder: Where; made when needed.
        max_bytes: How much.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self.folder = Path(folder).expanduser()
        self.max_bytes = max_bytes

    def decode(
        self, samples: Sequence[Sample], fingerprint: str, size: int, interpolation: str, report: Callable[[], None]
    ) -> Decoded:
        """Return what `decode_all` does, decoded now or before; a split with broken images is not kept.

        Args:
            samples: What to decode.
            fingerprint: A hash of the content of the data set.
            size: Side of the squares in pixels.
            interpolation: A key of `INTERPOLATIONS`.
            report: Called once an image.
        """
        shape = (len(samples), 3, size, size)
        kept_elsewhere = not all(isinstance(sample.image, Path) for sample in samples)
        if kept_elsewhere or np.prod(shape) > self.max_bytes:
            return decode_all(samples, size, interpolation, report)
        names = [sample.name for sample in samples]
        key = json.dumps([FORMAT, PIL.__version__, fingerprint, size, interpolation, names])
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):  # another process waits, and need not decode then
                if (pixels := _load(path, shape)) is not None:
                    for _ in samples:
                        report()
                    return pixels, {}
                return self._decode_into(path, decode_all(samples, size, interpolation, report))
        except OSError as error:
            warnings.warn(f"decoded images cannot be kept in {self.folder} ({error.strerror})", stacklevel=2)
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
        except OSError as error:  # a full disk costs the cache, not the run
            warnings.warn(f"decoded images cannot be kept in {self.folder} ({error.strerror})", stacklevel=2)
        finally:
            temporary.unlink(missing_ok=True)
        self._prune(keep=path)
        return decoded

    def _prune(self, keep: Path) -> None:
        files = sorted(self.folder.glob("*.npy"), key=lambda file: file.stat().st_mtime)
        too_much = sum(file.stat().st_size for file in files) - self.max_bytes
        for file in files:
            if too_much > 0 and file != keep:
                too_much -= file.stat().st_size
                file.unlink(missing_ok=True)  # a run that has it mapped goes on reading it
                file.with_suffix(".lock").unlink(missing_ok=True)


def _load(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the pixels in a file, or None if it holds something else."""
    try:
        pixels = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
        return None
    if pixels.shape != shape or pixels.dtype != np.uint8:
        return None
    os.utime(path)
    return pixels
