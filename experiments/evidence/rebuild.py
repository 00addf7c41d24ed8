"""Write records for the sweeps in `results/`, so that every tool of blockwise can read them.

    python -m experiments.evidence.rebuild <folder>
    blockwise claims <folder>
    blockwise report <folder>

The records have the scopes, rates, accuracies, seconds and histories that were measured, and whether each image was
classified correctly. True classes are not kept in `results/`, so tables of classes say nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import hydra
import numpy as np
from experiments.evidence.arrays import TRAIN_LOSS, TRAIN_TOP1, VAL_LOSS, VAL_TOP1, Cells, read_evidence
from experiments.evidence.sweeps import model_overrides
from torch import nn

from blockwise.backbone.layers import record_layers
from blockwise.backbone.load import describe_backbone
from blockwise.backbone.partition import Partition, partition_network
from blockwise.backbone.stages import pooled
from blockwise.config.compose import compose_config
from blockwise.results.predictions import to_bytes
from blockwise.results.record import METRICS, Record
from blockwise.results.store import ResultStore
from blockwise.training.scopes import parse_scopes
from blockwise.training.trainable import num_trainable

CLASSES = {"digits": 10, "flowers5": 5, "flowers36": 36, "caltech101": 101}


def main() -> None:
    """Write the records of the sweeps."""
    store = ResultStore(sys.argv[1])
    for cells in read_evidence():
        for cell in range(len(cells.scope)):
            write(store, cells, cell)


def write(store: ResultStore, cells: Cells, cell: int) -> None:
    """Write the record of one cell."""
    content = record(cells, cell)
    history = [
        {
            "train": metrics(float(row[TRAIN_TOP1]), float(row[TRAIN_LOSS])),
            "val": metrics(float(row[VAL_TOP1]), float(row[VAL_LOSS])),
        }
        for row in cells.history[cell]
    ]
    splits = {
        "val": predictions(cells.correct[cell], cells.likelihood[cell]),
        "test": predictions(cells.test_correct[cell], np.zeros(cells.test_correct.shape[1])),
    }
    store.save(content, history, {}, to_bytes(splits, ["right", "wrong"]))


def record(cells: Cells, cell: int) -> Record:
    """Return the content of a record."""
    name, classes = cells.data, CLASSES[cells.data.partition("-")[0]]
    partition, network, width = network_of(cells.model)
    (scope,) = parse_scopes(str(cells.scope[cell]), len(partition), cells.model)
    layers = [
        index for block in scope.blocks for index in (partition.blocks[block].first, partition.blocks[block].last)
    ]
    best = cells.history[cell, int(cells.best_epoch[cell])]
    settings = {
        "model": {"name": cells.model},
        "data": {"name": name},
        "partition": {"name": partition.name},
        "scope": scope.name,
        "blocks": list(scope.blocks),
        "lr": float(cells.lr[cell]),
        "seed": cells.seed,
    }
    content = {
        "schema": 1,
        "status": "finished",
        "backbone": {"name": cells.model, "weights": "ImageNet", "parameters": None},
        "data": {
            "name": name, "classes": classes, "image_size": 64 if "digits" in name else 96,
            "train": cells.correct.shape[1], "val": cells.correct.shape[1], "test": cells.test_correct.shape[1],
            "skipped": [],
        },
        "partition": {"name": partition.name, "num_blocks": len(partition)},
        "cell": {
            "scope": scope.name,
            "blocks": list(scope.blocks),
            "first_layer": partition.layers[min(layers)].name if layers else None,
            "last_layer": partition.layers[max(layers)].name if layers else None,
            "layers": [min(layers), max(layers)] if layers else None,
            "quarter": partition.quarter(scope.blocks[0]) if len(scope.blocks) == 1 else None,
            "trainable_parameters": (width + 1) * classes + num_trainable(scope, partition, network),
        },
        "seed": cells.seed,
        "settings": settings,
        "metrics": {
            "train": metrics(float(best[TRAIN_TOP1]), float(best[TRAIN_LOSS])),
            "val": metrics(float(best[VAL_TOP1]), float(best[VAL_LOSS])),
            "test": metrics(float(cells.test[cell]), 0.0),
        },
        "best_epoch": int(cells.best_epoch[cell]),
        "epochs": cells.epochs,
        "seconds": float(cells.seconds[cell]),
        "peak_memory_bytes": None,
        "provenance": {"command": "python experiments/evidence/sweeps.py"},
    }  # fmt: skip
    return Record.from_json(json.dumps(content))


def metrics(top1: float, loss: float) -> dict[str, float]:
    """Return all metrics; those that were not kept are 0, or the accuracy where they cannot be less."""
    return {**dict.fromkeys(METRICS, 0.0), "top1": top1, "top5": max(top1, 0.0), "loss": loss}


def predictions(correct: np.ndarray, likelihood: np.ndarray) -> Mapping[str, Any]:
    """Return predictions of two classes: right and wrong."""
    return {
        "label": np.zeros(len(correct)),
        "predicted": ~correct,
        "confidence": np.full(len(correct), 0.5),
        "log_likelihood": likelihood,
    }


@cache
def network_of(model: str) -> tuple[Partition, nn.Module, int]:
    """Return a model's partition, its network without weights, and its number of features."""
    cfg = compose_config([*model_overrides(model), "data.image_size=96"])
    network, example = describe_backbone(cfg.model, 96)
    partition = partition_network(
        hydra.utils.instantiate(cfg.partition), record_layers(network, example), network, "linear"
    )
    return partition, network, pooled(network(example)).shape[1]


if __name__ == "__main__":
    main()
