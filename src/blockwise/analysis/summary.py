"""Group records into sweeps: each scope at its best learning rate by validation, averaged over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from statistics import fmean, stdev

from blockwise.io.names import printable
from blockwise.results.record import Record
from blockwise.results.store import sweep_hash


@dataclass(frozen=True)
class Row:
    """One scope of a sweep at its best learning rate; accuracies are fractions, averaged over seeds.

    Attributes:
        scope: Name of the scope.
        blocks: The blocks of the scope, in ascending order.
        records: The finished records at the best learning rate, one per seed; empty if every rate diverged.
        lr: The learning rate with the highest mean validation accuracy.
    """

    scope: str
    blocks: tuple[int, ...]
    records: tuple[Record, ...]
    lr: float

    @property
    def seeds(self) -> set[int]:
        """The seeds of its records."""
        return {record.seed for record in self.records}

    def mean(self, split: str, metric: str = "top1", seeds: Set[int] | None = None) -> float:
        """Return the mean of a metric over the given seeds, or over all seeds."""
        records = [record for record in self.records if seeds is None or record.seed in seeds]
        return fmean(record.score(split, metric) for record in records)

    def difference(self, other: Row, split: str = "test") -> float | None:
        """Return the accuracy minus another row's, over the seeds that both have; None if they have none in common."""
        common = self.seeds & other.seeds
        if not common:
            return None
        # accuracies were computed in float32: round off differences that are smaller than one image can cause
        return round(self.mean(split, seeds=common) - other.mean(split, seeds=common), 6)

    def spread(self, split: str, metric: str = "top1") -> float | None:
        """Return the standard deviation over seeds; None for a single seed."""
        values = [record.score(split, metric) for record in self.records]
        return stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Sweep:
    """Every recorded scope of one backbone on one data set under the same settings."""

    key: str
    settings: dict[str, object]
    records: tuple[Record, ...]
    rows: tuple[Row, ...]

    @property
    def rates(self) -> set[float]:
        """All learning rates of the records."""
        return {record.lr for record in self.records}

    @property
    def seeds(self) -> set[int]:
        """All seeds of the records."""
        return {record.seed for record in self.records}

    @property
    def backbone(self) -> str:
        """The name of the backbone."""
        return printable(self.records[0].backbone.name)

    @property
    def data(self) -> str:
        """The name of the data set."""
        return printable(self.records[0].data.name)

    @property
    def num_blocks(self) -> int:
        """The number of blocks of the partition."""
        return self.records[0].partition.num_blocks

    @property
    def partition(self) -> str:
        """The name of the partition."""
        return printable(self.records[0].partition.name)

    @property
    def title(self) -> str:
        """Return `backbone on data, partition`."""
        return f"{self.backbone} on {self.data}, partition {self.partition}"

    def row(self, scope: str) -> Row | None:
        """Return the row of a scope; None if it is missing or diverged."""
        return next((row for row in self.rows if row.scope == scope and row.records), None)

    @property
    def single_blocks(self) -> list[Row]:
        """The rows of single blocks, sorted by validation accuracy, best first; on a tie, the one closer to the head.

        They are compared over the seeds that all of them have, if there are any.
        """
        rows = [row for row in self.rows if row.records and row.scope.isdigit()]
        common = set.intersection(*(row.seeds for row in rows)) if rows else set()
        return sorted(rows, key=lambda row: (-row.mean("val", seeds=common or row.seeds), -row.blocks[0]))

    @property
    def best(self) -> Row | None:
        """The best single block by validation accuracy."""
        return next(iter(self.single_blocks), None)


def by_backbone_and_data(sweeps: Iterable[Sweep]) -> list[list[Sweep]]:
    """Group sweeps by backbone and data set; the sweeps of a group may differ in partition or settings.

    In tests across backbones and data sets, each group is one observation.
    """
    groups: dict[tuple[str, str], list[Sweep]] = {}
    for sweep in sweeps:
        groups.setdefault((sweep.data, sweep.backbone), []).append(sweep)
    return list(groups.values())


def sweeps(records: Iterable[Record]) -> list[Sweep]:
    """Group records into sweeps."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        names = (record.data.name, record.backbone.name, record.partition.name)
        groups.setdefault((*names, sweep_hash(record.settings)), []).append(record)
    return [Sweep(key[-1], group[0]["settings"], tuple(group), _rows(group)) for key, group in sorted(groups.items())]


def _rows(records: Sequence[Record]) -> tuple[Row, ...]:
    scopes: dict[str, list[Record]] = {}
    for record in sorted(_newest(records), key=lambda r: _order(r.cell.scope, r.cell.blocks)):
        scopes.setdefault(record.cell.scope, []).append(record)
    return tuple(_best_rate(scope, group) for scope, group in scopes.items())


def _newest(records: Sequence[Record]) -> list[Record]:
    """Return the newest record of each scope, rate and seed; `top3` may have an older one with other blocks."""
    ordered = sorted(records, key=lambda record: record.provenance.get("finished") or "")
    return list({(r.cell.scope, r.lr, r.seed): r for r in ordered}.values())


def _best_rate(scope: str, records: Sequence[Record]) -> Row:
    rates: dict[float, list[Record]] = {}
    for record in records:
        rates.setdefault(record.lr, []).append(record)
    # do not select a rate at which any seed diverged
    sound = {rate: group for rate, group in rates.items() if all(r.status == "finished" for r in group)}
    blocks = records[0].cell.blocks
    if not sound:
        return Row(scope, blocks, (), min(rates))
    # compare only rates with the same, highest number of seeds
    most = max(len(group) for group in sound.values())
    sound = {rate: group for rate, group in sound.items() if len(group) == most}
    best = max(sound, key=lambda rate: fmean(record.score("val") for record in sound[rate]))
    return Row(scope, blocks, tuple(sound[best]), best)


def _order(scope: str, blocks: Sequence[int]) -> tuple[int, tuple[int, ...], str]:
    """Return a sort key: `head` first, then single blocks from the input on, then joint blocks, `full` last."""
    kind = 0 if scope == "head" else 3 if scope == "full" else 1 if scope.isdigit() else 2
    return (kind, tuple(blocks), scope)
