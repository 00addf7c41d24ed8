"""Group records into sweeps: each scope at its best learning rate by validation, averaged over seeds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from statistics import fmean, stdev

from blockwise.io.names import printable
from blockwise.results.record import STATIC, Record, Score, Settings, mean_score
from blockwise.results.store import sweep_hash
from blockwise.training.scopes import PART

# names of the metrics that select, for readers
SELECTED = {
    "top1": "accuracy",
    "mean_per_class": "mean per-class accuracy",
    "macro_f1": "macro F1",
    "loss": "loss",
    "probability": "probability",
}
# scopes that train a part of every block: baselines, as `head` and `full` are
PARTS = re.compile(PART, re.ASCII)


@dataclass(frozen=True)
class Row:
    """One scope of a sweep at its best learning rate; accuracies are fractions, averaged over seeds.

    Attributes:
        scope: Name of the scope.
        blocks: The blocks of the scope, in ascending order.
        records: The finished records at the best learning rate, one per seed; empty if none has finished. If a search
            stopped some, each seed's best one.
        lr: The learning rate with the best mean validation score; that of the best record, if seeds differ.
        pruned: The records of cells that a search stopped, at any rate, with seeds that `records` lack.
    """

    scope: str
    blocks: tuple[int, ...]
    records: tuple[Record, ...]
    lr: float
    pruned: tuple[Record, ...] = ()

    @property
    def seeds(self) -> set[int]:
        """The seeds of its records."""
        return {record.seed for record in self.records}

    def mean(self, split: str, metric: str = "top1", seeds: Set[int] | None = None) -> float:
        """Return the mean of a metric over the given seeds, or over all seeds."""
        records = [record for record in self.records if seeds is None or record.seed in seeds]
        return fmean(record.score(split, metric) for record in records)

    def selection_score(self, seeds: Set[int]) -> Score:
        """Return the mean over the given seeds of what to select by: higher is better."""
        return mean_score(record.selection_score for record in self.records if record.seed in seeds)

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
    def policy(self) -> str:
        """The name of the policy."""
        return printable(self.records[0].policy)

    @property
    def base(self) -> str:
        """The hash of the settings without the policy: the same for sweeps that differ in nothing else."""
        return sweep_hash({key: value for key, value in self.settings.items() if key != "policy"})

    @property
    def title(self) -> str:
        """Return `backbone on data, partition`, and the policy unless it is static.

        `v2` marks a partition that the first versions cut elsewhere, so that it is not taken for theirs.
        """
        partition, policy = self.settings.get("partition"), "" if self.policy == STATIC else f", policy {self.policy}"
        version = " v2" if isinstance(partition, Mapping) and partition.get("rules") == 2 else ""
        return f"{self.backbone} on {self.data}, partition {self.partition}{version}{policy}"

    @property
    def select_by(self) -> str:
        """The validation metric that selects epochs, rates and blocks."""
        return self.records[0].select_by

    def row(self, scope: str) -> Row | None:
        """Return the row of a scope; None if it is missing or diverged."""
        return next((row for row in self.rows if row.scope == scope and row.records), None)

    @property
    def search(self) -> str | None:
        """The name of the search that stopped cells of this sweep; several with commas, None if none did."""
        origins = (record.provenance.get("search") for record in self.records if record.status == "pruned")
        names = {str(origin.get("name")) if isinstance(origin, dict) else "unknown" for origin in origins}
        return ", ".join(sorted(printable(name) for name in names)) or None

    @property
    def single_blocks(self) -> list[Row]:
        """The rows of single blocks, best first by validation; on a tie, by loss, then the one closer to the head.

        They are compared over the seeds that all of them have, if there are any. If a search stopped some of their
        cells, those that trained to their end with more seeds come first.
        """
        rows = [row for row in self.rows if row.records and row.scope.isdigit()]
        common = set.intersection(*(row.seeds for row in rows)) if rows else set()
        searched = any(row.pruned for row in rows)

        def order(row: Row) -> tuple[int, Score, int]:
            return len(row.seeds) if searched else 0, row.selection_score(common or row.seeds), row.blocks[0]

        return sorted(rows, key=order, reverse=True)

    @property
    def unfinished(self) -> set[str]:
        """The single blocks that a search left out, or stopped with some seed: they might be good."""
        if not any("search" in record.provenance for record in self.records):
            return set()
        ended = {row.scope for row in self.rows if row.scope.isdigit() and not row.pruned}
        return set(map(str, range(self.num_blocks))) - ended

    def blocks_of_quarter(self, quarter: int) -> list[Row]:
        """Return the single blocks of a quarter, best first; none if one is unfinished: survivors are not typical."""
        quarters = {record.cell.scope: record.cell.quarter for record in self.records}
        if any(quarters.get(block, quarter) == quarter for block in self.unfinished):
            return []
        return [row for row in self.single_blocks if row.records[0].cell.quarter == quarter]

    @property
    def best(self) -> Row | None:
        """The best single block by validation."""
        return next(iter(self.single_blocks), None)


def best_seed(records: Iterable[Record]) -> Record:
    """Return the best record by validation; on a tie, that of the smallest seed."""
    return max(records, key=lambda record: (record.selection_score, -record.seed))


def by_policy(sweeps: Iterable[Sweep]) -> dict[str, list[Sweep]]:
    """Group sweeps by policy, `static` first; claims and statistics are about one policy."""
    groups: dict[str, list[Sweep]] = {}
    for sweep in sorted(sweeps, key=lambda sweep: (sweep.policy != STATIC, sweep.policy)):
        groups.setdefault(sweep.policy, []).append(sweep)
    return groups


def by_backbone_and_data(sweeps: Iterable[Sweep]) -> list[list[Sweep]]:
    """Group sweeps by backbone and data set; the sweeps of a group may differ in partition or settings.

    In tests across backbones and data sets, each group is one observation.
    """
    groups: dict[tuple[str, str], list[Sweep]] = {}
    for sweep in sweeps:
        groups.setdefault((sweep.data, sweep.backbone), []).append(sweep)
    return list(groups.values())


def sweeps(records: Iterable[Record]) -> list[Sweep]:
    """Group records into sweeps; `head` is the same under each policy and belongs to the sweeps of all."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(_place(record, record.settings), []).append(record)
    shared = set()
    for group in list(groups.values()):
        if "policy" in (settings := group[0].settings):
            static = {key: value for key, value in settings.items() if key != "policy"}
            place = _place(group[0], static)
            if heads := [record for record in groups.get(place, ()) if record.cell.scope == "head"]:
                group += heads
                shared.add(place)
    for place in shared:  # without another policy than these, `head` is no sweep of its own
        if all(record.cell.scope == "head" for record in groups[place]):
            del groups[place]
    return [Sweep(key[-1], group[0]["settings"], tuple(group), _rows(group)) for key, group in sorted(groups.items())]


def sweep_with(records: Sequence[Record], key: str) -> Sweep | None:
    """Return the sweep with a key, also that of `head` alone beside the sweep of a policy; None if there is none."""
    static = sweeps(record for record in records if record.policy == STATIC)
    return next((sweep for sweep in [*sweeps(records), *static] if sweep.key == key), None)


def _place(record: Record, settings: Settings) -> tuple[str, ...]:
    return record.data.name, record.backbone.name, record.partition.name, sweep_hash(settings)


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
    for record in (record for record in records if record.status != "pruned"):
        rates.setdefault(record.lr, []).append(record)
    # do not select a rate at which any seed diverged
    sound = {rate: group for rate, group in rates.items() if all(r.status == "finished" for r in group)}
    blocks = records[0].cell.blocks
    pruned = [record for record in records if record.status == "pruned"]
    if not sound:
        longest = max(pruned or records, key=lambda record: (record.epochs, -record.lr))
        return Row(scope, blocks, (), longest.lr, tuple(pruned))
    best_of: dict[int, Record] = {}
    for record in sorted(chain(*sound.values()), key=lambda record: record.selection_score):
        best_of[record.seed] = record
    left = tuple(record for record in pruned if record.seed not in best_of)
    most = max(len(group) for group in sound.values())
    if pruned and most < len(best_of):
        # which rate trained to its end differs from seed to seed
        found = tuple(best_of[seed] for seed in sorted(best_of))
        return Row(scope, blocks, found, max(found, key=lambda record: record.selection_score).lr, left)
    # compare only rates with the same, highest number of seeds
    sound = {rate: group for rate, group in sound.items() if len(group) == most}
    best = max(sound, key=lambda rate: mean_score(record.selection_score for record in sound[rate]))
    return Row(scope, blocks, tuple(sound[best]), best, left)


def _order(scope: str, blocks: Sequence[int]) -> tuple[int, tuple[int, ...], str]:
    """Return a sort key: `head` and parts of all blocks, single blocks from the input on, joint blocks, `full` last."""
    kind = 0 if scope == "head" else 1 if PARTS.fullmatch(scope) else 4 if scope == "full" else 3
    return (2 if scope.isdigit() else kind, () if kind == 1 else tuple(blocks), scope)
