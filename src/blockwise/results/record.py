"""The record of a finished cell: the content of `record.json`, schema 1.

Records are checked when they are read. All other code may rely on the types below.

>>> text = Path("record.json").read_text()  # doctest: +SKIP
>>> record = Record.from_json(text)  # doctest: +SKIP
>>> record.cell.scope, record.metrics.test["top1"]  # doctest: +SKIP
('6', 0.951)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from blockwise.errors import InputError
from blockwise.io.names import LONGEST, printable

SCHEMA = 1
SPLITS = ("train", "val", "test")
METRICS = ("top1", "top5", "macro_f1", "ece", "loss", "probability", "mean_per_class")
# records of earlier versions lack these
NEWER_METRICS = ("probability", "mean_per_class")
FRACTIONS = tuple(name for name in METRICS if name != "loss")
# metrics are computed in float32: a perfect macro F1 may be 1.0000001
ROUNDING = 1e-5
Status = Literal["running", "stopped", "diverged", "finished", "pruned"]
# a cell in training has no record on disk
RECORDED = ("finished", "diverged", "pruned")
# tables loop over blocks
MOST_BLOCKS = 10_000
SCOPE = re.compile(r"[\w.+:@-]{1,200}", re.ASCII)
Settings = Mapping[str, Any]
Metrics = dict[str, float]
# what selects, and what decides on a tie
Score = tuple[float, float]
# metrics by which epochs, learning rates and blocks are selected on validation
SELECTIONS = ("top1", "mean_per_class", "macro_f1", "loss", "probability")
# the policy of records that name none: it trains the whole scope from the first epoch to the last
STATIC = "static"


def selection_score(val: Metrics, select_by: str) -> Score:
    """Return what to select by, higher is better: a validation metric and, on a tie, the loss (then the accuracy)."""
    loss = -val.get("loss", 0.0)
    return (loss, val["top1"]) if select_by == "loss" else (val[select_by], loss)


def mean_score(scores: Iterable[Score]) -> Score:
    """Return the mean of scores; rounded, so that means of the same number of correct images tie."""
    first, second = zip(*scores, strict=True)
    return round(fmean(first), 6), fmean(second)


def _check_metrics(metrics: Metrics) -> Metrics:
    if "top1" not in metrics:
        raise ValueError("top1 is missing")
    for name in FRACTIONS:
        if not -ROUNDING <= metrics.get(name, 0.0) <= 1 + ROUNDING:
            raise ValueError(f"{name} must be between 0 and 1")
    if metrics.get("top5", 1.0) < metrics["top1"] - ROUNDING:
        raise ValueError("top5 must not be below top1")
    return metrics


def _check_status(status: Status) -> Status:
    if status not in RECORDED:
        raise ValueError(f"must be one of {', '.join(RECORDED)}")
    return status


def _check_settings(settings: dict[str, Any]) -> dict[str, Any]:
    lr = settings.get("lr", 0.0)
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 <= lr < math.inf:
        raise ValueError("lr must be a finite number of at least 0")
    policy = settings.get("policy", {"name": STATIC})
    if not isinstance(policy, dict) or not isinstance(policy.get("name"), str):
        raise ValueError("policy must have a name")
    if settings.get("select_by", "top1") not in SELECTIONS:
        raise ValueError(f"select_by must be one of {', '.join(SELECTIONS)}")
    # what it says of norms was not true at first; see `store.first_settings`
    return {**settings, "freeze": {"norm": "eval"}} if settings.get("freeze") == {"norm": "train"} else settings


def _check_provenance(provenance: dict[str, Any]) -> dict[str, Any]:
    versions = provenance.get("versions") or {}
    texts = [provenance.get(key) for key in ("finished", "commit", "command")]
    texts += versions.values() if isinstance(versions, dict) else [versions]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise ValueError("finished, commit, command and versions must be text")
    return provenance


def _check_scope(scope: str) -> str:
    if not SCOPE.fullmatch(scope):
        raise ValueError(f"must be a name of letters, digits and . _ + - : @, not {scope[:40]!r}")
    return scope


Count = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(min_length=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Checked = Annotated[dict[str, Finite], AfterValidator(_check_metrics)]


@dataclass(frozen=True, kw_only=True)
class BackboneEntry:
    """The fine-tuned network: its name, the origin of its weights, its number of parameters, and its checksum.

    The checksum is the SHA-256 of all weights before training; records of earlier versions have none.
    """

    name: Name
    weights: str | None = None
    parameters: Count | None = None
    checksum: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataEntry:
    """The data set: images per split, and the names of files that were skipped because they cannot be read."""

    name: Name
    classes: Count
    image_size: Count
    train: Count
    val: Count
    test: Count
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PartitionEntry:
    """The partition: the partitioner's name and its number of blocks."""

    name: Name
    num_blocks: Annotated[int, Field(ge=1, le=MOST_BLOCKS)]


@dataclass(frozen=True, kw_only=True)
class CellEntry:
    """The trained part of the network.

    Attributes:
        scope: Name of the scope, such as `head`, `7`, `3+7` or `full`.
        blocks: The blocks of the scope, in ascending order.
        name: First and last trained layer in one text.
        first_layer: Name of the first trained layer; None for `head`.
        last_layer: Name of the last trained layer; None for `head`.
        layers: Positions of both layers in the forward pass; None for `head`.
        quarter: Quarter of the network that contains a single block, 1 (input) to 4; None for all other scopes.
        trainable_parameters: Number of trained parameters, including the head's.
    """

    scope: Annotated[str, AfterValidator(_check_scope)]
    blocks: tuple[Count, ...]
    name: str | None = None
    first_layer: str | None = None
    last_layer: str | None = None
    layers: tuple[Count, Count] | None = None
    quarter: Annotated[int, Field(ge=1, le=4)] | None
    trainable_parameters: Count

    def __post_init__(self) -> None:
        """Check that a single block is the block of its name.

        Raises:
            ValueError: It is another.
        """
        if self.scope.isdecimal() and self.blocks != (int(self.scope),):
            raise ValueError(f"scope {self.scope} must have this block alone")


@dataclass(frozen=True, kw_only=True)
class MetricsEntry:
    """Metrics per split at the best epoch; None if the cell diverged, or a search stopped it (`pruned`)."""

    train: Checked | None = None
    val: Checked | None = None
    test: Checked | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of one cell; its fields have the names and order of the keys in `record.json`.

    `record["cell"]["scope"]` is the same value as `record.cell.scope`.

    Attributes:
        status: `finished`, `diverged` (the loss became infinite or NaN) or `pruned` (stopped by a search).
        backbone: The network.
        data: The data set.
        partition: The partition of the network.
        cell: The trained part of the network.
        seed: Seed of the split, the head and the order of images.
        settings: All settings that change the result; the cell's hash is computed from them.
        metrics: Metrics per split.
        best_epoch: The epoch with the best validation score (see `select_by`), counted from 0.
        epochs: Number of epochs trained.
        seconds: The cell's own time plus its share of the time that all cells spent together.
        peak_memory_bytes: Peak memory of the process, or of its GPU, while the cell and those beside it trained.
        files: SHA-256 of the other files in the folder, by name; empty in records of earlier versions.
        provenance: Commit, versions and command; and the search, if there was one, with what it cost.
        folder: The folder of the record; not part of the file.
    """

    schema: Literal[1] = 1
    status: Annotated[Status, AfterValidator(_check_status)]
    backbone: BackboneEntry
    data: DataEntry
    partition: PartitionEntry
    cell: CellEntry
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    settings: Annotated[dict[str, Any], AfterValidator(_check_settings)]
    metrics: MetricsEntry
    best_epoch: Count | None = None
    epochs: Count = 0
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    peak_memory_bytes: Count | None = None
    files: dict[str, str] = field(default_factory=dict)
    provenance: Annotated[dict[str, Any], AfterValidator(_check_provenance)]
    folder: str | None = None

    def __post_init__(self) -> None:
        """Check that the fields fit together, and that a finished cell has the metrics that tables and statistics need.

        Raises:
            ValueError: They do not, or validation or test metrics are missing.
        """
        if any(block >= self.partition.num_blocks for block in self.cell.blocks):
            raise ValueError(f"block {max(self.cell.blocks)} is none of the {self.partition.num_blocks} blocks")
        if self.best_epoch is not None and self.epochs and self.best_epoch >= self.epochs:
            raise ValueError(f"best_epoch {self.best_epoch} is none of the {self.epochs} epochs")
        if self.status == "finished" and (self.metrics.val is None or self.metrics.test is None):
            raise ValueError("a finished cell must have val and test metrics")
        if self.metrics.val is not None and self.select_by not in self.metrics.val:
            raise ValueError(f"val metrics must have {self.select_by}, by which it was selected")

    def __getitem__(self, key: str) -> Any:
        """Return the value of a key of `record.json`, as plain data.

        Raises:
            KeyError: There is no such key.
        """
        if key not in self.__dataclass_fields__:
            raise KeyError(key)
        value = getattr(self, key)
        return _without_tuples(asdict(value)) if is_dataclass(value) and not isinstance(value, type) else value

    def score(self, split: str, metric: str = "top1") -> float:
        """Return a metric of a split.

        Raises:
            KeyError: The cell has no such metric.
        """
        metrics: Metrics | None = getattr(self.metrics, split)
        if metrics is None:
            raise KeyError(f"{self.cell.scope} has no {split} metrics")
        return metrics[metric]

    @property
    def select_by(self) -> str:
        """The validation metric by which epochs, learning rates and blocks are selected."""
        return str(self.settings.get("select_by", "top1"))

    @property
    def selection_score(self) -> Score:
        """What to select by, higher is better; see `selection_score`."""
        assert self.metrics.val is not None
        return selection_score(self.metrics.val, self.select_by)

    @property
    def policy(self) -> str:
        """The name of the policy."""
        return str(self.settings.get("policy", {}).get("name", STATIC))

    @property
    def lr(self) -> float:
        """The learning rate; 0 if the settings have none."""
        return float(self.settings.get("lr", 0))

    @property
    def block(self) -> int | None:
        """The block, if the scope is a single block; else None."""
        return int(self.cell.scope) if self.cell.scope.isdecimal() else None

    def to_json(self) -> dict[str, Any]:
        """Return the content of `record.json`."""
        content: dict[str, Any] = _without_tuples(asdict(self))
        del content["folder"]
        if not self.files:
            del content["files"]
        if self.backbone.checksum is None:
            del content["backbone"]["checksum"]
        return content

    @classmethod
    def from_json(cls, text: str | bytes, source: str | Path = "record.json") -> Record:
        """Read and check the content of a `record.json`.

        Args:
            text: The content of the file.
            source: Name of the file in error messages.

        Raises:
            InputError: The text is not a valid record; the message names file and field.
        """
        try:
            record: Record = _adapter().validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = printable(".".join(str(part) for part in first["loc"])[:LONGEST])
            reason = first["msg"].removeprefix("Value error, ")
            raise InputError(f"{source}: {field}: {reason}" if field else f"{source}: {reason}") from error
        return record


def _without_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tuples(entry) for key, entry in value.items()}
    return [_without_tuples(entry) for entry in value] if isinstance(value, (list, tuple)) else value


@cache
def _adapter() -> TypeAdapter[Record]:
    """Build the validator of records on first use, since that takes time."""
    return TypeAdapter(Record)
