"""Exceptions: invalid input, with suggestions for misspelt names, and interrupted training."""

import math
from collections.abc import Iterable
from difflib import SequenceMatcher
from numbers import Real


class InputError(ValueError):
    """A setting, a file or a folder is invalid; the message is one sentence for the user."""


class TooFewBlocksError(InputError):
    """A joint scope of the best blocks cannot train, since too few blocks have trained to their end."""


class Interrupted(BaseException):
    """A signal has stopped training after a checkpoint was saved; `signal` is its number."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"interrupted by signal {signal}")
        self.signal = signal


# what PyTorch writes on a CPU and on a GPU
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one that caused it, comes from a lack of memory."""
    causes = [cause for cause in (error, error.__cause__, error.__context__) if cause is not None]
    return any(isinstance(c, MemoryError) or any(sign in str(c) for sign in OUT_OF_MEMORY) for c in causes)


def check_memory(error: BaseException, setting: str) -> None:
    """Check that an error does not come from a lack of memory.

    Raises:
        InputError: It does.
    """
    if out_of_memory(error):
        raise InputError(f"memory ran out with {setting}: choose smaller images or a larger machine") from error


def first_line(error: BaseException) -> str:
    """Return the first lines of an error's message that say something, or the error's kind."""
    lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()]
    text = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    return text.rstrip(": ") or type(error).__name__


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the valid name most similar to `name`, or an empty text if none is similar."""
    typed = str(name).lower()

    def similarity(candidate: str) -> tuple[float, bool]:
        # on a tie, prefer a name with the same letters: vgg61 is a typo of vgg16, not of vgg19
        return SequenceMatcher(None, typed, candidate.lower()).ratio(), sorted(typed) == sorted(candidate.lower())

    nearest = max(known, key=similarity, default=None)
    return f" Did you mean {nearest!r}?" if nearest is not None and similarity(nearest)[0] >= 0.6 else ""


def is_number(value: object) -> bool:
    """Return whether a value is a finite number; booleans do not count."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_whole(name: str, value: object, least: int) -> None:
    """Check a setting that is a whole number.

    Raises:
        InputError: It is not an integer of at least `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value} must be an integer of at least {least}")
