"""What a policy is, and the check that it trains something."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from blockwise.errors import InputError


@dataclass(frozen=True)
class Phase:
    """What trains in one epoch.

    Attributes:
        blocks: The blocks that train; all others keep their weights.
        head: Whether the head trains.
    """

    blocks: tuple[int, ...]
    head: bool = True


class Policy(Protocol):
    """Says which blocks train in an epoch."""

    def __call__(self, blocks: tuple[int, ...], epoch: int, max_epochs: int, /) -> Phase:
        """Return what trains in an epoch.

        Args:
            blocks: The blocks of the scope, in ascending order; never empty.
            epoch: The epoch, counted from 0.
            max_epochs: Number of epochs.
        """


def phases(policy: Policy, blocks: tuple[int, ...], max_epochs: int) -> list[Phase]:
    """Return what trains in each epoch; a scope without blocks trains its head, whatever the policy."""
    if not blocks:
        return [Phase(())] * max_epochs
    return [policy(blocks, epoch, max_epochs) for epoch in range(max_epochs)]


def head_epochs(policy: Policy, blocks: tuple[int, ...], max_epochs: int) -> int:
    """Return the number of epochs in which a policy trains nothing but the head, at first."""
    return len(list(takewhile(lambda phase: not phase.blocks, phases(policy, blocks, max_epochs))))


def check_policy(name: str, policy: Policy, blocks: tuple[int, ...], max_epochs: int) -> None:
    """Check that a policy trains blocks of the scope, and something in every epoch.

    Raises:
        InputError: It trains nothing in an epoch, never trains a block, or trains blocks outside the scope.
    """
    try:
        planned, again = (phases(policy, blocks, max_epochs) for _ in range(2))
    except InputError:
        raise
    except Exception as error:  # a policy of the user's own
        raise InputError(f"policy={name} fails ({type(error).__name__}: {error})") from error
    for epoch, phase in enumerate(planned):
        sound = isinstance(phase, Phase) and isinstance(phase.blocks, tuple) and isinstance(phase.head, bool)
        if not sound or not all(isinstance(block, int) for block in phase.blocks):
            raise InputError(f"policy={name} must return a Phase: a tuple of blocks, and True or False, not {phase!r}")
        if foreign := set(phase.blocks) - set(blocks):
            raise InputError(f"policy={name} trains block {min(foreign)} in epoch {epoch}, which is not in the scope")
        if not phase.blocks and not phase.head:
            raise InputError(f"policy={name} trains nothing in epoch {epoch}")
    if planned != again:
        raise InputError(f"policy={name} trains other blocks each time that it is asked: it must not draw at random")
    if blocks and not any(phase.blocks for phase in planned):
        raise InputError(
            f"policy={name} trains no block in {max_epochs} epochs: raise trainer.max_epochs, or change the settings "
            f"of policy.{name}"
        )
