"""Make the records (schema 1) of cells in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L

from blockwise.backbone.load import Backbone
from blockwise.backbone.partition import Partition
from blockwise.fast.memory import peak_memory_bytes
from blockwise.results.predictions import to_bytes
from blockwise.results.provenance import provenance
from blockwise.results.record import (
    BackboneEntry,
    CellEntry,
    DataEntry,
    MetricsEntry,
    PartitionEntry,
    Record,
)
from blockwise.results.store import ResultStore
from blockwise.training.cells import Cell, CellNetwork, Progress, competitors
from blockwise.training.module import BlockwiseModule

# what a record says of a search besides its name and settings
OUTCOME = ("competitors", "cells", "pruned", "seconds")


@dataclass(frozen=True)
class Recorder:
    """Makes the records of a module's cells.

    Attributes:
        backbone: The fine-tuned network.
        data: Returns the data entry of the records, given the trainer.
        classes: Class names.
        settings: Returns all settings that change a cell's result.
        search: Name and settings of the search; None if all cells train to their end.
    """

    backbone: Backbone
    data: Callable[[L.Trainer], DataEntry]
    classes: Sequence[str]
    settings: Callable[[Cell], dict[str, Any]]
    search: dict[str, Any] | None = None

    def records(self, module: BlockwiseModule) -> list[Record]:
        """Return the record of every cell in its current state; `status` is `running` until a cell is finished."""
        data = self.data(module.trainer)
        shared = module.clock.seconds - sum(progress.seconds for progress in module.progress)
        return [
            self._record(
                module.backbone.partition,
                data,
                cell,
                network,
                progress,
                progress.seconds + shared / len(module.cells),
                {**provenance(), **self._searched(module, cell)},
            )
            for cell, network, progress in zip(module.cells, module.networks, module.progress, strict=True)
        ]

    def _searched(self, module: BlockwiseModule, cell: Cell) -> dict[str, Any]:
        """Return what was searched and what it cost; nothing if there was no search."""
        if self.search is None:
            return {}
        outcome = {
            "competitors": competitors(cell, module.cells),
            "cells": len(module.cells),
            "pruned": sum(progress.status == "pruned" for progress in module.progress),
            "seconds": round(module.clock.seconds, 3),
        }
        return {"search": {**self.search, **outcome}}

    def save(self, store: ResultStore, module: BlockwiseModule) -> list[Record]:
        """Write the record, history, predictions and weights of every cell, and return the records.

        A cell that a search has stopped keeps the record of an earlier run that trained it to its end.
        """
        saved = []
        for record, progress in zip(self.records(module), module.progress, strict=True):
            earlier = store.find(record.settings) if record.status == "pruned" else None
            if earlier is not None and earlier.status != "pruned":
                saved.append(earlier)
                continue
            kept = to_bytes(progress.predictions, self.classes) if record.status == "finished" else b""
            weights = {} if record.status == "pruned" else progress.best_state
            saved.append(store.save(record, progress.history, weights, kept))
        return saved

    def _record(
        self,
        partition: Partition,
        data: DataEntry,
        cell: Cell,
        network: CellNetwork,
        progress: Progress,
        seconds: float,
        origin: dict[str, Any],
    ) -> Record:
        """Return the record of a cell; `seconds` is its own time plus its share of the common time."""
        best = progress.best if progress.status == "finished" else None
        parameters = sum(layer.num_parameters for layer in partition.layers)
        settings = self.settings(cell)
        return Record(
            status=progress.status,
            backbone=BackboneEntry(
                name=self.backbone.name,
                weights=self.backbone.weights,
                parameters=parameters,
                checksum=self.backbone.checksum,
            ),
            data=data,
            partition=PartitionEntry(name=partition.name, num_blocks=len(partition)),
            cell=_cell_entry(partition, cell, network.num_trainable()),
            seed=settings["seed"],
            settings=settings,
            metrics=MetricsEntry(train=best["train"], val=best["val"], test=progress.test) if best else MetricsEntry(),
            best_epoch=progress.best_epoch if best else None,
            epochs=len(progress.history),
            seconds=round(seconds, 3),
            peak_memory_bytes=peak_memory_bytes(),
            provenance=origin,
        )


def _cell_entry(partition: Partition, cell: Cell, trainable_parameters: int) -> CellEntry:
    """Return the entry of a cell: its scope, its first and last trained layer, and the quarter of a single block."""
    scope = cell.scope
    blocks = [partition.blocks[block] for block in scope.blocks]
    common: dict[str, Any] = {
        "scope": scope.name,
        "blocks": scope.blocks,
        "trainable_parameters": trainable_parameters,
    }
    if not blocks:
        return CellEntry(**common, quarter=None)
    first, last = min(block.first for block in blocks), max(block.last for block in blocks)
    names = partition.layers[first].name, partition.layers[last].name
    return CellEntry(
        **common,
        name=" to ".join(names),
        first_layer=names[0],
        last_layer=names[1],
        layers=(first, last),
        quarter=partition.quarter(blocks[0].index) if len(blocks) == 1 and scope.part == "all" else None,
    )
