"""The one error a user can cause, how it names what was meant, and what an interrupted run raises."""

from collections.abc import Iterable
from difflib import SequenceMatcher


class InputError(ValueError):
    """A setting, a file or a folder is not what it must be; the message is one sentence for the user."""


class Interrupted(BaseException):
    """Training has given way to a signal, its number in `signal`, after it has saved a checkpoint."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"interrupted by signal {signal}")
        self.signal = signal


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name nearest to `name`, or nothing where none is near."""
    given = str(name).lower()

    def likeness(candidate: str) -> tuple[float, bool]:
        # of equals, the one with the same letters: vgg61 is a slip for vgg16, not for vgg19
        return SequenceMatcher(None, given, candidate.lower()).ratio(), sorted(given) == sorted(candidate.lower())

    nearest = max(known, key=likeness, default=None)
    return f" Did you mean {nearest!r}?" if nearest is not None and likeness(nearest)[0] >= 0.5 else ""
