"""Batches as CUDA graphs: one for the frozen stages, and one per cell, in lanes beside each other.

A graph reads and writes at fixed places. So a batch is copied to where the graphs read, and all batches of a kind have
one shape; others, such as the last of an epoch, run without graphs. Before a graph is trusted, its first result is
compared with that of the same step without a graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from blockwise.backbone.stages import Activations, StagedBackbone
from blockwise.errors import first_line
from blockwise.fast.gpu.graphs import Graphs

# largest difference between two runs of a step, relative to the change that it makes; kernels may add in any order
TOLERANCE = 0.02
Replay = Callable[[], None]
# a cell, and which of its networks: 0 trains on all images, n on those outside fold n - 1
Key = tuple[int, int]
# the logits of a cell, and the seconds that it takes alone
Result = tuple[Tensor, float]


class Work(ABC):
    """What is done with one cell on one batch; by default nothing changes, and nothing is random."""

    @property
    @abstractmethod
    def boundary(self) -> int:
        """The boundary whose activations it reads."""

    @abstractmethod
    def run(self, activations: Activations, labels: Tensor) -> Tensor:
        """Do it and return the logits."""

    @abstractmethod
    def key(self) -> Any:
        """Return what must be the same when it is recorded and when it is replayed."""

    def changed(self) -> list[list[Tensor]]:
        """Return groups of all tensors that it changes."""
        return []

    def seed(self) -> None:  # noqa: B027 (nothing to do is the default)
        """Seed the random numbers that it draws."""

    def on_device(self) -> AbstractContextManager[None]:
        """Keep on the device what it reads, while it is recorded."""
        return nullcontext()

    def prepare(self) -> None:  # noqa: B027
        """Copy to the device what it reads there."""

    def abandon(self) -> None:  # noqa: B027
        """Clear what a run that failed has left."""


class DoubtError(RuntimeError):
    """What was recorded may not do the same as what was not."""


@dataclass(frozen=True)
class Recorded:
    """The graph of a cell; `key` tells when it no longer fits, `replay` is None if the cell runs without a graph."""

    key: Any
    replay: Replay | None = None
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    lane: int = 0
    draws: bool = False
    seconds: float = 0.0


class Places:
    """Where the graphs of one kind of batch read, and the graphs.

    Args:
        first: The boundary from which the batches continue.
        shape: The shape of the batches.
        keys: The keys of the cells that have run on such a batch.
    """

    def __init__(self, first: int, shape: Any, keys: Mapping[Key, Any]) -> None:
        self.first = first
        self.shape = shape
        self.inputs: Activations = {}
        self.labels = torch.empty(0)
        self.frozen: Replay | None = None
        self.at: dict[int, Activations] = {}
        self.cells: dict[Key, Recorded] = {}
        self.seen = dict(keys)


class GraphedBatches:
    """Runs batches as CUDA graphs.

    Args:
        backbone: The frozen stages.
        graphs: Records functions.
        tell: Tells the user what runs without graphs, and why.
    """

    def __init__(self, backbone: StagedBackbone, graphs: Graphs, tell: Callable[[str], None]) -> None:
        self._backbone = backbone
        self._graphs = graphs
        self._tell = tell
        self._told: set[str] = set()
        self._kinds: dict[str, Places] = {}

    def run(
        self, kind: str, first: int, activations: Activations, labels: Tensor, works: Mapping[Key, Work]
    ) -> dict[Key, Result] | None:
        """Run a batch; return None if it has another shape than the graphs, or is the first of its kind.

        Args:
            kind: What the batch is for.
            first: The boundary from which it continues.
            activations: The activations there.
            labels: The labels.
            works: What to do, by cell.

        Returns:
            The result of each cell; logits are valid until the next batch.
        """
        shape = [(name, value.shape, value.dtype) for name, value in activations.items()], labels.shape, labels.dtype
        if kind not in self._kinds or self._kinds[kind].first != first:
            # in the first batch, libraries load what they need, and optimizers make their states
            self._kinds[kind] = Places(first, shape, {index: work.key() for index, work in works.items()})
            return None
        places = self._kinds[kind]
        if places.shape != shape:
            return None
        try:
            self._enter(places, activations, labels, {work.boundary for work in works.values()})
        except RuntimeError as error:
            self._say(error)
            places.shape = None
            return None
        keys = {index: work.key() for index, work in works.items()}
        fitting = {index: r for index, r in places.cells.items() if index in keys and r.key == keys[index]}
        known = {index for index, recorded in fitting.items() if recorded.replay is not None}
        # the most work first, so that lanes end together
        order = sorted(works, key=lambda index: works[index].boundary)
        results = self._replay(places, {index: works[index] for index in order if index in known})
        for index in order:
            if index not in known:
                refused = index in fitting
                results[index] = self._run_plainly(index, places, works[index], keys[index], refused=refused)
        return results

    def _enter(self, places: Places, activations: Activations, labels: Tensor, wanted: set[int]) -> None:
        """Copy a batch to where the graphs read, and run the frozen stages."""
        if places.frozen is None or not wanted <= places.at.keys():
            places.inputs = {name: value.clone() for name, value in activations.items()}
            places.labels = labels.clone()
            self._record_frozen(places, wanted)
            return
        for name, value in activations.items():
            places.inputs[name].copy_(value)
        places.labels.copy_(labels)
        places.frozen()

    def _record_frozen(self, places: Places, wanted: set[int]) -> None:
        places.cells = {}
        if wanted == {places.first}:
            places.frozen, places.at = lambda: None, {places.first: places.inputs}
            return

        def frozen() -> dict[int, Activations]:
            with uncached_autocast(places.labels.device):
                return dict(self._backbone.onward(places.first, places.inputs, wanted))

        expected = frozen()
        places.frozen, places.at = self._graphs.record(frozen, 0)
        places.frozen()
        for boundary, values in places.at.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and not agree(expected[boundary][name], value):
                    raise DoubtError("the frozen stages give other values")

    def _replay(self, places: Places, works: Mapping[Key, Work]) -> dict[Key, Result]:
        """Run cells that have a graph, in this order."""
        results = {}
        self._graphs.fork()
        for index, work in works.items():
            recorded = places.cells[index]
            with self._graphs.lane(recorded.lane):
                work.prepare()
                if recorded.draws:
                    work.seed()
                assert recorded.replay is not None
                recorded.replay()
            results[index] = recorded.logits, recorded.seconds
        self._graphs.join()
        return results

    def _run_plainly(self, index: Key, places: Places, work: Work, key: Any, *, refused: bool) -> Result:
        """Run a cell that has no graph; record it if the same has run before, unless that was refused."""
        if places.seen.get(index) == key and not refused:
            return self._record(index, places, work)
        places.seen[index] = key
        work.seed()
        return work.run(places.at[work.boundary], places.labels), 0.0

    def _record(self, index: Key, places: Places, work: Work) -> Result:
        """Run a cell without a graph, then the same with one; keep the graph if both agree."""
        tensors, device = work.changed(), places.labels.device
        before = _copies(tensors)
        with work.on_device(), uncached_autocast(device):
            key = work.key()
            work.seed()
            seeded = _random_states(device)
            logits = work.run(places.at[work.boundary], places.labels)
            drawn = [old != new for old, new in zip(seeded, _random_states(device), strict=True)]
            after = _copies(tensors)
            _restore(tensors, before)
            try:
                if work.key() != key:
                    raise DoubtError("the optimizer changes its own settings in each step")
                if drawn[0] or any(tensor.device != device for group in tensors for tensor in group):
                    raise DoubtError("a step draws random numbers or keeps its state on the CPU")
                recorded = self._graph(places, work, draws=drawn[1])
                _compare(before, after, tensors, logits, recorded.logits)
            except RuntimeError as error:
                self._say(error)
                work.abandon()
                _restore(tensors, after)
                places.cells[index] = Recorded(key)
                return logits, 0.0
        places.cells[index] = recorded
        return recorded.logits, recorded.seconds

    def _graph(self, places: Places, work: Work, *, draws: bool) -> Recorded:
        lane = 0 if draws else self._lane(places)
        replay, logits = self._graphs.record(lambda: work.run(places.at[work.boundary], places.labels), lane)
        work.seed()
        return Recorded(work.key(), replay, logits, lane, draws, self._graphs.time(replay))

    def _lane(self, places: Places) -> int:
        """Return the lane with the least to do; the first alone draws random numbers, for one cell at a time."""
        loads = [0.0] * self._graphs.lanes
        for recorded in places.cells.values():
            loads[recorded.lane] += recorded.seconds
        return loads.index(min(loads))

    def _say(self, error: Exception) -> None:
        sentence = f"training without CUDA graphs, which is slower ({first_line(error)})"
        if sentence not in self._told:
            self._told.add(sentence)
            self._tell(sentence)


def uncached_autocast(device: torch.device) -> torch.autocast:
    """Return the surrounding autocast without its cache of converted weights, which a graph would read later."""
    kind = device.type
    return torch.autocast(
        kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
    )


def _random_states(device: torch.device) -> tuple[bytes, int]:
    """Return the states of the generators that a step may draw from: the CPU's and the device's."""
    offset = torch.cuda.default_generators[device.index or 0].get_offset() if device.type == "cuda" else 0
    return torch.get_rng_state().numpy().tobytes(), offset


def _copies(groups: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[tensor.detach().clone() for tensor in group] for group in groups]


@torch.no_grad()
def _restore(groups: list[list[Tensor]], copies: list[list[Tensor]]) -> None:
    for group, kept in zip(groups, copies, strict=True):
        for tensor, copy in zip(group, kept, strict=True):
            tensor.copy_(copy)


def _compare(
    before: list[list[Tensor]], after: list[list[Tensor]], now: list[list[Tensor]], expected: Tensor, logits: Tensor
) -> None:
    """Compare a step with a graph with the same step without.

    Raises:
        DoubtError: They differ by more than rounding.
    """
    if not agree(expected, logits):
        raise DoubtError("a cell gives other logits")
    for old, new, actual in zip(before, after, now, strict=True):
        if not old:
            continue
        changes = [torch.stack([_norm(b - a) for a, b in zip(old, values, strict=True)]) for values in (new, actual)]
        if bool(((changes[0] > 0) != (changes[1] > 0)).any()):
            raise DoubtError("another set of weights trains")
        errors = torch.stack([_norm(b - a) for a, b in zip(new, actual, strict=True)])
        if bool(errors.norm() > TOLERANCE * changes[0].norm()):
            raise DoubtError("a step changes the weights in another way")


def _norm(difference: Tensor) -> Tensor:
    return difference.detach().float().nan_to_num().norm()


def agree(expected: Tensor, actual: Tensor) -> bool:
    """Return whether two results of the same kernels are the same up to rounding."""
    error = _norm(expected.float() - actual.float())
    return bool(error <= TOLERANCE * _norm(expected)) and bool((expected.isnan() == actual.isnan()).all())
