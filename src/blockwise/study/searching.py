"""The rounds of a search: what it asks of a study, and what the study answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from blockwise.analysis.summary import Sweep
from blockwise.backbone.stages import StagedBackbone
from blockwise.errors import InputError
from blockwise.io.targets import instantiate
from blockwise.ranking import SCORES, Sample, check_score
from blockwise.results.record import SELECTIONS, STATIC, Score
from blockwise.search import SEARCH_NAMES, Candidate, Exhaustive, FirstEpoch, Ranked, Search, TopDown
from blockwise.study.data import StudyData
from blockwise.study.settings import describe_rule
from blockwise.training.distributed import broadcast

# simulated runs of a search
DRAWS = 20
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
        # other processes must not read the records at another time
        return broadcast(None if row is None else row.selection_score(row.seeds))

    def ranking(self, score: str) -> Mapping[str, float]:
        """Return a score of each single block before any training, higher is better."""
        return self.rank(score)


def rank_blocks(
    scores: Sequence[str], backbone: StagedBackbone, data: StudyData, device: torch.device
) -> dict[str, Mapping[str, float]]:
    """Compute scores of each single block from some training images.

    Args:
        scores: Names of scores.
        backbone: The pretrained network.
        data: The data; in distributed training, the part of this process.
        device: The device to compute on.

    Raises:
        InputError: The score does not fit the network.
    """
    if device.type == "mps":  # scores are computed in double precision, which Apple's GPUs lack
        device = torch.device("cpu")
    images, labels = data.first_images(IMAGES)
    sample = Sample(backbone.to(device), images.to(device), labels.to(device), num_classes=len(data.classes))
    try:
        return {name: SCORES[name](sample) for name in scores}
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
            raise InputError(f"search={search!r} is not a search: it needs the methods rounds and stop")
    if isinstance(search, Ranked):
        check_score(search.score)


def describe_search(search: Search) -> dict[str, Any] | None:
    """Return name and settings of a search; None if it trains everything to its end."""
    if type(search) is Exhaustive:
        return None
    described = describe_rule(search)
    name = SEARCH_NAMES.get(type(search)) or described["name"]
    return {"name": name, **described.get("options", {})}


def check_epochs(search: Search, max_epochs: int, alone: Mapping[str, int]) -> None:
    """Check that a search stops cells before the last epoch, and after their blocks have trained.

    As far as its settings tell.

    Args:
        search: The search.
        max_epochs: Number of epochs.
        alone: By policy, the number of epochs in which it trains the head of a block's cell alone.

    Raises:
        InputError: It does not.
    """
    first = 1 if isinstance(search, FirstEpoch) else getattr(search, "min_epochs", None)
    if first is None:
        return
    setting = "search=first_epoch" if isinstance(search, FirstEpoch) else f"search.min_epochs={first}"
    if first >= max_epochs:
        raise InputError(
            f"{setting} stops cells after epoch {first}, but trainer.max_epochs={max_epochs}: there must be more epochs"
        )
    for policy, epochs in alone.items():
        if first <= epochs:
            fitting = "search=halving search.min_epochs" if isinstance(search, FirstEpoch) else "search.min_epochs"
            raise InputError(
                f"{setting} stops cells after epoch {first}, but until epoch {epochs} policy={policy} trains the head "
                f"alone, so that all blocks are equal: choose {fitting}={epochs + 1} or more"
            )


def check_top(search: Search, top: int) -> None:
    """Check that a search leaves enough blocks for a `top` scope, as far as its settings tell.

    Raises:
        InputError: It does not.
    """
    keep = getattr(search, "keep", None)
    if keep is not None and keep < top:
        raise InputError(f"block=top{top} needs {top} blocks that train to their end: set search.keep={top} or more")
    if isinstance(search, TopDown) and search.patience + 1 < top:
        raise InputError(
            f"block=top{top} needs {top} blocks that train to their end, but search.patience={search.patience} may end "
            f"after {search.patience + 1}: set search.patience={top - 1} or more"
        )


@dataclass
class _MadeUp:
    """Trials with random outcomes."""

    random: np.random.Generator
    scores: dict[str, Score] = field(default_factory=dict)

    def score(self, scope: str) -> Score | None:
        return self.scores.get(scope)

    def ranking(self, score: str) -> Mapping[str, float]:
        del score
        return defaultdict(self.random.random)


def expected_share(
    search: Search, scopes: Sequence[str], rates: Sequence[float], epochs: int, flops: Callable[[str], int]
) -> float:
    """Return the expected cost of a search, as a share of training all scopes to their end.

    It is the mean over simulated runs in which accuracies are random and no difference is significant. Counted are the
    operations of the cells alone, not those of the frozen stages that they share.

    Args:
        search: The search.
        scopes: The scopes that were asked for.
        rates: Learning rates.
        epochs: Number of epochs of a whole training run.
        flops: Returns the operations of a cell per image and epoch, by its scope.
    """
    spent = 0.0
    for seed in range(DRAWS):
        trials = _MadeUp(np.random.default_rng(seed))
        for asked in search.rounds(scopes, trials):
            cells = [_made_up(scope, rate, flops(scope), trials.random) for scope in asked for rate in rates]
            for epoch in range(1, epochs + 1):
                spent += sum(cell.flops for cell in cells)
                stopped = set(search.stop(cells, epoch, epochs)) if epoch < epochs else set()
                cells = [cell for cell in cells if cell.key not in stopped]
            trials.scores |= {cell.scope: cell.merit("top1") for cell in cells}
    return spent / (DRAWS * epochs * len(rates) * max(1, sum(map(flops, scopes))))


def _made_up(scope: str, rate: float, flops: int, random: np.random.Generator) -> Candidate:
    score = float(random.random())
    val = {**dict.fromkeys(SELECTIONS, score), "loss": -score}
    nothing = np.zeros(0)
    history = [{"train": val, "val": val}]
    return Candidate(f"{scope}@{rate:g}", scope, STATIC, rate, flops, history, 0, "top1", nothing > 0, nothing)
