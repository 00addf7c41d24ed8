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

network = timm.create_model("local-dir:.", pretrained=True).eval()  # in this folder; or "hf-hub:<name>" from the hub
with torch.no_grad():
    logits = network(torch.from_numpy(prepare("photograph.jpg"))[None])
print(network.pretrained_cfg["label_names"][int(logits.argmax())])
""",
    "onnx": """
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(["logits"], {"images": prepare("photograph.jpg")[None]})  # any number of images at once
""",
    "torch_export": """
import torch

network = torch.export.load("model.pt2").module()
logits = network(torch.from_numpy(prepare("photograph.jpg"))[None])  # any number of images at once
""",
    "delta": """
from blockwise import fine_tuned, load_backbone

backbone = load_backbone(...)  # the base weights below
network = fine_tuned(backbone, "path/to/this/folder")  # maps images to logits
""",
}
VERIFIED = (
    "\n\nAfter writing, `{file}` was loaded in a process without blockwise: its logits on {images} differ from those "
    "of the trained network by at most {difference:.1g} of the largest."
)
LIBRARIES = {"timm": "timm", "onnx": "onnx", "torch_export": "pytorch", "delta": "blockwise"}
# what trains in the blocks of a scope, by the beginning of its name
PARTS = {"norms": "The weights and biases of the norms", "bias": "The biases", "lora": "Low-rank updates"}
SPLITS = {"train": "training", "val": "validation", "test": "test"}


def metadata(record: Record, kind: str) -> dict[str, Any]:
    """Return the metadata of the card, as the Hugging Face hub reads them."""
    assert record.metrics.test is not None
    return {
        "tags": list(dict.fromkeys(["image-classification", LIBRARIES[kind], "blockwise"])),
        "library_name": LIBRARIES[kind],
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
    record: Record,
    kind: str,
    classes: Sequence[str],
    images: ImageSpec,
    difference: float | None,
    *,
    total: int,
    photographs: bool,
) -> str:
    """Return the text of the card.

    Args:
        record: The record of the cell.
        kind: The format of the export.
        classes: Class names.
        images: Size and preprocessing of the images.
        difference: The largest difference of logits that was measured after writing, relative to the largest logit.
        total: Number of parameters of the network.
        photographs: Whether the difference was measured on test images; else on noise.
    """
    cell, base = record.cell, record.backbone
    shared = {key: value for key, value in record.settings.items() if key not in PER_CELL}
    measured_on = "test images" if photographs else "noise, since the data set was not there,"
    return (
        (files("blockwise.exports") / "card.md")
        .read_text(encoding="utf-8")
        .format(
            base=base.name,
            data=record.data.name,
            trained=_trained(record, total),
            weights=base.weights,
            trainable=f"{cell.trainable_parameters:,}",
            total=f"{total:,}",
            rows="\n".join(_row(record, split) for split in SPLITS),
            folds=_folds(record),
            interval=_interval(record),
            precision=_precision(record),
            lr=record.lr,
            load=LOAD[kind],
            resized=images.resized,
            interpolation=images.interpolation.upper(),
            first=(first := (images.resized - images.size) // 2),
            last=first + images.size,
            mean=list(images.mean),
            std=list(images.std),
            verified=""
            if difference is None
            else VERIFIED.format(file=FILES[kind], difference=difference, images=measured_on),
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


def _trained(record: Record, total: int) -> str:
    """Return a sentence on what was trained."""
    cell, base = record.cell, record.backbone
    head = f"new head for {record.data.classes} classes"
    own = "initial" if base.weights == "random" else "pretrained"
    rest = f"everything else of {base.name} has its {own} weights ({base.weights})."
    if not cell.blocks:
        return f"A {head} was trained with blockwise; {rest}"
    part = next((text for name, text in PARTS.items() if cell.scope.startswith(name)), None)
    everything = part is None and cell.trainable_parameters >= total
    what = f"{part} of" if part else "All of" if everything else "Of"
    if len(cell.blocks) == record.partition.num_blocks:
        where = f"{base.name}"
    else:
        numbers = ", ".join(map(str, cell.blocks))
        where = f"{'blocks' if len(cell.blocks) > 1 else 'block'} {numbers} ({cell.first_layer} to {cell.last_layer})"
    what = f"{what} {where}" if part or everything else where[0].upper() + where[1:]
    return f"{what} and a {head} were trained with blockwise" + ("." if everything else f"; {rest}")


def _folds(record: Record) -> str:
    """Return a sentence if the images that trained and those that validated are the same."""
    if not (folds := record.settings["data"].get("folds")):
        return ""
    return (
        f"The same images trained and validated, in {folds} folds: the validation metrics are those of networks that "
        "had not trained on an image. This network has trained on all of them. "
    )


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
