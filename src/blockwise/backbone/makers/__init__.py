"""Make networks of timm and torchvision, and of configs that describe a timm network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockwise.backbone.makers.base import Maker
from blockwise.backbone.makers.of_origin import OriginMaker
from blockwise.backbone.makers.of_timm import TimmMaker
from blockwise.backbone.makers.of_torchvision import TorchvisionMaker
from blockwise.io.origins import has_origin


def maker_of(model: Mapping[str, Any], image_size: int | None) -> Maker:
    """Return what makes the network of a `model` config.

    Raises:
        InputError: The architecture is unknown, or an option is not for users to set.
    """
    if model["source"] == "torchvision":
        return TorchvisionMaker(model, image_size)
    if has_origin(model.get("architecture") or model["name"]):
        return OriginMaker(model, image_size)
    return TimmMaker(model, image_size)
