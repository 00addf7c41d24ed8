"""Make timm networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from blockwise.backbone.makers import hub
from blockwise.backbone.makers.base import ImageSpec, Maker, image_spec_of, kind_and_line, unreachable
from blockwise.errors import InputError, did_you_mean


class TimmMaker(Maker):
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
        """Return the network with its classifier.

        Raises:
            InputError: timm cannot make it, or its weights cannot be downloaded or do not fit.
        """
        weights = self._local_weights() if pretrained else {}
        try:
            return self._create(self.options, pretrained=pretrained, **weights)
        except Exception as error:
            if pretrained:
                raise self.not_loaded(error) from error
            raise InputError(
                f"timm cannot make {self.architecture}"
                + (f" for images of {self.image_size} px" if self._size() else "")
                + f" ({kind_and_line(error)})"
            ) from error

    def build(self, options: Mapping[str, Any]) -> nn.Module:
        """Return the network with its classifier and without weights."""
        return self._create(options, pretrained=False)

    def _create(self, options: Mapping[str, Any], *, pretrained: bool, **more: Any) -> nn.Module:
        arguments = {**options, **self._size(), **more}
        network: nn.Module = timm.create_model(self.architecture, pretrained=pretrained, **arguments)
        return network

    def _size(self) -> dict[str, Any]:
        """Return the argument of networks that are made for one size of images."""
        fixed = self.image_size is not None and getattr(self.config, "fixed_input_size", False)
        return {"img_size": self.image_size} if fixed else {}

    def described(self) -> tuple[str, dict[str, Any]]:
        """Return timm's name of the architecture, without a tag, and all arguments of its builder."""
        return self.architecture.partition(".")[0], {**self.options, **self._size()}

    def cached(self) -> Path | None:
        """Return the file of the pretrained weights if it is on this machine."""
        config = self.config
        if config and config.hf_hub_id:
            return hub.on_hub(config.hf_hub_id, config.hf_hub_filename)
        return hub.in_torch_cache(config.url) if config and isinstance(config.url, str) else None

    def _local_weights(self) -> dict[str, Any]:
        """Return what tells timm to read the weights from this machine, if they are there: it asks the hub otherwise.

        Raises:
            InputError: They are not, and their host cannot be reached; or there are none.
        """
        if not (self.config and (self.config.hf_hub_id or self.config.url or self.config.file)):
            raise InputError(
                f"timm has no pretrained weights for {self.architecture}: set model.checkpoint=<path> to a file, or "
                "train from random weights with model.pretrained=false"
            )
        if (file := self.cached()) is not None:
            return {"pretrained_cfg_overlay": {"file": str(file)}}
        try:
            if self.config.hf_hub_id:
                hub.check_hub()
        except hub.UnreachableError as error:
            raise unreachable(self.architecture, error) from error
        return {"pretrained_cfg_overlay": {}}

    def classifiers(self, network: nn.Module) -> tuple[str, ...]:
        """Return the paths of all classifiers: the main one first, then auxiliary ones."""
        names = network.default_cfg.get("classifier", ())  # type: ignore[union-attr, operator]
        return (names,) if isinstance(names, str) else tuple(names)

    def without_classifier(self, network: nn.Module) -> nn.Module:
        """Return the network without its classifier.

        Raises:
            InputError: The network is no classifier.
        """
        if not hasattr(network, "reset_classifier"):
            raise InputError(f"timm's {self.architecture} is not a classifier, so it has no head to replace")
        network.reset_classifier(0)  # type: ignore[operator]
        return network

    def images(self) -> ImageSpec:
        """Return the size and preprocessing of its input images."""
        return image_spec_of(self.model, self.config.to_dict() if self.config else {})
