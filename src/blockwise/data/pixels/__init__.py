"""Where decoded images are while a run reads them: in a file, in memory, or nowhere until they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias


class Pixels(Protocol):
    """The images of one split, uint8; `pixels[positions]` has shape (len(positions), 3, side, side)."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: Sequence[int], /) -> Any: ...


# pixels, and the error of each image that cannot be read, by index
Decoded: TypeAlias = tuple[Pixels, dict[int, str]]
