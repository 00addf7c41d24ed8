"""Gradual unfreezing."""

from __future__ import annotations

from dataclasses import dataclass

from blockwise.errors import check_whole
from blockwise.policies.policy import Phase


@dataclass(frozen=True)
class Gradual:
    """Trains the head alone at first, then one more block of the scope at a time, from the head towards the input.

    Howard & Ruder (2018), "Universal Language Model Fine-tuning for Text Classification", section 3.3.

    Attributes:
        every: Number of epochs between two blocks, and before the first.

    Raises:
        InputError: `every` is not an integer of at least 1.
    """

    every: int

    def __post_init__(self) -> None:
        check_whole("policy.gradual.every", self.every, 1)

    def __call__(self, blocks: tuple[int, ...], epoch: int, max_epochs: int) -> Phase:
        """Return the blocks next to the head, one more every `every` epochs."""
        del max_epochs
        return Phase(blocks[max(0, len(blocks) - epoch // self.every) :])
