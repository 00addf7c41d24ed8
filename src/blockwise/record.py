"""What is kept of a finished cell (schema 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from blockwise.backbones import Backbone
from blockwise.cells import Cell, CellNetwork, Progress
from blockwise.module import BlockwiseModule
from blockwise.partition import Partition
from blockwise.provenance import peak_memory_bytes, provenance
from blockwise.results import SCHEMA, Record, ResultStore


@dataclass(frozen=True)
class Recorder:
    """Makes the records of a module's cells.

    Attributes:
        backbone: What is trained.
        data: The record's entry on the data.
        classes: Their names.
        settings: Returns every setting that changes a cell's result.
    """

    backbone: Backbone
    data: dict[str, Any]
    classes: Sequence[str]
    settings: Callable[[Cell], dict[str, Any]]

    def records(self, module: BlockwiseModule) -> list[Record]:
        """Return the record of every cell as it is now; `status` is `running` as long as it is not finished."""
        shared = module.seconds - sum(progress.seconds for progress in module.progress)
        return [
            build_record(
                self.backbone,
                self.data,
                module.backbone.partition,
                cell,
                network,
                progress,
                self.settings(cell),
                progress.seconds + shared / len(module.cells),
            )
            for cell, network, progress in zip(module.cells, module.networks, module.progress, strict=True)
        ]

    def save(self, store: ResultStore, module: BlockwiseModule) -> list[Record]:
        """Write what has become of every cell, record, history, predictions and weights, and return the records."""
        records = self.records(module)
        for record, progress in zip(records, module.progress, strict=True):
            predictions = [(self.classes[label], self.classes[predicted]) for label, predicted in progress.predictions]
            store.save(record, progress.history, progress.best_state, predictions)
        return records


def build_record(
    backbone: Backbone,
    data: dict[str, Any],
    partition: Partition,
    cell: Cell,
    network: CellNetwork,
    progress: Progress,
    settings: dict[str, Any],
    seconds: float,
) -> Record:
    """Return the record of a cell; `seconds` is its own time and its share of what all cells needed."""
    best = progress.best if progress.status == "finished" else None
    return {
        "schema": SCHEMA,
        "status": progress.status,
        "backbone": {
            "name": backbone.name,
            "weights": backbone.weights,
            "parameters": sum(layer.num_parameters for layer in partition.layers),
        },
        "data": data,
        "partition": {"name": partition.name, "num_blocks": len(partition)},
        "cell": {
            "scope": cell.scope.name,
            "blocks": list(cell.scope.blocks),
            **_layer_range(partition, cell),
            "trainable_parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        },
        "seed": settings["seed"],
        "settings": settings,
        "metrics": {
            "train": best["train"] if best else None,
            "val": best["val"] if best else None,
            "test": progress.test if best else None,
        },
        "best_epoch": progress.best_epoch if best else None,
        "epochs": len(progress.history),
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        "provenance": provenance(),
    }


def _layer_range(partition: Partition, cell: Cell) -> dict[str, Any]:
    """Name the first and last layer that a cell trains, and the quarter of the network a single block lies in."""
    blocks = [partition.blocks[block] for block in cell.scope.blocks]
    if not blocks:
        return {"name": None, "first_layer": None, "last_layer": None, "layers": None, "quarter": None}
    first, last = min(block.first for block in blocks), max(block.last for block in blocks)
    names = partition.layers[first].name, partition.layers[last].name
    return {
        "name": " to ".join(names),
        "first_layer": names[0],
        "last_layer": names[1],
        "layers": [first, last],
        "quarter": partition.quarter(blocks[0].index) if len(blocks) == 1 else None,
    }
