"""Names of `model.options`, arguments for the builders of timm and torchvision, without those that blockwise sets."""

from __future__ import annotations

import keyword
from typing import Any

from blockwise.errors import InputError
from blockwise.io.names import printable

# what blockwise sets itself, and what to do instead
OURS = {
    "num_classes": "blockwise makes the head",
    **dict.fromkeys(("features_only", "out_indices", "feature_cls"), "blockwise needs the whole network"),
    **dict.fromkeys(("model_name", "name", "architecture", "variant", "model_cfg"), "use model.name"),
    **dict.fromkeys(("weights", "weights_backbone", "cache_dir"), "use model.pretrained and model.weights"),
    **dict.fromkeys(("checkpoint_path", "state_dict"), "use model.checkpoint"),
    **dict.fromkeys(("in_chans", "in_channels"), "images have 3 channels"),
    **dict.fromkeys(("img_size", "input_size", "image_size"), "use data.image_size"),
    **dict.fromkeys(("init_weights", "transform_input", "aux_logits", "progress"), "blockwise sets it"),
    **dict.fromkeys(("device", "dtype"), "use trainer.accelerator and trainer.precision"),
    **dict.fromkeys(("kwargs_filter", "scriptable", "exportable", "no_jit"), "blockwise traces the network"),
}
# pretrained, pretrained_cfg, pretrained_cfg_overlay, pretrained_filter_fn and others
PRETRAINED = "pretrained"
CHANNELS = ("in_chans", "in_channels")


def check_options(key: str, options: Any) -> None:
    """Check that options are names and values, and that blockwise sets none of them itself.

    Args:
        key: Name of the setting, in messages.
        options: Its value: names and values, or None.

    Raises:
        InputError: They are not, or it does.
    """
    if options is None:
        return
    if not isinstance(options, dict):
        raise InputError(f"{key}={options} must be names and values, such as {{drop_path_rate: 0.1}}, or null")
    for name, value in options.items():
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise InputError(f"{key} has the name {printable(str(name))!r}: options are names of arguments")
        reason = "use model.pretrained and model.weights" if name.startswith(PRETRAINED) else OURS.get(name)
        if reason and value is not None and not (name in CHANNELS and value == 3):
            raise InputError(f"{key}.{name}={printable(str(value))} is not for you to set: {reason}")
