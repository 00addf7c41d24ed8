"""Load a pretrained network by name, without its classifier, and describe its input images."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from blockwise.backbone import hub
from blockwise.backbone.weights import load_checkpoint, package_file
from blockwise.errors import InputError, did_you_mean

AUXILIARY = ("AuxLogits", "aux1", "aux2")


@dataclass(frozen=True)
class ImageSpec:
    """Size and preprocessing of a backbone's input images.

    Attributes:
        size: Side of the square input in pixels.
        mean: Mean of each channel, for pixel values in 0..1.
        std: Standard deviation of each channel, for pixel values in 0..1.
        interpolation: `bilinear` or `bicubic`.
        crop_pct: Side of the centre crop as a fraction of the shorter side of the resized image.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float


@dataclass
class Backbone:
    """A pretrained network that maps images to feature vectors.

    Attributes:
        name: Name in commands and records, such as `vgg16`.
        network: The network without its classifier.
        weights: Origin of the weights: a tag, `random`, or the file name and hash of a checkpoint.
        images: Size and preprocessing of its input images.
    """

    name: str
    network: nn.Module
    weights: str
    images: ImageSpec


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
    return bool(model["pretrained"]) and not local and MAKERS[model["source"]](model, image_size).cached() is None


def image_spec(model: Mapping[str, Any], image_size: int | None = None) -> ImageSpec:
    """Return the size and preprocessing of the input images of a `model` config; the network is not made.

    Raises:
        InputError: The architecture is unknown.
    """
    images = MAKERS[model["source"]](model, image_size).images()
    return replace(images, size=image_size or images.size)


def _load(model: Mapping[str, Any], image_size: int | None, *, download: bool) -> Backbone:
    maker = MAKERS[model["source"]](model, image_size)
    checkpoint, package = model.get("checkpoint"), model.get("package")
    local = Path(checkpoint).expanduser() if checkpoint is not None else None
    if local is None and model["pretrained"] and package:
        local = package_file(package)
    pretrained = bool(model["pretrained"]) and local is None and (download or maker.cached() is not None)
    network = maker.make(pretrained=pretrained)
    weights = maker.tag if model["pretrained"] else "random"
    if local is not None:
        mapped = load_checkpoint(network, local, maker.classifiers(network))
        place = f"checkpoint {local.name}" if checkpoint is not None else f"package {package}"
        weights = f"{place} sha256:{hashlib.sha256(local.read_bytes()).hexdigest()[:12]}"
        weights += ", names mapped by order" if mapped else ""
    network = maker.without_classifier(network).eval().requires_grad_(requires_grad=False)
    return Backbone(model["name"], network, weights, image_spec(model, image_size))


def describe_backbone(model: Mapping[str, Any], image_size: int | None = None) -> tuple[nn.Module, torch.Tensor]:
    """Return a network and an example image for inspection, on the `meta` device if possible.

    Nothing is downloaded. On the `meta` device, nothing is computed either.

    Raises:
        InputError: The architecture is unknown, or cannot process images of this size.
    """
    maker = MAKERS[model["source"]](model, image_size)
    size = image_size or maker.images().size
    for device in ("meta", "cpu"):
        try:
            with torch.device(device):
                network = maker.without_classifier(maker.make(pretrained=False)).eval()
                example = torch.zeros(1, 3, size, size)
                with torch.no_grad():
                    network(example)
        except InputError:
            raise
        except Exception as error:
            if device == "cpu":
                raise InputError(
                    f"data.image_size={size} does not fit {model['name']} ({_first_line(error)}): "
                    "choose another size, or null for the model's default"
                ) from error
        else:
            break
    return network, example


class _Maker(ABC):
    """Makes networks of one library.

    Attributes:
        tag: The library's name of the pretrained weights.
    """

    tag: str

    def __init__(self, model: Mapping[str, Any], image_size: int | None) -> None:
        self.model = model
        self.image_size = image_size

    @abstractmethod
    def make(self, *, pretrained: bool) -> nn.Module:
        """Return the network with its classifier."""

    @abstractmethod
    def cached(self) -> Path | None:
        """Return the file of the pretrained weights if it is on this machine."""

    @abstractmethod
    def classifiers(self, network: nn.Module) -> tuple[str, ...]:
        """Return the paths of all classifiers, which will be removed: the main one first, then auxiliary ones."""

    @abstractmethod
    def without_classifier(self, network: nn.Module) -> nn.Module:
        """Return the network without its classifier."""

    @abstractmethod
    def images(self) -> ImageSpec:
        """Return the size and preprocessing of its input images."""


class _TimmMaker(_Maker):
    """Makes timm networks."""

    def __init__(self, model: Mapping[str, Any], image_size: int | None) -> None:
        super().__init__(model, image_size)
        architecture = model.get("architecture") or model["name"]
        base, _, tag = architecture.partition(".")
        if model.get("weights") and not tag:
            tag = model["weights"]
            architecture = f"{base}.{tag}"
        if model.get("weights") not in (None, tag):
            raise InputError(
                f"model.weights={model['weights']} contradicts model.architecture={architecture}: name only one tag"
            )
        if not timm.is_model(base):
            raise InputError(f"timm has no model named {architecture}.{did_you_mean(base, timm.list_models())}")
        tags = timm.models.get_arch_pretrained_cfgs(base)
        if tag and architecture not in tags:
            choices = ", ".join(name.partition(".")[2] for name in tags) or "none"
            raise InputError(f"timm has no weights {tag!r} for {base}: choose from {choices}")
        self.config = timm.models.get_pretrained_cfg(architecture) or timm.models.get_pretrained_cfg(base)
        self.architecture = architecture
        self.tag = tag or getattr(self.config, "tag", "") or "default"

    def make(self, *, pretrained: bool) -> nn.Module:
        options: dict[str, Any] = {}
        if self.image_size is not None and getattr(self.config, "fixed_input_size", False):
            options["img_size"] = self.image_size
        if pretrained and not (self.config and (self.config.hf_hub_id or self.config.url or self.config.file)):
            raise InputError(
                f"timm has no pretrained weights for {self.architecture}: set model.checkpoint=<path> to a file, or "
                "train from random weights with model.pretrained=false"
            )
        if pretrained:
            options["pretrained_cfg_overlay"] = self._local_weights()
        try:
            return timm.create_model(self.architecture, pretrained=pretrained, **options)
        except Exception as error:
            if pretrained:
                raise _unreachable(self.architecture, error) from error
            raise InputError(
                f"timm cannot make {self.architecture}"
                + (f" for images of {self.image_size} px" if options else "")
                + f" ({_first_line(error)})"
            ) from error

    def cached(self) -> Path | None:
        config = self.config
        if config and config.hf_hub_id:
            return hub.on_hub(config.hf_hub_id, config.hf_hub_filename)
        return hub.in_torch_cache(config.url) if config and isinstance(config.url, str) else None

    def _local_weights(self) -> dict[str, Any]:
        """Return what tells timm to read the weights from this machine, if they are there: it asks the hub otherwise.

        Raises:
            InputError: They are not, and their host cannot be reached.
        """
        if (file := self.cached()) is not None:
            return {"file": str(file)}
        try:
            if self.config and self.config.hf_hub_id:
                hub.check_hub()
        except hub.UnreachableError as error:
            raise _unreachable(self.architecture, error) from error
        return {}

    def classifiers(self, network: nn.Module) -> tuple[str, ...]:
        names = network.default_cfg.get("classifier", ())  # type: ignore[union-attr, operator]
        return (names,) if isinstance(names, str) else tuple(names)

    def without_classifier(self, network: nn.Module) -> nn.Module:
        if not hasattr(network, "reset_classifier"):
            raise InputError(f"timm's {self.architecture} is not a classifier, so it has no head to replace")
        network.reset_classifier(0)  # type: ignore[operator]
        return network

    def images(self) -> ImageSpec:
        config = self.config.to_dict() if self.config else {}
        return _image_spec(self.model, config)


class _TorchvisionMaker(_Maker):
    """Makes torchvision networks."""

    def __init__(self, model: Mapping[str, Any], image_size: int | None) -> None:
        super().__init__(model, image_size)
        self.name = model.get("architecture") or model["name"]
        names = torchvision.models.list_models(module=torchvision.models)
        if self.name not in names:
            raise InputError(f"torchvision has no classifier named {self.name}.{did_you_mean(self.name, names)}")
        weights = list(torchvision.models.get_model_weights(self.name))
        tag = model.get("weights") or "DEFAULT"
        try:
            self.weights = torchvision.models.get_model_weights(self.name)[tag]
        except KeyError:
            choices = ", ".join(entry.name for entry in weights)
            raise InputError(f"torchvision has no weights {tag!r} for {self.name}: choose from {choices}") from None
        self.tag = self.weights.name

    def make(self, *, pretrained: bool) -> nn.Module:
        options = {"init_weights": True} if self.name in ("inception_v3", "googlenet") and not pretrained else {}
        try:
            if pretrained and self.cached() is None:
                hub.check_host(self.weights.url)
            network = torchvision.models.get_model(self.name, weights=self.weights if pretrained else None, **options)
        except Exception as error:
            raise _unreachable(self.name, error) from error
        if hasattr(network, "transform_input"):
            # Inception and GoogLeNet rescale images that are normalised as for ImageNet. torchvision enables this only
            # with its own weights, but all weights trained with these networks need it
            network.transform_input = True
        return network

    def cached(self) -> Path | None:
        return hub.in_torch_cache(self.weights.url)

    def classifiers(self, network: nn.Module) -> tuple[str, ...]:
        """Return the paths of the last linear layer (convolution in SqueezeNet) and of auxiliary classifiers."""
        kinds = nn.Linear if any(isinstance(m, nn.Linear) for m in network.modules()) else nn.Conv2d
        names = [name for name, module in network.named_modules() if isinstance(module, kinds)]
        last = [name for name in names if not name.startswith(AUXILIARY)][-1]
        return (last, *(name for name in AUXILIARY if hasattr(network, name)))

    def without_classifier(self, network: nn.Module) -> nn.Module:
        classifier, *auxiliary = self.classifiers(network)
        network.set_submodule(classifier, nn.Identity())
        for name in auxiliary:  # they classify the original classes, and run only during training
            setattr(network, name, None)
        if auxiliary:
            network.aux_logits = False  # type: ignore[assignment]
        return network

    def images(self) -> ImageSpec:
        transform = self.weights.transforms()
        size = transform.crop_size[0]
        return _image_spec(
            self.model,
            {
                "input_size": (3, size, size),
                "mean": tuple(transform.mean),
                "std": tuple(transform.std),
                "interpolation": transform.interpolation.value,
                "crop_pct": size / transform.resize_size[0],
            },
        )


MAKERS: dict[str, type[_Maker]] = {"timm": _TimmMaker, "torchvision": _TorchvisionMaker}


def _image_spec(model: Mapping[str, Any], own: Mapping[str, Any]) -> ImageSpec:
    """Return the config's values, and the library's where the config has none."""

    def value(key: str, default: Any) -> Any:
        configured = model.get(key)
        return configured if configured is not None else own.get(key, default)

    own = {**own, "input_size": own.get("input_size", (3, 224, 224))[-1]}
    return ImageSpec(
        size=int(value("input_size", 224)),
        mean=tuple(value("mean", (0.485, 0.456, 0.406))),
        std=tuple(value("std", (0.229, 0.224, 0.225))),
        interpolation=str(value("interpolation", "bicubic")),
        crop_pct=float(value("crop_pct", 0.875) or 0.875),
    )


def _unreachable(name: str, error: Exception) -> InputError:
    reason = str(error) if isinstance(error, InputError) else _first_line(error)
    return InputError(
        f"the pretrained weights of {name} could not be downloaded ({reason}): set model.checkpoint=<path> "
        "to a local file, or train from random weights with model.pretrained=false"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
