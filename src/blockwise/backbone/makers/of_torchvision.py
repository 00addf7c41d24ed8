"""Make torchvision networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torchvision
from torch import nn

from blockwise.backbone.makers import hub
from blockwise.backbone.makers.base import ImageSpec, Maker, image_spec_of, kind_and_line, unreachable
from blockwise.errors import InputError, did_you_mean

AUXILIARY = ("AuxLogits", "aux1", "aux2")


class TorchvisionMaker(Maker):
    """Makes torchvision networks."""

    def __init__(self, model: Mapping[str, Any], image_size: int | None) -> None:
        super().__init__(model, image_size)
        self.architecture = model.get("architecture") or model["name"]
        names = torchvision.models.list_models(module=torchvision.models)
        if self.architecture not in names:
            raise InputError(
                f"torchvision has no classifier named {self.architecture}.{did_you_mean(self.architecture, names)}"
            )
        weights = list(torchvision.models.get_model_weights(self.architecture))
        tag = model.get("weights") or "DEFAULT"
        try:
            self.entry = torchvision.models.get_model_weights(self.architecture)[tag]
        except KeyError:
            choices = ", ".join(entry.name for entry in weights)
            raise InputError(
                f"torchvision has no weights {tag!r} for {self.architecture}: choose from {choices}"
            ) from None
        self.tag = self.entry.name

    def make(self, *, pretrained: bool) -> nn.Module:
        """Return the network with its classifier.

        Raises:
            InputError: The weights cannot be downloaded, or do not fit the options.
        """
        try:
            if pretrained and self.cached() is None:
                hub.check_host(self.entry.url)
            network: Any = self._load() if pretrained else self.build(self.options)
        except hub.UnreachableError as error:
            raise unreachable(self.architecture, error) from error
        except Exception as error:
            if pretrained:
                raise self.not_loaded(error) from error
            raise InputError(f"torchvision cannot make {self.architecture} ({kind_and_line(error)})") from error
        if hasattr(network, "transform_input"):
            # Inception and GoogLeNet rescale images that are normalised as for ImageNet. torchvision enables this only
            # with its own weights, but all weights trained with these networks need it
            network.transform_input = True
        return cast("nn.Module", network)

    def _load(self) -> nn.Module:
        network: nn.Module = torchvision.models.get_model(self.architecture, weights=self.entry, **self.options)
        return network

    def build(self, options: Mapping[str, Any]) -> nn.Module:
        """Return the network with its classifier and without weights."""
        options = {"init_weights": True, **options} if self.architecture in ("inception_v3", "googlenet") else options
        network: nn.Module = torchvision.models.get_model(self.architecture, weights=None, **options)
        return network

    def cached(self) -> Path | None:
        """Return the file of the pretrained weights if it is on this machine."""
        return hub.in_torch_cache(self.entry.url)

    def classifiers(self, network: nn.Module) -> tuple[str, ...]:
        """Return the paths of the last linear layer (convolution in SqueezeNet) and of auxiliary classifiers."""
        kinds = nn.Linear if any(isinstance(m, nn.Linear) for m in network.modules()) else nn.Conv2d
        names = [name for name, module in network.named_modules() if isinstance(module, kinds)]
        last = [name for name in names if not name.startswith(AUXILIARY)][-1]
        return (last, *(name for name in AUXILIARY if hasattr(network, name)))

    def without_classifier(self, network: nn.Module) -> nn.Module:
        """Return the network without its classifier."""
        classifier, *auxiliary = self.classifiers(network)
        network.set_submodule(classifier, nn.Identity())
        for name in auxiliary:  # they classify the original classes, and run only during training
            setattr(network, name, None)
        if auxiliary:
            network.aux_logits = False  # type: ignore[assignment]
        return network

    def images(self) -> ImageSpec:
        """Return the size and preprocessing of its input images."""
        transform = self.entry.transforms()
        size = transform.crop_size[0]
        return image_spec_of(
            self.model,
            {
                "input_size": (3, size, size),
                "mean": tuple(transform.mean),
                "std": tuple(transform.std),
                "interpolation": transform.interpolation.value,
                "crop_pct": size / transform.resize_size[0],
            },
        )
