"""Make timm networks that a `config.json` describes: `hf-hub:<org>/<name>` and `local-dir:<folder>`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from blockwise.backbone.makers import hub
from blockwise.backbone.makers.base import kind_and_line
from blockwise.backbone.makers.of_timm import TimmMaker
from blockwise.backbone.makers.options import refusal
from blockwise.backbone.makers.origin import Origin, find_origin
from blockwise.backbone.makers.weights import read_state_dict
from blockwise.errors import InputError
from blockwise.io.names import file_name


class OriginMaker(TimmMaker):
    """Makes timm networks of a repository of the hub, or of a folder.

    Attributes:
        origin: What its `config.json` says.
    """

    def __init__(self, model: Mapping[str, Any], image_size: int | None) -> None:
        super(TimmMaker, self).__init__(model, image_size)  # not timm's tags
        self.architecture = model.get("architecture") or model["name"]
        if model.get("weights"):
            raise InputError(f"model.weights={model['weights']} is a tag of timm, but {self.architecture} has none")
        self.origin: Origin = find_origin(self.architecture)
        self.config = self.origin.config
        if model["pretrained"] and model.get("checkpoint") is None and self.origin.repository is None:
            self._file()  # a plan says that a folder has no weights, too

    def make(self, *, pretrained: bool) -> nn.Module:
        """Return the network with its classifier.

        Raises:
            InputError: timm cannot make it, or its weights cannot be downloaded, are damaged or do not fit.
        """
        network = super().make(pretrained=pretrained)
        if pretrained and not all(bool(t.isfinite().all()) for t in network.state_dict().values()):
            raise InputError(f"the weights {self.cached()} are damaged: they contain values other than finite numbers")
        return network

    def described(self) -> tuple[str, dict[str, Any]]:
        """Return the architecture and all arguments of timm's builder, those of `config.json` included."""
        return self.origin.architecture, {**self.origin.arguments, **self.options, **self._size()}

    def _create(self, options: Mapping[str, Any], *, pretrained: bool, **more: Any) -> nn.Module:
        origin = self.origin
        arguments = {**origin.arguments, **options, **self._size(), **more}
        config = origin.config.to_dict()
        network: nn.Module = timm.create_model(
            origin.architecture, pretrained=pretrained, pretrained_cfg=config, **arguments
        )
        return network

    def _size(self) -> dict[str, Any]:
        fixed = self.image_size is not None and "img_size" in self.origin.arguments
        return {"img_size": self.image_size} if fixed else super()._size()

    def cached(self) -> Path | None:
        """Return the file of the weights if it is on this machine."""
        return self.origin.weights()

    def _local_weights(self) -> dict[str, Any]:
        file = self._file()
        read_state_dict(file, f"the file {file}")
        return {"pretrained_cfg_overlay": {"file": str(file)}}

    def _file(self) -> Path:
        """Return the file of the weights, downloaded if needed.

        Raises:
            InputError: It cannot be downloaded, or the folder has none.
        """
        origin = self.origin
        if (file := origin.weights()) is not None:
            return file
        if origin.repository is None:
            raise InputError(f"{self.architecture} has no weights: the folder needs a model.safetensors")
        if (error := refusal(self.build, self.options)) is not None:  # found before the download
            raise InputError(f"timm cannot make {self.architecture} ({kind_and_line(error)})") from error
        return hub.fetch(origin.repository, origin.files, origin.folder.name, self.architecture)

    def weights(self) -> str:
        """Return what identifies the weights in settings: a hash of their content."""
        origin = self.origin
        if (file := origin.weights()) is not None:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
        else:
            assert origin.repository is not None
            digest = hub.published_hash(origin.repository, origin.files, origin.folder.name) or "not known"
        place = f"hf-hub {origin.repository}" if origin.repository else f"local-dir {file_name(origin.folder.name)}"
        return f"{place} sha256:{digest[:12]}"

    def settings(self) -> dict[str, Any]:
        """Return the architecture and all arguments of timm's builder, those of `config.json` included."""
        arguments = {**self.origin.arguments, **self.options}
        return {"architecture": self.origin.architecture} | ({"options": arguments} if arguments else {})
