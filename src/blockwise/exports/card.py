"""The model card of an export, written from the record."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import yaml

from blockwise.backbone.makers.base import ImageSpec
from blockwise.exports.base import other_precision
from blockwise.exports.folder import FILES
from blockwise.results.predictions import read_predictions
from blockwise.results.record import Record
from blockwise.results.store import PER_CELL

LOAD = {
    "timm": """
import timm
import torch
from PIL import Image

network = timm.create_model("local-dir:.", pretrained=True).eval()  # in this folder; or "hf-hub:<name>" from the hub
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
with torch.no_grad():
    logits = network(transform(Image.open("photograph.jpg").convert("RGB"))[None])
print(network.pretrained_cfg["label_names"][int(logits.argmax())])
""",
    "onnx": """
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(["logits"], {"images": images})  # float32, shape (batch, 3, size, size), normalised
""",
    "torch_export": """
import torch

network = torch.export.load("model.pt2").module()
logits = network(images)  # float32, shape (batch, 3, size, size), normalised
""",
    "delta": """
from blockwise import fine_tuned, load_backbone

backbone = load_backbone(...)  # the base weights below
network = fine_tuned(backbone, "path/to/this/folder")
""",
}
VERIFIED = (
    "\n\nAfter writing, `{file}` was loaded in a process without blockwise: its logits differ from those of the "
    "trained network by at most {difference:.1g} of the largest."
)
SPLITS = {"train": "training", "val": "validation", "test": "test"}


def metadata(record: Record) -> dict[str, Any]:
    """Return the metadata of the card, as the Hugging Face hub reads them."""
    assert record.metrics.test is not None
    return {
        "tags": ["image-classification", "timm", "blockwise"],
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "model-index": [
            {
                "name": f"{record.backbone.name}-{record.data.name}",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": record.data.name, "type": record.data.name, "split": "test"},
                        "metrics": [{"type": "accuracy", "value": round(record.score("test"), 6)}],
                    }
                ],
            }
        ],
    }


def card(
    record: Record, kind: str, classes: Sequence[str], images: ImageSpec, difference: float | None, total: int
) -> str:
    """Return the text of the card.

    Args:
        record: The record of the cell.
        kind: The format of the export.
        classes: Class names.
        images: Size and preprocessing of the images.
        difference: The largest difference of logits that was measured after writing, relative to the largest logit.
        total: Number of parameters of the network.
    """
    cell, base = record.cell, record.backbone
    shared = {key: value for key, value in record.settings.items() if key not in PER_CELL}
    return (
        (files("blockwise.exports") / "card.md")
        .read_text(encoding="utf-8")
        .format(
            base=base.name,
            data=record.data.name,
            trained_part=_part(record),
            num_classes=record.data.classes,
            weights=base.weights,
            trainable=f"{cell.trainable_parameters:,}",
            total=f"{total:,}",
            rows="\n".join(_row(record, split) for split in SPLITS),
            interval=_interval(record),
            precision=_precision(record),
            lr=record.lr,
            load=LOAD[kind],
            resized=round(images.size / images.crop_pct),
            interpolation=images.interpolation,
            size=images.size,
            mean=list(images.mean),
            std=list(images.std),
            verified="" if difference is None else VERIFIED.format(file=FILES[kind], difference=difference),
            classes=", ".join(classes),
            partition=record.partition.name,
            num_blocks=record.partition.num_blocks,
            scope=cell.scope,
            seed=record.seed,
            best_epoch=(record.best_epoch or 0) + 1,
            epochs=record.epochs,
            checksum=f", SHA-256 of the tensors `{base.checksum}`" if base.checksum else "",
            command=record.provenance.get("command"),
            settings=yaml.safe_dump(shared, sort_keys=False, allow_unicode=True).strip(),
        )
    )


def _part(record: Record) -> str:
    """Return what was trained besides the head, as the beginning of a sentence."""
    cell = record.cell
    if not cell.blocks:
        return "No block"
    return f"Scope `{cell.scope}` ({cell.first_layer} to {cell.last_layer})"


def _row(record: Record, split: str) -> str:
    metrics = getattr(record.metrics, split) or {}
    shown = (f"{100 * metrics[name]:.1f}" if name in metrics else "" for name in ("top1", "top5", "macro_f1"))
    loss = f"{metrics['loss']:.3f}" if "loss" in metrics else ""
    return f"| {SPLITS[split]} | {getattr(record.data, split):,} | {' | '.join(shown)} | {loss} |"


def _precision(record: Record) -> str:
    """Return a sentence if the metrics were not measured in float32, in which an export computes."""
    if (precision := other_precision(record)) is None:
        return ""
    return f" The metrics were measured in {precision}; in float32, as here, a few predictions may differ."


def _interval(record: Record) -> str:
    """Return the 95 % interval of the test accuracy (Wilson, 1927)."""
    from scipy.stats import binomtest

    kept = read_predictions(record, "test")
    if kept is None:
        return ""
    right, count = int(kept.correct.sum()), len(kept.correct)
    found = binomtest(right, count).proportion_ci(method="wilson")
    return f"The 95 % interval of the test accuracy is {100 * found.low:.1f} to {100 * found.high:.1f} %. "
