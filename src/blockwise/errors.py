"""The one error a user can cause, how it names what was meant, and what a failed job of a multirun returns."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher


class InputError(ValueError):
    """A setting, a file or a folder is not what it must be; the message is one sentence for the user."""


class Interrupted(Exception):  # noqa: N818 (nothing went wrong)
    """Training has given way to a signal, its number in `signal`, after it has saved a checkpoint."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"interrupted by signal {signal}")
        self.signal = signal


@dataclass(frozen=True)
class JobFailure:
    """What a job of a multirun returns instead of raising, so that the other jobs go on and all are named."""

    overrides: str
    reason: str


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name nearest to `name`, or nothing where none is near."""
    given = str(name).lower()

    def likeness(candidate: str) -> tuple[float, bool]:
        # of equals, the one with the same letters: vgg61 is a slip for vgg16, not for vgg19
        return SequenceMatcher(None, given, candidate.lower()).ratio(), sorted(given) == sorted(candidate.lower())

    nearest = max(known, key=likeness, default=None)
    return f" Did you mean {nearest!r}?" if nearest is not None and likeness(nearest)[0] >= 0.5 else ""
