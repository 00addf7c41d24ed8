"""Export a trained cell: write it in a format, verify what was written, and describe it in a model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockwise.backbone.load import Backbone
from blockwise.backbone.makers.base import ImageSpec
from blockwise.config.compose import plain
from blockwise.data import BlockwiseDataModule
from blockwise.errors import InputError
from blockwise.exports.base import base_of, config_of
from blockwise.exports.card import card, metadata
from blockwise.exports.folder import CARD, CONFIG, FILES, RECORD, write_card
from blockwise.exports.formats import WRITERS, Trained
from blockwise.exports.images import read_samples
from blockwise.exports.network import trained_network
from blockwise.exports.verify import PROGRAMS, verify
from blockwise.results.predictions import read_predictions
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
    record: Record,
    folder: str | Path,
    *,
    format: str = "timm",  # noqa: A002 (the name of the option)
    overrides: Sequence[str] = (),
    backbone: Backbone | None = None,
) -> Export:
    """Write a trained cell to a folder.

    Args:
        record: The record of the cell.
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
    if record.status != "finished":
        raise InputError(f"{record.folder} has the status {record.status}: only finished cells can be exported")
    path = _folder(Path(folder).expanduser())
    backbone = backbone or base_of(record, overrides)
    network = trained_network(backbone, record)
    images = _test_images(record, backbone.images, overrides)
    photographs = images is not None
    if images is None:
        size = backbone.images.size
        images = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
    model = plain(config_of(record, overrides))["model"]
    trained = Trained(record, backbone, model, network, _classes(record), images)
    path.mkdir(parents=True, exist_ok=True)
    (path / CARD).unlink(missing_ok=True)  # until it is written again, the folder is no export
    WRITERS[format](trained, path)
    difference = verify(path, format, network, images) if format in PROGRAMS else None
    (path / RECORD).write_text(json.dumps(record.to_json(), indent=2) + "\n", encoding="utf-8")
    total = sum(parameter.numel() for parameter in network.parameters())
    text = card(record, format, trained.classes, backbone.images, difference, total)
    write_card(path, text, format, metadata(record))
    return Export(path, record, difference, photographs)


def _folder(path: Path) -> Path:
    """Return a folder to write to.

    Raises:
        InputError: It holds something else.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        known = {CARD, CONFIG, RECORD, *FILES.values()}
        if not path.is_dir() or not {entry.name for entry in path.iterdir()} <= known:
            raise InputError(f"{path} is in use: give a new folder, or that of an earlier export")
        for entry in path.iterdir():
            entry.unlink()
    return path


def _classes(record: Record) -> tuple[str, ...]:
    """Return the class names, which are kept with the predictions; numbers for records of earlier versions."""
    kept = read_predictions(record, "test")
    return kept.classes if kept is not None else tuple(map(str, range(record.data.classes)))


def _test_images(record: Record, spec: ImageSpec, overrides: Sequence[str]) -> Tensor | None:
    """Return the first test images of the data set, normalised; None if they cannot be read here."""
    try:
        cfg: Any = config_of(record, overrides)
        if cfg.data.name != record.data.name:
            return None
        module = make_data(cfg, spec).module
        if not isinstance(module, BlockwiseDataModule):
            return None
        samples = module.splits.test[:IMAGES]
        images, broken = read_samples(samples, spec)
    except InputError:
        return None
    kept = [index for index in range(len(samples)) if index not in broken]
    return images[kept] if kept else None
