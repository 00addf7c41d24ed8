"""Dropout that is a function of the forward pass instead of a layer, which blockwise cannot switch on per block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from blockwise.backbone.layers import is_leaf

DROPOUT = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)


class _Watch(TorchFunctionMode):
    """Notes whether a function drops anything."""

    dropped = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUT:
            given = {**dict(zip(("p", "training"), args[1:], strict=False)), **kwargs}
            self.dropped |= bool(given.get("training", True)) and given.get("p", 0.5) > 0
        if func is F.scaled_dot_product_attention:
            given = {**dict(zip(("mask", "dropout_p"), args[3:], strict=False)), **kwargs}
            self.dropped |= given.get("dropout_p", 0.0) > 0
        return func(*args, **kwargs)


def drops_by_function(network: nn.Module, images: Tensor) -> bool:
    """Return whether a network in training mode, but with its layers in inference mode, drops values.

    If it cannot process the images, this is not known, and False.
    """
    network.train()
    for module in network.modules():
        if is_leaf(module):
            module.eval()
    watch = _Watch()
    with torch.no_grad(), watch, suppress(Exception):
        network(images)
    return watch.dropped
