"""Which images of a split were decoded already, in a small file, so that an interrupted run goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from blockwise.data.decode import decode_chunks
from blockwise.data.samples import Sample
from blockwise.io.files import replacing

# a kill costs at most what was decoded in this time
SECONDS_BETWEEN_SAVES = 5


class Seen:
    """One flag per image: whether it was decoded. Broken images are not, so that they are tried again.

    Args:
        path: File of the flags, one byte each; None keeps them in memory alone.
        count: Number of images.
    """

    def __init__(self, path: Path | None, count: int) -> None:
        self.path = path
        self.flags = np.zeros(count, np.uint8)
        if path is not None and path.is_file() and len(found := np.fromfile(path, np.uint8)) == count:
            self.flags = found

    def missing(self) -> list[int]:
        """Return the indices of the images that have not been decoded."""
        return np.flatnonzero(self.flags != 1).tolist()

    def save(self) -> None:
        """Write the file anew."""
        if self.path is not None:
            with replacing(self.path) as temporary:
                self.flags.tofile(temporary)


def decode_missing(
    samples: Sequence[Sample],
    size: int,
    interpolation: str,
    report: Callable[[], None],
    *,
    seen: Seen,
    keep: Callable[[int, np.ndarray], None] = lambda _index, _pixels: None,
    flush: Callable[[], None] = lambda: None,
) -> dict[int, str]:
    """Decode the images that have not been decoded yet.

    Args:
        samples: All samples of the split.
        size: Side of the decoded images in pixels.
        interpolation: A key of `INTERPOLATIONS`.
        report: Called once per sample.
        seen: What has been decoded; it is updated.
        keep: Called with the index and the pixels of each decoded image, from several threads.
        flush: Called before `seen` is saved, so that it never claims more than `keep` has kept.

    Returns:
        The error of each image that cannot be read, by index.
    """
    missing = seen.missing()
    for _ in range(len(samples) - len(missing)):
        report()
    if not missing:
        return {}
    broken: dict[int, str] = {}
    saved = time.monotonic()
    with closing(decode_chunks(samples, missing, size, interpolation, keep)) as chunks:
        try:
            for chunk, reasons in chunks:
                seen.flags[[index for index in chunk if index not in reasons]] = 1
                broken |= reasons
                for _ in chunk:
                    report()
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    _save(seen, flush)
                    saved = time.monotonic()
        finally:
            _save(seen, flush)
    return broken


def _save(seen: Seen, flush: Callable[[], None]) -> None:
    flush()
    seen.save()
