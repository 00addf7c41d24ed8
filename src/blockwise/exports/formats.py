"""Write a trained network: in timm's layout, as ONNX, as an exported PyTorch program, or what was trained alone."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from blockwise.backbone.load import Backbone
from blockwise.backbone.makers import maker_of
from blockwise.backbone.makers.base import ImageSpec
from blockwise.errors import InputError, first_line
from blockwise.exports.folder import CONFIG, FILES
from blockwise.exports.network import read_weights
from blockwise.results.record import Record


@dataclass(frozen=True)
class Trained:
    """A trained network, and what belongs to it.

    Attributes:
        record: The record of the cell.
        backbone: The network with its base weights.
        model: The `model` part of the config that makes it; None if it is not of timm or torchvision.
        network: The trained classifier.
        classes: Class names, in the order of the logits.
        images: Normalised images, shape (images, 3, size, size).
    """

    record: Record
    backbone: Backbone
    model: Mapping[str, Any] | None
    network: nn.Sequential
    classes: tuple[str, ...]
    images: Tensor


def write_timm(trained: Trained, folder: Path) -> None:
    """Write weights under timm's own names, and `config.json`, so that timm loads them.

    Raises:
        InputError: timm has no place for such a network.
    """
    network = timm_network(trained)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    (folder / FILES["timm"]).write_bytes(save(tensors))
    write_config(trained, folder, classifier=network.default_cfg.get("classifier"))  # type: ignore[union-attr, operator]


def timm_network(trained: Trained) -> nn.Module:
    """Return timm's own network with the trained weights.

    Raises:
        InputError: The network is not of timm, or its head is none that timm knows.
    """
    advice = "choose --format onnx or torch_export"
    if trained.model is None:
        raise InputError(f"{trained.backbone.name} is not in timm: {advice}")
    maker = maker_of(trained.model, trained.record.data.image_size)
    if trained.model["source"] != "timm":
        raise InputError(f"{trained.backbone.name} is of torchvision, and timm cannot load it: {advice}")
    head = trained.network[1]
    if not isinstance(head, nn.Linear):
        raise InputError(f"timm has no head as that of model.head={trained.backbone.head}: {advice}")
    network = maker.build({**maker.options, "num_classes": len(trained.classes)})
    state = dict(trained.network[0].state_dict())
    for name in maker.classifiers(network):
        for part in ("weight", "bias"):
            own = network.get_parameter(f"{name}.{part}")
            state[f"{name}.{part}"] = getattr(head, part).detach().reshape(own.shape)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"timm's {maker.described()[0]} does not take these weights ({first_line(error)}): {advice}"
        ) from error
    return network.eval()


def write_onnx(trained: Trained, folder: Path) -> None:
    """Write an ONNX graph: input `images`, float32, shape (batch, 3, size, size), normalised; output `logits`.

    Raises:
        InputError: The packages are missing, or the network cannot be exported.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise InputError(f"--format onnx needs {' and '.join(missing)}: pip install 'blockwise[onnx]'")

    def write(path: Path) -> None:
        torch.onnx.export(
            trained.network,
            (trained.images[:2],),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
        )

    _quietly("onnx", write, folder / FILES["onnx"])
    write_config(trained, folder)


def write_torch_export(trained: Trained, folder: Path) -> None:
    """Write an exported program: images, float32, shape (batch, 3, size, size), normalised, to logits.

    Raises:
        InputError: The network cannot be exported.
    """

    def write(path: Path) -> None:
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        torch.export.save(torch.export.export(trained.network, (trained.images[:2],), dynamic_shapes=shapes), path)

    _quietly("torch_export", write, folder / FILES["torch_export"])
    write_config(trained, folder)


def write_delta(trained: Trained, folder: Path) -> None:
    """Write what was trained alone; name and checksum of the base weights are in the record."""
    (folder / FILES["delta"]).write_bytes(save(read_weights(trained.record)))
    write_config(trained, folder)


WRITERS: Mapping[str, Callable[[Trained, Path], None]] = {
    "timm": write_timm,
    "onnx": write_onnx,
    "torch_export": write_torch_export,
    "delta": write_delta,
}


def write_config(trained: Trained, folder: Path, classifier: Any = None) -> None:
    """Write `config.json` as timm reads it: architecture, classes and preprocessing."""
    images = trained.backbone.images
    described: tuple[str, dict[str, Any]] = trained.backbone.name, {}
    if trained.model is not None:
        described = maker_of(trained.model, trained.record.data.image_size).described()
    architecture, arguments = described
    config = {
        "architecture": architecture,
        "num_classes": len(trained.classes),
        "num_features": next(trained.network[1].parameters()).shape[1],
        "label_names": list(trained.classes),
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "blockwise",
            "custom_load": False,
            "input_size": [3, images.size, images.size],
            "fixed_input_size": "img_size" in arguments,
            "interpolation": images.interpolation,
            "crop_pct": crop_pct(images),
            "crop_mode": "center",
            "mean": list(images.mean),
            "std": list(images.std),
            "num_classes": len(trained.classes),
            **({"classifier": classifier} if classifier else {}),
        },
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def crop_pct(images: ImageSpec) -> float:
    """Return the share of the resized image that is cut out; timm, which rounds down, must resize to the same size."""
    same = math.floor(images.size / images.crop_pct) == images.resized
    return images.crop_pct if same else images.size / (images.resized + 0.25)


def _quietly(kind: str, write: Callable[[Path], None], path: Path) -> None:
    """Write a file without the exporter's own messages.

    Raises:
        InputError: The exporter fails.
    """
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            write(path)
    except Exception as error:  # exporters raise whatever they like
        raise InputError(f"--format {kind}: this network cannot be exported ({first_line(error)})") from error
