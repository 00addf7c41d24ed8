"""Linear probing, then fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from blockwise.errors import check_whole
from blockwise.policies.policy import Phase


@dataclass(frozen=True)
class LPFT:
    """Trains the head alone at first, then head and scope.

    The head is close to its optimum when the scope starts to train, so that it distorts the pretrained features less.
    Kumar et al. (2022), "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", section 4.

    Attributes:
        head_epochs: Number of epochs in which only the head trains.

    Raises:
        InputError: `head_epochs` is not an integer of at least 1.
    """

    head_epochs: int

    def __post_init__(self) -> None:
        check_whole("policy.lp_ft.head_epochs", self.head_epochs, 1)

    def __call__(self, blocks: tuple[int, ...], epoch: int, max_epochs: int) -> Phase:
        """Return no block at first, then all."""
        del max_epochs
        return Phase(() if epoch < self.head_epochs else blocks)
