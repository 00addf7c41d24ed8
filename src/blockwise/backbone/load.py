"""Load a pretrained network by name, without its classifier, and describe its input images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from blockwise.backbone.makers import maker_of
from blockwise.backbone.makers.base import ImageSpec as ImageSpec
from blockwise.backbone.makers.base import Maker, kind_and_line
from blockwise.backbone.makers.weights import load_checkpoint, package_file
from blockwise.errors import InputError
from blockwise.io.origins import short_name

HeadKind = Literal["linear", "mlp", "own"]


@dataclass
class Backbone:
    """A pretrained network that maps images to feature vectors.

    Attributes:
        name: Name in commands and records, such as `vgg16`.
        network: The network without its classifier.
        weights: Origin of the weights: a tag, `random`, or the file name and hash of a checkpoint.
        images: Size and preprocessing of its input images.
        settings: What else the settings of a record say of it: `options` if there are any, the `architecture` that a
            `config.json` names, and the `head` unless it is linear.
        head: Kind of the new head: `linear`, `mlp` or `own`.
    """

    name: str
    network: nn.Module
    weights: str
    images: ImageSpec
    settings: Mapping[str, Any] = field(default_factory=dict)
    head: HeadKind = "linear"

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of all weights and buffers with their names, in hexadecimal digits; computed on first use."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            # channels last or not, on a GPU or not: the same weights have the same checksum
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(values.tobytes())
        return found.hexdigest()


def load_backbone(
    model: Mapping[str, Any], *, image_size: int | None = None, seed: int = 0, download: bool = True
) -> Backbone:
    """Load the backbone of a `model` config.

    Args:
        model: Keys as in `conf/model/`.
        image_size: Side of the images in pixels; None uses the model's default.
        seed: Seed of random weights (`model.pretrained=false`).
        download: False keeps random weights instead of those that a library would have to download.

    Raises:
        InputError: The architecture is unknown, its weights cannot be loaded, or a checkpoint does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _load(model, image_size, download=download)


def needs_download(model: Mapping[str, Any], image_size: int | None = None) -> bool:
    """Return whether the weights of a `model` config are not on this machine yet.

    Raises:
        InputError: The architecture is unknown.
    """
    local = model.get("checkpoint") is not None or model.get("package")
    return bool(model["pretrained"]) and not local and maker_of(model, image_size).cached() is None


def image_spec(model: Mapping[str, Any], image_size: int | None = None) -> ImageSpec:
    """Return the size and preprocessing of the input images of a `model` config; the network is not made.

    Raises:
        InputError: The architecture is unknown, or does not take the model's options.
    """
    maker = maker_of(model, image_size)
    maker.check_options()
    return _images(maker)


def _images(maker: Maker) -> ImageSpec:
    images = maker.images()
    return replace(images, size=maker.image_size or images.size)


def _load(model: Mapping[str, Any], image_size: int | None, *, download: bool) -> Backbone:
    maker = maker_of(model, image_size)
    maker.check_options()
    checkpoint, package = model.get("checkpoint"), model.get("package")
    local = Path(checkpoint).expanduser() if checkpoint is not None else None
    if local is None and model["pretrained"] and package:
        local = package_file(package)
    pretrained = bool(model["pretrained"]) and local is None and (download or maker.cached() is not None)
    network = maker.make(pretrained=pretrained)
    weights = maker.weights() if model["pretrained"] and local is None else "random"
    if local is not None:
        mapped = load_checkpoint(network, local, maker.classifiers(network))
        place = f"checkpoint {local.name}" if checkpoint is not None else f"package {package}"
        weights = f"{place} sha256:{hashlib.sha256(local.read_bytes()).hexdigest()[:12]}"
        weights += ", names mapped by order" if mapped else ""
    network = maker.without_classifier(network).eval().requires_grad_(requires_grad=False)
    head: HeadKind = model.get("head") or "linear"
    settings = {**maker.settings(), **({} if head == "linear" else {"head": head})}
    return Backbone(short_name(model["name"]), network, weights, _images(maker), settings, head)


def classifier_names(model: Mapping[str, Any], image_size: int | None = None) -> tuple[str, ...]:
    """Return the paths of the layers that a new head replaces.

    Raises:
        InputError: The architecture is unknown.
    """
    maker = maker_of(model, image_size)
    try:
        with torch.device("meta"):
            return maker.classifiers(maker.make(pretrained=False))
    except InputError:  # some networks compute with their weights while they are made
        return maker.classifiers(maker.make(pretrained=False))


def describe_backbone(model: Mapping[str, Any], image_size: int | None = None) -> tuple[nn.Module, torch.Tensor]:
    """Return a network and an example image for inspection, on the `meta` device if possible.

    Nothing is downloaded. On the `meta` device, nothing is computed either.

    Raises:
        InputError: The architecture is unknown, or cannot process images of this size.
    """
    maker = maker_of(model, image_size)
    maker.check_options()
    size = image_size or maker.images().size
    for device in ("meta", "cpu"):
        try:
            with torch.device(device):
                network = maker.without_classifier(maker.make(pretrained=False)).eval()
                example = torch.zeros(1, 3, size, size)
                with torch.no_grad():
                    network(example)
        except Exception as error:  # some networks compute with their weights while they are made
            if device == "cpu":
                if isinstance(error, InputError):
                    raise
                raise InputError(
                    f"data.image_size={size} does not fit {model['name']} ({kind_and_line(error)}): "
                    "choose another size, or null for the model's default"
                ) from error
        else:
            break
    return network, example
