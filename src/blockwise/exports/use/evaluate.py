"""Measure an export on the test images of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from blockwise.data import BlockwiseDataModule
from blockwise.errors import InputError
from blockwise.exports.base import config_of
from blockwise.exports.folder import Exported, read_export
from blockwise.exports.use.load import load_network
from blockwise.recipe.metrics import compute_metrics
from blockwise.results.record import Metrics
from blockwise.study.prepare import make_data


def evaluate(folder: str | Path, overrides: Sequence[str] = ()) -> tuple[Exported, Metrics, int]:
    """Return the metrics of an export on the test images, and their number.

    The export computes in float32. If the cell was tested in 16 bits, a few images in a hundred may differ.

    Args:
        folder: An export folder.
        overrides: Settings on top of those of the command that trained the cell, such as `data.root=<path>`.

    Raises:
        InputError: The folder is no export, the data cannot be read, or it has other classes.
    """
    exported = read_export(folder)
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
    return exported, compute_metrics(torch.cat(logits), torch.cat(labels)), sum(map(len, labels))
