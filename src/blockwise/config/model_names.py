"""The names by which users call models: files under `conf/model`, models of timm and of torchvision."""

from __future__ import annotations

import timm
import torchvision

from blockwise.config.compose import options
from blockwise.errors import InputError, did_you_mean


def model_overrides(model: str) -> list[str]:
    """Return the settings that choose a model by a name under `conf/model/`, of timm or of torchvision.

    Raises:
        InputError: There is none of that name.
    """
    source, _, name = model.rpartition(":")
    known = [name for name in options("model") if name not in ("timm", "torchvision")]
    if not source and name in known:
        return [f"model={name}", "data.image_size=null"]
    theirs = torchvision.models.list_models(module=torchvision.models)
    if source in ("", "timm") and timm.is_model(name.partition(".")[0]):
        return ["model=timm", f"model.name={name}", "data.image_size=null"]
    if source in ("", "torchvision") and name in theirs:
        return ["model=torchvision", f"model.name={name}", "data.image_size=null"]
    raise InputError(
        f"no model is named {model}: give a name under conf/model, of timm or of torchvision."
        f"{did_you_mean(name, [*known, *theirs, *timm.list_models()])}"
    )
