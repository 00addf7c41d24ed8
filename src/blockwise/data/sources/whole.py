"""Whether a data set on the disk is whole: by a marker in what blockwise has unpacked, or by its number of images."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from blockwise.data.samples import IMAGE_SUFFIXES
from blockwise.errors import InputError

MARKER = ".blockwise.json"


def mark_whole(folder: Path, images: int | None = None, folders: int | None = None) -> None:
    """Count what was unpacked, and mark it as whole.

    Args:
        folder: A folder that has just been unpacked and has not got its final name yet.
        images: Number of images that it must contain; None means any.
        folders: Number of folders with images that it must contain; None means any.

    Raises:
        InputError: The numbers differ.
    """
    found = _listing(folder)
    for name, expected in (("images", images), ("folders", folders)):
        if expected is not None and found[name] != expected:
            raise InputError(
                f"the archive of {folder.name} contains {found[name]:,} {name}, not {expected:,}: it is not used"
            )
    (folder / MARKER).write_text(json.dumps(found))
    # the folder gets its name next: what it contains must survive a crash of the machine as well
    os.sync()


def check_whole(folder: Path, name: str, *images: int) -> None:
    """Check a data set that blockwise has unpacked; of another one, print a notice if it has too few images.

    Args:
        folder: The folder of the images.
        name: Name of the data set.
        images: Numbers of images of the whole data set, the largest first; none if they are unknown.

    Raises:
        InputError: The data set is not as it was unpacked.
    """
    marker = folder / MARKER
    if not marker.is_file():
        if images and (count := _listing(folder)["images"]) < images[0] and count not in images:
            _notice(f"{name} has {count:,} of {images[0]:,} images (a subset, or half-unpacked)")
        return
    found = _listing(folder)
    try:
        unpacked = json.loads(marker.read_text())
        expected = f"{unpacked['images']:,}"
    except (OSError, ValueError, TypeError, LookupError):
        unpacked, expected = None, "an unknown number of"
    if found != unpacked:
        raise InputError(
            f"{folder} is not as it was unpacked, with {found['images']:,} instead of {expected} images or files of "
            f"another size: remove it, and it is downloaded again, or remove its {MARKER} to use it as it is"
        )


def _listing(folder: Path) -> dict[str, Any]:
    """Return the number of images and of folders with images, and a hash of the images' names and sizes."""
    names, folders = [], set()
    for parent, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if name[0] != "."]
        for name in files:
            path = Path(parent, name)
            if name[0] != "." and path.suffix.lower() in IMAGE_SUFFIXES:
                folders.add(parent)
                names.append(f"{path.relative_to(folder).as_posix()}\0{path.lstat().st_size}")
    content = "\n".join(sorted(names)).encode(errors="surrogateescape")
    return {"images": len(names), "folders": len(folders), "listing": hashlib.sha256(content).hexdigest()}


@rank_zero_only
def _notice(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
