"""Export a trained cell: write it in a format, verify what was written, and describe it in a model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # pandas is optional
    import pandas as pd

import torch
from omegaconf import DictConfig
from torch import Tensor

from blockwise.backbone.load import Backbone
from blockwise.backbone.makers.base import ImageSpec
from blockwise.config.compose import plain
from blockwise.data import BlockwiseDataModule
from blockwise.errors import InputError
from blockwise.exports.base import as_words, base_of, check_words, config_of
from blockwise.exports.card import card, metadata
from blockwise.exports.choose import as_record
from blockwise.exports.folder import RECORD, check_free, replacing_export, write_card
from blockwise.exports.formats import WRITERS, Trained
from blockwise.exports.images import read_samples
from blockwise.exports.network import class_names, trained_network
from blockwise.exports.verify import PROGRAMS, verify, verify_delta
from blockwise.results.record import Record
from blockwise.study.prepare import make_data

# images on which an export is compared with the trained network
IMAGES = 8


@dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        folder: The folder.
        record: The record of the cell.
        difference: The largest difference of logits, relative to the largest logit; None for a delta, which is no
            network of its own.
        photographs: Whether it was measured on test images of the data set; else on noise.
    """

    folder: Path
    record: Record
    difference: float | None
    photographs: bool


def export(
    record: Record | pd.Series | str | Path,
    folder: str | Path,
    *,
    format: str = "timm",  # noqa: A002 (the name of the option)
    overrides: Sequence[str] = (),
    backbone: Backbone | None = None,
) -> Export:
    """Write a trained cell to a folder.

    Args:
        record: The record of the cell, its row of `read_records`, or its folder.
        folder: The folder; it must be empty, or hold an earlier export.
        format: `timm` (safetensors under timm's own names), `onnx`, `torch_export`, or `delta` (what was trained).
        overrides: Settings on top of those of the command that trained the cell, such as `model.checkpoint=<path>` or
            `data.root=<path>`, if files have moved.
        backbone: The network with its base weights; None loads it.

    Raises:
        InputError: The base weights are missing or others, the format does not fit, or the folder is in use.
    """
    if format not in WRITERS:
        raise InputError(f"--format {format} is unknown: choose {', '.join(WRITERS)}")
    record = as_record(record)
    if record.status != "finished":
        raise InputError(f"{record.folder} has the status {record.status}: only finished cells can be exported")
    path = Path(folder).expanduser()
    check_free(path)
    overrides = as_words(overrides)
    check_words(
        "export", overrides, ("data", "model"), "model.checkpoint=<path> and data.root=<path>, if files have moved"
    )
    cfg = _config(record, overrides, backbone)
    backbone = backbone or base_of(record, cfg)
    found = None if cfg is None else _test_images(record, backbone.images, cfg)
    images = _noise(backbone.images) if found is None else found
    model, network = None if cfg is None else plain(cfg)["model"], trained_network(backbone, record)
    trained = Trained(record, backbone, model, network, class_names(record), images)
    with replacing_export(path) as new:
        difference = _write(trained, format, new, photographs=found is not None)
    return Export(path, record, difference, found is not None)


def _write(trained: Trained, kind: str, folder: Path, *, photographs: bool) -> float | None:
    """Write all files of an export to an empty folder, and return the largest difference of logits.

    Raises:
        InputError: The network cannot be written in this format, or is another one when it is loaded again.
    """
    record, network, images = trained.record, trained.network, trained.images
    WRITERS[kind](trained, folder)
    if kind == "delta":
        verify_delta(folder, trained)
    difference = verify(folder, kind, network, images) if kind in PROGRAMS else None
    (folder / RECORD).write_text(json.dumps(record.to_json(), indent=2) + "\n", encoding="utf-8")
    total = sum(parameter.numel() for parameter in network.parameters())
    text = card(
        record, kind, trained.classes, trained.backbone.images, difference, total=total, photographs=photographs
    )
    write_card(folder, text, kind, metadata(record, kind))
    return difference


def _config(record: Record, overrides: Sequence[str], backbone: Backbone | None) -> DictConfig | None:
    """Return the config that trained a cell; None for a given network that is not in a library under its name.

    Raises:
        InputError: It cannot be composed, and the network is not given.
    """
    if record.backbone.weights == "own":
        if backbone is None:
            raise InputError(f"{record.backbone.name} is a network of your own: export it with backbone=")
        return None
    try:
        return config_of(record, overrides)
    except InputError:
        if backbone is None or overrides:
            raise
        return None


def _noise(spec: ImageSpec) -> Tensor:
    return torch.randn(IMAGES, 3, spec.size, spec.size, generator=torch.Generator().manual_seed(0))


def _test_images(record: Record, spec: ImageSpec, cfg: Any) -> Tensor | None:
    """Return the first test images of the data set, normalised; None if they cannot be read here."""
    if cfg.data.name != record.data.name:
        return None
    try:
        module = make_data(cfg, spec).module
        if not isinstance(module, BlockwiseDataModule):
            return None
        samples = module.splits.test[:IMAGES]
        images, broken = read_samples(samples, spec)
    except InputError:
        return None
    kept = [index for index in range(len(samples)) if index not in broken]
    return images[kept] if kept else None
