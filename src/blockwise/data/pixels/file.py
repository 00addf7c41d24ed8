"""Decoded images in a `.npy` file, of which only the images of a batch are in memory."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

Shape = tuple[int, ...]


class PixelFile:
    """The images of one split, uint8, in a file; `file[positions]` reads some of them.

    The file is read and written at offsets, not mapped to memory. Pages that are mapped count as memory of the process,
    until it has all of the file. And if the disk is full, writing to them ends the process instead of raising an error.

    Args:
        path: A file that `create` or `numpy.save` has made.
        shape: Shape of all images, (images, 3, side, side).

    Raises:
        ValueError: The file contains something else.
        OSError: The file cannot be read.
    """

    def __init__(self, path: Path, shape: Shape) -> None:
        self.path, self.shape = path, shape
        self._offset = _data_offset(path, shape)
        self._open(os.O_RDONLY)

    @classmethod
    def create(cls, path: Path, shape: Shape) -> PixelFile:
        """Make a file of black images; it takes no room on the disk until images are written."""
        with path.open("wb") as file:
            npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.truncate(file.tell() + math.prod(shape))
        return cls(path, shape)

    def _open(self, mode: int) -> None:
        self._number = os.open(self.path, mode)
        # an open file can be read even if another run deletes it from the cache
        self._close = weakref.finalize(self, os.close, self._number)

    def writable(self) -> PixelFile:
        """Open the file to write as well, and return it."""
        self._close()
        self._open(os.O_RDWR)
        return self

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, positions: Sequence[int]) -> np.ndarray:
        images = np.empty((len(positions), *self.shape[1:]), np.uint8)
        for image, position in zip(images, positions, strict=True):
            _read(self._number, memoryview(image).cast("B"), self._at(position))
        return images

    def write(self, position: int, image: np.ndarray) -> None:
        """Write one image; threads may write at once."""
        rest, offset = memoryview(image.tobytes()), self._at(position)
        while rest:
            written = os.pwrite(self._number, rest, offset)
            rest, offset = rest[written:], offset + written

    def flush(self) -> None:
        """Wait until everything written is on the disk."""
        os.fsync(self._number)

    def _at(self, position: int) -> int:
        return self._offset + int(position) * math.prod(self.shape[1:])

    def __reduce__(self) -> tuple[type[PixelFile], tuple[Path, Shape]]:
        return PixelFile, (self.path, self.shape)


def _read(number: int, rest: memoryview, offset: int) -> None:
    while rest:
        if not (read := os.preadv(number, [rest], offset)):
            raise EOFError("a file of decoded images has become shorter")
        rest, offset = rest[read:], offset + read


def _data_offset(path: Path, shape: Shape) -> int:
    """Return where the pixels begin."""
    with path.open("rb") as file:
        if npy.read_magic(file) != (1, 0):
            raise ValueError(f"{path} has another version")
        header = npy.read_array_header_1_0(file)
        whole = file.tell() + math.prod(shape)
        if header != (shape, False, np.dtype(np.uint8)) or os.fstat(file.fileno()).st_size != whole:
            raise ValueError(f"{path} contains other pixels")
        return file.tell()
