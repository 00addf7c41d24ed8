"""Model names: files in `conf/model`, timm models and torchvision models."""

from __future__ import annotations

import timm
import torchvision

from blockwise.config.compose import options
from blockwise.config.overrides import quoted
from blockwise.errors import InputError, did_you_mean
from blockwise.io.origins import check_origin, has_origin


def model_overrides(model: str) -> list[str]:
    """Return the settings that choose a model by its name in `conf/model/`, timm or torchvision.

    Args:
        model: The name; a prefix chooses the library: `timm:resnet18`, `torchvision:resnet18`. timm also knows
            `hf-hub:<org>/<name>` and `local-dir:<folder>`, with or without `timm:` in front.

    Raises:
        InputError: There is no model of that name.
    """
    if has_origin(name := model.removeprefix("timm:")):
        check_origin(name)
        return ["model=timm", f"model.name={quoted(name)}", "data.image_size=null"]
    source, _, name = model.rpartition(":")
    files = [name for name in options("model") if name not in ("timm", "torchvision")]
    if not source and name in files:
        return [f"model={name}", "data.image_size=null"]
    torchvision_models = torchvision.models.list_models(module=torchvision.models)
    if source in ("", "timm") and timm.is_model(name.partition(".")[0]):
        return ["model=timm", f"model.name={name}", "data.image_size=null"]
    if source in ("", "torchvision") and name in torchvision_models:
        return ["model=torchvision", f"model.name={name}", "data.image_size=null"]
    raise InputError(
        f"there is no model {model}: name a file of conf/model, a timm model or a torchvision model."
        f"{did_you_mean(name, [*files, *torchvision_models, *timm.list_models()])}"
    )
