"""Measure an export on the test images of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from blockwise.data import BlockwiseDataModule
from blockwise.data.samples import Sample, samples_in
from blockwise.errors import InputError
from blockwise.exports.base import as_words, check_words, config_of
from blockwise.exports.folder import Exported, read_export
from blockwise.exports.use.load import Network, classified, load_network
from blockwise.io.names import some
from blockwise.recipe.metrics import compute_metrics
from blockwise.results.record import Metrics, Record
from blockwise.study.prepare import make_data
from blockwise.study.settings import describe_splits


@dataclass(frozen=True)
class Evaluation:
    """The metrics of an export.

    Attributes:
        exported: The export.
        metrics: Its metrics on the test images.
        images: Number of test images.
        skipped: How many others cannot be read.
        same_images: Whether they are those that the cell was tested on; else its record cannot be compared.
    """

    exported: Exported
    metrics: Metrics
    images: int
    skipped: int
    same_images: bool


def evaluate(folder: str | Path, overrides: Sequence[str] = (), *, images: str | Path | None = None) -> Evaluation:
    """Return the metrics of an export on the test images.

    The export computes in float32. If the cell was tested in 16 bits, a few images in a hundred may differ.

    Args:
        folder: An export folder.
        overrides: Settings of the data on top of those of the command that trained the cell, such as
            `data.root=<path>`; for a delta, of the model as well.
        images: Measure all images in this folder, which has one folder per class, instead.

    Raises:
        InputError: The folder is not an export, the data cannot be read or has other classes, a setting does nothing.
    """
    exported = read_export(folder)
    overrides = as_words(overrides)
    groups = ("data", "seed", "model") if exported.format == "delta" else ("data", "seed")
    check_words("evaluate", overrides, groups, "settings of the data, such as data.root=<path>")
    if images is None:
        # images are read one after another: any number of images per batch will do
        cfg: Any = config_of(exported.record, [*overrides, "data.batch_size=2"], with_data=True)
        module = _own_data(cfg, exported)
        samples: Sequence[Sample] = module.splits.test
    else:
        samples = _labelled(Path(images).expanduser(), exported)
    network = load_network(exported, overrides)
    metrics, count = _measure(network, samples, exported)
    same = images is None and _same_split(exported.record, cfg, module, count)
    return Evaluation(exported, metrics, count, len(samples) - count, same)


def _own_data(cfg: Any, exported: Exported) -> BlockwiseDataModule:
    """Return the data of a config, if it has the classes of an export."""
    module = make_data(cfg, exported.images).module
    if not isinstance(module, BlockwiseDataModule):
        raise InputError("evaluate needs data that blockwise reads itself, not a LightningDataModule")
    if module.splits.classes != exported.classes:
        raise InputError(
            f"{cfg.data.name} has other classes ({', '.join(module.splits.classes[:3])}, ...) than {exported.folder} "
            f"({', '.join(exported.classes[:3])}, ...): choose its data with data=... data.root=..."
        )
    return module


def _labelled(folder: Path, exported: Exported) -> list[Sample]:
    """Return the images in a folder with one folder per class, labelled as an export numbers its classes."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: it must contain one folder of images per class")
    samples, names = samples_in(folder)
    if not samples:
        raise InputError(f"{folder} contains no images: it must contain one folder of images per class")
    if unknown := sorted(set(names) - set(exported.classes)):
        raise InputError(
            f"{folder} has folders that are no classes of {exported.folder}: {some(unknown)}; its classes are "
            f"{some(exported.classes, 5)}"
        )
    return [replace(sample, label=exported.classes.index(names[sample.label])) for sample in samples]


def _measure(network: Network, samples: Sequence[Sample], exported: Exported) -> tuple[Metrics, int]:
    """Return metrics, and on how many images; those that cannot be read are left out."""
    logits, labels = [], []
    for batch, kept, own, _ in classified(network, samples, exported.images):
        if kept:
            logits.append(own)
            labels += [batch[index].label for index in kept]
    if not labels:
        raise InputError("none of the test images can be read")
    return compute_metrics(torch.cat(logits), torch.tensor(labels)), len(labels)


def _same_split(record: Record, cfg: Any, module: BlockwiseDataModule, tested: int) -> bool:
    """Return whether the images and what splits them are those of a cell, as far as its record tells."""
    of_cell: Any = record.settings["data"]
    splits = module.splits
    seed = cfg.seed if cfg.data.split_seed is None else cfg.data.split_seed
    trained = (len(splits.train), len(splits.train if module.folds else splits.val))
    return (
        splits.fingerprint == of_cell.get("fingerprint")
        and of_cell.get("splits") in (None, describe_splits(splits))
        and seed == of_cell.get("split_seed", record.seed)
        and tested == record.data.test
        and (bool(record.data.skipped) or trained == (record.data.train, record.data.val))
    )
