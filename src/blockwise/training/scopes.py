"""Scope grammar -> which blocks a cell trains besides the head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blockwise.errors import InputError, did_you_mean

WORDS = ("head", "full", "all")
GRAMMAR = "head, full, all, a block as 7 or -1, blocks as 3+7, from7 or top3"
_NUMBERS = re.compile(r"-?\d+(\+-?\d+)*")
_FROM = re.compile(r"from(-?\d+)")
_TOP = re.compile(r"top(\d+)")


@dataclass(frozen=True)
class Scope:
    """What one training run trains besides the head.

    Attributes:
        name: Its canonical name: `-1` of twelve blocks is `11`, `7+3` is `3+7`.
        blocks: The blocks, ascending. Empty for `head`, and for a `top` scope that is not resolved yet.
        top: N of `topN` until the N best blocks are known, else None.
    """

    name: str
    blocks: tuple[int, ...]
    top: int | None = None

    def resolve(self, best: Sequence[int]) -> Scope:
        """Return a `top` scope with its blocks: the first N of `best`, blocks ranked by validation accuracy."""
        return Scope(self.name, tuple(sorted(best[: self.top])))


def parse_scopes(block: object, num_blocks: int, backbone: str) -> list[Scope]:
    """Return the scopes that `block=` names, without repetition, in the order given.

    Args:
        block: A scope (text or number) or a list of them.
        num_blocks: Number of blocks of the backbone.
        backbone: Its name, for messages.

    Raises:
        InputError: Not a scope, or a block that the backbone does not have.
    """
    items = list(block) if isinstance(block, Iterable) and not isinstance(block, str) else [block]
    if not items:
        raise InputError(f"block=[] trains nothing: give {GRAMMAR}")
    scopes: dict[str, Scope] = {}
    for item in items:
        for scope in _parse(str(item).strip(), num_blocks, backbone):
            scopes.setdefault(scope.name, scope)
    return list(scopes.values())


def _parse(text: str, num_blocks: int, backbone: str) -> list[Scope]:
    everything = tuple(range(num_blocks))
    if text == "head":
        return [Scope("head", ())]
    if text == "full":
        return [Scope("full", everything)]
    if text == "all":
        return [Scope("head", ()), *(Scope(str(i), (i,)) for i in everything), Scope("full", everything)]
    if _NUMBERS.fullmatch(text):
        given = [_block(int(number), num_blocks, backbone) for number in text.split("+")]
        if len(set(given)) < len(given):
            raise InputError(f"block={text} names a block of {backbone} twice: name each block once")
        blocks = tuple(sorted(given))
        return [Scope("+".join(map(str, blocks)), blocks)]
    if match := _FROM.fullmatch(text):
        first = _block(int(match[1]), num_blocks, backbone)
        return [Scope(f"from{first}", tuple(range(first, num_blocks)))]
    if match := _TOP.fullmatch(text):
        top = int(match[1])
        if not 2 <= top <= num_blocks:
            raise InputError(f"block={text}: {backbone} has {num_blocks} blocks, so choose top2 to top{num_blocks}")
        return [Scope(f"top{top}", (), top)]
    known = [*WORDS, *(f"from{i}" for i in everything), *(f"top{i}" for i in everything[2:])]
    raise InputError(f"block={text} is no scope: give {GRAMMAR}.{did_you_mean(text, known)}")


def _block(number: int, num_blocks: int, backbone: str) -> int:
    if not -num_blocks <= number < num_blocks:
        raise InputError(
            f"block={number} is out of range: {backbone} has {num_blocks} blocks, so choose 0 to {num_blocks - 1} "
            f"(or -1 to -{num_blocks} from the last); nearest is {num_blocks - 1 if number > 0 else -num_blocks}"
        )
    return number % num_blocks
