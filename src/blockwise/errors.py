"""The one error a user can cause, how it names what was meant, and what a failed job of a multirun returns."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


class InputError(ValueError):
    """A setting, a file or a folder is not what it must be; the message is one sentence for the user."""


@dataclass(frozen=True)
class JobFailure:
    """What a job of a multirun returns instead of raising, so that the other jobs go on and all are named."""

    overrides: str
    reason: str


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name nearest to `name`, or nothing where none is near."""
    nearest = get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
