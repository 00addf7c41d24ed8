"""Records as a pandas table, one row per cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # pandas is optional
    import pandas as pd

from blockwise.analysis.summary import sweeps
from blockwise.analysis.uncertainty import confidence
from blockwise.results.record import METRICS, SPLITS, Record
from blockwise.results.store import sweep_hash

UNKNOWN: dict[str, Any] = {"p_best": None, "may_be_best": None}


def records_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return a table with one row per record.

    Columns: `data`, `backbone`, `weights`, `parameters`, `partition`, `num_blocks`, `scope`, `policy`, `block` (for
    single blocks), `quarter`, `depth` (middle of a single block, from 0 at the pixels to 1 at the head), `trainable`,
    `lr`, `seed`, `status`, `best_epoch`, `epochs`, `seconds`, `peak_memory_bytes`, `train_top1` to `test_loss`
    (fractions), `sweep` (the same for all cells of a sweep) and `folder`. Single blocks at their best rate also have
    `p_best` (the probability that the block is the best of its sweep) and `may_be_best` (whether it is in the set that
    contains the best block with a probability of 90 %).
    """
    import pandas as pd

    records = list(records)
    sure = _confidence(records)
    lines = [{**identity(record), **_outcome(record), **sure.get(id(record), UNKNOWN)} for record in records]
    return pd.DataFrame(lines).convert_dtypes()


def _confidence(records: Sequence[Record]) -> dict[int, dict[str, Any]]:
    """Return `p_best` and `may_be_best` of single blocks at their best rate, by the identity of the record."""
    found = {}
    for sweep in sweeps(records):
        if (sure := confidence(sweep)) is not None:
            for row in sweep.single_blocks:
                values = {"p_best": sure.probability[row.scope], "may_be_best": row.scope in sure.scopes}
                found.update({id(record): values for record in row.records})
    return found


def depth(block: int, num_blocks: int) -> float:
    """Return the relative depth of the middle of a block, from 0 (pixels) to 1 (head)."""
    return (block + 0.5) / num_blocks


def identity(record: Record) -> dict[str, Any]:
    """Return the columns of the table that identify a cell."""
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
        "policy": record.policy,
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
