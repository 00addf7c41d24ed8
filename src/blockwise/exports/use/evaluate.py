"""Measure an export on the test images of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blockwise.data import BlockwiseDataModule
from blockwise.data.samples import Splits
from blockwise.errors import InputError
from blockwise.exports.base import as_words, config_of
from blockwise.exports.folder import Exported, read_export
from blockwise.exports.use.load import load_network
from blockwise.recipe.metrics import compute_metrics
from blockwise.results.record import Metrics, Record
from blockwise.study.prepare import make_data

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Evaluation:
    """The metrics of an export.

    Attributes:
        exported: The export.
        metrics: Its metrics on the test images.
        images: Number of test images.
        same_images: Whether they are those that the cell was tested on; else its record cannot be compared.
    """

    exported: Exported
    metrics: Metrics
    images: int
    same_images: bool


def evaluate(folder: str | Path, overrides: Sequence[str] = ()) -> Evaluation:
    """Return the metrics of an export on the test images.

    The export computes in float32. If the cell was tested in 16 bits, a few images in a hundred may differ.

    Args:
        folder: An export folder.
        overrides: Settings of the data on top of those of the command that trained the cell, such as
            `data.root=<path>`; for a delta, of the model as well.

    Raises:
        InputError: The folder is no export, the data cannot be read, it has other classes, or a setting has no effect.
    """
    exported = read_export(folder)
    overrides = as_words(overrides)
    _check_overrides(overrides, exported.format)
    cfg: Any = config_of(exported.record, overrides)
    module = make_data(cfg, exported.images).module
    if not isinstance(module, BlockwiseDataModule):
        raise InputError("evaluate needs data that blockwise reads itself, not a LightningDataModule")
    if module.splits.classes != exported.classes:
        raise InputError(
            f"{cfg.data.name} has other classes ({', '.join(module.splits.classes[:3])}, ...) than {exported.folder} "
            f"({', '.join(exported.classes[:3])}, ...): choose its data with data=... data.root=..."
        )
    network = load_network(exported, overrides)
    module.decode()
    logits, labels = [], []
    with torch.no_grad():
        for batch in module.test_dataloader():
            images, own, *_ = module.on_after_batch_transfer(batch, 0)
            logits.append(network(images))
            labels.append(own)
    metrics = compute_metrics(torch.cat(logits), torch.cat(labels))
    return Evaluation(exported, metrics, sum(map(len, labels)), _same_split(exported.record, cfg, module.splits))


def _same_split(record: Record, cfg: Any, splits: Splits) -> bool:
    """Return whether the images and what splits them are those of a cell."""
    of_cell: Any = record.settings["data"]
    seed = cfg.seed if cfg.data.split_seed is None else cfg.data.split_seed
    same = splits.fingerprint == of_cell.get("fingerprint") and seed == of_cell.get("split_seed", record.seed)
    return same and all(cfg.data[f"{split}_per_class"] == of_cell.get(f"{split}_per_class") for split in SPLITS)


def _check_overrides(overrides: Sequence[str], kind: str) -> None:
    groups = ("data", "seed", "model") if kind == "delta" else ("data", "seed")
    for word in overrides:
        key = word.partition("=")[0].lstrip("+")
        if key.partition(".")[0] not in groups or key == "data.image_size":
            raise InputError(f"evaluate {word} has no effect: it takes settings of the data, such as data.root=<path>")
