"""The rounds of a search: what it asks of a study, and what the study answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from blockwise.analysis.summary import Sweep
from blockwise.backbone.stages import StagedBackbone
from blockwise.errors import InputError
from blockwise.io.targets import instantiate
from blockwise.ranking import SCORES, Sample, check_score
from blockwise.results.record import Score
from blockwise.search import SEARCH_NAMES, Exhaustive, Ranked, Search
from blockwise.study.data import StudyData
from blockwise.study.settings import describe

# a score is computed from this many training images
IMAGES = 128


@dataclass(frozen=True)
class StudyTrials:
    """What the rounds of a search may ask, about one policy.

    Attributes:
        sweep: Returns the records of this sweep and seed; None if there are none.
        rank: Computes a score of each single block, given the score's name.
    """

    sweep: Callable[[], Sweep | None]
    rank: Callable[[str], Mapping[str, float]]

    def score(self, scope: str) -> Score | None:
        """Return the validation score of a scope at its best learning rate; None if it has not finished."""
        sweep = self.sweep()
        row = None if sweep is None else sweep.row(scope)
        return None if row is None else row.selection_score(row.seeds)

    def ranking(self, score: str) -> Mapping[str, float]:
        """Return a score of each single block before any training, higher is better."""
        return self.rank(score)


def rank_blocks(score: str, backbone: StagedBackbone, data: StudyData, device: torch.device) -> Mapping[str, float]:
    """Compute a score of each single block from some training images.

    Args:
        score: Name of the score.
        backbone: The pretrained network.
        data: The data; in distributed training, the part of this process.
        device: The device to compute on.

    Raises:
        InputError: The score does not fit the network.
    """
    images, labels = data.first_images(IMAGES)
    try:
        return SCORES[score](
            Sample(backbone.to(device), images.to(device), labels.to(device), num_classes=len(data.classes))
        )
    finally:
        backbone.to("cpu")


def in_step(rounds: Mapping[str, Iterator[Sequence[str]]]) -> Iterator[dict[str, Sequence[str]]]:
    """Yield the next round of every policy's search at once, so that the cells of all policies train side by side."""
    left = dict(rounds)
    while left:
        asked = {policy: next(own, None) for policy, own in left.items()}
        left = {policy: left[policy] for policy, scopes in asked.items() if scopes is not None}
        if left:
            yield {policy: scopes for policy, scopes in asked.items() if scopes is not None}


def make_search(settings: Mapping[str, Any]) -> Search:
    """Return the search of a config.

    Raises:
        InputError: The search refuses its settings, or is none.
    """
    search = instantiate("search", {key: value for key, value in settings.items() if key != "then"})
    check_search(search)
    return search


def check_search(search: Any) -> None:
    """Check that an object is a search.

    Raises:
        InputError: It lacks `rounds` or `stop`.
    """
    for method in ("rounds", "stop"):
        if isinstance(search, type) or not callable(getattr(search, method, None)):
            raise InputError(f"search={search!r} is no search: it needs the methods rounds and stop")
    if isinstance(search, Ranked):
        check_score(search.score)


def describe_search(search: Search) -> dict[str, Any] | None:
    """Return name and settings of a search; None if it trains everything to its end."""
    if type(search) is Exhaustive:
        return None
    described = describe(search)
    name = SEARCH_NAMES.get(type(search)) or described["name"]
    return {"name": name, **described.get("options", {})}


def stops_cells(search: Search) -> bool:
    """Return whether a search stops cells before their last epoch."""
    return getattr(type(search), "stop", None) is not Exhaustive.stop


def check_top(search: Search, top: int) -> None:
    """Check that a search leaves enough blocks for a `top` scope, as far as its settings tell.

    Raises:
        InputError: It does not.
    """
    keep = getattr(search, "keep", None)
    if keep is not None and keep < top:
        raise InputError(f"block=top{top} needs {top} blocks that train to their end: set search.keep={top} or more")
