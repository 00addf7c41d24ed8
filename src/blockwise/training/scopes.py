"""The scope grammar: which blocks a cell trains besides the head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from blockwise.errors import InputError, did_you_mean
from blockwise.io.names import printable

WORDS = ("head", "full", "all", "norms", "bias", "lora8")
GRAMMAR = (
    "head, full, all, a block (7 or -1), several blocks jointly (3+7), from7, top3, norms, bias or lora8 (of all "
    "blocks), or these of some blocks (norms:3+7)"
)
# a part of blocks; LoRA's rank is a group
PART = r"norms|bias|lora([1-9]\d{0,3})"
_PARTS = re.compile(rf"({PART})(?::(.+))?", re.ASCII)
_NUMBERS = re.compile(r"-?\d+(\+-?\d+)*", re.ASCII)
_FROM = re.compile(r"from(-?\d+)", re.ASCII)
_TOP = re.compile(r"top(\d+)", re.ASCII)
Part = Literal["all", "norms", "bias", "lora"]
# longest name of a scope, in characters: what records and names of folders can hold
LONGEST = 200
# longest text that may be a typo
LONGEST_TYPO = 20


@dataclass(frozen=True)
class Scope:
    """The blocks that one training run trains besides the head.

    Attributes:
        name: Canonical name: with twelve blocks, `-1` becomes `11`, and `7+3` becomes `3+7`.
        blocks: The blocks in ascending order; empty for `head` and for an unresolved `top` scope.
        top: N of an unresolved `topN` scope, else None.
        part: What trains in each block: `all`, `norms` (their weights and biases), `bias` (of all layers), or `lora`
            (low-rank updates of convolutions and linear layers).
        rank: The rank of `lora`.
    """

    name: str
    blocks: tuple[int, ...]
    top: int | None = None
    part: Part = "all"
    rank: int | None = None

    def resolve(self, best: Sequence[int]) -> Scope:
        """Return a `top` scope with its blocks: the first N of `best`, blocks ranked on validation."""
        return Scope(self.name, tuple(sorted(best[: self.top])))


def parse_scopes(block: object, num_blocks: int, backbone: str) -> list[Scope]:
    """Parse the value of `block=` and return its scopes in the same order, without duplicates.

    Args:
        block: A scope (text or number) or a list of scopes.
        num_blocks: Number of blocks of the backbone.
        backbone: Name of the backbone, for messages.

    Raises:
        InputError: A value is not a scope, or the backbone does not have the block.
    """
    if isinstance(block, (Mapping, bytes)):
        raise InputError(f"block={block!r} is not a scope: choose {GRAMMAR}")
    items = list(block) if isinstance(block, Iterable) and not isinstance(block, str) else [block]
    if not items:
        raise InputError(f"block=[] trains nothing: choose {GRAMMAR}")
    scopes: dict[str, Scope] = {}
    for item in items:
        for scope in _parse(_text(item), num_blocks, backbone):
            scopes.setdefault(_short(scope.name), scope)
    return list(scopes.values())


def _text(item: object) -> str:
    try:
        return _short(str(item).strip())
    except ValueError as error:  # Python refuses to write numbers of thousands of digits
        raise error if isinstance(error, InputError) else InputError("block has too many digits") from error


def _short(text: str) -> str:
    if len(text) > LONGEST:
        raise InputError(f"block={printable(text[:LONGEST_TYPO])}... is longer than {LONGEST} characters")
    return text


def _parse(text: str, num_blocks: int, backbone: str) -> list[Scope]:
    everything = tuple(range(num_blocks))
    if text == "head":
        return [Scope("head", ())]
    if text == "full":
        return [Scope("full", everything)]
    if text == "all":
        return [Scope("head", ()), *(Scope(str(i), (i,)) for i in everything), Scope("full", everything)]
    if match := _PARTS.fullmatch(text):
        part, rank, blocks = match.groups()
        within = Scope("", everything) if blocks is None else _joint(text, blocks, num_blocks, backbone)
        if within is not None:
            name = part if blocks is None else f"{part}:{within.name}"
            kind = cast("Part", "lora" if rank else part)
            return [replace(within, name=name, part=kind, rank=int(rank) if rank else None)]
    if (joint := _joint(text, text, num_blocks, backbone)) is not None:
        return [joint]
    if match := _TOP.fullmatch(text):
        top = int(match[1])
        if not 2 <= top <= num_blocks:
            raise InputError(f"block={text}: {backbone} has {num_blocks} blocks, so choose top2 to top{num_blocks}")
        return [Scope(f"top{top}", (), top)]
    names = [*WORDS, *(f"from{i}" for i in everything), *(f"top{i}" for i in everything[2:])]
    meant = did_you_mean(text, names) if len(text) <= LONGEST_TYPO else ""
    raise InputError(f"block={printable(text)} is not a scope: choose {GRAMMAR}.{meant}")


def _joint(text: str, blocks: str, num_blocks: int, backbone: str) -> Scope | None:
    """Parse the blocks of a scope, such as `7`, `3+7` or `from7`; None if they are something else."""
    if match := _FROM.fullmatch(blocks):
        first = _block(text, match[1], num_blocks, backbone)
        return Scope(f"from{first}", tuple(range(first, num_blocks)))
    if not _NUMBERS.fullmatch(blocks):
        return None
    numbers = [_block(text, number, num_blocks, backbone) for number in blocks.split("+")]
    if len(set(numbers)) < len(numbers):
        raise InputError(f"block={text} lists a block of {backbone} twice")
    ordered = tuple(sorted(numbers))
    return Scope("+".join(map(str, ordered)), ordered)


def _block(text: str, digits: str, num_blocks: int, backbone: str) -> int:
    number = int(digits)
    if not -num_blocks <= number < num_blocks:
        raise InputError(
            f"block={text} is out of range: {backbone} has {num_blocks} blocks, so choose 0 to {num_blocks - 1} "
            f"(or -1 to -{num_blocks}, counted from the last); the nearest is "
            f"{num_blocks - 1 if number > 0 else -num_blocks}"
        )
    return number % num_blocks
