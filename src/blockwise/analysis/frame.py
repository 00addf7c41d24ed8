"""Records -> a pandas table, one line a cell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # not everyone has installed it
    import pandas as pd

from blockwise.results.record import METRICS, SPLITS, Record
from blockwise.results.store import sweep_hash


def records_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return one line a record.

    Columns: `data`, `backbone`, `weights`, `parameters`, `partition`, `num_blocks`, `scope`, `block` (if single),
    `quarter`, `depth` (the middle of a single block: 0 touches the pixels, 1 is next to the head), `trainable`, `lr`,
    `seed`, `status`, `best_epoch`, `epochs`, `seconds`, `peak_memory_bytes`, `train_top1` to `test_loss` (fractions),
    `sweep` (equal for cells that may be compared) and `folder`.
    """
    import pandas as pd

    return pd.DataFrame([{**identity(record), **_outcome(record)} for record in records]).convert_dtypes()


def depth(block: int, num_blocks: int) -> float:
    """Return where the middle of a block lies: near 0 at the pixels, near 1 at the head."""
    return (block + 0.5) / num_blocks


def identity(record: Record) -> dict[str, Any]:
    """Return what a cell is, under the names of the table's columns."""
    backbone, cell, partition = record.backbone, record.cell, record.partition
    block = record.block
    return {
        "data": record.data.name,
        "backbone": backbone.name,
        "weights": backbone.weights,
        "parameters": backbone.parameters,
        "partition": partition.name,
        "num_blocks": partition.num_blocks,
        "scope": cell.scope,
        "block": block,
        "quarter": cell.quarter,
        "depth": None if block is None else depth(block, partition.num_blocks),
        "trainable": cell.trainable_parameters,
        "lr": record.settings.get("lr"),
        "seed": record.seed,
    }


def _outcome(record: Record) -> dict[str, Any]:
    metrics = {
        f"{split}_{name}": (getattr(record.metrics, split) or {}).get(name) for split in SPLITS for name in METRICS
    }
    return {
        "status": record.status,
        **{key: getattr(record, key) for key in ("best_epoch", "epochs", "seconds", "peak_memory_bytes")},
        **metrics,
        "sweep": sweep_hash(record.settings),
        "folder": record.folder,
    }
