"""One block after another."""

from __future__ import annotations

from dataclasses import dataclass

from blockwise.errors import check_whole
from blockwise.policies.policy import Phase


@dataclass(frozen=True)
class Cyclic:
    """Trains the head and one block of the scope at a time, from the head towards the input, then from the head again.

    The other blocks stay as they are by then. This is block coordinate descent over the blocks of a network.

    Attributes:
        every: Number of epochs that each block trains before the next one.

    Raises:
        InputError: `every` is not an integer of at least 1.
    """

    every: int

    def __post_init__(self) -> None:
        check_whole("policy.cyclic.every", self.every, 1)

    def __call__(self, blocks: tuple[int, ...], epoch: int, max_epochs: int) -> Phase:
        """Return one block."""
        del max_epochs
        return Phase((blocks[-1 - epoch // self.every % len(blocks)],))
