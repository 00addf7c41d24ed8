"""Records of made-up grids with known answers."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from blockwise.results import METRICS, Record, ResultStore
from blockwise.results.predictions import to_bytes
from blockwise.results.record import MetricsEntry

BACKBONES = tuple(f"net{number:02}" for number in range(15))
Accuracy = Callable[[str, str, str, int], float]


def as_record(content: dict) -> Record:
    """Return the record with this content of `record.json`."""
    return Record.from_json(json.dumps(content))


def record(scope, accuracy, *, val=None, backbone="net00", data="flowers", seed=0, num_blocks=12, **changes) -> Record:
    """Return a record; `accuracy` is the test accuracy, and `changes` replace keys of the cell or the record."""
    block = int(scope) if scope.isdigit() else None
    blocks = list(range(num_blocks)) if scope == "full" else [] if block is None else [block]
    blocks = changes.pop("blocks", blocks)
    lr, finished = changes.pop("lr", 1e-3), changes.pop("finished", f"2026-01-01T00:00:0{seed}+00:00")
    values = {"train": 1.0, "val": accuracy if val is None else val, "test": accuracy}
    metrics = {
        split: {**dict.fromkeys(METRICS, 0.5), "top1": float(value), "top5": 1.0} for split, value in values.items()
    }
    trained = changes.get("status", "finished") == "finished"
    content = {
        "schema": 1,
        "status": "finished",
        "backbone": {"name": backbone, "weights": "imagenet", "parameters": 1_200_000},
        "data": {"name": data, "classes": 5, "image_size": 64, "train": 50, "val": 50, "test": 1000, "skipped": []},
        "partition": {"name": "segment", "num_blocks": num_blocks},
        "cell": {
            "scope": scope,
            "blocks": blocks,
            "name": None,
            "first_layer": "a" if blocks else None,
            "last_layer": "b" if blocks else None,
            "layers": [blocks[0], blocks[-1]] if blocks else None,
            "quarter": None if block is None else changes.pop("quarter", 4 * block // num_blocks + 1),
            "trainable_parameters": 5_000 + 100_000 * len(blocks),
        },
        "seed": seed,
        "settings": {
            "data": {"name": data},
            "model": {"name": backbone},
            "partition": {"name": "segment"},
            "scope": scope,
            "blocks": blocks,
            "lr": lr,
            "seed": seed,
        },
        "metrics": metrics if trained else dict.fromkeys(("train", "val", "test")),
        "best_epoch": 3 if trained else None,
        "epochs": 5,
        "seconds": 10.0 + len(blocks),
        "peak_memory_bytes": 10**9,
        "provenance": {
            "finished": finished,
            "commit": "0" * 40,
            "dirty": False,
            "versions": {"python": "3.12", "torch": "2.9"},
            "command": f"python train.py -m model={backbone} data={data} seed={seed}",
        },
        **changes,
    }
    return as_record(content)


def diverged(one: Record) -> Record:
    """Return the same record with the status `diverged`."""
    return replace(one, status="diverged", metrics=MetricsEntry(), best_epoch=None)


def grid(accuracy: Accuracy, *, backbones=BACKBONES, data=("flowers",), seeds=(0, 1, 2), num_blocks=12, noise=0.002):
    """Return all records of a grid: `accuracy(backbone, data set, scope, seed)` plus noise with a fixed seed."""
    random = np.random.default_rng(0)
    scopes = ("head", *map(str, range(num_blocks)), "full")
    return [
        record(
            scope,
            round(accuracy(backbone, name, scope, seed) + random.normal(0, noise), 3),
            backbone=backbone,
            data=name,
            seed=seed,
            num_blocks=num_blocks,
        )
        for name in data
        for backbone in backbones
        for scope in scopes
        for seed in seeds
    ]


def peaked(backbone: str, data: str, scope: str, seed: int) -> float:
    """An accuracy for which the claims are true: the best block differs by backbone, and quarter 4 beats baselines."""
    if scope in ("head", "full"):
        return 0.80 + 0.01 * ((7 * seed + len(scope)) % 3)  # baselines vary over seeds
    best = 6 + int(backbone[3:]) % 6
    return 0.92 - 0.005 * abs(int(scope) - best)


def lower(backbone: str, data: str, scope: str, seed: int) -> float:
    """Like `peaked`, but low enough for noise to stay below an accuracy of 1."""
    return peaked(backbone, data, scope, seed) - 0.4


def flat(backbone: str, data: str, scope: str, seed: int) -> float:
    """An accuracy for which the claims are false: `full` is best, block 0 is always the best block and varies most."""
    if scope in ("head", "full"):
        return {"head": 0.80, "full": 0.95}[scope]
    return 0.85 - 0.01 * int(scope) + 0.02 * (seed - 1)


def save(records, folder):
    """Write records to a results folder, with a history and predictions, as a run does."""
    store = ResultStore(folder)
    random = np.random.default_rng(0)
    names = ["daisy", "iris", "poppy", "rose & co", "tulip_2"]
    for one in records:
        top1 = one.score("val") if one.metrics.val else 0.0
        row = dict.fromkeys(METRICS, 0.5)
        history = [{s: {**row, "top1": top1 * epoch / 5} for s in ("train", "val")} for epoch in range(1, 6)]
        labels = np.arange(100) % 5
        predicted = np.where(random.random(100) < top1, labels, 0)
        likelihood = np.where(labels == predicted, -0.1, -2.0)
        kept = {"label": labels, "predicted": predicted, "confidence": np.full(100, 0.9), "log_likelihood": likelihood}
        store.save(one, history, {}, to_bytes({"val": kept, "test": kept}, names))
    return folder
